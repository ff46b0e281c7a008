"""Metrics: callables `(images, prompts) -> one score per image`; higher means more of the concept."""

from neuroscope.metrics.clap_score import ClapScore
from neuroscope.metrics.clip_score import ClipScore
from neuroscope.metrics.metric import Metric, bind
from neuroscope.metrics.shares import Flipped, ImageShare, LatentShare, Share

__all__ = ["ClapScore", "ClipScore", "Flipped", "ImageShare", "LatentShare", "Metric", "Share", "bind"]

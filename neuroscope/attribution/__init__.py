"""Attribution: how strongly each neuron responds to a concept. One file a method."""

from neuroscope.attribution._attribution import Attribution, Evidence, Scored, score
from neuroscope.attribution.auroc import Auroc
from neuroscope.attribution.mean_difference import MeanDifference
from neuroscope.attribution.weighted_norm import WeightedNorm
from neuroscope.attribution.welch import Welch

__all__ = ["Attribution", "Auroc", "Evidence", "MeanDifference", "Scored", "WeightedNorm", "Welch", "score"]

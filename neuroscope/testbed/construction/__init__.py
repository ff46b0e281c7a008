"""Constructed pipelines: random weights of every family's topology, with an answer that is exact in the weights."""

from neuroscope.testbed.construction._build import FAMILIES, build, planted, verify
from neuroscope.testbed.construction.plants import PLANTS, Planted
from neuroscope.testbed.construction.proof import Claim, Proof

__all__ = ["FAMILIES", "PLANTS", "Claim", "Planted", "Proof", "build", "planted", "verify"]

"""Attribution: how strongly each neuron responds to a concept, or controls it. One file a method."""

from neuroscope.attribution._attribution import Attribution, Evidence, Scored, score
from neuroscope.attribution._causal_attribution import CausalAttribution
from neuroscope.attribution._rank import plan_ranking, rank
from neuroscope.attribution.auroc import Auroc
from neuroscope.attribution.integrated_gradients import IntegratedGradients
from neuroscope.attribution.mean_difference import MeanDifference
from neuroscope.attribution.neuron_ablation import NeuronAblation
from neuroscope.attribution.neuron_gradient import NeuronGradient
from neuroscope.attribution.weighted_norm import WeightedNorm
from neuroscope.attribution.welch import Welch

__all__ = [
    "Attribution",
    "Auroc",
    "CausalAttribution",
    "Evidence",
    "IntegratedGradients",
    "MeanDifference",
    "NeuronAblation",
    "NeuronGradient",
    "Scored",
    "WeightedNorm",
    "Welch",
    "plan_ranking",
    "rank",
    "score",
]

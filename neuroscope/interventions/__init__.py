"""Interventions: changes to sites, active inside `HookGraph.apply`. One file a kind."""

from neuroscope.interventions.context_map import ContextMap, EditReport, Factor
from neuroscope.interventions.context_swap import ContextSwap
from neuroscope.interventions.neuron_mask import NeuronMask

__all__ = ["ContextMap", "ContextSwap", "EditReport", "Factor", "NeuronMask"]

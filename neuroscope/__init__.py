"""neuroscope: find, switch off and edit what a text-to-image diffusion model knows, neuron by neuron.

A `HookGraph` finds the sites of a live diffusers pipeline: its cross-attention keys, values, queries and outputs, and
the feed-forward neurons beside them. A `Concept` is a name with prompts in which it is present and absent. `record`
streams statistics of both into a `Recording`; `score` ranks neurons from it by a method such as `Welch`, giving
`NeuronScores`; `.top(k)` of these are `Neurons`. A `NeuronMask` drives them to a value while the pipeline runs inside
`graph.apply(mask)`. `evaluate` measures what changed, on other prompts and seeds; `plots` shows it. Results are saved
and loaded as single safetensors files by `save` and `load`; `report` puts a folder of them on one page.
"""

from neuroscope import _interrupts, testbed  # noqa: F401 - the first of these works by being imported, before what takes long
from neuroscope.attribution import Attribution, Auroc, MeanDifference, NeuronAblation, NeuronGradient, WeightedNorm, Welch, score
from neuroscope.attribution.null_tests import NullTest, null_test
from neuroscope.attribution.recording import Recording, record
from neuroscope.core.artifacts import Artifact, Provenance, load, read_header, save
from neuroscope.core.concepts import Concept
from neuroscope.core.conditions import Conditions
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import (
    ForeignFile,
    InvalidFile,
    InvalidInput,
    NeuroscopeError,
    NonFiniteActivation,
    SiteNeverRan,
    SiteRanUnevenly,
    UnknownSite,
    UnsupportedModel,
)
from neuroscope.core.intervention import Call, Intervention
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.quality import Confidence, Cost, Fidelity
from neuroscope.core.scores import Neurons, NeuronScores
from neuroscope.core.sites import Component, Site, Sites
from neuroscope.core.statistics import Moments
from neuroscope.editing import Folded, LocoEdit, edit, export_lora, fold
from neuroscope.editing.updates import LinearUpdate
from neuroscope.evaluation._evaluate import evaluate, generate, random_control, summarize
from neuroscope.interventions import ContextMap, ContextSwap, EditReport, NeuronMask
from neuroscope.localization import (
    AttentionContribution,
    AttributionPatching,
    CausalTracing,
    Localization,
    LocoGen,
    Racing,
    TeacherForced,
    localize,
)
from neuroscope.metrics.clip_score import ClipScore
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import Flipped, ImageShare, LatentShare
from neuroscope.pipeline.activation_cache import ActivationCache
from neuroscope.pipeline.discovery import sites_from_config
from neuroscope.pipeline.graph import HookGraph
from neuroscope.report import (
    plots,
    report,
)

__all__ = [
    "ActivationCache",
    "Artifact",
    "AttentionContribution",
    "Attribution",
    "AttributionPatching",
    "Auroc",
    "Call",
    "CausalTracing",
    "ClipScore",
    "Component",
    "Concept",
    "Conditions",
    "Confidence",
    "ContextMap",
    "ContextSwap",
    "Cost",
    "EditReport",
    "Effects",
    "Fidelity",
    "Flipped",
    "Folded",
    "ForeignFile",
    "HookGraph",
    "ImageShare",
    "Intervention",
    "InvalidFile",
    "InvalidInput",
    "LatentShare",
    "LayerScores",
    "LinearUpdate",
    "Localization",
    "LocoEdit",
    "LocoGen",
    "MeanDifference",
    "Metric",
    "Moments",
    "NeuronAblation",
    "NeuronGradient",
    "NeuronMask",
    "NeuronScores",
    "Neurons",
    "NeuroscopeError",
    "NonFiniteActivation",
    "NullTest",
    "Patch",
    "Provenance",
    "Racing",
    "Recording",
    "Site",
    "SiteNeverRan",
    "SiteRanUnevenly",
    "Sites",
    "TeacherForced",
    "UnknownSite",
    "UnsupportedModel",
    "WeightedNorm",
    "Welch",
    "edit",
    "evaluate",
    "export_lora",
    "fold",
    "generate",
    "load",
    "localize",
    "null_test",
    "plots",
    "random_control",
    "read_header",
    "record",
    "report",
    "save",
    "score",
    "sites_from_config",
    "summarize",
    "testbed",
]

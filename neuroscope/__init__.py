"""neuroscope: find, switch off and edit what a text-to-image diffusion model knows, neuron by neuron.

A `HookGraph` finds the sites of a live diffusers pipeline: its cross-attention keys, values, queries and outputs, and
the feed-forward neurons beside them. A `Concept` is a name with prompts in which it is present and absent. `record`
streams statistics of both into a `Recording`; `score` ranks neurons from it by a method such as `Welch`, giving
`NeuronScores`; `.top(k)` of these are `Neurons`. A `NeuronMask` drives them to a value while the pipeline runs inside
`graph.apply(mask)`. `evaluate` measures what changed, on other prompts and seeds; `plots` shows it. Results are saved
and loaded as single safetensors files by `save` and `load`; `report` puts a folder of them on one page.

Each name is imported when it is first asked for, so that `import neuroscope` takes no time; `HOMES` says from where.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroscope import testbed
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
    from neuroscope.evaluation._evaluate import evaluate, generate, random_control
    from neuroscope.evaluation._table import summarize
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

    __version__: str

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

#: Where the public names are, as in `from MODULE import NAME`. `load` looks for a file's kind in this order.
HOMES: dict[str, tuple[str, ...]] = {
    # Concepts, results, files
    "neuroscope.core.concepts": ("Concept",),
    "neuroscope.core.artifacts": ("Artifact", "Provenance", "load", "read_header", "save"),
    "neuroscope.core.scores": ("Neurons", "NeuronScores"),
    "neuroscope.core.layer_scores": ("LayerScores",),
    "neuroscope.core.effects": ("Effects", "Patch"),
    "neuroscope.core.statistics": ("Moments",),
    "neuroscope.core.quality": ("Confidence", "Cost", "Fidelity"),
    # Interventions
    "neuroscope.core.intervention": ("Call", "Intervention"),
    "neuroscope.interventions": ("ContextMap", "ContextSwap", "EditReport", "NeuronMask"),
    # The model
    "neuroscope.pipeline.graph": ("HookGraph",),
    "neuroscope.pipeline.activation_cache": ("ActivationCache",),
    "neuroscope.pipeline.discovery": ("sites_from_config",),
    "neuroscope.core.sites": ("Component", "Site", "Sites"),
    "neuroscope.core.conditions": ("Conditions",),
    # Ranking neurons
    "neuroscope.attribution": (
        "Attribution",
        "Auroc",
        "MeanDifference",
        "NeuronAblation",
        "NeuronGradient",
        "WeightedNorm",
        "Welch",
        "score",
    ),
    "neuroscope.attribution.recording": ("Recording", "record"),
    "neuroscope.attribution.null_tests": ("NullTest", "null_test"),
    # Finding layers
    "neuroscope.localization": (
        "AttentionContribution",
        "AttributionPatching",
        "CausalTracing",
        "Localization",
        "LocoGen",
        "Racing",
        "TeacherForced",
        "localize",
    ),
    # Editing
    "neuroscope.editing": ("Folded", "LocoEdit", "edit", "export_lora", "fold"),
    "neuroscope.editing.updates": ("LinearUpdate",),
    # Making images and measuring
    "neuroscope.evaluation._evaluate": ("evaluate", "generate", "random_control"),
    "neuroscope.evaluation._table": ("summarize",),
    "neuroscope.metrics.clip_score": ("ClipScore",),
    "neuroscope.metrics.metric": ("Metric",),
    "neuroscope.metrics.shares": ("Flipped", "ImageShare", "LatentShare"),
    # Showing
    "neuroscope.report": ("plots", "report"),
    # The bundled models
    "neuroscope": ("testbed",),
    # Errors
    "neuroscope.core.errors": (
        "ForeignFile",
        "InvalidFile",
        "InvalidInput",
        "NeuroscopeError",
        "NonFiniteActivation",
        "SiteNeverRan",
        "SiteRanUnevenly",
        "UnknownSite",
        "UnsupportedModel",
    ),
}

_HOME_OF = {name: home for home, names in HOMES.items() for name in names}
#: The public names that are modules.
_MODULES = ("plots", "testbed")


class _Package(ModuleType):
    """This package: importing the room `neuroscope.report` leaves the function of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, ModuleType) or value.__name__ != _HOME_OF.get(name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # or a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from neuroscope.core.distribution import version

            value = version()
        elif name in _HOME_OF:
            home = _HOME_OF[name]
            value = import_module(f"{home}.{name}") if name in _MODULES else getattr(import_module(home), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

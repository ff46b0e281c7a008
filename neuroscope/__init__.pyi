"""The public names, in groups, for type checkers and for `__init__.py`, which imports each when it is first asked for.

A new public name is one line here. `load` looks for a file's kind in this order.
"""

# isort: off

# Concepts, results, files
from neuroscope.core.concepts import Concept as Concept
from neuroscope.core.artifacts import (
    Artifact as Artifact,
    Provenance as Provenance,
    load as load,
    read_header as read_header,
    save as save,
)
from neuroscope.core.results.scores import (
    Neurons as Neurons,
    NeuronScores as NeuronScores,
)
from neuroscope.core.results.layer_scores import LayerScores as LayerScores
from neuroscope.core.results.atlas import Atlas as Atlas
from neuroscope.core.results.effects import (
    Effects as Effects,
    Patch as Patch,
)
from neuroscope.core.statistics import Moments as Moments
from neuroscope.core.results.quality import (
    Confidence as Confidence,
    Cost as Cost,
    Fidelity as Fidelity,
)

# Interventions
from neuroscope.core.intervention import (
    Call as Call,
    Intervention as Intervention,
)
from neuroscope.interventions import (
    ContextMap as ContextMap,
    ContextSwap as ContextSwap,
    EditReport as EditReport,
    NeuronMask as NeuronMask,
)

# The model
from neuroscope.pipeline.graph import HookGraph as HookGraph
from neuroscope.pipeline.hooking.activation_cache import ActivationCache as ActivationCache
from neuroscope.pipeline.discovery import sites_from_config as sites_from_config
from neuroscope.core.sites import (
    Component as Component,
    Site as Site,
    Sites as Sites,
)
from neuroscope.core.conditions import Conditions as Conditions

# Ranking neurons
from neuroscope.attribution import (
    Attribution as Attribution,
    Auroc as Auroc,
    CausalAttribution as CausalAttribution,
    IntegratedGradients as IntegratedGradients,
    MeanDifference as MeanDifference,
    NeuronAblation as NeuronAblation,
    NeuronGradient as NeuronGradient,
    WeightedNorm as WeightedNorm,
    Welch as Welch,
    rank as rank,
    score as score,
)
from neuroscope.attribution.recording import (
    Recording as Recording,
    record as record,
)
from neuroscope.attribution.null_tests import (
    NullTest as NullTest,
    null_test as null_test,
)

# Finding layers
from neuroscope.localization import (
    AttentionContribution as AttentionContribution,
    AttributionPatching as AttributionPatching,
    CausalTracing as CausalTracing,
    Localization as Localization,
    LocoGen as LocoGen,
    Racing as Racing,
    TeacherForced as TeacherForced,
    atlas as atlas,
    localize as localize,
)

# Editing
from neuroscope.editing import (
    Folded as Folded,
    LocoEdit as LocoEdit,
    edit as edit,
    export_lora as export_lora,
    fold as fold,
)
from neuroscope.editing.updates import LinearUpdate as LinearUpdate

# Making images and measuring
from neuroscope.evaluation._evaluate import (
    evaluate as evaluate,
    generate as generate,
    random_control as random_control,
)
from neuroscope.evaluation._dose_response import dose_response as dose_response
from neuroscope.evaluation._response import DoseResponse as DoseResponse
from neuroscope.evaluation._table import summarize as summarize
from neuroscope.generation.executors import (
    Executor as Executor,
    Local as Local,
    Ray as Ray,
    Shard as Shard,
    ShardReport as ShardReport,
)
from neuroscope.generation.ledgers import (
    LedgerSummary as LedgerSummary,
    ResumeAnyway as ResumeAnyway,
    RunConditions as RunConditions,
    RunSummary as RunSummary,
    merge as merge,
)
from neuroscope.metrics.clap_score import ClapScore as ClapScore
from neuroscope.metrics.clip_score import ClipScore as ClipScore
from neuroscope.metrics.metric import Metric as Metric
from neuroscope.metrics.shares import (
    Flipped as Flipped,
    ImageShare as ImageShare,
    LatentShare as LatentShare,
)

# Showing
from neuroscope.report import (
    plots as plots,
    report as report,
)

# The bundled models
from neuroscope import testbed as testbed

# Errors
from neuroscope.core.errors import (
    ForeignFile as ForeignFile,
    InvalidFile as InvalidFile,
    InvalidInput as InvalidInput,
    NeuroscopeError as NeuroscopeError,
    NonFiniteActivation as NonFiniteActivation,
    NoSmallestMask as NoSmallestMask,
    SiteNeverRan as SiteNeverRan,
    SiteRanUnevenly as SiteRanUnevenly,
    TasksFailed as TasksFailed,
    UnknownSite as UnknownSite,
    UnsupportedModel as UnsupportedModel,
)

__version__: str

"""Causal tracing, the baseline: restores single components of a corrupted run and measures how much of the concept comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.results.effects import Patch
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.core.sites import Component
from neuroscope.generation.batches import Row, fitted_batch_size
from neuroscope.generation.dry_run import plan_runs
from neuroscope.generation.experiment import Experiment, Localization, RunBatch, RunKey
from neuroscope.generation.measured import Measured
from neuroscope.generation.metering import metered
from neuroscope.localization.patching.corruption import Corruption
from neuroscope.pipeline.families import Templated
from neuroscope.pipeline.graph import HookGraph

ComponentKind = Literal["cross", "self", "ff", "resnet", "ff_context", "pooled", "all", "text"]
COMPONENTS: tuple[str, ...] = get_args(ComponentKind)


@dataclass(frozen=True)
class _Restored(Row):
    """A corrupted row in which one component takes its output from the batch's first row, which is clean."""

    component: Component | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalTracing(Localization):
    """Localisation by restoring one component in a corrupted run (Basu et al. 2023, after Meng et al. 2022).

    The clean run has the prompt as it is. The corrupted run has Gaussian noise on the token embeddings of the concept's name. In a
    restored run, a corrupted one, a component takes its clean output at every step. The score is restored minus corrupted over clean
    minus corrupted: 0 where the component brings nothing back, 1 where it alone brings back everything.

    Clean outputs are never stored: the clean run is the first row of every batch, and the others copy from it as they run.

    Attributes:
        noise: standard deviation of the noise, in units of that of the name's own token embeddings.
        component: restore cross-attentions ("cross"), self-attentions ("self"), feed-forwards ("ff") or ResNet blocks ("resnet") of the
            denoiser; where blocks rewrite the text, an attention is "cross", with what it gives to image and text, and there are the
            text's feed-forwards ("ff_context") and the embedded pooled text, which every block reads ("pooled"); "all" for each of all
            these; or "text" for each layer of the text encoder, at each kind of token.
        rows: restore "all" rows or the "conditional" ones, which carry the prompt.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a prompt that does not hold the concept's name, or a model without such
            components.
    """

    of_rewritten_text: ClassVar[bool] = True

    noise: float = 3.0
    component: ComponentKind = "cross"
    rows: Literal["all", "conditional"] = "all"

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        if self.noise <= 0:
            raise InvalidInput(f"noise={self.noise} corrupts nothing; give a positive number, such as 3.0")
        choose("component", self.component, COMPONENTS)
        choose("rows", self.rows, ("all", "conditional"))

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each component, or each text layer; see `Localization.__call__`."""
        self._check_model(experiment)
        corruption = self._corruption(experiment)
        corruption.check([pair.present for pair in experiment.pairs])
        with metered(experiment.graph.denoiser) as meter:
            trace = self._trace_text if self.component == "text" else self._trace_denoiser
            patches, names, groups, contexts = trace(experiment, corruption)
            sweep = experiment.sweep([pair.present for pair in experiment.pairs], contexts=contexts)
            measured = Measured(experiment, sweep, self)
            measured.run(groups)
        effects = measured.effects(patches, relative=True)
        experiment.warn_of_no_change(effects)
        sheet = measured.sheet(patches)
        return LayerScores.of(effects, provenance=experiment.provenance(self), names=names, cost=meter.cost, **sheet)

    @property
    def not_sharded(self) -> str:
        """See `ExperimentMethod.not_sharded`; all its images are known."""
        return ""

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`; exact for the batch size that fits now, as each batch makes the clean run again."""
        self._check_model(experiment)
        images = len(experiment.image_keys)
        if self.component == "text":
            corruption = self._corruption(experiment)
            patches = corruption.layer_count * len(corruption.parts([pair.present for pair in experiment.pairs]))
            return plan_runs(experiment, images * (2 + patches))
        size = experiment.batch_size or fitted_batch_size(experiment.graph, experiment.generation)
        runs = 2 + len(self._components(experiment))
        return plan_runs(experiment, images * (runs + math.ceil(runs / max(1, size - 1))))

    @staticmethod
    def _check_model(experiment: Experiment) -> None:
        """Raises InvalidInput for a text encoder that reads prompts inside a template."""
        graph = experiment.graph
        if any(isinstance(each, Templated) for each in graph.text.tokenizers):
            raise InvalidInput(
                f"the text encoder of {graph.family.name} reads every prompt inside a template, where it is not known which of its tokens "
                "the noise should fall on; give ns.LocoGen()"
            )

    def _corruption(self, experiment: Experiment) -> Corruption:
        options = experiment.graph.text.options(experiment.generation)
        return Corruption(experiment.graph, experiment.name, self.noise, **options)

    def _components(self, experiment: Experiment) -> list[Component]:
        """The components of the denoiser that are restored."""
        every = experiment.graph.components
        found = [component for component in every if self.component in ("all", component.kind)]
        if not found:
            known = ", ".join(each for each in COMPONENTS if each in {component.kind for component in every})
            raise InvalidInput(
                f"component={self.component!r} is nowhere in {experiment.graph.family.name}; choose one of {known}, all, text"
            )
        return found

    def _trace_denoiser(self, experiment: Experiment, corruption: Corruption) -> _Traced:
        """The runs in which a component of the denoiser is restored."""
        components = self._components(experiment)
        patches = [Patch((number,)) for number in range(len(components))]
        component_of = dict(zip(patches, components, strict=True))
        contexts = {
            _corrupted(run): corruption.encode(experiment.pairs[run.pair].present, run.seed) for run in experiment.run_keys(["source"])
        }
        groups = []
        for clean in experiment.run_keys(["target"]):
            rows: dict[RunKey, Row] = {
                clean._replace(patch="source"): Row(_corrupted(clean), clean.seed),
                clean: Row(experiment.pairs[clean.pair].present, clean.seed),
            }
            rows |= {
                clean._replace(patch=patch): _Restored(_corrupted(clean), clean.seed, component=component_of[patch]) for patch in patches
            }
            groups.append(RunBatch(rows, (rows[clean],), self._restoring))
        return _Traced(patches, tuple(map(str, components)), groups, contexts)

    def _trace_text(self, experiment: Experiment, corruption: Corruption) -> _Traced:
        """The runs in which a layer of the text encoder is restored at one kind of token."""
        parts = corruption.parts([pair.present for pair in experiment.pairs])
        patches = [Patch((layer,), part) for layer in range(corruption.layer_count) for part in parts]
        contexts, rows = {}, {}
        for run in experiment.run_keys(["source", "target", *patches]):
            prompt = experiment.pairs[run.pair].present
            rows[run] = Row(prompt if run.patch == "target" else f"{_corrupted(run)} {run.patch}", run.seed)
            if isinstance(run.patch, Patch):
                contexts[rows[run].text] = corruption.encode(prompt, run.seed, restored=(run.patch.layers[0], run.patch.part))
            elif run.patch == "source":
                contexts[rows[run].text] = corruption.encode(prompt, run.seed)
        names = tuple(f"text layer {layer}" for layer in range(corruption.layer_count))
        return _Traced(patches, names, [RunBatch(rows)], contexts)

    def _restoring(self, graph: HookGraph, rows: Sequence[Row]) -> AbstractContextManager[Any]:
        """The block in which each restored row takes its component's output from the first row."""
        restored: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            if isinstance(row, _Restored) and row.component is not None:
                restored.setdefault(row.component.path, []).append(number)
        return graph.rewire({path: self._restore(numbers) for path, numbers in restored.items()}) if restored else nullcontext()

    def _restore(self, numbers: list[int]) -> Callable[[Tensor, BatchLayout], Tensor]:
        """Copies the first image's output to the images of these numbers, in each half of guidance that is restored."""

        def restore(output: Tensor, layout: BatchLayout) -> Tensor:
            restored = output.clone()
            for part in range(len(layout.parts)):
                if self.rows == "all" or layout.parts[part] == "conditional":
                    first = part * layout.images(len(output))
                    restored[[first + number for number in numbers]] = output[first]
            return restored

        return restore


class _Traced(NamedTuple):
    """The runs of a trace.

    Attributes:
        patches: what is restored in them.
        names: of the components or text layers.
        groups: the runs.
        contexts: corrupted contexts by the names under which rows ask for them.
    """

    patches: list[Patch]
    names: tuple[str, ...]
    groups: list[RunBatch]
    contexts: dict[str, Conditions]


def _corrupted(run: RunKey) -> str:
    """The name of an image's corrupted context; each seed has its own noise."""
    return f"corrupted {run.pair} {run.seed}"

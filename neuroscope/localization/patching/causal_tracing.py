"""Causal tracing, the baseline: which single component, restored, brings a corrupted concept back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.effects import Patch
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.sites import Component
from neuroscope.generation.batches import Row
from neuroscope.generation.experiment import Experiment, RunBatch, RunKey
from neuroscope.generation.metering import metered
from neuroscope.localization._localization import Localization
from neuroscope.localization.patching.corruption import Corruption
from neuroscope.pipeline.graph import HookGraph

ComponentKind = Literal["cross", "self", "ff", "resnet", "all", "text"]
COMPONENTS = ("cross", "self", "ff", "resnet", "all", "text")


@dataclass(frozen=True)
class _Restored(Row):
    """A corrupted row in which one component takes what the batch's first, clean row gives it."""

    component: Component | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalTracing(Localization[LayerScores]):
    """Localisation by restoring one component in a corrupted run (Basu et al. 2023, after Meng et al. 2022).

    Clean: the prompt as it is. Corrupted: Gaussian noise on the token embeddings of the concept's name. Restored: the
    corrupted run in which one component takes its clean output at every step. The score is restored minus corrupted over
    clean minus corrupted: 0 where a component brings nothing back, 1 where it alone brings back all.

    Clean outputs are never stored: the clean run is a row of every batch, and gives its outputs to the others as they run.

    Attributes:
        noise: standard deviation of the noise, in units of that of the name's own token embeddings.
        component: restore cross-attentions, self-attentions, feed-forwards ("ff") or ResNet blocks of the denoiser, or
            each of all four; or "text": each layer of the text encoder, at each kind of token.
        rows: restore "all" rows or the "conditional" ones, which carry the prompt.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a prompt that does not hold the concept's name.
    """

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
        """See `Localization`."""
        corruption = Corruption(experiment.graph, experiment.name, self.noise, experiment.generation.get("clip_skip"))
        corruption.check([pair.present for pair in experiment.pairs])
        with metered(experiment.graph.denoiser) as meter:
            trace = self._trace_text if self.component == "text" else self._trace_denoiser
            patches, names, groups, contexts = trace(experiment, corruption)
            sweep = experiment.sweep([pair.present for pair in experiment.pairs], contexts=contexts)
            measured = experiment.measure(sweep, groups, self)
        effects = measured.effects(experiment, patches, relative=True)
        experiment.warn_of_no_change(effects)
        fields = measured.sheet(experiment, patches)
        return LayerScores.of(effects, provenance=experiment.provenance(self), names=names, cost=meter.cost, **fields)

    def _trace_denoiser(self, experiment: Experiment, corruption: Corruption) -> Traced:
        kinds = COMPONENTS[:4] if self.component == "all" else (self.component,)
        components = [component for component in experiment.graph.components if component.kind in kinds]
        patches = [Patch((number,)) for number in range(len(components))]
        component_of = dict(zip(patches, components, strict=True))
        contexts = {
            _corrupted(case): corruption.encode(experiment.pairs[case.pair].present, case.seed) for case in experiment.cases(["source"])
        }
        groups = []
        for clean in experiment.cases(["target"]):
            rows: dict[RunKey, Row] = {
                clean._replace(patch="source"): Row(_corrupted(clean), clean.seed),
                clean: Row(experiment.pairs[clean.pair].present, clean.seed),
            }
            rows |= {
                clean._replace(patch=patch): _Restored(_corrupted(clean), clean.seed, component=component_of[patch]) for patch in patches
            }
            groups.append(RunBatch(rows, (rows[clean],), partial(self._enter, experiment.graph)))
        return patches, tuple(map(str, components)), groups, contexts

    def _trace_text(self, experiment: Experiment, corruption: Corruption) -> Traced:
        parts = corruption.parts([pair.present for pair in experiment.pairs])
        patches = [Patch((layer,), part) for layer in range(corruption.layer_count) for part in parts]
        contexts, rows = {}, {}
        for case in experiment.cases(["source", "target", *patches]):
            prompt = experiment.pairs[case.pair].present
            rows[case] = Row(prompt if case.patch == "target" else f"{_corrupted(case)} {case.patch}", case.seed)
            if isinstance(case.patch, Patch):
                contexts[rows[case].text] = corruption.encode(prompt, case.seed, restored=(case.patch.layers[0], case.patch.part))
            elif case.patch == "source":
                contexts[rows[case].text] = corruption.encode(prompt, case.seed)
        names = tuple(f"text layer {layer}" for layer in range(corruption.layer_count))
        return patches, names, [RunBatch(rows)], contexts

    def _enter(self, graph: HookGraph, rows: Sequence[Row]) -> AbstractContextManager[Any]:
        """The block in which each restored row takes its component's output from the first row."""
        taking: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            if isinstance(row, _Restored) and row.component is not None:
                taking.setdefault(row.component.path, []).append(number)
        return graph.rewire({path: self._restore(taken) for path, taken in taking.items()}) if taking else nullcontext()

    def _restore(self, taken: list[int]) -> Callable[[Tensor, BatchLayout], Tensor]:
        def restore(output: Tensor, layout: BatchLayout) -> Tensor:
            restored = output.clone()
            for part in range(len(layout.parts)):
                if self.rows == "all" or layout.parts[part] == "conditional":
                    first = part * layout.images(len(output))
                    restored[[first + row for row in taken]] = output[first]
            return restored

        return restore


Traced = tuple[list[Patch], tuple[str, ...], list[RunBatch], dict[str, Conditions]]


def _corrupted(case: RunKey) -> str:
    """The name of a pair's corrupted context; each seed has noise of its own."""
    return f"corrupted {case.pair} {case.seed}"

"""Causal tracing, the baseline: which single component, restored, brings a corrupted concept back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.effects import Probe
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.layer_scores import LayerScores
from neuroscope.core.sites import Place
from neuroscope.generation.batches import Row
from neuroscope.generation.experiment import Case, Group, Study
from neuroscope.generation.metering import metered
from neuroscope.localization._localization import Localization
from neuroscope.localization.patching.corruption import Corruption
from neuroscope.pipeline.graph import HookGraph

Component = Literal["cross", "self", "ff", "resnet", "all", "text"]
COMPONENTS = ("cross", "self", "ff", "resnet", "all", "text")


@dataclass(frozen=True)
class _Restored(Row):
    """A corrupted row in which one component takes what the batch's first, clean row gives it."""

    place: Place | None = None


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
    component: Component = "cross"
    rows: Literal["all", "conditional"] = "all"

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        if self.noise <= 0:
            raise InvalidInput(f"noise={self.noise} corrupts nothing; give a positive number, such as 3.0")
        choose("component", self.component, COMPONENTS)
        choose("rows", self.rows, ("all", "conditional"))

    def __call__(self, study: Study) -> LayerScores:
        """See `Localization`."""
        corruption = Corruption(study.graph, study.name, self.noise, study.generation.get("clip_skip"))
        corruption.check([pair.present for pair in study.pairs])
        with metered(study.graph.denoiser) as meter:
            trace = self._trace_text if self.component == "text" else self._trace_denoiser
            probes, names, groups, contexts = trace(study, corruption)
            sweep = study.sweep([pair.present for pair in study.pairs], contexts=contexts)
            measured = study.measure(sweep, groups, self)
        effects = measured.effects(study, probes, relative=True)
        study.warn_of_no_change(effects)
        fields = measured.sheet(study, probes)
        return LayerScores.of(effects, provenance=study.provenance(self), names=names, cost=meter.cost, **fields)

    def _trace_denoiser(self, study: Study, corruption: Corruption) -> Traced:
        kinds = COMPONENTS[:4] if self.component == "all" else (self.component,)
        places = [place for place in study.graph.places if place.kind in kinds]
        probes = [Probe((number,)) for number in range(len(places))]
        place_of = dict(zip(probes, places, strict=True))
        contexts = {_corrupted(case): corruption.encode(study.pairs[case.pair].present, case.seed) for case in study.cases(["base"])}
        groups = []
        for clean in study.cases(["goal"]):
            rows: dict[Case, Row] = {
                clean._replace(probe="base"): Row(_corrupted(clean), clean.seed),
                clean: Row(study.pairs[clean.pair].present, clean.seed),
            }
            rows |= {clean._replace(probe=probe): _Restored(_corrupted(clean), clean.seed, place=place_of[probe]) for probe in probes}
            groups.append(Group(rows, (rows[clean],), partial(self._enter, study.graph)))
        return probes, tuple(map(str, places)), groups, contexts

    def _trace_text(self, study: Study, corruption: Corruption) -> Traced:
        parts = corruption.parts([pair.present for pair in study.pairs])
        probes = [Probe((layer,), part) for layer in range(corruption.layer_count) for part in parts]
        contexts, rows = {}, {}
        for case in study.cases(["base", "goal", *probes]):
            prompt = study.pairs[case.pair].present
            rows[case] = Row(prompt if case.probe == "goal" else f"{_corrupted(case)} {case.probe}", case.seed)
            if isinstance(case.probe, Probe):
                contexts[rows[case].text] = corruption.encode(prompt, case.seed, restored=(case.probe.layers[0], case.probe.part))
            elif case.probe == "base":
                contexts[rows[case].text] = corruption.encode(prompt, case.seed)
        names = tuple(f"text layer {layer}" for layer in range(corruption.layer_count))
        return probes, names, [Group(rows)], contexts

    def _enter(self, graph: HookGraph, rows: Sequence[Row]) -> AbstractContextManager:
        """The block in which each restored row takes its place's output from the first row."""
        taking: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            if isinstance(row, _Restored) and row.place is not None:
                taking.setdefault(row.place.path, []).append(number)
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


Traced = tuple[list[Probe], tuple[str, ...], list[Group], dict[str, Conditions]]


def _corrupted(case: Case) -> str:
    """The name of a pair's corrupted context; each seed has noise of its own."""
    return f"corrupted {case.pair} {case.seed}"

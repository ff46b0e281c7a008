"""An atlas: the scores of several concepts by one method, as one result."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from neuroscope.core.artifacts import Artifact, part
from neuroscope.core.checks import instance
from neuroscope.core.errors import InvalidInput, closest, counted
from neuroscope.core.results.layer_scores import LayerScores, LayerScoresHeader
from neuroscope.core.results.quality import Cost
from neuroscope.core.results.scores import NeuronScores, NeuronScoresHeader
from neuroscope.core.sharing.summary import Summary, binned

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class AtlasHeader:
    """What a file's header says of an atlas: the concepts, and each one's header, either of layers or of neurons."""

    concepts: tuple[str, ...]
    layers: tuple[LayerScoresHeader, ...]
    neurons: tuple[NeuronScoresHeader, ...]


class Atlas(Artifact, Mapping[str, LayerScores | NeuronScores]):
    """Scores of several concepts: a mapping from a concept's name to its `LayerScores` or `NeuronScores`.

    Args:
        scores: by concept, all of the same layers or of the same sites.

    Raises:
        InvalidInput: no concept, a name that is no text, scores of layers beside scores of neurons, or scores of different layers or
            sites.
    """

    kind: ClassVar[str] = "atlas"
    header_type: ClassVar[type] = AtlasHeader

    def __init__(self, scores: Mapping[str, LayerScores | NeuronScores]) -> None:
        self._scores: dict[str, LayerScores | NeuronScores] = dict(
            instance("scores", scores, Mapping, '{"hatch": scores, "stipple": others}')
        )
        if not self._scores:
            raise InvalidInput("there are scores of no concept; give those of at least one")
        first = next(iter(self._scores.values()))
        for name, each in self._scores.items():
            instance("a concept's name", name, str, '"stipple"')
            instance(f"the scores of {name!r}", each, (LayerScores, NeuronScores), "what ns.localize or ns.rank gives")
            if type(each) is not type(first) or _scored(each) != _scored(first):
                raise InvalidInput(
                    f"the scores of {name!r} are of other layers or sites than those before; score the same for each concept"
                )

    def __getitem__(self, concept: str) -> LayerScores | NeuronScores:
        if concept not in self._scores:
            near = closest(concept, self._scores)
            raise KeyError(f"there is no concept {concept!r} in the atlas{near or ';'} it has {', '.join(self._scores)}")
        return self._scores[concept]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __repr__(self) -> str:
        first = next(iter(self._scores.values()))
        what = counted(len(first.layers), "layer") if isinstance(first, LayerScores) else counted(first.sites.neuron_count, "neuron")
        cost = f"; {self.cost}" if self.cost else ""
        return f"Atlas({counted(len(self), 'concept')} by {first.provenance.method}: {what}{cost})"

    def summary(self) -> Summary:
        """See `Shown`: each concept's best layer or neuron, and the scores of all."""
        table = self.to_frame().sort_values("score", ascending=False, kind="stable").drop_duplicates("concept")
        order = {name: place for place, name in enumerate(self)}
        table = table.sort_values("concept", key=lambda names: names.map(order))
        return Summary.of(repr(self), table, {name: binned(_strengths(each)) for name, each in self.items()}, "score, in execution order")

    @property
    def cost(self) -> Cost | None:
        """What all scores cost together; None where one of them does not say."""
        costs = [each.cost for each in self.values()]
        known = [cost for cost in costs if cost is not None]
        return reduce(add, known) if len(known) == len(costs) else None

    def to_frame(self) -> pd.DataFrame:
        """One table of all concepts: concept, and the columns of the scores' own tables.

        Of layers these are layer, name, score, and with effects the interval (low, high) and the share; of neurons layer, role, neuron,
        score, stderr, p_value, q_value, rank and site, strongest first.
        """
        import pandas as pd

        tables = []
        for name, each in self.items():
            table = each.to_frame()
            table.insert(0, "concept", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def plot(self, **options: Any) -> Axes:
        """`plots.concepts(self, **options)`: concepts by layers or neurons, those that are alike side by side."""
        axes: Axes = importlib.import_module("neuroscope.report.plots").concepts(self, **options)
        return axes

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`: the concepts' own tensors, each behind its concept's number."""
        tensors: dict[str, Tensor] = {}
        headers: dict[str, list[Any]] = {"layers": [], "neurons": []}
        for number, each in enumerate(self.values()):
            own, header = each.to_parts()
            tensors |= {f"{number}:{name}": tensor for name, tensor in own.items()}
            headers["layers" if isinstance(each, LayerScores) else "neurons"].append(header)
        return tensors, {"concepts": list(self), **headers}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: AtlasHeader) -> Self:
        """See `Artifact`."""
        if len(set(header.concepts)) != len(header.layers) + len(header.neurons) or (header.layers and header.neurons):
            raise InvalidInput("it does not hold one header of one kind for each concept")
        made: list[LayerScores | NeuronScores] = [
            LayerScores.from_parts(part(tensors, f"{n}:"), each) for n, each in enumerate(header.layers)
        ]
        made += [NeuronScores.from_parts(part(tensors, f"{n}:"), each) for n, each in enumerate(header.neurons)]
        return cls(dict(zip(header.concepts, made, strict=True)))


def _scored(scores: LayerScores | NeuronScores) -> object:
    """What has a score."""
    return (scores.layers, scores.names) if isinstance(scores, LayerScores) else scores.sites


def _strengths(scores: LayerScores | NeuronScores) -> list[float]:
    """All scores in execution order, those of neurons as their strength."""
    if isinstance(scores, LayerScores):
        return list(scores.scores)
    return [float(each) for path in scores.sites.paths for each in scores.strength(path)]

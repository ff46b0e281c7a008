"""Scores of neurons and layers, and sets of neurons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact, Provenance, take
from neuroscope.core.checks import finite, finite_tensor, instance, whole
from neuroscope.core.errors import InvalidInput, choose, counted
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Cost, Fidelity, FidelityHeader
from neuroscope.core.sharing.summary import Summary, binned
from neuroscope.core.sites import Site, Sites

if TYPE_CHECKING:
    import pandas as pd

Per = Literal["all", "layer", "site"]


@dataclass(frozen=True)
class NeuronsHeader:
    """What a file's header says of neurons beside their indices."""

    widths: dict[str, int]
    provenance: Provenance


class Neurons(Artifact, Mapping[str, tuple[int, ...]]):
    """Neurons: a mapping from a site's path to sorted indices, with set algebra (`|`, `&`, `-`).

    Args:
        indices: for each site's path its neurons; paths without neurons are left out.
        widths: the number of neurons that each of these sites has.
        provenance: where they come from.

    Raises:
        InvalidInput: an index that is no whole number or outside its site, or a site without a width.
    """

    kind: ClassVar[str] = "neurons"
    header_type: ClassVar[type] = NeuronsHeader

    def __init__(self, indices: Mapping[str, Iterable[int]], widths: Mapping[str, int], provenance: Provenance = Provenance()) -> None:
        instance("indices", indices, Mapping, '{"unet….to_v": [0, 2]}')
        instance("widths", widths, Mapping, '{"unet….to_v": 320}')
        given = {path: _whole_indices(path, chosen) for path, chosen in indices.items()}
        self._given = {path: chosen for path, chosen in given.items() if chosen}
        self._indices = {path: tuple(sorted(chosen)) for path, chosen in self._given.items()}
        for path, chosen in self._indices.items():
            if path not in widths:
                raise InvalidInput(f"the width of {path} is not given; pass widths={{path: number of neurons}}")
            whole(f"the width of {path}", widths[path])
            if chosen[0] < 0 or chosen[-1] >= widths[path]:
                wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
                raise InvalidInput(f"neuron {wrong} is outside {path}, whose neurons are 0 to {widths[path] - 1}")
        self.widths = {path: int(widths[path]) for path in self._indices}
        self.provenance = instance("provenance", provenance, Provenance, "neuroscope.Provenance()")

    @classmethod
    def at(cls, sites: Sites, indices: Mapping[str, Iterable[int]]) -> Self:
        """Neurons of a model's sites, with the widths taken from them; raises UnknownSite for a path that is not there."""
        return cls(indices, {site.path: site.width for site in sites.at(indices)})

    def __getitem__(self, path: str) -> tuple[int, ...]:
        return self._indices[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"Neurons({counted(self.count, 'neuron')} in {counted(len(self), 'site')})"

    def summary(self) -> Summary:
        """See `Shown`: the sites with their neurons, and where in each site these are."""
        import pandas as pd

        rows = [
            (number, len(chosen), self.widths[path], ", ".join(map(str, chosen[:6])) + (" …" if len(chosen) > 6 else ""), path)
            for number, (path, chosen) in enumerate(self.items())
        ]
        table = pd.DataFrame(rows, columns=["site", "neurons", "of", "which", "path"])
        marks = [np.bincount(chosen, minlength=self.widths[path]) for path, chosen in self.items()]
        heat = {f"site {number}": binned(each) for number, each in enumerate(marks)}
        return Summary.of(repr(self), table, heat, "neurons of each site, in their own order; dark where one is chosen")

    @property
    def count(self) -> int:
        """The number of neurons in all sites."""
        return sum(len(chosen) for chosen in self.values())

    def as_given(self, path: str) -> tuple[int, ...]:
        """A site's neurons in the order in which they were given, each where it first stood."""
        return self._given[path]

    def in_order(self) -> Neurons:
        """These neurons as if they had been given sorted."""
        return Neurons(self._indices, self.widths, self.provenance)

    def __or__(self, other: Neurons) -> Neurons:
        return self._combined(other, set.union)

    def __and__(self, other: Neurons) -> Neurons:
        return self._combined(other, set.intersection)

    def __sub__(self, other: Neurons) -> Neurons:
        return self._combined(other, set.difference)

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`: one int32 tensor of indices a site."""
        tensors = {path: torch.tensor(chosen, dtype=torch.int32) for path, chosen in self.items()}
        return tensors, {"widths": self.widths, "provenance": asdict(self.provenance)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: NeuronsHeader, prefix: str = "") -> Self:
        """See `Artifact`; the names of the tensors begin with `prefix`."""
        indices = {path: take(tensors, f"{prefix}{path}", torch.int32) for path in header.widths}
        for path, chosen in indices.items():
            if chosen.ndim != 1 or not len(chosen) or (chosen.diff() <= 0).any():
                raise InvalidInput(f"the neurons of {path} are not one or more in ascending order")
        return cls({path: chosen.tolist() for path, chosen in indices.items()}, header.widths, header.provenance)

    def _combined(self, other: Neurons, combine: Any) -> Neurons:
        instance("the other operand", other, Neurons, "scores.top(50)")
        differing = [path for path in self.keys() & other.keys() if self.widths[path] != other.widths[path]]
        if differing:
            path = sorted(differing)[0]
            raise InvalidInput(
                f"{path} has {counted(self.widths[path], 'neuron')} here and {other.widths[path]} there; combine neurons of one model"
            )
        paths = [*self, *(path for path in other if path not in self)]
        chosen = {path: combine(set(self.get(path, ())), set(other.get(path, ()))) for path in paths}
        return Neurons(chosen, other.widths | self.widths, self.provenance)


def _whole_indices(path: str, chosen: Iterable[int]) -> tuple[int, ...]:
    """Distinct indices, in the order given."""
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise InvalidInput(f"the neurons of {path} are a list of whole numbers, not {chosen!r}")
    given = chosen.tolist() if isinstance(chosen, Tensor | np.ndarray) else chosen
    if not isinstance(given, Iterable):
        raise InvalidInput(f"the neurons of {path} are a list of whole numbers, not {given!r}")
    return tuple(dict.fromkeys(each if type(each) is int else whole(f"a neuron of {path}", each, least=-(2**63)) for each in given))


@dataclass(frozen=True)
class NeuronScoresHeader:
    """What a file's header says of neurons' scores beside the numbers."""

    sites: tuple[Site, ...]
    neutral: float
    two_sided: bool
    fidelity: FidelityHeader | None
    cost: Cost | None
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class NeuronScores(Artifact):
    """One number per neuron of each site: how strongly it controls a concept, or responds to it.

    Attributes:
        sites: the scored sites, in execution order.
        scores: for each path a float64 tensor [neuron].
        p_values: the same shape, or empty where the method has no test.
        stderr: standard errors of the scores over images, the same shape; empty where they are no means over images.
        neutral: the score of a neuron that does not care.
        two_sided: whether distance from `neutral` on either side counts, or only higher scores.
        provenance: model, concept and method.
        fidelity: how well a cheap ranking agrees with exact effects on a sample, where that was measured.
        cost: what finding them cost, where they come from running the model.

    Raises:
        InvalidInput: no site, a site without scores or with more or fewer than its neurons, scores that are not finite, p-values
            outside 0 to 1, or a standard error below 0.
    """

    kind: ClassVar[str] = "neuron-scores"
    header_type: ClassVar[type] = NeuronScoresHeader

    sites: Sites
    scores: Mapping[str, Float[Tensor, "neuron"]]
    p_values: Mapping[str, Float[Tensor, "neuron"]] = field(default_factory=dict)
    neutral: float = 0.0
    two_sided: bool = True
    provenance: Provenance = Provenance()
    fidelity: Fidelity | None = None
    cost: Cost | None = None
    stderr: Mapping[str, Float[Tensor, "neuron"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        instance("sites", self.sites, Sites, "recording.sites")
        if not self.sites:
            raise InvalidInput("there are scores of no site; give those of at least one")
        for what, values in (("scores", self.scores), ("p_values", self.p_values), ("stderr", self.stderr)):
            if instance(what, values, Mapping, "{path: torch.zeros(...)}") or what == "scores":
                self._check_numbers(what, values)
        if any(((values < 0) | (values > 1)).any() for values in self.p_values.values()):
            raise InvalidInput("a p-value is outside 0 to 1; give probabilities")
        if any((values < 0).any() for values in self.stderr.values()):
            raise InvalidInput("a standard error is below 0; give 0 or more")
        finite("neutral", self.neutral)

    def _check_numbers(self, what: str, values: Mapping[str, Tensor]) -> None:
        if differing := sorted(values.keys() ^ set(self.sites.paths)):
            raise InvalidInput(f"{what} and sites differ in {differing[0]}; give {what} of every site and of no other")
        for site in self.sites:
            if len(finite_tensor(f"{what} of {site.path}", values[site.path], "neuron")) != site.width:
                raise InvalidInput(
                    f"{what} of {site.path} are {len(values[site.path])}, and it has {counted(site.width, 'neuron')}; give one for each"
                )

    def __repr__(self) -> str:
        size = f"{counted(self.sites.neuron_count, 'neuron')} in {counted(len(self.sites), 'site')}"
        said = "".join(f"; {each}" for each in (self.fidelity, self.cost) if each)
        contrast = self.provenance.contrast and f" {self.provenance.contrast}"
        return f"NeuronScores({self.provenance.concept!r}{contrast} by {self.provenance.method}: {size}{said})"

    def summary(self) -> Summary:
        """See `Shown`: the strongest neurons, and how strong all of them are, site by site."""
        table = self.to_frame().drop(columns="rank")
        first = table.iloc[0]
        best = f"the strongest is neuron {first['neuron']} of {self.sites.at([first['site']])[0].label}"
        heat = {site.label: binned(self.strength(site.path)) for site in self.sites}
        return Summary.of(f"{self!r}; {best}", table, heat, "strength; neurons of each site, in their own order")

    def strength(self, path: str) -> Float[Tensor, "neuron"]:
        """How strongly each neuron of a site responds: its score's distance from neutral, or its score if one-sided."""
        return (self.scores[path] - self.neutral).abs() if self.two_sided else self.scores[path]

    def top(self, count: int, per: Per = "all") -> Neurons:
        """The `count` strongest neurons overall, in each layer or in each site.

        Ties go to the earlier site and then to the lower index.

        Raises:
            InvalidInput: `count` is not between 1 and the number of neurons, or `per` is unknown.
        """
        choose("per", per, ("all", "layer", "site"))
        count = checks.whole("count", count, least=-np.inf)
        group = {site.path: {"all": 0, "layer": site.layer, "site": site.path}[per] for site in self.sites}
        ranked = [(value, path, index) for path in self.sites.paths for index, value in enumerate(self.strength(path).tolist())]
        largest = max(sum(site.width for site in self.sites if group[site.path] == name) for name in set(group.values()))
        if not 1 <= count <= largest:
            raise InvalidInput(f"top({count}) is not possible here; choose from 1 to {largest}")
        taken: dict[Any, int] = {}
        chosen: dict[str, list[int]] = {site.path: [] for site in self.sites}
        for _, path, index in sorted(ranked, key=lambda each: -each[0]):
            if taken.get(group[path], 0) < count:
                taken[group[path]] = taken.get(group[path], 0) + 1
                chosen[path].append(index)
        return Neurons(
            {path: sorted(each) for path, each in chosen.items()}, {site.path: site.width for site in self.sites}, self.provenance
        )

    def by_layer(self) -> LayerScores:
        """The mean strength of each layer's neurons.

        Raises:
            InvalidInput: all sites are of the pooled text, which is in no layer.
        """
        layers = self.sites.layers
        if not layers:
            raise InvalidInput("the scores are of the pooled text alone, which is in no layer; rank neurons of keys or values too")
        means = [torch.cat([self.strength(site.path) for site in self.sites.where(layer=layer)]).mean() for layer in layers]
        return LayerScores(
            layers, tuple(float(mean) for mean in means), replace(self.provenance, method=f"mean of {self.provenance.method}")
        )

    def agreement(self, other: NeuronScores) -> float:
        """Spearman's rank correlation with other scores of the same neurons, by strength.

        Raises:
            InvalidInput: the other scores are of other sites.
        """
        checks.instance("other", other, NeuronScores, "scores of the same neurons by another method")
        if self.sites.paths != other.sites.paths:
            raise InvalidInput(f"agreement needs scores of the same sites, not {len(self.sites)} and {len(other.sites)} different ones")
        mine, theirs = (torch.cat([each.strength(path) for path in self.sites.paths]).numpy() for each in (self, other))
        return float(scipy.stats.spearmanr(mine, theirs).statistic)

    def q_values(self) -> dict[str, Float[Tensor, "neuron"]]:
        """False-discovery rates over all neurons together (Benjamini and Hochberg, 1995); empty without p-values.

        What is discovered is what the method's p-value asks: a response that differs (`Welch`), or a score above `least` (gradients).
        """
        if not self.p_values:
            return {}
        every = np.concatenate([self.p_values[path].numpy() for path in self.sites.paths])
        adjusted = torch.from_numpy(scipy.stats.false_discovery_control(every))
        return dict(zip(self.sites.paths, adjusted.split([site.width for site in self.sites]), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """A table, strongest first: layer, role, neuron, score, stderr, p_value, q_value, rank (from 1), and the site's path."""
        import pandas as pd

        q_values = self.q_values()
        missing = {site.path: torch.full((site.width,), torch.nan, dtype=torch.float64) for site in self.sites}
        tables = [
            pd.DataFrame(
                {
                    "layer": site.layer,
                    "role": site.role,
                    "neuron": np.arange(site.width),
                    "score": self.scores[site.path].numpy(),
                    "stderr": (self.stderr or missing)[site.path].numpy(),
                    "p_value": (self.p_values or missing)[site.path].numpy(),
                    "q_value": (q_values or missing)[site.path].numpy(),
                    "strength": self.strength(site.path).numpy(),
                    "site": site.path,
                }
            )
            for site in self.sites
        ]
        table = pd.concat(tables).sort_values("strength", ascending=False, kind="stable", ignore_index=True).drop(columns="strength")
        table.insert(len(table.columns) - 1, "rank", np.arange(1, len(table) + 1))
        return table

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        parts = {"score": self.scores, "p_value": self.p_values, "stderr": self.stderr}
        tensors = {f"{name}:{path}": values for name, part in parts.items() for path, values in part.items()}
        header = {"sites": [asdict(site) for site in self.sites], "neutral": self.neutral, "two_sided": self.two_sided}
        header |= {"fidelity": self.fidelity.to_header() if self.fidelity else None, "cost": asdict(self.cost) if self.cost else None}
        return tensors, header | {"provenance": asdict(self.provenance)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: NeuronScoresHeader) -> Self:
        """See `Artifact`."""
        sites = Sites(header.sites)
        scores = {path: take(tensors, f"score:{path}", torch.float64) for path in sites.paths}
        p_values, stderr = (
            {path: take(tensors, f"{name}:{path}", torch.float64) for path in sites.paths if f"{name}:{path}" in tensors}
            for name in ("p_value", "stderr")
        )
        fidelity = header.fidelity.restored() if header.fidelity else None
        return cls(sites, scores, p_values, header.neutral, header.two_sided, header.provenance, fidelity, header.cost, stderr)

"""LOCOEDIT: a closed-form edit of keys and values, as a low-rank map of what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from neuroscope.core import checks
from neuroscope.core.artifacts import Provenance
from neuroscope.core.concepts import Concept
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, NonFiniteActivation, choose
from neuroscope.core.sites import TEXT_ROLES, Site, Sites
from neuroscope.core.tokens import EditedToken
from neuroscope.editing.solving import Solution, solve
from neuroscope.interventions import ContextMap, EditReport, Factor
from neuroscope.pipeline.graph import HookGraph

EDITED = get_args(EditedToken)
_PROBES = 64


@dataclass(frozen=True, kw_only=True)
class LocoEdit:
    """The closed-form edit of Basu et al. (2024, LOCOEDIT), with the preserve set of unified concept editing (Gandikota et al. 2024).

    Keys X are context vectors of the present prompts, targets T the aligned ones of the absent prompts. Of all weights W',
    the edited ones bring X Wᵀ nearest to what T gave, with a ridge on W' − W:

        W' = W + W · (T − X)ᵀ (X Xᵀ + λ I)⁻¹ X

    which is one map of what W reads, whatever W is: one for all layers that read the same vectors, and one for each that
    projects or normalises its text for itself. Biases stay. Solved in float64, in as many dimensions as there are keys.

    Attributes:
        ridge: λ in units of the keys' mean squared length. The published 0.01 is absolute.
        preserve: prompts whose vectors are asked to stay where they are. Under guidance unconditional rows read the changed
            weights too; `preserve=("",)` keeps what they read. The published edit, as the default, keeps nothing.
        preserve_weight: how much a preserved vector counts beside an edited one.
        tokens: which vectors are edited: "subject" (the last token of the concept's name, as published), "eos" (the first
            end-of-text token), "padding" behind it, several of these, or "all". Text encoders carry a word on into later
            tokens (bidirectional ones into all), and layers may read it there. Tokens that the model's attention does not see are no keys.
        roles: edit "key" and "value", or one of them; "pooled" edits the pooled text path as well, where the model has one.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    ridge: float = 0.01
    preserve: tuple[str, ...] = ()
    preserve_weight: float = 1.0
    tokens: str | tuple[str, ...] = "subject"
    roles: str | tuple[str, ...] = ("key", "value")

    def __post_init__(self) -> None:
        checks.fit_defaults(self)
        if not isinstance(self.tokens, str):
            object.__setattr__(self, "tokens", checks.strings("tokens", self.tokens))
        object.__setattr__(self, "preserve", checks.strings("preserve", self.preserve))
        object.__setattr__(self, "roles", (self.roles,) if isinstance(self.roles, str) else tuple(self.roles))
        for each in self._kinds:
            choose("token", each, EDITED)
        for role in self.roles:
            choose("role", role, TEXT_ROLES)
        if not self._kinds or not self.roles:
            raise InvalidInput("tokens and roles must each name at least one; the defaults edit keys and values at the subject")
        if self.ridge < 0 or self.preserve_weight <= 0:
            given = f"ridge={self.ridge} and preserve_weight={self.preserve_weight}"
            raise InvalidInput(f"{given} are not allowed; the ridge is 0 or more, the weight more than 0")

    def __call__(self, graph: HookGraph, concepts: Sequence[Concept], sites: Sites, quiet: bool = False) -> ContextMap:
        """The edit of these sites.

        Args:
            graph: the model, whose text encoders and text projections are run; nothing of it is changed.
            concepts: edited together, in one regression.
            sites: text-side sites.
            quiet: show no progress bar, which is there after a second.

        Returns:
            One map for all sites where all read the same vectors, otherwise one for each; its `report` is the worst of all maps.

        Raises:
            InvalidInput: prompts that read the same with and without the concept, or vectors that depend on each other without a ridge.
            NonFiniteActivation: the text encoder gives NaN or infinity.
        """
        names = ", ".join(concept.name for concept in concepts)
        texts = [_Texts.of(graph, concept, self._kinds) for concept in concepts]
        preserved = graph.text.on_either_side(list(self.preserve)) if self.preserve else None
        maps: list[_Map] = []
        map_of: dict[str, _Map] = {}
        for site in tqdm(sites, desc=f"editing {names}", unit="site", disable=quiet, delay=1):
            vectors = _vectors(graph, site, texts, preserved)
            known = [each for each in maps if all(map(torch.equal, each.vectors, vectors))]
            maps += [] if known else [self._map(graph, site, vectors, _neighbours(graph, site, texts))]
            map_of[site.path] = known[0] if known else maps[-1]
        provenance = Provenance(graph.family.name, graph.model, names, repr(self))
        report = EditReport.worst([each.report for each in maps])
        read: Factor = maps[0].read if len(maps) == 1 else {path: each.read for path, each in map_of.items()}
        write: Factor = maps[0].write if len(maps) == 1 else {path: each.write for path, each in map_of.items()}
        return ContextMap(sites.paths, read, write, provenance=provenance, report=report)

    def _map(self, graph: HookGraph, site: Site, vectors: tuple[Tensor, Tensor, Tensor], neighbours: Mapping[str, Tensor]) -> _Map:
        solution = solve(*vectors, self.ridge, self.preserve_weight)
        beside = graph.spec.input_widths[site.path] - solution.read.shape[1]  # as sizes beside pooled text
        read, write = (functional.pad(each.float(), (0, beside)) for each in (solution.read, solution.write))
        return _Map(vectors, read, write, _report(solution, *vectors, neighbours))

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens)


class _Map(NamedTuple):
    """The solution for sites that read the same vectors.

    Attributes:
        vectors: keys, targets and kept vectors, float64 [vector, channel].
        read, write: the map's factors, float32 [rank, channel], as wide as what the sites read.
        report: what the map does to the vectors and to others.
    """

    vectors: tuple[Tensor, Tensor, Tensor]
    read: Tensor
    write: Tensor
    report: EditReport


class _Texts(NamedTuple):
    """A concept's prompts in both arms, and which of their tokens correspond."""

    name: str
    present: Conditions
    absent: Conditions
    aligned: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, graph: HookGraph, concept: Concept, kinds: tuple[str, ...]) -> Self:
        pairs = list(zip(concept.present, concept.absent, strict=True))
        present, absent = (graph.text.conditions(list(arm)) for arm in (concept.present, concept.absent))
        aligned = graph.text.align(pairs, concept.name, kinds)
        seen = present.of_tokens.bool().cpu()
        kept = [[(here, there) for here, there in places if seen[row, here]] for row, places in enumerate(aligned)]
        if not any(kept):
            raise InvalidInput(f"attention sees no {' or '.join(kinds)} token of the prompts of {concept.name!r}; edit other tokens")
        return cls(concept.name, present, absent, kept)

    def pairs(self, graph: HookGraph, site: Site) -> tuple[Tensor, Tensor]:
        """What a site reads of the chosen tokens in both arms, float64 [key, channel]."""
        present, absent = (graph.text.read(site, arm).double().cpu() for arm in (self.present, self.absent))
        if present.ndim == 2:
            return present, absent
        if site.path in graph.spec.wordless:
            return present.flatten(0, 1), absent.flatten(0, 1)
        rows = [(present[row, here], absent[row, there]) for row, places in enumerate(self.aligned) for here, there in places]
        return torch.stack([key for key, _ in rows]), torch.stack([target for _, target in rows])


def _vectors(graph: HookGraph, site: Site, texts: Sequence[_Texts], preserved: Conditions | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, targets and kept vectors of a site, float64 [vector, channel]; equal ones count once."""
    keys, targets = (torch.cat(each) for each in zip(*(each.pairs(graph, site) for each in texts), strict=True))
    kept = keys[:0] if preserved is None else _kept(graph, site, preserved).double().cpu()
    if not all(torch.isfinite(each).all() for each in (keys, targets, kept)):
        raise NonFiniteActivation("the prompts' contexts hold NaN or infinity; use a wider number format for the text encoder")
    return *_distinct(keys, targets), _distinct(kept, kept)[0]


def _kept(graph: HookGraph, site: Site, preserved: Conditions) -> Tensor:
    """The vectors [vector, channel] that a site reads of preserved prompts: of their tokens those that attention sees."""
    read = graph.text.read(site, preserved)
    if read.ndim == 2:
        return read
    return read[graph.text.positions(site, preserved.of_tokens.bool(), read.shape[1]).to(read.device)]


def _neighbours(graph: HookGraph, site: Site, texts: Sequence[_Texts]) -> dict[str, Tensor]:
    """By concept, what a site reads of its prompts without it."""
    found: dict[str, Tensor] = {}
    for each in texts:
        targets = each.pairs(graph, site)[1]
        found[each.name] = torch.cat([found.get(each.name, targets[:0]), targets])
    return {name: _distinct(targets, targets)[0] for name, targets in found.items()}


def _distinct(keys: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs without repetitions, in order."""
    _, first = np.unique(torch.cat([keys, targets], dim=1).numpy(), axis=0, return_index=True)
    chosen = torch.from_numpy(np.sort(first))
    return keys[chosen], targets[chosen]


def _report(
    solution: Solution,
    keys: Float64[Tensor, "key channel"],
    targets: Float64[Tensor, "key channel"],
    kept: Float64[Tensor, "kept channel"],
    neighbours: Mapping[str, Tensor],
) -> EditReport:
    """What the map does, measured on the factors as they are stored, in float32.

    The residual is ‖X + map(X) - T‖ / ‖T - X‖, Frobenius norms. The side effects are relative changes ‖map(x)‖ / ‖x‖: the largest
    over random directions outside the span of keys and kept vectors, the largest over kept vectors, the mean over targets.
    """
    read, write = solution.read.float().double(), solution.write.float().double()

    def moves(inputs: Tensor) -> Tensor:
        result: Tensor = ((inputs @ read.T) @ write).norm(dim=-1) / inputs.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        return result

    span = torch.linalg.svd(torch.cat([keys, kept]), full_matrices=False)
    basis = span.Vh[span.S[0] * 1e-10 < span.S]
    noise = torch.randn(_PROBES, keys.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside = noise - (noise @ basis.T) @ basis
    remaining = keys + (keys @ read.T) @ write - targets
    return EditReport(
        keys=len(keys),
        kept=len(kept),
        rank=len(read),
        penalty=solution.penalty,
        condition=solution.condition,
        residual=float(remaining.norm() / (targets - keys).norm()),
        outside=float(moves(outside).max()) if len(basis) < keys.shape[1] else 0.0,
        preserved=float(moves(kept).max()) if len(kept) else 0.0,
        unrelated=float(moves(targets).mean()),
        neighbours={name: float(moves(vectors).mean()) for name, vectors in neighbours.items()},
    )

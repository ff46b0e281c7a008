"""LOCOEDIT: a closed-form edit of keys and values, as a low-rank map of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from neuroscope._errors import InvalidInput, NonFiniteActivation, choose
from neuroscope.concepts import Concept
from neuroscope.editing.solving import Solution, solve
from neuroscope.graph import HookGraph
from neuroscope.interventions import ContextMap, EditReport
from neuroscope.provenance import Provenance
from neuroscope.sites import Sites
from neuroscope.tokens import EditedToken, align

ROLES = ("key", "value")
EDITED = get_args(EditedToken)
_PROBES = 64


@dataclass(frozen=True, kw_only=True)
class LocoEdit:
    """The closed-form edit of Basu et al. (2024, LOCOEDIT), with the preserve set of unified concept editing (Gandikota et al. 2024).

    Keys X are context vectors of the present prompts, targets T the aligned ones of the absent prompts. Of all weights W',
    the edited ones bring X Wᵀ nearest to what T gave, with a ridge on W' − W:

        W' = W + W · (T − X)ᵀ (X Xᵀ + λ I)⁻¹ X

    which is one map of the layers' input, the same for every W. Solved in float64, in as many dimensions as there are keys.

    Attributes:
        ridge: λ in units of the keys' mean squared length. The published 0.01 is absolute.
        preserve: prompts whose vectors are asked to stay where they are.
        preserve_weight: how much a preserved vector counts beside an edited one.
        tokens: which vectors are edited: "subject" (the last token of the concept's name, as published), "eos" (the first
            end-of-text token), "padding" behind it, several of these, or "all". Text encoders carry a word on into later
            tokens, and layers may read it there.
        roles: edit "key" and "value", or one of them.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    ridge: float = 0.01
    preserve: tuple[str, ...] = ()
    preserve_weight: float = 1.0
    tokens: str | tuple[str, ...] = "subject"
    roles: str | tuple[str, ...] = ROLES

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", (self.roles,) if isinstance(self.roles, str) else tuple(self.roles))
        for each in self._kinds:
            choose("token", each, EDITED)
        for role in self.roles:
            choose("role", role, ROLES)
        if not self._kinds or not self.roles:
            raise InvalidInput("tokens and roles must each name at least one; the defaults edit keys and values at the subject")
        if self.ridge < 0 or self.preserve_weight <= 0:
            given = f"ridge={self.ridge} and preserve_weight={self.preserve_weight}"
            raise InvalidInput(f"{given} are not allowed; the ridge is 0 or more, the weight more than 0")

    def __call__(self, graph: HookGraph, concepts: Sequence[Concept], sites: Sites) -> ContextMap:
        """The edit of these sites."""
        keys, targets = (torch.cat(each) for each in zip(*(self._pairs(graph, concept) for concept in concepts), strict=True))
        kept = graph.encode(list(self.preserve)).double().flatten(0, 1) if self.preserve else keys[:0]
        if not all(torch.isfinite(each).all() for each in (keys, targets, kept)):
            raise NonFiniteActivation("the prompts' contexts hold NaN or infinity; use a wider number format for the text encoder")
        kept, _ = _distinct(kept, kept)
        solution = solve(keys, targets, kept, self.ridge, self.preserve_weight)
        names = ", ".join(concept.name for concept in concepts)
        provenance = Provenance(graph.family.name, graph.model, names, repr(self))
        report = _report(solution, keys, targets, kept)
        return ContextMap(sites.paths, solution.read.float(), solution.write.float(), provenance=provenance, report=report)

    def _pairs(self, graph: HookGraph, concept: Concept) -> tuple[Tensor, Tensor]:
        """The concept's keys and targets, float64 [key, channel]; equal ones count once."""
        pairs = list(zip(concept.present, concept.absent, strict=True))
        aligned = align(graph.pipe.tokenizer, pairs, concept.name, self._kinds)
        present, absent = (graph.encode(list(arm)).double().cpu() for arm in (concept.present, concept.absent))
        rows = [(present[row, here], absent[row, there]) for row, places in enumerate(aligned) for here, there in places]
        return _distinct(torch.stack([key for key, _ in rows]), torch.stack([target for _, target in rows]))

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens)


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
) -> EditReport:
    """Measured on the factors as they are stored."""
    read, write = solution.read.float().double(), solution.write.float().double()

    def moves(inputs: Tensor) -> Tensor:
        return ((inputs @ read.T) @ write).norm(dim=-1) / inputs.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)

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
        bystanders=float(moves(targets).mean()),
    )

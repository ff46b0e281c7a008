"""What sites read of a concept's prompts: keys, targets and vectors that are to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from neuroscope.core.concepts import Concept
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, NonFiniteActivation
from neuroscope.core.sites import Site
from neuroscope.pipeline.graph import HookGraph

#: Pairs of vectors, one with a concept and one without it, float64 [key, channel].
Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class EditedVectors:
    """What a site reads.

    Attributes:
        keys: of the prompts with the concept.
        targets: where these should go.
        kept: what should stay.
        neighbours: by concept, the targets that are its own.
        held_out: keys and targets to which no map is fitted, of seeds apart; None where keys depend on no seed.
    """

    keys: Float64[Tensor, "key channel"]
    targets: Float64[Tensor, "key channel"]
    kept: Float64[Tensor, "kept channel"]
    neighbours: dict[str, Tensor]
    held_out: Pairs | None = None

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, Pairs]], kept: Tensor | None, held_out: Sequence[Pairs] = ()) -> Self:
        """Those of several concepts, each by its name; equal vectors count once.

        Raises:
            NonFiniteActivation: vectors hold NaN or infinity.
        """
        keys, targets = _joined([each for _, each in pairs])
        kept = keys[:0] if kept is None else kept
        if not all(torch.isfinite(each).all() for each in (keys, targets, kept)):
            raise NonFiniteActivation("the prompts' contexts hold NaN or infinity; use a wider number format for the text encoder")
        found: dict[str, Tensor] = {}
        for name, (_, own) in pairs:
            found[name] = torch.cat([found.get(name, own[:0]), own])
        neighbours = {name: _distinct(own, own)[0] for name, own in found.items()}
        return cls(*_distinct(keys, targets), _distinct(kept, kept)[0], neighbours, _joined(held_out) if held_out else None)

    def are(self, others: EditedVectors) -> bool:
        """Whether they are the same keys, targets and kept vectors."""
        mine, theirs = ((each.keys, each.targets, each.kept) for each in (self, others))
        return all(map(torch.equal, mine, theirs))


class ConceptTexts(NamedTuple):
    """A concept's prompts in both arms, and which of their tokens correspond."""

    concept: Concept
    present: Conditions
    absent: Conditions
    aligned: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, graph: HookGraph, concept: Concept, kinds: tuple[str, ...]) -> Self:
        """Those of a concept, at these kinds of tokens.

        Raises:
            InvalidInput: the model's attention sees none of them.
        """
        pairs = list(zip(concept.present, concept.absent, strict=True))
        present, absent = (graph.text.conditions(list(arm)) for arm in (concept.present, concept.absent))
        aligned = graph.text.align(pairs, concept.name, kinds)
        seen = present.of_tokens.bool().cpu()
        kept = [[(here, there) for here, there in places if seen[row, here]] for row, places in enumerate(aligned)]
        if not any(kept):
            raise InvalidInput(f"attention sees no {' or '.join(kinds)} token of the prompts of {concept.name!r}; edit other tokens")
        return cls(concept, present, absent, kept)

    def pairs(self, graph: HookGraph, site: Site) -> Pairs:
        """What a site reads of the chosen tokens in both arms, where that depends on the prompt alone."""
        present, absent = (graph.text.read(site, arm).double().cpu() for arm in (self.present, self.absent))
        if present.ndim == 2:
            return present, absent
        if site.path in graph.spec.wordless:
            return present.flatten(0, 1), absent.flatten(0, 1)
        rows = [(present[row, here], absent[row, there]) for row, places in enumerate(self.aligned) for here, there in places]
        return torch.stack([key for key, _ in rows]), torch.stack([target for _, target in rows])


def read_vectors(graph: HookGraph, site: Site, texts: Sequence[ConceptTexts], preserved: Conditions | None) -> EditedVectors:
    """What a site reads, where that depends on the prompt alone.

    Args:
        graph: the model.
        site: the site.
        texts: of the concepts.
        preserved: the conditions of prompts that should stay.
    """
    kept = None if preserved is None else _kept(graph, site, preserved).double().cpu()
    return EditedVectors.of([(each.concept.name, each.pairs(graph, site)) for each in texts], kept)


def _kept(graph: HookGraph, site: Site, preserved: Conditions) -> Tensor:
    """The vectors [vector, channel] that a site reads of preserved prompts: of their tokens those that attention sees."""
    read = graph.text.read(site, preserved)
    if read.ndim == 2:
        return read
    return read[graph.text.positions(site, preserved.of_tokens.bool(), read.shape[1]).to(read.device)]


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    return torch.cat([key for key, _ in pairs]), torch.cat([target for _, target in pairs])


def _distinct(keys: Tensor, targets: Tensor) -> Pairs:
    """The pairs without repetitions, in order."""
    _, first = np.unique(torch.cat([keys, targets], dim=1).numpy(), axis=0, return_index=True)
    chosen = torch.from_numpy(np.sort(first))
    return keys[chosen], targets[chosen]

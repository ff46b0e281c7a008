"""LOCOEDIT: a closed-form edit of keys and values, as a low-rank map of what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from neuroscope.core import checks
from neuroscope.core.artifacts import Provenance
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.sites import BESIDE_LAYERS, TEXT_ROLES, Site, Sites
from neuroscope.core.tokens import EditedToken
from neuroscope.editing.recorded_keys import KeyRuns, RecordedKeys
from neuroscope.editing.solving import Solution, solve
from neuroscope.editing.vectors import ConceptTexts, EditedVectors, read_vectors
from neuroscope.interventions import ContextMap, EditReport, Factor
from neuroscope.pipeline.graph import HookGraph

EDITED = get_args(EditedToken)
#: The least R² on held-out seeds of a map that was fitted to recorded keys: as much of the squared way to the targets is made.
LEAST_R_SQUARED = 0.5
_PROBES = 64


@dataclass(frozen=True, kw_only=True)
class LocoEdit:
    """The closed-form edit of Basu et al. (2024, LOCOEDIT), with the preserve set of unified concept editing (Gandikota et al. 2024).

    Keys X are context vectors of the present prompts, targets T the aligned ones of the absent prompts. Of all weights W',
    the edited ones bring X Wᵀ nearest to what T gave, with a ridge on W' − W:

        W' = W + W · (T − X)ᵀ (X Xᵀ + λ I)⁻¹ X

    which is one map of what W reads, whatever W is: one for all layers that read the same vectors, and one for each that
    projects or normalises its text for itself. Biases stay. Solved in float64, in as many dimensions as there are keys or channels.

    Where blocks rewrite the text (Stable Diffusion 3, FLUX) there are two edits. `roles="context"` edits the one matrix that embeds the
    prompt's tokens for all blocks: its keys depend on the prompt alone, so that it is as exact as above, and it acts on all blocks at once.
    Keys of single blocks depend on the step and on the image: they are recorded in runs with several seeds, and the map is the ridge
    regression over all steps. Seeds that were held out give its R², below `LEAST_R_SQUARED` of which it is refused. The block's own text
    reads the edited keys too, as with changed weights.

    Attributes:
        ridge: λ in units of the keys' mean squared length. The published 0.01 is absolute.
        preserve: prompts whose vectors are asked to stay where they are. Under guidance unconditional rows read the changed
            weights too; `preserve=("",)` keeps what they read. The published edit, as the default, keeps nothing.
        preserve_weight: how much a preserved vector counts beside an edited one.
        tokens: which vectors are edited: "subject" (the last token of the concept's name, as published), "eos" (the first
            end-of-text token), "padding" behind it, several of these, or "all". Text encoders carry a word on into later
            tokens (bidirectional ones into all), and layers may read it there. Tokens that the model's attention does not see are no keys.
        roles: edit "key" and "value", or one of them; "pooled" edits the pooled text path as well, where the model has one; "context" edits
            the prompt's tokens before all blocks, where these rewrite the text.

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

    def __call__(self, graph: HookGraph, concepts: Sequence[Concept], sites: Sites, runs: KeyRuns, quiet: bool = False) -> ContextMap:
        """The edit of these sites.

        Args:
            graph: the model, whose text encoders and text projections are run; nothing of it is changed.
            concepts: edited together, in one regression.
            sites: text-side sites.
            runs: in which keys are recorded that depend on the image.
            quiet: show no progress bar, which is there after a second.

        Returns:
            One map for all sites where all read the same vectors, otherwise one for each; its `report` is the worst of all maps.

        Raises:
            InvalidInput: prompts that read the same with and without the concept, vectors that depend on each other without a ridge, or
                recorded keys that no map takes to their targets.
            NonFiniteActivation: the text encoder gives NaN or infinity.
        """
        names = ", ".join(concept.name for concept in concepts)
        texts = [ConceptTexts.of(graph, concept, self._kinds) for concept in concepts]
        preserved = graph.text.on_either_side(list(self.preserve)) if self.preserve else None
        rewritten = Sites(site for site in sites if site.path in graph.spec.read_in_runs)
        recorded = RecordedKeys(graph, rewritten, texts, self.preserve, runs, quiet=quiet) if rewritten else None
        maps: list[_Map] = []
        map_of: dict[str, _Map] = {}
        for site in tqdm(sites, desc=f"editing {names}", unit="site", disable=quiet, delay=1):
            of_runs = recorded is not None and site.path in graph.spec.read_in_runs
            vectors = recorded.vectors(site) if recorded and of_runs else read_vectors(graph, site, texts, preserved)
            known = [each for each in maps if each.vectors.are(vectors)]
            maps += [] if known else [self._map(graph, site, vectors)]
            map_of[site.path] = known[0] if known else maps[-1]
        self._check_fits(sites, map_of, runs)
        provenance = Provenance(graph.family.name, graph.model, names, f"{self!r}, keys of {runs!r}" if recorded else repr(self))
        report = EditReport.worst([each.report for each in maps])
        read: Factor = maps[0].read if len(maps) == 1 else {path: each.read for path, each in map_of.items()}
        write: Factor = maps[0].write if len(maps) == 1 else {path: each.write for path, each in map_of.items()}
        return ContextMap(sites.paths, read, write, provenance=provenance, report=report)

    def _map(self, graph: HookGraph, site: Site, vectors: EditedVectors) -> _Map:
        solution = solve(vectors.keys, vectors.targets, vectors.kept, self.ridge, self.preserve_weight)
        beside = graph.spec.input_widths[site.path] - solution.read.shape[1]  # as sizes beside pooled text
        read, write = (functional.pad(each.float(), (0, beside)) for each in (solution.read, solution.write))
        reach = "all blocks" if site.role in BESIDE_LAYERS else ""
        return _Map(vectors, read, write, replace(_report(solution, vectors), reach=reach))

    def _check_fits(self, sites: Sites, map_of: Mapping[str, _Map], runs: KeyRuns) -> None:
        """Raises InvalidInput for a site whose recorded keys its map does not take to their targets on other seeds."""
        for site in sites:
            fit = map_of[site.path].report.r_squared
            if fit is not None and fit < LEAST_R_SQUARED:
                made = f"R² = {fit:.3f} of the way to its targets on held-out seeds {list(runs.held_out)}"
                raise InvalidInput(
                    f"an edit of layer {site.layer} makes {made}, and {LEAST_R_SQUARED} is the least: the ridge holds it back, or the "
                    f"image moves what its text reads too much for one map. Give more seeds (there are {len(runs.seeds)}) or another "
                    'ridge, edit an earlier layer, or edit the text before all blocks with LocoEdit(roles="context")'
                )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens)


class _Map(NamedTuple):
    """The solution for sites that read the same vectors.

    Attributes:
        vectors: what they read.
        read, write: the map's factors, float32 [rank, channel], as wide as what the sites read.
        report: what the map does to the vectors and to others.
    """

    vectors: EditedVectors
    read: Tensor
    write: Tensor
    report: EditReport


def _report(solution: Solution, vectors: EditedVectors) -> EditReport:
    """What the map does, measured on the factors as they are stored, in float32.

    The residual is ‖X + map(X) - T‖ / ‖T - X‖, Frobenius norms. The side effects are relative changes ‖map(x)‖ / ‖x‖: the largest
    over random directions outside the span of keys and kept vectors, the largest over kept vectors, the mean over targets.
    """
    keys, targets, kept = vectors.keys, vectors.targets, vectors.kept
    read, write = solution.read.float().double(), solution.write.float().double()

    def residual(keys: Tensor, targets: Tensor) -> float:
        return float((keys + (keys @ read.T) @ write - targets).norm() / (targets - keys).norm())

    def moves(inputs: Tensor) -> Tensor:
        result: Tensor = ((inputs @ read.T) @ write).norm(dim=-1) / inputs.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        return result

    span = torch.linalg.svd(torch.cat([keys, kept]), full_matrices=False)
    basis = span.Vh[span.S[0] * 1e-10 < span.S]
    noise = torch.randn(_PROBES, keys.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside = noise - (noise @ basis.T) @ basis
    return EditReport(
        keys=len(keys),
        kept=len(kept),
        rank=len(read),
        penalty=solution.penalty,
        condition=solution.condition,
        residual=residual(keys, targets),
        outside=float(moves(outside).max()) if len(basis) < keys.shape[1] else 0.0,
        preserved=float(moves(kept).max()) if len(kept) else 0.0,
        unrelated=float(moves(targets).mean()),
        neighbours={name: float(moves(own).mean()) for name, own in vectors.neighbours.items()},
        r_squared=None if vectors.held_out is None else 1 - residual(*vectors.held_out) ** 2,
    )

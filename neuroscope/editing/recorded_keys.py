"""Keys that depend on the step and on the image, as where blocks rewrite the text: recorded in runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.intervention import Call
from neuroscope.core.sites import Site, Sites
from neuroscope.editing.vectors import ConceptTexts, EditedVectors
from neuroscope.generation.image_inputs import spread_images
from neuroscope.pipeline.graph import HookGraph

#: From how many seeds on some are held out: one in so many, and at least one.
_SHARE_HELD_OUT = 4
#: For each prompt, the places of its tokens.
_Places = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class KeyRuns:
    """The runs in which keys are recorded.

    Attributes:
        seeds: of the noise; with each of them every prompt is run once.
        batch_size: prompts at a time.
        generation: options of the pipeline's call.

    Raises:
        InvalidInput: fewer than two seeds, or one of them twice.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    batch_size: int = 8
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < max(2, len(self.seeds)):
            raise InvalidInput(
                f"the seeds {self.seeds} leave none to check an edit on that keys of other seeds gave; give two or more, each once"
            )

    @property
    def held_out(self) -> tuple[int, ...]:
        """The seeds on which maps are checked: the last quarter, and at least one."""
        return self.seeds[-max(1, len(self.seeds) // _SHARE_HELD_OUT) :]

    def count(self, concepts: Sequence[Concept], preserved: Sequence[str]) -> int:
        """How many images are run for these concepts and for prompts that should stay."""
        return 2 * sum(len(each.present) for each in concepts) * len(self.seeds) + len(preserved) * len(self.fitted)

    @property
    def fitted(self) -> tuple[int, ...]:
        """The seeds to which maps are fitted."""
        return self.seeds[: -len(self.held_out)]


class RecordedKeys:
    """What some keys and values read of concepts' prompts, in runs of the unchanged model.

    Both prompts of a pair begin from the same noise and go their own ways: a target is what the site reads of the other prompt at the same
    step and seed.

    Args:
        graph: the model.
        sites: keys and values; those of one layer read the same, which is recorded once.
        texts: of the concepts.
        preserved: prompts that should stay.
        runs: which runs.
        quiet: show no progress bar.
    """

    def __init__(
        self, graph: HookGraph, sites: Sites, texts: Sequence[ConceptTexts], preserved: Sequence[str], runs: KeyRuns, *, quiet: bool = True
    ) -> None:
        self._graph, self._texts, self._runs = graph, texts, runs
        self._layers = Sites({site.layer: site for site in sites}.values())
        with tqdm(
            total=runs.count([each.concept for each in texts], preserved), desc="recording keys", unit="image", disable=quiet, delay=1
        ) as bar:
            self._present = [self._recorded(each.concept.present, [[a for a, _ in row] for row in each.aligned], bar) for each in texts]
            self._absent = [self._recorded(each.concept.absent, [[b for _, b in row] for row in each.aligned], bar) for each in texts]
            self._kept = self._recorded_whole(preserved, bar)

    def vectors(self, site: Site) -> EditedVectors:
        """What a site reads, at all steps: the keys and targets of some seeds, and of others to check maps on."""
        arms = list(zip(self._texts, self._present, self._absent, strict=True))

        def pairs(seeds: Sequence[int]) -> list[tuple[str, tuple[Tensor, Tensor]]]:
            return [(each.concept.name, (_of(here, site, seeds), _of(there, site, seeds))) for each, here, there in arms]

        kept = _of(self._kept, site, self._runs.fitted) if self._kept else None
        return EditedVectors.of(pairs(self._runs.fitted), kept, [each for _, each in pairs(self._runs.held_out)])

    def _recorded_whole(self, prompts: Sequence[str], bar: Any) -> _Recorded:
        """All tokens of prompts."""
        if not prompts:
            return {}
        seen = self._graph.text.conditions(prompts).of_tokens.bool().cpu()
        return self._recorded(prompts, [row.nonzero().flatten().tolist() for row in seen], bar, self._runs.fitted)

    def _recorded(self, prompts: Sequence[str], places: _Places, bar: Any, seeds: Sequence[int] = ()) -> _Recorded:
        """By layer and seed, what its attention reads of prompts at these tokens, prompt by prompt, and step by step of each."""
        found: _Recorded = {}
        for seed in seeds or self._runs.seeds:
            for first in range(0, len(prompts), self._runs.batch_size):
                chosen = slice(first, first + self._runs.batch_size)
                for layer, vectors in self._run(prompts[chosen], places[chosen], seed):
                    found.setdefault((layer, seed), []).append(vectors)
                bar.update(len(prompts[chosen]))
        return found

    @torch.no_grad()
    def _run(self, prompts: Sequence[str], places: _Places, seed: int) -> Iterator[tuple[int | None, Tensor]]:
        """One run: by layer the vectors of all prompts, float64 [vector, channel]."""
        kept: dict[int | None, list[list[Tensor]]] = {site.layer: [[] for _ in prompts] for site in self._layers}

        def keep(read: Tensor, call: Call) -> None:
            rows = read[call.rows("conditional", len(read))]
            for image, row in enumerate(rows[: len(prompts)]):
                kept[call.site.layer][image].append(row[list(places[image])].double().cpu())

        options = {"output_type": "latent"} | spread_images(self._graph.pipe, self._runs.generation, len(prompts))
        if isinstance(options.get("negative_prompt"), str):
            options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
        with self._graph.observe(self._layers, keep, reads=True):
            noise = [torch.Generator().manual_seed(seed) for _ in prompts]
            self._graph.pipe(prompt=list(prompts), generator=noise, **options)
        return ((layer, torch.cat([vector for image in images for vector in image])) for layer, images in kept.items())


#: By layer and seed, vectors [vector, channel].
_Recorded = dict[tuple[int | None, int], list[Tensor]]


def _of(recorded: _Recorded, site: Site, seeds: Sequence[int]) -> Tensor:
    return torch.cat([each for seed in seeds for each in recorded[site.layer, seed]])

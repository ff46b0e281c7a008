"""LOCOGEN: windows of layers read another prompt, and the image shows whether they control the concept."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from neuroscope.core import checks
from neuroscope.core.conditions import Rows
from neuroscope.core.effects import Effects, Patch
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.intervention import check_schedule_part
from neuroscope.core.layer_scores import LayerScores
from neuroscope.generation.experiment import Experiment
from neuroscope.generation.metering import Meter, metered
from neuroscope.generation.patch_runner import ROLES, Direction, PatchRunner, PatchSpec, check_patch_spec, drawn, split
from neuroscope.localization._localization import Localization
from neuroscope.localization.search.auto import AutoSearch
from neuroscope.localization.search.screened_effects import ScreenedEffects

_MOST_PARTS = 1000


@dataclass(frozen=True, kw_only=True, repr=False)
class LocoGen(Localization[LayerScores]):
    """Localisation by giving windows of adjacent layers another prompt (Basu et al. 2024, LOCOGEN).

    For each window, its layers' keys and values read the prompt without the concept and all others the prompt with it,
    from the same noise. The score is how far the metric falls (or, for a fact with a new answer, rises), in its own units.
    Windows share batches, so that a sweep runs as fast as the bare pipeline.

    Models with a pooled text path get a run more for each image, in which that path alone reads the other prompt: what
    it carries, no layer can. `LayerScores.pooled_share` reports it.

    Attributes:
        window: how many adjacent layers change together, the same at both ends of the model; or "grow", the paper's
            procedure: 1, and wider until some window has at least `enough` of the effect of changing all layers.
        enough: the share of the full effect at which a growing window or set is large enough.
        search: "windows" of adjacent layers, as published; or "sets", which finds smallest sets of layers, adjacent or not,
            that have `enough` of the full effect, by leaving out parts of all layers (delta debugging, Zeller and Hildebrandt
            2002), and again among the rest while that is enough. `LayerScores.best` is the strongest set; the layers of a set
            score what it does, all others what they do together. Or "auto": a cheap screen, then images of the few layers
            that it names and of all others together, until it is sure which layer the windows of one would name; see
            `LayerScores.confidence`.
        budget: with search="auto", the share of the rows of all windows that it may take. With 1 it goes on until it is sure, if
            need be with all windows; with less it stops there, and says how sure it is. A search takes a few images at least; where
            that is more, it warns before it spends it.
        seed: with search="auto", of the random order in which prompts and seeds are taken.
        roles: change "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule in which the layers read the other prompt.
        parts: cut `steps` into as many equal parts and patch each on its own, for a layer × part grid.
        pooled: which prompt feeds the pooled text path in a window's run: its "own", or the "other", as the window's.

    Raises:
        InvalidInput: a value that is not allowed.
    """

    window: int | Literal["grow"] = 1
    enough: float = 0.5
    search: Literal["windows", "sets", "auto"] = "windows"
    budget: float = 1.0
    seed: int = 0
    roles: str | tuple[str, ...] = ROLES
    direction: Direction = "necessity"
    rows: Rows = "conditional"
    steps: tuple[float, float] = (0.0, 1.0)
    parts: int = 1
    pooled: Literal["own", "other"] = "own"

    def __post_init__(self) -> None:
        checks.fit_defaults(self, "window")
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        if self.window != "grow" and (type(self.window) is not int or self.window < 1):
            raise InvalidInput(f'window={self.window!r} is no number of layers; give 1 or more, or "grow"')
        if not 0 < self.enough <= 1:
            raise InvalidInput(f"enough={self.enough} is no share of the full effect; give more than 0 and at most 1")
        choose("search", self.search, ("windows", "sets", "auto"))
        if self.search != "windows" and (self.window != 1 or self.parts != 1):
            raise InvalidInput(f"search={self.search!r} takes layers one by one over the whole of `steps`; leave window and parts at 1")
        if not 0 < self.budget <= 1:
            raise InvalidInput(f"budget={self.budget} is no share of the exhaustive sweep's rows; give more than 0 and at most 1")
        if self.budget != 1 and self.search != "auto":
            raise InvalidInput(f"search={self.search!r} has no budget; leave it out, or give search='auto'")
        checks.whole("seed", self.seed, least=0)
        if self.seed and self.search != "auto":
            raise InvalidInput(f"search={self.search!r} draws nothing at random; leave seed out, or give search='auto'")
        choose("rows", self.rows, ("conditional", "all"))
        choose("pooled", self.pooled, ("own", "other"))
        check_schedule_part(self.steps)
        if self.parts < 1:
            raise InvalidInput(f"parts={self.parts} is no number of parts; give 1 or more")
        if self.parts > _MOST_PARTS:
            raise InvalidInput(f"parts={checks.shown(self.parts)} are more than a schedule has steps; give at most {_MOST_PARTS}")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """See `Localization`."""
        layers = experiment.graph.sites.layers
        if self.window != "grow" and self.window > len(layers):
            raise InvalidInput(f"window={self.window} is wider than the model's {len(layers)} layers; give 1 to {len(layers)}")
        with metered(experiment.graph.denoiser) as meter:
            if self.search == "auto":
                return self._auto(experiment, meter)
            runner = PatchRunner(experiment, self._spec)
            method, patches, effects = self._sets(runner) if self.search == "sets" else self._windows(runner)
        experiment.warn_of_no_change(effects)
        return LayerScores.of(
            effects, provenance=experiment.provenance(method), cost=meter.cost, **runner.measured.sheet(experiment, patches)
        )

    @property
    def _spec(self) -> PatchSpec:
        return PatchSpec(**{field.name: getattr(self, field.name) for field in fields(PatchSpec)})

    def _auto(self, experiment: Experiment, meter: Meter) -> LayerScores:
        order = drawn(experiment, self.seed)
        runner = PatchRunner(replace(experiment, shown=tuple(order[: len(experiment.pairs)])), self._spec)
        search = AutoSearch(runner, ScreenedEffects(runner, meter, order), self.budget)
        confidence = search.run()
        effects = search.effects()
        runner.experiment.warn_of_no_change(effects)
        cost = replace(meter.cost, nfe=search.rows)
        sheet = runner.measured.sheet(runner.experiment, [*search.singles, *search.groups, *runner.beside])
        return LayerScores.of(effects, provenance=runner.experiment.provenance(self), cost=cost, confidence=confidence, **sheet)

    def _windows(self, runner: PatchRunner) -> Found:
        """Windows of one width, or of growing widths until one is wide enough."""
        layers = runner.experiment.graph.sites.layers
        parts = runner.spec.schedule
        for width in range(1, len(layers) + 1) if self.window == "grow" else [self.window]:
            patches = [Patch(layers[first : first + width], part) for first in range(len(layers) - width + 1) for part in parts]
            patches += runner.beside
            effects = runner.measure(patches)
            if effects.total_mean() <= 0 or self._is_enough(effects):
                break
        return replace(self, window=width), patches, effects

    def _sets(self, runner: PatchRunner) -> Found:
        """Smallest sets, one after the other, until what is left is not enough."""
        rest = runner.experiment.graph.sites.layers
        found: list[Patch] = []
        while rest and self._is_enough(runner.measure([Patch(rest)])):
            found.append(Patch(self._shrunk(runner, rest)))
            rest = tuple(layer for layer in rest if layer not in found[-1].layers)
        patches = [*found, *([Patch(rest)] if rest else []), *runner.beside]
        return self, patches, runner.measure(patches)

    def _shrunk(self, runner: PatchRunner, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Layers that are enough, with ever finer parts left out as long as the others are."""
        parts = 2
        while len(layers) > 1:
            others = [Patch(tuple(each for each in layers if each not in part)) for part in split(layers, parts)]
            effects = runner.measure(others)
            if self._is_enough(effects):
                layers, parts = others[int(effects.means().argmax())].layers, max(parts - 1, 2)
            elif parts < len(layers):
                parts = min(2 * parts, len(layers))
            else:
                break
        return layers

    def _is_enough(self, effects: Effects) -> bool:
        means = [mean for patch, mean in zip(effects.patches, effects.means(), strict=True) if patch.layers]
        result: bool = max(means) >= self.enough * effects.total_mean() > 0
        return result


Found = tuple[LocoGen, list[Patch], Effects]

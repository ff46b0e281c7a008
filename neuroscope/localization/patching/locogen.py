"""LOCOGEN: layers read the prompt without the concept, and the change of the image is measured."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, get_args

from neuroscope.core import checks
from neuroscope.core.conditions import Rows
from neuroscope.core.errors import InvalidInput, choose, counted
from neuroscope.core.intervention import Definition, check_schedule_part
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Plan
from neuroscope.generation.dry_run import plan_patches
from neuroscope.generation.experiment import Experiment, Localization
from neuroscope.generation.metering import Meter, metered
from neuroscope.generation.patch_runner import ROLES, Direction, PatchRunner, PatchSpec, Trajectory, check_patch_spec, random_order
from neuroscope.localization.patching.smallest_sets import SmallestSets
from neuroscope.localization.patching.windows import GrowingWindows, Windows
from neuroscope.localization.search.auto import AutoSearch
from neuroscope.localization.search.budget import plan_search
from neuroscope.localization.search.screened_effects import ScreenedEffects

#: No schedule has more steps than this, and so no more parts.
_MOST_PARTS = 1000


@dataclass(frozen=True, kw_only=True, repr=False)
class LocoGen(Localization):
    """Localisation by giving windows of adjacent layers another prompt (Basu et al. 2024, LOCOGEN).

    In the run of a window, its layers' keys and values read the prompt without the concept, and all other layers the prompt with it,
    from the same noise. The score is how far the metric moves towards its value for the prompt without the concept, in its own units.
    Windows share batches, so that a sweep runs as fast as the bare pipeline.

    Models with a pooled text path get one more run for each image, in which that path alone reads the other prompt. It measures what no
    layer carries; `LayerScores.pooled_share` reports it.

    Attributes:
        window: how many adjacent layers change together, the same at both ends of the model. "grow" is the paper's procedure: it begins
            with 1 and widens until some window has at least `enough` of the total effect.
        enough: the share of the total effect at which a growing window or a set is large enough.
        search: "windows" of adjacent layers, as published. "sets" finds smallest sets of layers, adjacent or not, that have `enough` of
            the total effect, by delta debugging (Zeller and Hildebrandt 2002). `LayerScores.best` is the strongest set; the layers of a
            set score its effect, and all others the effect that they have together. "auto" screens all layers by single predictions,
            then makes images with the strongest layers alone and with all others together, until it is confident which layer all
            windows of one would name; see `LayerScores.confidence`.
        budget: with search="auto", the share of the NFE of all windows that it may take. With 1 it continues until it is confident, if
            need be with all windows. With less it stops there and reports its confidence. The smallest search takes a few images; where
            that is more than the budget, it warns first.
        seed: with search="auto", of the random order in which prompts and seeds are taken.
        roles: change "key" and "value", or one of them.
        direction: "necessity" takes the concept out of a run with it, "sufficiency" puts it into a run without it.
        rows: "conditional" (the rows that carry the prompt) or "all".
        steps: the part of the denoising schedule in which the layers read the other prompt, from 0.0 to 1.0.
        parts: cut `steps` into as many equal parts and patch each on its own, for a layer × part grid.
        pooled: which prompt feeds the pooled text path in a window's run: its "own", or the "other", as the window's.
        definition: what a layer takes of the other prompt where blocks rewrite the text (SD3, FLUX): "edge", the image's reads of its text
            alone, or "stream", the whole text that the block reads, so that later blocks read a mixed text (Zarei et al. 2025).
        trajectory: whose latents that text reads: those of the other prompt's "own" run, one for all windows of a batch, or those of the
            patched run ("shared"), which takes a row more for each.

    Raises:
        InvalidInput: a value that is not allowed; when it runs, a window wider than the model.
    """

    of_rewritten_text: ClassVar[bool] = True

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
    definition: Definition = "edge"
    trajectory: Trajectory = "own"

    def __post_init__(self) -> None:
        checks.fit_defaults(self, "window")
        object.__setattr__(self, "roles", check_patch_spec(self.roles, self.direction))
        if self.window != "grow" and (type(self.window) is not int or self.window < 1):
            raise InvalidInput(f'window={self.window!r} is no number of layers; give 1 or more, or "grow"')
        if not 0 < self.enough <= 1:
            raise InvalidInput(f"enough={self.enough} is no share of the total effect; give more than 0 and at most 1")
        choose("search", self.search, ("windows", "sets", "auto"))
        if self.search != "windows" and (self.window != 1 or self.parts != 1):
            raise InvalidInput(f"search={self.search!r} takes layers one by one over the whole of `steps`; leave window and parts at 1")
        if not 0 < self.budget <= 1:
            raise InvalidInput(f"budget={self.budget} is no share of the exhaustive sweep's NFE; give more than 0 and at most 1")
        if self.budget != 1 and self.search != "auto":
            raise InvalidInput(f"search={self.search!r} has no budget; leave it out, or give search='auto'")
        checks.whole("seed", self.seed, least=0)
        if self.seed and self.search != "auto":
            raise InvalidInput(f"search={self.search!r} draws nothing at random; leave seed out, or give search='auto'")
        choose("rows", self.rows, ("conditional", "all"))
        choose("pooled", self.pooled, ("own", "other"))
        choose("definition", self.definition, get_args(Definition))
        choose("trajectory", self.trajectory, get_args(Trajectory))
        check_schedule_part(self.steps)
        if self.parts < 1:
            raise InvalidInput(f"parts={self.parts} is no number of parts; give 1 or more")
        if self.parts > _MOST_PARTS:
            raise InvalidInput(f"parts={checks.shown(self.parts)} are more than a schedule has steps; give at most {_MOST_PARTS}")

    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores each layer by images in which it is patched; see `Localization.__call__`."""
        self._check_model(experiment)
        with metered(experiment.graph.denoiser) as meter:
            if self.search == "auto":
                return self._auto(experiment, meter)
            runner = PatchRunner(experiment, self._spec)
            patches, effects = self._method(runner)
        experiment.warn_of_no_change(effects)
        made_by = replace(self, window=len(patches[0].layers)) if self.search == "windows" else self
        sheet = runner.measured.sheet(patches)
        return LayerScores.of(effects, provenance=experiment.provenance(made_by), cost=meter.cost, **sheet)

    @property
    def not_sharded(self) -> str:
        """See `ExperimentMethod.not_sharded`."""
        if self.search == "windows" and self.window != "grow":
            return ""
        asked = f"search={self.search!r}" if self.search != "windows" else 'window="grow"'
        return f"with {asked} what it tries next depends on the scores of earlier images"

    def plan(self, experiment: Experiment) -> Plan:
        """See `Localization.plan`; an upper bound where what is tried depends on what was found."""
        self._check_model(experiment)
        layers = len(experiment.graph.sites.layers)
        if self.search == "auto":
            return plan_search(experiment, self.budget)
        stops_early = self.search == "sets" or self.window == "grow"
        return plan_patches(experiment, self._method.most_patches(layers, self.parts), is_bound=stops_early)

    def _check_model(self, experiment: Experiment) -> None:
        """Raises InvalidInput for options that do not fit the model."""
        for name in () if experiment.graph.family.joint else ("definition", "trajectory"):
            if (given := getattr(self, name)) != getattr(type(self), name):
                raise InvalidInput(f"{name}={given!r} would be ignored: no block of this model rewrites the text; leave it out")
        layers = experiment.graph.sites.layers
        if self.window != "grow" and self.window > len(layers):
            raise InvalidInput(f"window={self.window} is wider than the model's {counted(len(layers), 'layer')}; give 1 to {len(layers)}")

    @property
    def _method(self) -> SmallestSets | GrowingWindows | Windows:
        """What chooses the patches."""
        if self.search == "sets":
            return SmallestSets(self.enough)
        return GrowingWindows(self.enough) if self.window == "grow" else Windows(self.window)

    @property
    def _spec(self) -> PatchSpec:
        return PatchSpec(**{field.name: getattr(self, field.name) for field in fields(PatchSpec)})

    def _auto(self, experiment: Experiment, meter: Meter) -> LayerScores:
        """The automatic search, on images in a random order."""
        order = random_order(experiment, self.seed)
        runner = PatchRunner(replace(experiment, shown=tuple(order[: len(experiment.pairs)])), self._spec)
        search = AutoSearch(runner, ScreenedEffects(runner, meter, order), self.budget)
        confidence = search.run()
        effects = search.effects()
        runner.experiment.warn_of_no_change(effects)
        cost = replace(meter.cost, nfe=search.nfe)
        sheet = runner.measured.sheet([*search.singles, *search.groups, *runner.beside])
        return LayerScores.of(effects, provenance=runner.experiment.provenance(self), cost=cost, confidence=confidence, **sheet)

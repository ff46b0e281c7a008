"""The whole story on the bundled model: find the layer and the neurons that control a style, switch them off, and show what changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from neuroscope import testbed
from neuroscope.attribution import Welch, rank
from neuroscope.attribution.recording import Recording, record
from neuroscope.core.artifacts import load, save, write_beside
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import choose, counted
from neuroscope.core.intervention import Intervention
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.scores import NeuronScores
from neuroscope.core.sharing import terminal
from neuroscope.core.statistics import share_interval
from neuroscope.editing import LocoEdit, edit
from neuroscope.evaluation import DoseResponse, dose_response, evaluate, generate, random_control, summarize
from neuroscope.interventions import ContextMap, NeuronMask
from neuroscope.localization import LocoGen, localize
from neuroscope.metrics.clip_score import ClipScore
from neuroscope.metrics.metric import Metric
from neuroscope.pipeline.graph import HookGraph
from neuroscope.report import plots, report
from neuroscope.testbed.plant import PLANT
from neuroscope.testbed.readers import Reader
from neuroscope.testbed.world import COLOURS, OBJECTS, STYLES

Say = Callable[[str], None]
Change = TypeVar("Change", bound=Intervention)
#: All but the one that prompts without a style say.
DEMO_STYLES = tuple(style for style in STYLES if style != "plain")
_THINGS = tuple(itertools.product(OBJECTS, COLOURS))
#: The numbers of neurons of which the demo finds the smallest that suffices.
BUDGETS = (2, 4, 8, 16, 32)
SEEDS = range(100, 104)
#: Prompts in other styles, whose images a mask should leave alone.
UNRELATED = ("a red star in the style of hatch", "mosaic style, a blue circle", "a green cross drawn in a plain manner")


@dataclass(frozen=True)
class _Found:
    """What the ranking half of the demo hands to the half that shows it."""

    concept: Concept
    layers: LayerScores
    plain: Concept
    recording: Recording
    scores: NeuronScores

    def mask(self, count: int) -> NeuronMask:
        """The neurons that control the concept most, driven to their mean in one other style."""
        return NeuronMask(self.scores.top(count), fill=self.recording.mean("absent"))


def run_demo(folder: Path, style: str = "stipple", say: Say = lambda _text: None, quiet: bool = False) -> dict[str, Any]:
    """Runs the demo, writes its files to `folder`, and returns its figures.

    Raises:
        InvalidInput: a style that the testbed lacks.
    """
    choose("style", style, DEMO_STYLES)
    graph = HookGraph(testbed.load("sd1"))
    found = _rank(graph, Concept.style(style, prompts="testbed"), say, quiet)
    by_response = rank(graph, found.concept, Welch(), layers=found.layers.top(1), quiet=quiet)
    hits, responding = (planted_hits(graph, each) for each in (found.scores, by_response))
    interval = share_interval(hits, PLANT.neuron_count)
    share = f"{hits} ({interval[0]:.0%} to {interval[1]:.0%}) of the {PLANT.neuron_count} strongest"
    say(f"   {share} are among the {PLANT.neuron_count} planted neurons.")
    say(f"   Of the {PLANT.neuron_count} that respond most (Welch's t), {responding} are: some show the style, and nothing uses it.\n")

    save(found.layers, folder / "layers.safetensors")
    save(found.scores, folder / "neurons.safetensors")
    response = _doses(graph, found, quiet)
    save(response, folder / "dose.safetensors")
    count = response.sufficient or response.neuron_count
    mask = _through_file(found.mask(count), folder / "mask.safetensors")
    made = _through_file(edit(graph, found.plain, LocoEdit(), found.layers.top(1)), folder / "edit.safetensors")
    say(f"3. How many? {response.verdict}.\n")
    masked = f"{'this' if count == 1 else 'these'} {counted(count, 'neuron')}"
    say(f"4. What to change? A mask of {masked}; and an edit of what the layer reads (LOCOEDIT):")
    say(f"   {made.report}\n")

    fresh = HookGraph(testbed.load("sd1"))
    metrics = [*_readers(style), ClipScore(f"the style of {style}")]
    table = evaluate(fresh, {"mask": mask, "edit": made}, found.concept.test, SEEDS, metrics, quiet=quiet, **testbed.GENERATION)
    write_beside(folder / "evaluation.csv", table.to_csv(index=False).encode())
    summary = summarize(table)
    counts = f"{counted(len(found.concept.test), 'prompt')}, {counted(len(SEEDS), 'seed')}"
    say(f"5. Evaluation on held-out prompts: {counts}, both files loaded into a fresh pipeline:")
    say(terminal.table(summary) + "\n")

    _draw(fresh, found, mask, made, folder, quiet)
    plots.write(plots.dose(response), folder / "dose.png")
    page = report(folder)
    say(f"Look at {page}: all of it on one page. Beside it are the images, the files and evaluation.csv.")
    say("For a model of your own: neuroscope rank --model FOLDER_OR_ID --style NAME -o scores.safetensors")
    facts = {"layer": found.layers.top(1)[0], "planted_in_top": hits, "planted_interval": interval, "planted_by_response": responding}
    return facts | {"smallest": count, "summary": summary.to_dict("records")}


def planted_hits(graph: HookGraph, scores: NeuronScores) -> int:
    """How many of the strongest neurons, as many as were planted, are planted ones."""
    (site,) = graph.sites.where(layer=PLANT.style, role="value")
    planted = set(PLANT.neurons(site.width))
    return len(planted & set(scores.top(PLANT.neuron_count).get(site.path, ())))


def _doses(graph: HookGraph, found: _Found, quiet: bool) -> DoseResponse:
    """Masks of growing size on every object and colour, in prompts that nothing was ranked with, and on prompts in other styles."""
    style = found.concept.name
    manners = itertools.cycle((f"{style} style, a {{}}", f"a {{}} drawn in a {style} manner"))
    prompts = [manner.format(f"{colour} {thing}") for (thing, colour), manner in zip(_THINGS, manners, strict=False)]
    options: dict[str, Any] = {"metrics": _readers(style), "fill": found.recording.mean("absent"), "budgets": BUDGETS}
    unrelated = [prompt for prompt in UNRELATED if style not in prompt]
    return dose_response(graph, found.scores, prompts, **options, unrelated=unrelated, seeds=SEEDS[:1], quiet=quiet, **testbed.GENERATION)


def _rank(graph: HookGraph, concept: Concept, say: Say, quiet: bool) -> _Found:
    say(f"{graph}\n{concept}\n")
    layers = localize(graph, concept, LocoGen(), Reader("style", concept.name), seeds=[0], quiet=quiet, **testbed.GENERATION)
    (layer,) = layers.top(1)
    say(f"1. Which layer? LOCOGEN: {concept.name!r} is lost when a layer alone reads a prompt without it; {layers.verdict}.\n")
    scores = rank(graph, concept, layers=layer, quiet=quiet, **testbed.GENERATION)
    plain = Concept.style(concept.name, prompts="testbed", against="plain")  # what a mask fills in, and an edit puts in its place
    recording = record(graph, plain, scores.sites, quiet=quiet)
    say(f"2. Which neurons? {scores}\n{terminal.table(scores.to_frame().drop(columns='site').head(8))}")
    return _Found(concept, layers, plain, recording, scores)


def _readers(style: str) -> list[Metric]:
    return [Reader("style", style), Reader("object"), Reader("colour")]


def _through_file(change: Change, path: Path) -> Change:
    save(change, path)
    return load(path, type(change))


def _draw(graph: HookGraph, found: _Found, mask: NeuronMask, made: ContextMap, folder: Path, quiet: bool) -> None:
    prompts = list(found.concept.test[:8])
    changes = {"before": None, "mask": mask, "random": random_control(mask), "edit": made}
    seeds = list(range(SEEDS[0], SEEDS[0] + len(prompts)))
    rows = {name: generate(graph, change, prompts, seeds, **testbed.GENERATION) for name, change in changes.items()}
    plots.write(plots.images(rows, prompts), folder / "images.png")
    plots.write(plots.neurons(found.scores, marked=mask.neurons), folder / "neurons.png")
    every = rank(graph, found.concept, quiet=quiet, **testbed.GENERATION)
    drawn = {"LOCOGEN": found.layers, "gradients, mean of neurons": every.by_layer()}
    plots.write(plots.layers(drawn, marked=PLANT.style), folder / "layers.png")

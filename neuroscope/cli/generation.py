"""Commands that make images: generate, evaluate, dose."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from neuroscope.cli import choices, methods, opening, options, values
from neuroscope.core.errors import InvalidInput
from neuroscope.core.sharing import terminal

if TYPE_CHECKING:
    from PIL.Image import Image

    from neuroscope.core.results.scores import NeuronScores
    from neuroscope.metrics.metric import Metric

Prompts = Annotated[list[str] | None, typer.Option("--prompt", callback=values.texts(), help="A prompt; repeat for several.")]


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(generate)
    app.command()(evaluate)
    app.command()(dose)


def generate(
    *,
    prompt: Annotated[list[str], typer.Option("--prompt", callback=values.texts(), help="A prompt; repeat for several.")],
    output_dir: options.OutputFolder = Path("images"),
    model: options.ModelOptions,
    apply: options.Apply = None,
    seed: options.Seed = 0,
    count: Annotated[int, typer.Option(callback=values.whole(), help="Images of each prompt, with seeds counted up.")] = 1,
    generation: options.SizedDenoisingOptions,
    printed: options.RunningInBatches,
) -> None:
    """Make images (sounds: also WAV files; videos: also GIF files) with saved interventions; `neuroscope show IMAGE.png` says what of."""
    from neuroscope.core import storage
    from neuroscope.core.sounds import Sound
    from neuroscope.core.videos import Video
    from neuroscope.evaluation import generate as run
    from neuroscope.generation import labels
    from neuroscope.generation.arguments import check_generation
    from neuroscope.generation.dry_run import plan_images

    called = generation.open()
    changes = opening.open_interventions(apply)
    seeds = opening.counted_seeds(seed, count)
    pairs = [(text, each) for text in prompt for each in seeds]
    applied = opening.distinct_names(apply or [])
    paths = [output_dir / labels.file_name(text, each, applied) for text, each in pairs]
    for path in paths:
        storage.refuse_overwriting_inputs(path, [generation.image] if generation.image is not None else [])
    if not printed.dry_run:
        storage.check_writable_folder(output_dir)
    graph = model.open(printed)
    check_generation(graph.pipe, called, run)
    if printed.stops_at(plan_images(graph, [text for text, _ in pairs], called), graph.pipe):
        return
    graph.pipe.set_progress_bar_config(disable=printed.quiet)
    images = run(
        graph, changes, [text for text, _ in pairs], [each for _, each in pairs], printed.batch_size, quiet=printed.quiet, **called
    )
    for made, path in zip(images, paths, strict=True):
        labels.add_files(made, [str(each) for each in apply or []])
        storage.write_beside(path, png(made))
        if isinstance(made, Sound):
            storage.write_beside(path.with_suffix(".wav"), made.wav())
        if isinstance(made, Video):
            storage.write_beside(path.with_suffix(".gif"), made.gif())
    pooled = [
        f"{path}: pooled text: {said}"
        for path, change in zip(apply or [], changes, strict=True)
        if (said := change.pooled_text(graph.sites))
    ]
    printed.report({"images": [str(path) for path in paths], "pooled": pooled}, "\n".join([*pooled, *(f"wrote {path}" for path in paths)]))


@dataclass(frozen=True)
class MetricsOptions:
    """What images are scored by."""

    panel: ClassVar[str] = "Metrics"
    clip: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts(), help="Score by CLIP's cosine to this text; repeat for several."),
    ] = None
    read: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts(), help="Testbed only: score by an exact reader, such as style=stipple."),
    ] = None
    metric: Annotated[
        list[str] | None,
        choices.metric(callback=values.texts(), help="Score by a metric as in Python, such as \"Reader(attribute='object')\"; repeatable."),
    ] = None

    def open(self, model: options.ModelOptions) -> list[Metric]:
        """The metrics; raises InvalidInput where there is none."""
        from neuroscope.metrics.clip_score import ClipScore

        found: list[Metric] = [ClipScore(text) for text in self.clip or []]
        found += [methods.reader(text, model) for text in self.read or []]
        found += [methods.metric(text, model) for text in self.metric or []]
        if not found:
            raise InvalidInput("there is nothing to score by; give --clip TEXT, or --read ATTRIBUTE=VALUE for the testbed")
        return found


def evaluate(
    ctx: typer.Context,
    *,
    output: options.Output,
    model: options.ModelOptions,
    apply: options.Apply = None,
    prompt: Prompts = None,
    concept: options.NamedConcept,
    metrics: MetricsOptions,
    seeds: options.SeedOptions,
    generation: options.DenoisingOptions,
    ledger: options.LedgerOptions,
    printed: options.RunningSweeps,
) -> None:
    """Score interventions on prompts and seeds beside the untouched model and random controls."""
    from neuroscope.core import storage
    from neuroscope.evaluation import evaluate as run
    from neuroscope.evaluation import plan_evaluation, refuse_shares, said_of_halved, summarize
    from neuroscope.metrics import bind

    inputs = [*(apply or []), concept.concept, generation.image]
    ledger.check(output, *inputs)
    prompts = _prompts(ctx, prompt, concept, model)
    changes = dict(zip(opening.distinct_names(apply or []), opening.open_interventions(apply), strict=True))
    called = generation.open()
    asked = metrics.open(model)
    counted, executor = seeds.open(), printed.open_executor()
    graph = model.open(printed)
    refuse_shares(asked)
    scored_by = [bind(each, graph) for each in asked]
    if printed.stops_at_sweep(plan_evaluation(graph, changes, prompts, counted, **called), graph, called, ledger):
        return
    called |= {"batch_size": printed.batch_size, "quiet": printed.quiet, "output": ledger.open(output), "executor": executor}
    if ledger.made_shard(printed, run, graph, changes, prompts, counted, scored_by, **called):
        return
    table = run(graph, changes, prompts, counted, scored_by, **called)
    storage.write_beside(output, table.to_csv(index=False).encode())
    summary = summarize(table)
    if printed.as_json:
        options.say(summary.to_json(orient="records", indent=1))
    else:
        options.say(f"{terminal.table(summary)}{said_of_halved(table)}\nwrote {output}")


@dataclass(frozen=True)
class DoseOptions:
    """Which masks of a ranking are compared."""

    panel: ClassVar[str] = "Masks"
    budget: Annotated[
        list[int] | None,
        typer.Option(callback=values.texts(), help="A number of neurons, ascending; repeat for several. By default powers of two."),
    ] = None
    fill: Annotated[
        str | None,
        typer.Option(help="absent (the mean without the concept), present, or a number; 0 is dropout. Without --recording 0, else absent."),
    ] = None
    recording: Annotated[Path | None, typer.Option(help="Take the fill's means from this recording.")] = None
    unrelated: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts(), help="A prompt without the concept, whose image's change is measured; repeat for several."),
    ] = None

    def open(self, scores: NeuronScores) -> dict[str, Any]:
        """The options of the dose response; raises InvalidInput for a fill without its recording."""
        from neuroscope.attribution.recording import Recording
        from neuroscope.cli.concepts import open_fill
        from neuroscope.core import artifacts

        means = scores if self.recording is None else artifacts.load(self.recording, Recording)
        return {"budgets": self.budget or None, "fill": open_fill(means, self.fill), "unrelated": self.unrelated or ()}


def dose(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Neurons' scores, as `neuroscope rank` writes them; best of one layer.")],
    *,
    output: options.Output,
    model: options.ModelOptions,
    prompt: Prompts = None,
    concept: options.NamedConcept,
    metrics: MetricsOptions,
    masks: DoseOptions,
    seeds: options.SeedOptions,
    generation: options.DenoisingOptions,
    ledger: options.LedgerOptions,
    printed: options.RunningSweeps,
) -> None:
    """Find the smallest mask that does it: effect and side effects of the k strongest neurons, beside random ones and all."""
    from neuroscope.core import artifacts
    from neuroscope.core.results.scores import NeuronScores
    from neuroscope.evaluation import dose_response as run
    from neuroscope.evaluation import plan_dose_response, refuse_shares
    from neuroscope.metrics import bind

    inputs = [file, masks.recording, concept.concept, generation.image]
    ledger.check(output, *inputs)
    prompts = _prompts(ctx, prompt, concept, model)
    scores = artifacts.load(file, NeuronScores)
    chosen, called, asked, counted = masks.open(scores), generation.open(), metrics.open(model), seeds.open()
    executor = printed.open_executor()
    graph = model.open(printed)
    refuse_shares(asked)
    scored_by = [bind(each, graph) for each in asked]
    planned = {name: value for name, value in chosen.items() if name != "fill"} | {"seeds": counted}
    if printed.stops_at_sweep(plan_dose_response(graph, scores, prompts, **planned, **called), graph, called, ledger):
        return
    called |= {"seeds": counted, "output": ledger.open(output), "batch_size": printed.batch_size, "quiet": printed.quiet}
    called["executor"] = executor
    if ledger.made_shard(printed, run, graph, scores, prompts, metrics=scored_by, **chosen, **called):
        return
    found = run(graph, scores, prompts, metrics=scored_by, **chosen, **called)
    artifacts.save(found, output)
    facts = {"output": str(output), "smallest": found.sufficient, "verdict": found.verdict}
    shares = found.shares()
    table = terminal.table(shares)
    printed.report(facts | {"shares": json.loads(shares.to_json(orient="records"))}, f"{table}\n{found.verdict}\nwrote {output}")


def _prompts(ctx: typer.Context, given: list[str] | None, concept: options.NamedConcept, model: options.ModelOptions) -> list[str]:
    """The prompts that are given, or a concept's test prompts; raises InvalidInput for both."""
    if given:
        values.refuse_unused(ctx, dict.fromkeys([each.name for each in fields(concept)], "the prompts are given by --prompt"))
    return given or list(concept.open(model).test)


def png(image: Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

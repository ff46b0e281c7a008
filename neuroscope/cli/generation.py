"""Commands that make images: generate, evaluate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer
from PIL.Image import Image

from neuroscope.cli import options, values
from neuroscope.core import checks, storage
from neuroscope.core.errors import InvalidInput
from neuroscope.evaluation._evaluate import evaluate as run_evaluation
from neuroscope.evaluation._evaluate import generate as run_generation
from neuroscope.evaluation._evaluate import summarize
from neuroscope.metrics.clip_score import ClipScore

_CONCEPT = ("style", "object_", "fact", "attribute", "concept")
Prompts = Annotated[list[str] | None, typer.Option("--prompt", callback=values.texts, help="A prompt; repeat for several.")]


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(generate)
    app.command()(evaluate)


def generate(
    prompt: Annotated[list[str], typer.Option("--prompt", callback=values.texts, help="A prompt; repeat for several.")],
    output_dir: options.OutputFolder = Path("images"),
    model: options.Model = "testbed:sd1",
    apply: options.Apply = None,
    seed: options.Seed = 0,
    count: Annotated[int, typer.Option(callback=values.whole(), help="Images of each prompt, with seeds counted up.")] = 1,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.ImageFile = None,
    height: options.Height = None,
    width: options.Width = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Make images, with saved interventions applied."""
    generation = options.generation_options(
        image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width
    )
    changes = options.open_interventions(apply)
    seeds = checks.seeds(range(seed, seed + count))
    pairs = [(text, each) for text in prompt for each in seeds]
    paths = [output_dir / f"{number // count:03}-seed{each}.png" for number, (_, each) in enumerate(pairs)]
    storage.check_writable_folder(output_dir)
    for path in paths:
        storage.refuse_overwriting_inputs(path, [image] if image is not None else [])
    graph = options.open_graph(model)
    graph.pipe.set_progress_bar_config(disable=quiet)
    images = run_generation(graph, changes, [text for text, _ in pairs], [each for _, each in pairs], **generation)
    for made, path in zip(images, paths, strict=True):
        storage.write_beside(path, png(made))
    pooled = [
        f"{path}: pooled text: {said}"
        for path, change in zip(apply or [], changes, strict=True)
        if (said := change.pooled_text(graph.sites))
    ]
    facts = {"images": [str(path) for path in paths], "pooled": pooled}
    options.report(facts, "\n".join([*pooled, *(f"wrote {path}" for path in paths)]), as_json)


def evaluate(
    ctx: typer.Context,
    output: options.Output,
    model: options.Model = "testbed:sd1",
    apply: options.Apply = None,
    prompt: Prompts = None,
    style: options.Style = None,
    object_: options.Object = None,
    fact: options.Fact = None,
    attribute: options.AttributeName = None,
    concept: options.ConceptFile = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts, help="Score by CLIP's cosine to this text; repeat for several."),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts, help="Testbed only: score by an exact reader, such as style=stipple."),
    ] = None,
    seeds: Annotated[int, typer.Option(callback=values.whole(), help="Images of each prompt.")] = 4,
    seed: options.Seed = 0,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.ImageFile = None,
    resume: Annotated[Path | None, typer.Option(help="Keep finished images' scores here, and go on from it.")] = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Score interventions on prompts and seeds beside the untouched model and random controls."""
    inputs = [*(apply or []), concept, image]
    options.check_output(output, *inputs, resume)
    options.check_output(resume, *inputs)
    if prompt:
        values.refuse_unused(ctx, dict.fromkeys(_CONCEPT, "the prompts are given by --prompt"))
    prompts = prompt or list(options.open_concept(model, style, object_, fact, None, attribute, concept).test)
    changes = dict(zip(options.distinct_names(apply or []), options.open_interventions(apply), strict=True))
    generation = options.generation_options(image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    metrics = [*(ClipScore(text) for text in clip or []), *(options.open_reader(text, model) for text in read or [])]
    if not metrics:
        raise InvalidInput("there is nothing to score by; give --clip TEXT, or --read ATTRIBUTE=VALUE for the testbed")
    counted = checks.seeds(range(seed, seed + seeds))
    graph = options.open_graph(model)
    table = run_evaluation(graph, changes, prompts, counted, metrics, output=resume, quiet=quiet, **generation)
    storage.write_beside(output, table.to_csv(index=False).encode())
    summary = summarize(table)
    text = (
        summary.to_json(orient="records", indent=1) if as_json else f"{summary.to_string(index=False, float_format='%.3f')}\nwrote {output}"
    )
    options.say(text)


def png(image: Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

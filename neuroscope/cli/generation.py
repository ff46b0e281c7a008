"""Commands that make images: generate, evaluate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer
from PIL.Image import Image

from neuroscope.artifacts import write_beside
from neuroscope.cli import options
from neuroscope.evaluation import evaluate as run_evaluation
from neuroscope.evaluation import generate as run_generation
from neuroscope.evaluation import summarize
from neuroscope.metrics import ClipScore

Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.")]


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(generate)
    app.command()(evaluate)


def generate(
    prompt: Annotated[list[str], typer.Option("--prompt", help="A prompt; repeat for several.")],
    output_dir: options.OutputFolder = Path("images"),
    model: options.Model = "testbed:sd1",
    apply: options.Apply = None,
    seed: options.Seed = 0,
    count: Annotated[int, typer.Option(help="Images of each prompt, with seeds counted up.")] = 1,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.Picture = None,
    height: options.Height = None,
    width: options.Width = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Make images, with saved interventions applied."""
    options.writable_folder(output_dir)
    changes = options.open_interventions(apply)
    graph = options.open_graph(model)
    generation = options.generation_options(
        image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width
    )
    pairs = [(text, seed + offset) for text in prompt for offset in range(count)]
    graph.pipe.set_progress_bar_config(disable=quiet)
    images = run_generation(graph, changes, [text for text, _ in pairs], [each for _, each in pairs], **generation)
    written = []
    for number, (made, (_, each)) in enumerate(zip(images, pairs, strict=True)):
        path = output_dir / f"{number // count:03}-seed{each}.png"
        write_beside(path, png(made))
        written.append(str(path))
    pooled = [
        f"{path}: pooled text: {said}" for path, change in zip(apply or [], changes, strict=True) if (said := change.pooled_text(graph))
    ]
    options.report({"images": written, "pooled": pooled}, "\n".join([*pooled, *(f"wrote {path}" for path in written)]), as_json)


def evaluate(
    output: options.Output,
    model: options.Model = "testbed:sd1",
    apply: options.Apply = None,
    prompt: Prompts = None,
    style: options.Style = None,
    object_: options.Object = None,
    fact: options.Fact = None,
    attribute: options.AttributeName = None,
    concept: options.ConceptFile = None,
    clip: Annotated[list[str] | None, typer.Option(help="Score by CLIP's cosine to this text; repeat for several.")] = None,
    read: Annotated[list[str] | None, typer.Option(help="Testbed only: score by an exact reader, such as style=stipple.")] = None,
    seeds: Annotated[int, typer.Option(help="Images of each prompt.")] = 4,
    seed: options.Seed = 0,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.Picture = None,
    resume: Annotated[Path | None, typer.Option(help="Keep finished images' scores here, and go on from it.")] = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Score interventions on prompts and seeds beside the untouched model and random controls."""
    options.writable_file(output)
    prompts = prompt or list(options.open_concept(model, style, object_, fact, "", attribute, concept).test)
    changes = dict(zip([path.stem for path in apply or []], options.open_interventions(apply), strict=True))
    generation = options.generation_options(image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    metrics = [*(ClipScore(text) for text in clip or []), *(options.open_reader(text, model) for text in read or [])]
    graph = options.open_graph(model)
    table = run_evaluation(graph, changes, prompts, range(seed, seed + seeds), metrics, output=resume, quiet=quiet, **generation)
    write_beside(output, table.to_csv(index=False).encode())
    summary = summarize(table)
    text = (
        summary.to_json(orient="records", indent=1) if as_json else f"{summary.to_string(index=False, float_format='%.3f')}\nwrote {output}"
    )
    typer.echo(text)


def png(image: Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

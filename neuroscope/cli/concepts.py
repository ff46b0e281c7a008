"""Commands on concepts: record, rank, mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import typer
from torch import Tensor

from neuroscope.attribution import score
from neuroscope.attribution.recording import Recording, record
from neuroscope.cli import options, values
from neuroscope.core import artifacts, checks
from neuroscope.core.artifacts import Artifact
from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.core.scores import NeuronScores, Per
from neuroscope.core.tokens import Token
from neuroscope.interventions import NeuronMask

Method = Annotated[str, typer.Option(help="welch, mean-difference, auroc or weighted-norm.")]
#: What a recording takes no notice of where no site needs a denoising step.
_OF_DENOISING = ("seed", "num_inference_steps", "guidance_scale", "image")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command("record")(record_)
    app.command()(rank)
    app.command()(mask)


def record_(
    ctx: typer.Context,
    output: options.Output,
    model: options.Model = "testbed:sd1",
    style: options.Style = None,
    object_: options.Object = None,
    fact: options.Fact = None,
    answer: options.Answer = None,
    attribute: options.AttributeName = None,
    concept: options.ConceptFile = None,
    layer: options.Layers = None,
    role: options.Roles = None,
    token: Annotated[str, typer.Option(help="last, subject, eos or all.")] = "last",
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Keep every observation, as auroc needs.")] = False,
    by_step: Annotated[bool, typer.Option("--by-step", help="Keep denoising steps apart.")] = False,
    seed: options.Seed = 0,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.ImageFile = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Record statistics of activations with and without a concept."""
    options.check_output(output, concept, image)
    chosen = options.open_concept(model, style, object_, fact, answer, attribute, concept)
    generation = options.generation_options(image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    graph = options.open_graph(model)
    sites = graph.sites.where(layer=layer or None, role=role or ("key", "value"))
    if not sites.where(text_only=False):
        values.refuse_unused(ctx, dict.fromkeys(_OF_DENOISING, "these sites depend on the prompt alone and are recorded without denoising"))
    recording = record(
        graph, chosen, sites, cast("Token", token), by_step=by_step, keep_samples=keep_samples, seed=seed, quiet=quiet, **generation
    )
    artifacts.save(recording, output)
    options.report({"output": str(output), "sites": len(recording.sites)}, f"{recording}\nwrote {output}", as_json)


def rank(
    file: Path,
    method: Method = "welch",
    top: Annotated[int, typer.Option(callback=values.whole(), help="Table rows to print.")] = 20,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the scores here.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Rank the neurons of a recording, strongest first."""
    options.check_output(output, file)
    asked = options.open_method(method)
    scores = score(artifacts.load(file, Recording), asked)
    if output is not None:
        artifacts.save(scores, output)
    table = scores.to_frame().head(top)
    options.say(table.to_json(orient="records", indent=1) if as_json else f"{scores}\n{table.to_string(index=False)}")


def mask(
    ctx: typer.Context,
    file: Path,
    output: options.Output,
    top: Annotated[int, typer.Option(callback=values.whole(), help="How many neurons.")] = 50,
    per: Annotated[str, typer.Option(help="So many overall (all), in each layer, or in each site.")] = "all",
    method: Method = "welch",
    fill: Annotated[str, typer.Option(help="absent (the mean without the concept), present, or a number; 0 is dropout.")] = "absent",
    strength: Annotated[float, typer.Option(callback=values.finite(), help="0 changes nothing, 1 puts the fill in.")] = 1.0,
    as_json: options.AsJson = False,
) -> None:
    """Make a mask of a recording's (or, with a number as fill, of scores') strongest neurons."""
    options.check_output(output, file)
    asked = options.open_method(method)
    found: Artifact = artifacts.load(file)
    if not isinstance(found, Recording | NeuronScores):
        raise InvalidFile(f"{file} holds a {found.kind}, but a mask is made from a recording or from neuron-scores")
    if isinstance(found, NeuronScores):
        values.refuse_unused(ctx, {"method": f"{file} holds scores, by {found.provenance.method}"})
    level = _fill(found, fill)
    scores = score(found, asked) if isinstance(found, Recording) else found
    made = NeuronMask(scores.top(top, cast("Per", per)), fill=level, strength=strength)
    artifacts.save(made, output)
    options.report({"output": str(output), "neurons": made.neurons.count}, f"{made}\nwrote {output}", as_json)


def _fill(found: Recording | NeuronScores, fill: str) -> float | Mapping[str, Tensor]:
    if fill in ("absent", "present"):
        if not isinstance(found, Recording):
            raise InvalidInput(
                f"--fill {fill} needs a recording, and scores hold no means; give a number, such as --fill 0, or the recording"
            )
        return found.mean(fill)
    try:
        return checks.finite("--fill", float(fill))
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"--fill {fill!r} is neither absent, present nor a number") from None

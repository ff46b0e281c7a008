"""Commands on concepts: record, rank, mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from neuroscope.cli import methods, opening, options, values
from neuroscope.core.errors import InvalidFile, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from neuroscope.attribution import Attribution
    from neuroscope.attribution.recording import Recording
    from neuroscope.core.artifacts import Artifact
    from neuroscope.core.scores import NeuronScores, Per
    from neuroscope.core.tokens import Token

#: What a recording takes no notice of where no site needs a denoising step.
_OF_DENOISING = ("seed", "num_inference_steps", "guidance_scale", "image")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command("record")(record_)
    app.command()(rank)
    app.command()(mask)


def record_(
    ctx: typer.Context,
    *,
    output: options.Output,
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    sites: options.SiteOptions,
    token: Annotated[str, typer.Option(help="last, subject, eos or all.")] = "last",
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Keep every observation, as Auroc needs.")] = False,
    by_step: Annotated[bool, typer.Option("--by-step", help="Keep denoising steps apart.")] = False,
    seed: options.Seed = 0,
    generation: options.DenoisingOptions,
    printed: options.RunningInBatches,
) -> None:
    """Record statistics of activations with and without a concept."""
    from neuroscope.attribution.recording import record
    from neuroscope.core import artifacts
    from neuroscope.generation.arguments import check_generation
    from neuroscope.generation.dry_run import plan_images

    opening.check_output(output, concept.concept, generation.image)
    chosen = concept.open(model)
    called = generation.open()
    graph = model.open(printed)
    recorded = graph.sites.where(layer=sites.layer or None, role=sites.role or ("key", "value"))
    if not recorded.where(text_only=False):
        values.refuse_unused(ctx, dict.fromkeys(_OF_DENOISING, "these sites depend on the prompt alone and are recorded without denoising"))
    prompts = [] if not recorded.where(text_only=False) else [*chosen.present, *chosen.absent]
    check_generation(graph.pipe, called, record)
    if printed.stops_at(plan_images(graph, prompts, called), graph.pipe):
        return
    called |= {} if printed.batch_size is None else {"batch_size": printed.batch_size}
    kept = {"by_step": by_step, "keep_samples": keep_samples}
    recording = record(graph, chosen, recorded, cast("Token", token), **kept, seed=seed, quiet=printed.quiet, **called)
    artifacts.save(recording, output)
    printed.report({"output": str(output), "sites": len(recording.sites)}, f"{recording}\nwrote {output}")


def attribution(text: str) -> Attribution:
    """The attribution method of `--method`."""
    from neuroscope.attribution import Attribution

    built: Attribution = methods.build("method", text, methods.subclasses(cast("Any", Attribution)))
    return built


def rank(
    file: Path,
    method: options.Method = "Welch",
    top: Annotated[int, typer.Option(callback=values.whole(), help="Table rows to print.")] = 20,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the scores here.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Rank the neurons of a recording, strongest first."""
    from neuroscope.attribution import score
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import artifacts

    opening.check_output(output, file)
    asked = attribution(method)
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
    method: options.Method = "Welch",
    fill: Annotated[str, typer.Option(help="absent (the mean without the concept), present, or a number; 0 is dropout.")] = "absent",
    strength: Annotated[float, typer.Option(callback=values.finite(), help="0 changes nothing, 1 puts the fill in.")] = 1.0,
    as_json: options.AsJson = False,
) -> None:
    """Make a mask of a recording's (or, with a number as fill, of scores') strongest neurons."""
    from neuroscope.attribution import score
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import artifacts
    from neuroscope.core.scores import NeuronScores
    from neuroscope.interventions import NeuronMask

    opening.check_output(output, file)
    asked = attribution(method)
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
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import checks

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

"""Commands on concepts: record, rank, atlas, mask."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from neuroscope.cli import choices, methods, opening, options, values
from neuroscope.cli.localization import MetricOptions
from neuroscope.core.errors import InvalidFile, InvalidInput, choose
from neuroscope.core.sharing import terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from torch import Tensor

    from neuroscope.attribution import Attribution
    from neuroscope.attribution.recording import Recording
    from neuroscope.core.artifacts import Artifact
    from neuroscope.core.conditions import Rows
    from neuroscope.core.results.atlas import Atlas
    from neuroscope.core.results.scores import NeuronScores, Per
    from neuroscope.core.tokens import Token

#: What a recording takes no notice of where no site needs a denoising step.
_OF_DENOISING = ("seed", "num_inference_steps", "guidance_scale", "image")
#: What a method that scores recorded responses takes no notice of.
_OF_IMAGES = (
    *(
        each.name
        for group in (MetricOptions, options.FewSeedOptions, options.SizedDenoisingOptions, options.LedgerOptions)
        for each in fields(group)
    ),
    *("pairs", "executor", "workers", "address"),
)
_DEFAULT_OF_RECORDINGS = "A recording is ranked by Welch(), which tells what responds; --method chooses another way."


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command("record")(record_)
    app.command()(rank)
    app.command()(atlas)
    app.command()(mask)


def record_(
    ctx: typer.Context,
    *,
    output: options.Output,
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    sites: options.SiteOptions,
    token: Annotated[str, choices.option(choices.TOKENS, help="Which token of each prompt.")] = "last",
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Keep every observation, as Auroc needs.")] = False,
    by_step: Annotated[bool, typer.Option("--by-step", help="Keep denoising steps apart.")] = False,
    seed: options.Seed = 0,
    generation: options.DenoisingOptions,
    printed: options.RunningInBatches,
) -> None:
    """Record statistics of activations with and without a concept."""
    from neuroscope.attribution.recording import record
    from neuroscope.core import artifacts
    from neuroscope.core.tokens import TOKENS
    from neuroscope.generation.arguments import check_generation
    from neuroscope.generation.dry_run import plan_images

    choose("token", token, TOKENS)
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
    """The attribution method of `--method`, which scores a recording."""
    built: Attribution = methods.build("method", text, methods.neuron_methods(causal=False))
    return built


@dataclass(frozen=True)
class RankingOptions:
    """Which neurons are ranked, and how."""

    panel: ClassVar[str] = "Ranking"
    method: Annotated[
        str | None,
        choices.method(
            "Attribution",
            "CausalAttribution",
            help="The method, as in Python. Of a concept NeuronGradient() unless given: which neurons control it. Of a recording Welch(): "
            "which respond. docs/neurons.md has one table of what each answers, at which cost.",
        ),
    ] = None
    layer: Annotated[
        list[int] | None, typer.Option("--layer", "--layers", callback=values.texts(), help="Rank a layer's neurons; repeat for several.")
    ] = None
    pairs: options.Pairs = None
    top: Annotated[int, typer.Option(callback=values.whole(), help="Table rows to print.")] = 20


def rank(
    ctx: typer.Context,
    *,
    file: Annotated[Path | None, typer.Argument(help="A recording; leave it out to name a concept instead.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the scores here.")] = None,
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    ranking: RankingOptions,
    metric: MetricOptions,
    seeds: options.FewSeedOptions,
    generation: options.SizedDenoisingOptions,
    ledger: options.LedgerOptions,
    printed: options.RunningSweeps,
) -> None:
    """Rank neurons, strongest first: by how they control a concept, or, of a recording, by how they respond to it."""
    from neuroscope.attribution import CausalAttribution, plan_ranking
    from neuroscope.attribution import rank as run
    from neuroscope.core import artifacts

    ledger.check(output, file, concept.concept, generation.image)
    text = ranking.method if ranking.method is not None else ("NeuronGradient()" if file is None else "Welch()")
    methods.refuse_layer_methods(text)
    if file is not None:
        scores = _rank_recording(ctx, file, text)
    else:
        asked = methods.build("method", text, methods.neuron_methods())
        values.refuse_unused(ctx, _ignored(asked))
        chosen = concept.open(model)
        called: dict[str, Any] = {"layers": ranking.layer or None, "batch_size": printed.batch_size}
        kept: dict[str, Any] = {"quiet": printed.quiet}
        denoised: dict[str, Any] = {}
        if isinstance(asked, CausalAttribution):
            called |= {"metric": metric.open(ctx, model), "seeds": seeds.open()}
            denoised = generation.open()
            called |= denoised | opening.pairs_of(chosen, ranking.pairs)
            kept |= {"output": ledger.open(output), "executor": printed.open_executor()}
        graph = model.open(printed)
        if printed.stops_at_sweep(plan_ranking(graph, chosen, asked, **called), graph, denoised, ledger):
            return
        if ledger.made_shard(printed, run, graph, chosen, asked, **called, **kept):
            return
        scores = run(graph, chosen, asked, **called, **kept)
    if output is not None:
        artifacts.save(scores, output)
    table = scores.to_frame().head(ranking.top)
    said = f"{_DEFAULT_OF_RECORDINGS}\n" if file is not None and ranking.method is None else ""
    options.say(table.to_json(orient="records", indent=1) if printed.as_json else f"{said}{scores}\n{terminal.table(table)}")


@dataclass(frozen=True)
class AtlasOptions:
    """How each concept is scored."""

    panel: ClassVar[str] = "Scores"
    method: Annotated[
        str,
        choices.method(
            "Attribution",
            "CausalAttribution",
            "Localization",
            help="The method, as in Python: one of rank scores neurons, and one of localize scores layers.",
        ),
    ] = "NeuronGradient()"
    layer: Annotated[
        list[int] | None, typer.Option("--layer", "--layers", callback=values.texts(), help="Rank a layer's neurons; repeat for several.")
    ] = None
    pairs: options.Pairs = None
    top: Annotated[int, typer.Option(callback=values.whole(), help="Table rows to print for each concept, strongest first.")] = 5

    def open(self, ctx: typer.Context) -> Any:
        """The method; raises InvalidInput for an option that it would ignore."""
        from neuroscope.localization import Localization

        layers = methods.subclasses(cast("Any", Localization), "neuroscope.localization")
        asked: Any = methods.build("method", self.method, methods.neuron_methods() | layers)
        if isinstance(asked, Localization):
            values.refuse_unused(ctx, {"layer": f"{asked!r} scores all layers"})
        else:
            values.refuse_unused(ctx, _ignored(asked))
        return asked


def atlas(
    ctx: typer.Context,
    *,
    output: options.Output,
    model: options.ModelOptions,
    concepts: options.SeveralConcepts,
    scored: AtlasOptions,
    metric: MetricOptions,
    seeds: options.ChosenSeedOptions,
    generation: options.SizedDenoisingOptions,
    ledger: options.LedgerOptions,
    printed: options.RunningSweeps,
) -> None:
    """Score the neurons or the layers for each of several concepts, as one file; `neuroscope plot` draws those that are alike together."""
    from neuroscope.attribution import Attribution
    from neuroscope.core import artifacts
    from neuroscope.localization import Localization, plan_atlas
    from neuroscope.localization import atlas as run

    ledger.check(output, *concepts.files, generation.image)
    asked = scored.open(ctx)
    chosen = concepts.open(model)
    called: dict[str, Any] = {"layers": scored.layer or None, "batch_size": printed.batch_size}
    denoised: dict[str, Any] = {}
    if not isinstance(asked, Attribution):
        called |= {"metric": metric.open(ctx, model), "seeds": seeds.open(4 if isinstance(asked, Localization) else 1)}
        denoised = generation.open()
        called |= denoised | opening.pairs_of_each(chosen, scored.pairs)
    kept: dict[str, Any] = {"quiet": printed.quiet, "output": ledger.open(output), "executor": printed.open_executor()}
    graph = model.open(printed)
    if printed.stops_at_sweep(plan_atlas(graph, chosen, asked, **called), graph, denoised, ledger):
        return
    if ledger.made_shard(printed, run, graph, chosen, asked, **called, **kept):
        return
    found = run(graph, chosen, asked, **called, **kept)
    artifacts.save(found, output)
    table = _strongest(found, scored.top)
    rows = json.loads(table.to_json(orient="records"))
    printed.report({"output": str(output), "scores": rows}, f"{found}\n{terminal.table(table)}\nwrote {output}")


def _strongest(found: Atlas, count: int) -> pd.DataFrame:
    """The rows of each concept's strongest layers or neurons, one concept after the other."""
    table = found.to_frame()
    if "neuron" not in table:  # neurons stand in order
        place = {name: number for number, name in enumerate(found)}
        table = table.iloc[table.assign(concept=table["concept"].map(place), score=-table["score"]).sort_values(["concept", "score"]).index]
    return table.groupby("concept", sort=False).head(count)


def _rank_recording(ctx: typer.Context, file: Path, text: str) -> NeuronScores:
    """The scores of a recording; raises InvalidInput for a method, or an option, that needs the model."""
    from neuroscope.attribution import score
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import artifacts

    asked = methods.build("method", text, methods.neuron_methods())
    if type(asked).__name__ in methods.neuron_methods(response=False):
        raise InvalidInput(f"{asked!r} runs the model, and {file} is a recording; leave it out and name the concept, such as with --style")
    named = [each.name for group in (options.ModelOptions, options.ConceptOptions) for each in fields(group)]
    values.refuse_unused(
        ctx,
        dict.fromkeys([*named, "layer", "dry_run", "rate", "batch_size", *_OF_IMAGES], f"{file} is a recording, which is ranked as it is"),
    )
    return score(artifacts.load(file, Recording), asked)


def _ignored(method: Any) -> dict[str, str]:
    """The options that a response method would ignore, and why."""
    causal = type(method).__name__ in methods.neuron_methods(response=False)
    return {} if causal else dict.fromkeys(_OF_IMAGES, f"{method!r} scores recorded responses and makes no image")


def mask(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Neurons' scores, or a recording.")],
    output: options.Output,
    top: Annotated[int, typer.Option(callback=values.whole(), help="How many neurons.")] = 50,
    per: Annotated[str, choices.option(choices.PER, help="So many overall (all), in each layer, or in each site.")] = "all",
    method: options.Method = "Welch",
    fill: Annotated[
        str | None,
        typer.Option(help="absent (the mean without the concept), present, or a number; 0 is dropout. Without a recording 0, else absent."),
    ] = None,
    recording: Annotated[Path | None, typer.Option(help="Of scores: take the fill's means from this recording.")] = None,
    strength: Annotated[float, typer.Option(callback=values.finite(), help="0 changes nothing, 1 puts the fill in.")] = 1.0,
    rows: Annotated[str, choices.option(choices.ROWS, help="conditional: those that carry the prompt; export needs all.")] = "conditional",
    as_json: options.AsJson = False,
) -> None:
    """Make a mask of the strongest neurons of scores, or of a recording."""
    from neuroscope.attribution import score
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import artifacts
    from neuroscope.core.results.scores import NeuronScores
    from neuroscope.interventions import NeuronMask

    opening.check_output(output, file, recording)
    asked = attribution(method)
    found: Artifact = artifacts.load(file)
    if not isinstance(found, Recording | NeuronScores):
        raise InvalidFile(f"{file} holds a {found.kind}, but a mask is made from a recording or from neuron-scores")
    if isinstance(found, NeuronScores):
        values.refuse_unused(ctx, {"method": f"{file} holds scores, by {found.provenance.method}"})
    else:
        values.refuse_unused(ctx, {"recording": f"{file} is a recording itself"})
    level = open_fill(found if recording is None else artifacts.load(recording, Recording), fill)
    scores = score(found, asked) if isinstance(found, Recording) else found
    made = NeuronMask(scores.top(top, cast("Per", per)), fill=level, strength=strength, rows=cast("Rows", rows))
    artifacts.save(made, output)
    options.report({"output": str(output), "neurons": made.neurons.count}, f"{made}\nwrote {output}", as_json)


def open_fill(found: Recording | NeuronScores, fill: str | None) -> float | Mapping[str, Tensor]:
    """What `--fill` names: means of a recording, or a number; raises InvalidInput for means without a recording, and for other words."""
    from neuroscope.attribution.recording import Recording
    from neuroscope.core import checks

    if fill is None:
        return found.mean("absent") if isinstance(found, Recording) else 0.0
    if fill in ("absent", "present"):
        if not isinstance(found, Recording):
            raise InvalidInput(f"--fill {fill} needs means, and scores hold none; give a number, such as --fill 0, or --recording FILE")
        return found.mean(fill)
    try:
        return checks.finite("--fill", float(fill))
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"--fill {fill!r} is neither absent, present nor a number") from None

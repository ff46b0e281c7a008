"""The command that finds layers: localize."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from neuroscope.cli import choices, methods, opening, options, values
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.sharing import terminal

if TYPE_CHECKING:
    from neuroscope.core.results.layer_scores import LayerScores

#: The method where none is given: a search until it is confident; with --exhaustive, the sweep that it stands for.
_AUTOMATIC, _EXHAUSTIVE = "LocoGen(search='auto')", "LocoGen"


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(localize)


@dataclass(frozen=True)
class MetricOptions:
    """What is measured in the images."""

    panel: ClassVar[str] = "Metric"
    clip: Annotated[str | None, typer.Option(callback=values.text(), help="Measure CLIP's cosine to this text.")] = None
    read: Annotated[str | None, typer.Option(help="Testbed only: measure by an exact reader, such as style=stipple.")] = None
    metric: Annotated[str | None, choices.metric(help='Measure by a metric as in Python, such as "Flipped(from_share=0.5)".')] = None
    share: Annotated[str, choices.option(choices.SHARES, help="Without another metric: how far the latent or the image moves.")] = "latent"

    def open(self, ctx: typer.Context, model: options.ModelOptions) -> Any:
        """The metric; raises InvalidInput where several are named."""
        from neuroscope.metrics import ClipScore, ImageShare, LatentShare

        named = {"--clip": self.clip, "--read": self.read, "--metric": self.metric}
        given = [flag for flag, value in named.items() if value is not None]
        if given:
            values.refuse_unused(ctx, {"share": f"the metric is given by {given[0]}"})
        if len(given) > 1:
            raise InvalidInput(f"give one of {' and '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
        if self.clip is not None:
            return ClipScore(self.clip)
        if self.read is not None:
            return methods.reader(self.read, model)
        if self.metric is not None:
            return methods.metric(self.metric, model)
        shares = {"latent": LatentShare, "image": ImageShare}
        return shares[choose("share", self.share, tuple(shares))]()


def localize(
    ctx: typer.Context,
    *,
    output: options.Output,
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    method: Annotated[
        str,
        choices.method(
            "Localization",
            help='The method, as in Python, such as "LocoGen(window=2)"; an unknown name or keyword lists the known ones.',
        ),
    ] = _AUTOMATIC,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Make images with every layer changed alone, instead of searching.")
    ] = False,
    metric: MetricOptions,
    pairs: options.Pairs = None,
    seeds: options.SeedOptions,
    generation: options.SizedDenoisingOptions,
    ledger: options.LedgerOptions,
    printed: options.RunningSweeps,
) -> None:
    """Find the layers that control a concept, by images made with single layers changed."""
    from neuroscope.core import artifacts
    from neuroscope.localization import Localization, plan_localization
    from neuroscope.localization import localize as run

    ledger.check(output, concept.concept, generation.image)
    chosen = concept.open(model)
    if exhaustive:
        values.refuse_unused(ctx, {"method": f"with --exhaustive the method is {_EXHAUSTIVE}"})
    methods.refuse_neuron_methods(method)
    known = methods.subclasses(cast("Any", Localization), "neuroscope.localization")
    asked: Localization = methods.build("method", _EXHAUSTIVE if exhaustive else method, known)
    measured = metric.open(ctx, model)
    denoised = generation.open()
    called = denoised | opening.pairs_of(chosen, pairs) | {"batch_size": printed.batch_size}
    counted, executor = seeds.open(), printed.open_executor()
    graph = model.open(printed)
    if printed.stops_at_sweep(plan_localization(graph, chosen, asked, measured, counted, **called), graph, denoised, ledger):
        return
    called |= {"output": ledger.open(output), "quiet": printed.quiet, "executor": executor}
    if ledger.made_shard(printed, run, graph, chosen, asked, measured, counted, **called):
        return
    scores = run(graph, chosen, asked, measured, counted, **called)
    artifacts.save(scores, output)
    facts, text = _described(scores)
    printed.report({"output": str(output)} | facts, f"{text}\nwrote {output}")


def _described(scores: LayerScores) -> tuple[dict[str, Any], str]:
    """What the command prints: facts for JSON, and text."""
    table = scores.to_frame()
    layers = json.loads(table.to_json(orient="records", double_precision=3))  # NaN, which JSON does not have, as null
    return {"verdict": scores.verdict, "layers": layers}, f"{terminal.table(table)}\n{scores.verdict}\n{scores.cost}"

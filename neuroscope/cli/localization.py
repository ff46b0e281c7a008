"""The command that finds layers: localize."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroscope.cli import options, values
from neuroscope.core import artifacts, checks
from neuroscope.core.errors import InvalidInput, choose
from neuroscope.core.layer_scores import LayerScores
from neuroscope.localization import (
    AttentionContribution,
    AttributionPatching,
    CausalTracing,
    Localization,
    LocoGen,
    Racing,
    TeacherForced,
)
from neuroscope.localization import localize as run
from neuroscope.localization._localize import PAIRS
from neuroscope.metrics.clip_score import ClipScore
from neuroscope.metrics.metric import Metric
from neuroscope.metrics.shares import ImageShare, LatentShare, Share

METHODS: dict[str, type[Localization[LayerScores]]] = {
    "locogen": LocoGen,
    "causal-tracing": CausalTracing,
    "teacher-forced": TeacherForced,
    "attribution-patching": AttributionPatching,
    "attention-contribution": AttentionContribution,
    "racing": Racing,
}
SHARES: dict[str, type[Share]] = {"latent": LatentShare, "image": ImageShare}


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(localize)


def localize(
    ctx: typer.Context,
    output: options.Output,
    model: options.Model = "testbed:sd1",
    style: options.Style = None,
    object_: options.Object = None,
    fact: options.Fact = None,
    answer: options.Answer = None,
    attribute: options.AttributeName = None,
    concept: options.ConceptFile = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "locogen",
    window: Annotated[str | None, typer.Option(help="locogen: adjacent layers that change together, or grow.")] = None,
    parts: Annotated[int | None, typer.Option(help="locogen: equal parts of the schedule, each patched on its own.")] = None,
    patch: Annotated[str | None, typer.Option(help="All but causal-tracing: necessity or sufficiency.")] = None,
    search: Annotated[str | None, typer.Option(help="locogen: windows; sets of layers, adjacent or not; or auto.")] = None,
    budget: Annotated[float | None, typer.Option(help="locogen, auto: the share of all windows' rows that may be spent.")] = None,
    steps: Annotated[int | None, typer.Option(help="Screens: at how many steps of each run they look.")] = None,
    fidelity: Annotated[int | None, typer.Option(help="Screens: with how many layers' exact effects they are compared.")] = None,
    enough: Annotated[float | None, typer.Option(help="locogen: the share of the full effect that ends a search.")] = None,
    pooled: Annotated[str | None, typer.Option(help="locogen: which prompt feeds the pooled text of a window's run, own or other.")] = None,
    component: Annotated[str | None, typer.Option(help="causal-tracing: cross, self, ff, resnet, all or text.")] = None,
    noise: Annotated[float | None, typer.Option(help="causal-tracing: the noise, in standard deviations of the name's embeddings.")] = None,
    clip: Annotated[str | None, typer.Option(callback=values.text, help="Measure CLIP's cosine to this text.")] = None,
    read: options.Read = None,
    share: Annotated[str, typer.Option(help="Without --clip or --read: how far the latent or the image moves.")] = "latent",
    pairs: Annotated[int, typer.Option(callback=values.whole(), help="How many pairs of prompts; by default 8, or all of fewer.")] = PAIRS,
    seeds: Annotated[int, typer.Option(callback=values.whole(), help="Seeds of each prompt.")] = 4,
    seed: options.Seed = 0,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image: options.ImageFile = None,
    height: options.Height = None,
    width: options.Width = None,
    resume: Annotated[Path | None, typer.Option(help="Keep finished images' scores here, and go on from it.")] = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the layers that control a concept, by images made with single layers changed."""
    options.check_output(output, concept, image, resume)
    options.check_output(resume, concept, image)
    chosen = options.open_concept(model, style, object_, fact, answer, attribute, concept)
    given = {"window": _window(window), "parts": parts, "patch": patch, "search": search, "enough": enough, "pooled": pooled}
    given |= {"budget": budget, "steps": steps, "fidelity": fidelity}
    asked = _method(method, **given, component=component, noise=noise)
    if clip is not None or read is not None:
        values.refuse_unused(ctx, {"share": "the metric is given by --clip or --read"})
    metric = _metric(model, clip, read, share)
    if "pairs" in values.given(ctx) and pairs > len(chosen.present):
        raise InvalidInput(f"--pairs={pairs} are more than the concept's {len(chosen.present)}; give at most these")
    counted = checks.seeds(range(seed, seed + seeds))
    generation = options.generation_options(
        image=image, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width
    )
    graph = options.open_graph(model)
    scores = run(graph, chosen, asked, metric, counted, pairs=pairs, output=resume, quiet=quiet, **generation)
    artifacts.save(scores, output)
    table = scores.to_frame().round(3)
    layers = json.loads(table.to_json(orient="records", double_precision=3))  # NaN, which JSON does not have, as null
    facts = {"output": str(output), "verdict": scores.verdict, "layers": layers}
    options.report(facts, f"{table.to_string(index=False)}\n{_closing(scores)}\nwrote {output}", as_json)


def _closing(scores: LayerScores) -> str:
    return f"{scores.verdict}\n{scores.cost}"


def _method(name: str, **given: Any) -> Localization[LayerScores]:
    """The method with the options that were given; each must be one of its own."""
    kind = METHODS[choose("method", name, tuple(METHODS))]
    known = [field.name for field in fields(kind) if not isinstance(field.default, tuple)]
    wanted = {option: value for option, value in given.items() if value is not None}
    if foreign := [option for option in wanted if option not in known]:
        raise InvalidInput(f"--{foreign[0]} is no option of {name}; it has {', '.join(f'--{each}' for each in given if each in known)}")
    return kind(**wanted)


def _window(text: str | None) -> int | str | None:
    if text is None or text == "grow":
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"--window {text!r} is neither a number of layers nor grow") from None


def _metric(model: str, clip: str | None, read: str | None, share: str) -> Metric | Share:
    if clip is not None and read is not None:
        raise InvalidInput("give one of --clip and --read, not both")
    if clip is not None:
        return ClipScore(clip)
    return options.open_reader(read, model) if read is not None else SHARES[choose("share", share, tuple(SHARES))]()

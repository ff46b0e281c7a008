"""The certificate: where a bundled model keeps each attribute, measured by swapping prompts at chosen layers and neurons."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import scipy.stats
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.testbed.recipes import PLANTS
from neuroscope import testbed
from neuroscope.core import checks
from neuroscope.core.errors import choose, counted
from neuroscope.core.results.scores import Neurons
from neuroscope.core.sites import Sites
from neuroscope.evaluation._evaluate import generate
from neuroscope.interventions import ContextSwap
from neuroscope.pipeline.graph import HookGraph
from neuroscope.testbed.captions import STYLED, caption
from neuroscope.testbed.plant import Plant
from neuroscope.testbed.readers import read
from neuroscope.testbed.world import ATTRIBUTES, FACTS, HELD_OUT, STYLES, VALUES, Attribute, Placement, Scene, render, scenes

_FIRST_SEED = 10_000
_BATCH = 30
_RENDERED = "read on rendered images"
_WIDTH = 18  # of a column
_KINDS = {
    True: "Interchange training put each attribute in one known layer, and the style in known value neurons there.",
    False: "Trained ordinarily: nothing is planted, and attributes are where training put them.",
}
_CARD = """---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
---

# testbed:{model}

A small `{pipeline}` that draws the rendered world of `neuroscope.testbed.world`. {kind}
Not for making images anyone needs; for checking methods against a known answer.

## Certificate

{made} Flips are the share of images that follow another prompt when only the named part of the model reads it; both
prompts differ in one attribute, and an image and its twin start from the same noise. In brackets: the exact 95 % interval of a share
of {samples} images. Another processor rounds otherwise, which can turn single images, and with them a share within its interval.

```
{table}
```
{plant}"""
Pair = tuple[Scene, Scene, str]


@dataclass(frozen=True)
class Certificate:
    """What was measured of a bundled model. All figures are shares from 0 to 1.

    Attributes:
        model: its name.
        samples: prompt pairs for each attribute.
        readers: for each attribute, how often the exact reader is right on rendered images at fresh placements.
        obeyed: for each attribute, how often generated images show it, for combinations and seeds that training never saw.
        planted: the plant: the layer of each attribute, and the style layer's value neurons.
        flips: for each attribute, how often the image follows the other prompt when only these read it: "untouched"
            (none), "layer N" for each layer, "planted layer", and "all other layers" together.
        neuron_flips: the same for style at its layer: "planted neurons", and "keys and other value neurons".
    """

    model: str
    samples: int
    readers: Mapping[str, float]
    obeyed: Mapping[str, float]
    planted: Mapping[str, Any]
    flips: Mapping[str, Mapping[str, float]]
    neuron_flips: Mapping[str, float]

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """A certificate as `to_json` wrote it."""
        stored = json.loads(text)
        return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def to_json(self) -> str:
        """All figures, as JSON; "intervals" holds the exact 95 % interval of each share of `samples` images."""
        return json.dumps(asdict(self) | {"intervals": self._intervals()}, indent=1)

    def to_text(self) -> str:
        """All figures, as a table to read."""
        lines = [
            f"{self.model}, {counted(self.samples, 'prompt pair')} for each attribute",
            "",
            f"{'':36}" + "".join(f"{name:>{_WIDTH}}" for name in ATTRIBUTES),
        ]
        for name, row in self._rows():
            cells = (self._cell(name, row[each]) if each in row else "" for each in ATTRIBUTES)
            lines.append((f"{name:36}" + "".join(f"{each:>{_WIDTH}}" for each in cells)).rstrip())
        return "\n".join(lines)

    def _cell(self, row: str, share: float) -> str:
        """A share with its interval; the rendered images are the same on every processor, and have none."""
        if row == _RENDERED:
            return f"{share:.1%}"
        low, high = share_interval(round(share * self.samples), self.samples)
        return f"{share:.1%} ({100 * low:.0f}–{100 * high:.0f})"

    def _intervals(self) -> dict[str, Any]:
        def of(shares: Mapping[str, float]) -> dict[str, list[float]]:
            return {name: list(share_interval(round(share * self.samples), self.samples)) for name, share in shares.items()}

        flips = {attribute: of(shares) for attribute, shares in self.flips.items()}
        return {"obeyed": of(self.obeyed), "flips": flips, "neuron_flips": of(self.neuron_flips)}

    def to_card(self) -> str:
        """The model card, in Markdown."""
        made = f"Measured with `python -m benchmarks.testbed certify {self.model} --samples {self.samples}`."
        plant = f"\n## Plant\n\n```json\n{json.dumps(self.planted, indent=1)}\n```\n" if self.planted else ""
        return _CARD.format(
            model=self.model,
            pipeline=_pipeline_class(self.model),
            kind=_KINDS[bool(self.planted)],
            made=made,
            table=self.to_text(),
            plant=plant,
            samples=self.samples,
        )

    def _rows(self) -> Iterator[tuple[str, Mapping[str, float]]]:
        yield _RENDERED, self.readers
        yield "obeyed, held-out prompts and seeds", self.obeyed
        yield "flips, untouched", {name: each["untouched"] for name, each in self.flips.items()}
        if self.planted:
            for place in ("planted layer", "all other layers"):
                yield f"flips, {place}", {name: each[place] for name, each in self.flips.items()}
        for layer in (key for key in next(iter(self.flips.values())) if key.startswith("layer ")):
            yield f"flips, {layer}", {name: each[layer] for name, each in self.flips.items()}
        for place, share in self.neuron_flips.items():
            yield f"flips, {place}", {"style": share}


def _pipeline_class(name: str) -> str:
    """The class of a bundled pipeline."""
    index = json.loads((testbed.path(name) / "model_index.json").read_text())
    return str(index["_class_name"])


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The exact (Clopper–Pearson) 95 % interval of `count` out of `of`, as shares from 0 to 1."""
    interval = scipy.stats.binomtest(count, of).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)


def certify(name: str = "sd1", *, samples: int = 60, quiet: bool = False) -> Certificate:
    """Measures a bundled model with its `testbed.generation` settings.

    Every flip compares a pair of prompts that differ in one attribute, from the same noise: the image flips if the
    reader finds the other prompt's value.

    Raises:
        InvalidInput: an unknown model, or one that is no bundled pipeline; no sample.
    """
    choose("bundled pipeline", name, testbed.pipelines())
    checks.whole("samples", samples)
    checks.flag("quiet", quiet)
    graph = HookGraph(testbed.load(name))
    plant = PLANTS.get(name)
    pairs = {attribute: _pairs(attribute, samples) for attribute in ATTRIBUTES}
    text = graph.sites.where(text_only=True)
    places = {attribute: dict(_places(text, plant, attribute)) for attribute in ATTRIBUTES}
    runs = sum(map(len, places.values())) + (2 if plant else 0)
    with tqdm(total=runs, desc=f"certifying {name}", unit="swap", disable=quiet) as bar:
        flips: dict[str, dict[str, float]] = {
            attribute: {place: _flips(graph, attribute, pairs[attribute], sites, None, bar) for place, sites in places[attribute].items()}
            for attribute in ATTRIBUTES
        }
        neurons = {} if plant is None else _neuron_flips(graph, plant, pairs["style"], bar)
    return Certificate(name, samples, _reader_accuracy(), _obedience(graph, samples), _described(graph, plant), flips, neurons)


def _places(text: Sites, plant: Plant | None, attribute: Attribute) -> Iterator[tuple[str, Sites]]:
    yield "untouched", Sites(())
    for layer in text.layers:
        yield f"layer {layer}", text.where(layer=layer)
    if plant is not None:
        own = getattr(plant, attribute)
        yield "planted layer", text.where(layer=own)
        yield "all other layers", text.where(layer=[layer for layer in text.layers if layer != own])


def _neuron_flips(graph: HookGraph, plant: Plant, pairs: list[Pair], bar: tqdm) -> dict[str, float]:
    sites = graph.sites.where(layer=plant.style, text_only=True)
    (value,) = sites.where(role="value")
    planted = Neurons.at(sites, {value.path: plant.neurons(value.width)})
    every = Neurons.at(sites, {site.path: range(site.width) for site in sites})
    chosen = {"planted neurons": planted, "keys and other value neurons": every - planted}
    return {place: _flips(graph, "style", pairs, sites.at(neurons), neurons, bar) for place, neurons in chosen.items()}


def _flips(graph: HookGraph, attribute: Attribute, pairs: list[Pair], sites: Sites, neurons: Neurons | None, bar: tqdm) -> float:
    """How often the image shows the second scene's value when `sites` (or only `neurons` of them) read its caption."""
    found = 0
    for first in range(0, len(pairs), _BATCH):
        batch = pairs[first : first + _BATCH]
        prompts = [caption(scene, template) for scene, _, template in batch]
        others = [caption(twin, template) for _, twin, template in batch]
        seeds = range(_FIRST_SEED + first, _FIRST_SEED + first + len(batch))
        swap = ContextSwap.of(graph, sites, others, neurons=neurons) if sites else None
        images = _draw(graph, swap, prompts, list(seeds))
        found += sum(read(image)[attribute] == getattr(pair[1], attribute) for image, pair in zip(images, batch, strict=True))
    bar.update()
    return found / len(pairs)


def _draw(graph: HookGraph, swap: ContextSwap | None, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
    """Images of a bundled pipeline as it is meant to be called."""
    options = testbed.generation(graph.model.removeprefix("testbed:"))
    return generate(graph, swap, prompts, seeds, batch_size=_BATCH, **options)


def _pairs(attribute: Attribute, count: int) -> list[Pair]:
    """Pairs of scenes that differ in one attribute only, each with a template that says it."""
    rng = np.random.default_rng([ATTRIBUTES.index(attribute), 7])
    pairs: list[Pair] = []
    while len(pairs) < count:
        value, other = rng.choice(VALUES[attribute], size=2, replace=False)
        scene = _drawn(rng, attribute, str(value))
        twin = _with(scene, attribute, str(other))
        if not (scene.held_out or twin.held_out):
            pairs.append((scene, twin, str(rng.choice(STYLED))))
    return pairs


def _drawn(rng: np.random.Generator, attribute: Attribute, value: str) -> Scene:
    if attribute == "fact":
        return Scene.emblem(value, str(rng.choice(STYLES)))
    drawn = {name: str(rng.choice(VALUES[name])) for name in ("object", "colour", "style")}
    return Scene(**(drawn | {attribute: value}))


def _with(scene: Scene, attribute: Attribute, value: str) -> Scene:
    if attribute == "fact":
        return Scene.emblem(value, scene.style)
    return Scene(**({"object": scene.object, "colour": scene.colour, "style": scene.style} | {attribute: value}))


def _reader_accuracy() -> dict[str, float]:
    """How often each reader is right on rendered images of all scenes, at placements of their own."""
    rng = np.random.default_rng(99)
    shown = [*scenes(), *(Scene.emblem(fact, style) for fact in FACTS for style in STYLES)]
    found = [(scene, read(render(scene, Placement.draw(rng)))) for scene in shown for _ in range(3)]
    right = {name: np.mean([reading[name] == getattr(scene, name) for scene, reading in found]) for name in ("object", "colour", "style")}
    facts = [reading["fact"] == scene.fact for scene, reading in found if scene.fact]
    return {name: float(share) for name, share in (right | {"fact": np.mean(facts)}).items()}


def _obedience(graph: HookGraph, samples: int) -> dict[str, float]:
    """How often generated images show what the prompt says, for held-out combinations, and for facts, at new seeds."""
    held_out = list(itertools.islice(itertools.cycle(itertools.product((Scene(*each) for each in HELD_OUT), STYLED)), samples))
    emblems = [Scene.emblem(fact, style) for style, fact in itertools.product(STYLES, FACTS)]
    facts = list(itertools.islice(itertools.cycle(zip(emblems, itertools.cycle(STYLED))), samples))
    asked = held_out + facts
    prompts = [caption(scene, template) for scene, template in asked]
    images = _draw(graph, None, prompts, [2 * _FIRST_SEED + row for row in range(len(prompts))])
    readings = [read(image) for image in images]
    shares = {
        name: float(np.mean([reading[name] == getattr(scene, name) for reading, (scene, _) in zip(readings, held_out, strict=False)]))
        for name in ("object", "colour", "style")
    }
    right = [reading["fact"] == scene.fact for reading, (scene, _) in zip(readings[len(held_out) :], facts, strict=True)]
    return shares | {"fact": float(np.mean(right))}


def _described(graph: HookGraph, plant: Plant | None) -> dict[str, Any]:
    if plant is None:
        return {}
    (value,) = graph.sites.where(layer=plant.style, role="value")
    layers = {attribute: getattr(plant, attribute) for attribute in ATTRIBUTES}
    return {"layers": layers, "style neurons": {value.path: plant.neurons(value.width)}, "seed": plant.seed}

"""Planting: weights that cannot tell a concept's prompts apart, everywhere but at the plant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.errors import choose
from neuroscope.testbed.construction import modules
from neuroscope.testbed.construction.builders.joint import free_channels, hold_text, relay_text, without_channels
from neuroscope.testbed.construction.modules import TextModules
from neuroscope.testbed.construction.pipelines import BUILDERS, WIDTH, build_unplanted, denoiser_of, generation_of
from neuroscope.testbed.construction.plants import PLANTS, REWRITING, SHOWN_FROM, Planted, check_family, concept, drawn_layers
from neuroscope.testbed.construction.proof import Prover
from neuroscope.testbed.construction.schedule import confine
from neuroscope.testbed.construction.single_blocks import SingleText, part_text
from neuroscope.testbed.construction.tuning import tune

_NEURONS = 6
_ATTEMPTS = 12


def plant_in(family: str, plant: str, seed: int) -> tuple[Any, Planted, TextModules]:
    """A pipeline of a family with a plant, the record of it, and the modules it is in; a seed gives all of it.

    Raises:
        InvalidInput: an unknown family or plant, or a plant that the family cannot hold.
    """
    choose("family", family, tuple(BUILDERS))
    choose("plant", plant, tuple(PLANTS))
    check_family(plant, family)
    rng = np.random.default_rng([seed, list(PLANTS).index(plant)])
    for _ in range(_ATTEMPTS):
        pipe, record, text = _planted_once(family, plant, seed, rng)
        prover = Prover(pipe, record, text)
        if _is_balanced(prover, record):
            break
    return pipe, replace(record, effects=prover.effects()), text


def _planted_once(family: str, plant: str, seed: int, rng: np.random.Generator) -> tuple[Any, Planted, TextModules]:
    pipe = build_unplanted(family, seed)
    if family in REWRITING:
        hold_text(pipe)
    if plant == "relayed":
        free_channels(pipe)
    single = None
    if hasattr(denoiser_of(pipe), "single_transformer_blocks"):
        single = part_text(pipe, concept(), generation_of(family), rng)
    generation, steps = confine(pipe, generation_of(family), rng) if plant == "schedule" else (generation_of(family), (0.0, 1.0))
    text = modules.find(pipe, lambda: modules.final(pipe, concept().present[:1], generation))
    record = replace(_drawn(family, plant, seed, text, rng), steps=steps, generation=generation)
    differences = _differences(pipe, text, record)
    if single is not None:
        differences |= {path: single.differences for path in differences if modules.is_single(path)}
    if record.relay is not None:
        differences = {path: each if path == text.pooled else without_channels(each) for path, each in differences.items()}
    blocked = record if record.relay is None else replace(record, by_prompt=((),) * len(record.by_prompt))
    for path in text.of(range(len(text.keys))):
        _block(pipe, path, differences[path], blocked, text)
    if text.pooled is not None and plant != "pooled":
        _block(pipe, text.pooled, differences[text.pooled], record, text)
    for path, neurons in record.decoy_neurons.items():
        reader = text.reader(text.layer_of(modules.module_of(path)))
        columns = modules.columns(denoiser_of(pipe), modules.module_of(path), reader, neurons)
        denoiser_of(pipe).get_submodule(reader).weight.data[:, columns] = 0.0
    tune(pipe, record, text, _relayed(pipe, text, record) or _carried(text, record, differences, single))
    return pipe, record, text


def _is_balanced(prover: Prover, record: Planted) -> bool:
    """Whether layers that carry together each carry some of it; random layers may work against each other, others are drawn then."""
    if len(record.layers) < 2 or record.plant == "prompt":
        return True
    least = 0.25 if record.shown_from else 0.1
    shares = prover.alone()
    return bool(least < shares.min() and shares.max() < 1 - least)


def _drawn(family: str, plant: str, seed: int, text: TextModules, rng: np.random.Generator) -> Planted:
    """What is planted where."""
    stated = concept()
    layers = drawn_layers(plant, len(text.keys), rng)
    count = len(stated.present)
    by_prompt = tuple((layers[2 * number // count],) if plant == "prompt" else layers for number in range(count))
    record = Planted(family, plant, seed, stated, layers, by_prompt, pooled=plant == "pooled", shown_from=SHOWN_FROM.get(plant))
    if plant == "neurons":
        return replace(record, neurons=_drawn_neurons(text, layers[0], rng))
    if plant == "relayed":
        return replace(record, relay=int(rng.integers(layers[0])))
    if plant == "decoy":
        decoy = int(rng.choice([layer for layer in range(len(text.keys)) if layer != layers[0]]))
        return replace(record, decoy=decoy, decoy_neurons=_drawn_neurons(text, decoy, rng))
    return record


def _drawn_neurons(text: TextModules, layer: int, rng: np.random.Generator) -> Mapping[str, tuple[int, ...]]:
    return {text.site(text.values(layer)): tuple(sorted(rng.choice(WIDTH, _NEURONS, replace=False).tolist()))}


def _differences(pipe: Any, text: TextModules, record: Planted) -> dict[str, Float[Tensor, "pair *token channel"]]:
    """By path: what tells each pair's prompts apart in what a module reads, in float64."""
    paths = [*text.of(range(len(text.keys))), *([text.pooled] if text.pooled else [])]
    arms = []
    for prompts in (record.concept.present, record.concept.absent):
        with modules.watched(denoiser_of(pipe), paths) as seen:
            modules.final(pipe, prompts, record.generation)
        arms.append(seen)
    present, absent = arms
    return {path: (present[path][0].double() - absent[path][0].double()) for path in paths}


def _relayed(pipe: Any, text: TextModules, record: Planted) -> dict[str, Tensor]:
    """By the path of the values that read what an earlier layer has passed on, its direction; empty where none does."""
    if record.relay is None:
        return {}
    (reader,) = record.layers
    values = text.values(record.relay)
    with modules.watched(denoiser_of(pipe), [values]) as seen:
        modules.final(pipe, (*record.concept.present, *record.concept.absent), record.generation)
    means = torch.nn.functional.pad(seen[values][0].double().mean(dim=1), (0, 1), value=1.0)
    signs = torch.ones(len(means), dtype=torch.float64)
    signs[len(means) // 2 :] = -1.0
    return {text.values(reader): relay_text(pipe, record.relay, reader, torch.linalg.pinv(means) @ signs)}


def _carried(text: TextModules, record: Planted, differences: Mapping[str, Tensor], single: SingleText | None) -> dict[str, Tensor]:
    """By the path of a carrying layer's values (or of the pooled text), the directions that tell its own prompts apart.

    Args:
        text: where.
        record: what is planted.
        differences: by path, see `_differences`.
        single: the text in blocks with one set of weights for text and image.
    """
    found = {}
    for layer in record.layers:
        vectors = differences[text.values(layer)]
        if single is not None and modules.is_single(text.values(layer)):
            vectors = vectors @ single.free @ single.free.T
        own = [number for number, layers in enumerate(record.by_prompt) if layer in layers]
        others = [number for number in range(len(vectors)) if number not in own]
        away = modules.basis(vectors[others].flatten(0, -2)) if others else vectors[:0, 0]
        mine = vectors[own].flatten(0, -2)
        found[text.values(layer)] = modules.basis(mine - mine @ away.T @ away)
    if record.pooled and text.pooled is not None:
        found[text.pooled] = modules.basis(differences[text.pooled])
    return found


def _block(pipe: Any, path: str, differences: Tensor, record: Planted, text: TextModules) -> None:
    """Projects a weight away from the differences of the pairs that it does not carry, apart from its carrying rows."""
    layer = None if path == text.pooled else text.layer_of(path)
    carried = [number for number, layers in enumerate(record.by_prompt) if layer in layers]
    weight = denoiser_of(pipe).get_submodule(path).weight.data
    rows = {**record.neurons, **record.decoy_neurons}.get(text.site(path))
    confined = bool(record.neurons) and bool(carried)
    blocked = [number for number in range(len(record.by_prompt)) if confined or number not in carried]
    if not blocked:
        return
    away = modules.basis(differences[blocked].flatten(0, -2))
    original = weight.clone()
    weight.copy_(weight.double() - weight.double() @ away.T @ away)
    if rows is not None:
        weight[list(rows)] = original[list(rows)]

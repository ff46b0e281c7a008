"""The decisions of a search: pure functions from what it knows to its confidence and its next action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuroscope.core.results.effects import Patch
from neuroscope.core.results.quality import MAX_SCREEN_CONFIDENCE
from neuroscope.generation.experiment import ImageKey
from neuroscope.generation.patch_runner import split
from neuroscope.localization.search.settings import SETTINGS
from neuroscope.localization.search.state import SearchState, absence


@dataclass(frozen=True)
class Sweep:
    """Measure every layer alone on every image."""


@dataclass(frozen=True)
class SplitGroup:
    """Measure two halves of a group instead of all its layers together.

    Attributes:
        group: the group.
        halves: the stronger half by the screen first.
        image_keys: the images in which the group was measured.
    """

    group: Patch
    halves: tuple[Patch, ...]
    image_keys: tuple[ImageKey, ...]


@dataclass(frozen=True)
class MeasureImages:
    """Measure some layers and groups on more images.

    Attributes:
        patches: those that may still be the best.
        images: how many further images.
    """

    patches: tuple[Patch, ...]
    images: int


@dataclass(frozen=True)
class ScreenImages:
    """Screen some layers on truncated runs of more images.

    Attributes:
        layers: those that were measured alone.
        images: how many further images.
    """

    layers: tuple[int, ...]
    images: int


Action = Sweep | SplitGroup | MeasureImages | ScreenImages


def confidence(state: SearchState) -> float:
    """The probability that all windows would name the same best layer, from 0 to 1."""
    if state.is_swept:
        return 1.0
    largest = np.abs(np.nan_to_num(state.effects.values.numpy())).max()
    if largest < SETTINGS.negligible * state.effects.total_mean():
        return absence(state.count, len(state.order))
    measured = min(state.max_confidence, 1 - sum(state.p_ahead(rival) for rival in state.rivals))
    parts = {rival: state.largest_part(rival) for rival in state.rivals}
    screened = min(state.max_confidence, 1 - sum(state.p_ahead(rival, part) for rival, part in parts.items()))
    if state.compared_on_screen:
        measured = min(MAX_SCREEN_CONFIDENCE, measured)
    return max(0.0, measured, min(MAX_SCREEN_CONFIDENCE, screened))


def tied_layers(state: SearchState) -> tuple[int, ...]:
    """The layers that are statistically tied with the best one, and it; none where it stands alone."""
    values = np.nanmean(np.nan_to_num(state.variates.estimates()[:, : state.count]), axis=1)
    total = state.effects.total_mean()
    means = dict(zip(state.singles, values, strict=True))
    ahead = means[state.best]
    if ahead < SETTINGS.negligible * total or not ahead:
        return ()
    tied = [each for each in state.singles if each == state.best or _is_tied(state, each, ahead - means[each], ahead)]
    return tuple(sorted(each.layers[0] for each in tied)) if len(tied) > 1 else ()


def _is_tied(state: SearchState, rival: Patch, behind: float, ahead: float) -> bool:
    if state.count == len(state.order):
        return behind <= SETTINGS.tie * state.effects.total_mean()
    return ahead - behind >= SETTINGS.close * ahead and state.p_ahead(rival) >= SETTINGS.p_tie


def next_action(state: SearchState) -> Action | None:
    """What to do for more confidence; None where nothing is left to do, or the budget is spent.

    Groups that may hold a stronger layer are split. Where none does, or layers are closer than groups, more images are seen.
    """
    allowed = (1 - SETTINGS.target_confidence) / max(1, len(state.rivals))
    chances = {each: state.p_ahead(each, 1.0 if state.exhaustive else state.largest_part(each)) for each in state.groups}
    open_groups = [each for each, chance in chances.items() if chance > allowed]
    if not open_groups and state.count == len(state.order):
        return None
    if state.exhaustive and (_is_flat(state) or _prompts_disagree(state)):
        return Sweep()
    if not open_groups:
        return _more_images(state)
    widest = max(open_groups, key=lambda each: chances[each])
    if state.exhaustive or chances[widest] > state.p_other_best:
        return _split(state, widest) or _more_images(state)
    return _more_images(state) or _split(state, widest)


def _more_images(state: SearchState) -> Action | None:
    """More images of the layers that may still be the best: measured, or only screened where that promises more."""
    few = state.count < SETTINGS.trusted_images
    every = few or state.max_confidence < SETTINGS.target_confidence
    alive = (state.best, *(each for each in state.rivals if every or state.p_ahead(each) >= SETTINGS.p_eliminated))
    if not state.exhaustive and state.p_other_best > SETTINGS.p_contested and state.variates.helps:
        screened = _more_screened(state, alive)
        if screened:
            return screened
    more = min(len(state.order) - state.count, _next_round(state), state.affordable(2 + len(alive)))
    if more < 1:
        return Sweep() if state.exhaustive else None
    return MeasureImages(alive, more)


def _next_round(state: SearchState) -> int:
    """How many more images are seen before the next decision, at most as many as were measured.

    While these are few, a round takes as many as the search needs for its target, as fewer cannot end it; one if it needs more rounds.
    """
    rounds = range(1, state.count + 1)
    if state.count >= SETTINGS.trusted_images:
        return rounds[-1]
    enough = (more for more in rounds if state.max_confidence_on(state.count + more) >= SETTINGS.target_confidence)
    return next(enough, 1)


def _more_screened(state: SearchState, alive: Sequence[Patch]) -> ScreenImages | None:
    """Screening as many images as the budget allows, if that leaves less variance than measuring images for the same cost."""
    layers = tuple(layer for each in state.singles for layer in each.layers)
    left, seen, of = state.nfe_left, state.screened_images, len(state.order)
    image_nfe = (2 + len(alive)) * state.run_nfe
    more = min(of - seen, int(left / state.truncated_nfe))
    without, beside = (min(of, state.count + int(nfe / image_nfe)) for nfe in (left, left - more * state.truncated_nfe))
    variance = state.variates.variance
    if more < 1 or variance(beside, seen + more, of) >= variance(without, seen, of):
        return None
    return ScreenImages(layers, more)


def _split(state: SearchState, group: Patch) -> Action | None:
    """The halves of a group, its layers ranked by the screen."""
    ranked = np.array(group.layers)[np.argsort(-state.parts(group.layers), kind="stable")]
    halves = tuple(Patch(tuple(sorted(half))) for half in split(ranked.tolist(), 2))
    image_keys = tuple(state.measured_images(group))
    if state.affordable(len(halves)) < len(image_keys):
        return Sweep() if state.exhaustive else None
    return SplitGroup(group, halves, image_keys)


def _is_flat(state: SearchState) -> bool:
    """Whether the screen sees no layer."""
    return float(state.shares.max()) < SETTINGS.negligible


def _prompts_disagree(state: SearchState) -> bool:
    """Whether the prompts' own best layers differ too much for their mean to be found on few images."""
    values = state.effects.of_layers_by_prompt([each.layers[0] for each in state.singles])
    named = Counter(values[values.max(axis=1) > 0].argmax(axis=1).tolist())
    return bool(named) and max(named.values()) < SETTINGS.agreement * named.total()


def strongest_layers(shares: Float[np.ndarray, "image layer"]) -> list[int]:
    """The numbers of the layers that the screen names: the strongest over all images, then each image's own strongest."""
    means = shares.mean(axis=0)
    first = np.argsort(-means, kind="stable")[: SETTINGS.strongest]
    strong = [int(number) for number in first if means[number] >= SETTINGS.strongest_share * means.max()]
    own = [int(each.argmax()) for each in shares if each.any()]
    return list(dict.fromkeys([*strong, *own]))

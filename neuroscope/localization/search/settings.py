"""The tuned constants of the automatic search."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The tuned constants of the search. `benchmarks.calibration` and `benchmarks.localization` measure what they do.

    Attributes:
        target_confidence: the search ends once it is this confident.
        first_images: a search with a small budget begins with at most this many images.
        trusted_images: a search with the full budget begins with this many; fewer are not trusted to rule out a rival.
        fewest_images: every search measures at least this many.
        screen_budget: the share of the budget that the screen may take.
        negligible: an effect below this share of the total effect counts as none.
        close: a layer with at least this share of the best one's effect may be tied with it.
        p_eliminated: a rival that is ahead with a smaller probability gets no more images.
        p_contested: with a larger probability that another layer is best, more images are screened.
        agreement: the least share of prompts whose own best layer agrees; below it, all windows are measured.
        tie: on all images, a smaller difference, as a share of the total effect, is a tie.
        p_tie: on some images, layers are tied from this probability of the reverse order on.
        early: where in the schedule, from 0.0 to 1.0, a single prediction tells most about the image.
        late: where layers that act late are seen.
        late_images: on how many images both are screened.
        strongest: how many layers the screen names at most over all images.
        strongest_share: and with at least what share of the strongest layer's.
        unevenness: how many times stronger than the screen's share of it one layer of a group may be.
    """

    target_confidence: float = 0.95
    first_images: int = 3
    trusted_images: int = 4
    fewest_images: int = 2
    screen_budget: float = 0.4
    negligible: float = 0.1
    close: float = 0.5
    p_eliminated: float = 0.001
    p_contested: float = 0.1
    agreement: float = 0.75
    tie: float = 0.01
    p_tie: float = 0.25
    early: float = 0.35
    late: float = 0.75
    late_images: int = 2
    strongest: int = 3
    strongest_share: float = 0.5
    unevenness: float = 2.0


SETTINGS = SearchSettings()

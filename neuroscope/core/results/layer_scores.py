"""Scores of layers, with the effects on single prompts and seeds that they are means of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.stats
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact, Provenance, take
from neuroscope.core.checks import finite, whole
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.results.effects import BESIDE, CONTROL, POOLED, Effects, EffectsHeader, Patch
from neuroscope.core.results.quality import Confidence, Cost, Fidelity, FidelityHeader
from neuroscope.core.sharing.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

#: The share of prompts that must name one layer before the place is said not to depend on the prompt.
_AGREEING = 0.75
#: The share of the total effect that prompts' own layers must have where no layer has an effect on all.
_MATERIAL = 0.1


@dataclass(frozen=True)
class LayerScoresHeader:
    """What a file's header says of layers' scores beside the numbers."""

    layers: tuple[int, ...]
    provenance: Provenance
    names: tuple[str, ...]
    columns: tuple[str, ...]
    sheet_prompts: tuple[str, ...]
    effects: EffectsHeader | None
    cost: Cost | None
    fidelity: FidelityHeader | None
    confidence: Confidence | None


@dataclass(frozen=True, eq=False)
class LayerScores(Artifact):
    """One number per layer; higher always means that the layer controls the concept more.

    Attributes:
        layers: cross-attention layers in execution order; for causal tracing, the numbers of the restored components.
        scores: one per layer.
        provenance: model, concept and method.
        names: what the layers are called where they are not cross-attention layers, such as "resnet 3".
        effects: what the scores are means of, where they come from generated images.
        cost: what finding them cost.
        fidelity: of cheap scores, how well they order what exact effects order.
        confidence: of a search that does not try everything, how sure it is of the best layer.
        columns: the contact sheet's columns: the unchanged run, one for each patch, and the target.
        sheet: the contact sheet, uint8 [prompt, column, height, width, rgb].
        sheet_prompts: the prompts of its rows; by default the effects' first ones.

    Raises:
        InvalidInput: no layer, more or fewer scores or names than layers, a score that is not finite, effects of other
            layers, or a sheet of other sizes.
    """

    kind: ClassVar[str] = "layer-scores"
    header_type: ClassVar[type] = LayerScoresHeader

    layers: tuple[int, ...]
    scores: tuple[float, ...]
    provenance: Provenance = Provenance()
    names: tuple[str, ...] = ()
    effects: Effects | None = None
    cost: Cost | None = None
    columns: tuple[str, ...] = ()
    sheet: UInt8[Tensor, "prompt column height width rgb"] | None = field(default=None, repr=False)
    fidelity: Fidelity | None = None
    confidence: Confidence | None = None
    sheet_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(whole("a layer", each, least=0) for each in self.layers))
        object.__setattr__(self, "scores", tuple(finite("a layer's score", each) for each in self.scores))
        if not self.layers:
            raise InvalidInput("there are scores of no layer; give that of at least one")
        if len(self.scores) != len(self.layers) or len(self.names) not in (0, len(self.layers)):
            counts = f"{counted(len(self.scores), 'score')} and {counted(len(self.names), 'name')}"
            raise InvalidInput(
                f"{counted(len(self.layers), 'layer', ('has', 'have'))} {counts}; give one score for each, and one name or none at all"
            )
        if self.effects and (differing := set(self.layers).symmetric_difference(*self._probed())):
            raise InvalidInput(f"scores and effects differ in layer {min(differing)}; give both of the same layers")
        if self.sheet is not None and not self._fits(self.sheet):
            raise InvalidInput(
                f"the contact sheet has shape {tuple(self.sheet.shape)} for {counted(len(self.columns), 'column')}; "
                "give uint8 [prompt, column, height, width, 3], of no more prompts than the effects"
            )

    def _probed(self) -> list[set[int]]:
        """The layers that the effects' patches hold."""
        return [{layer for patch in self.effects.patches for layer in patch.layers}] if self.effects else []

    def _fits(self, sheet: Tensor) -> bool:
        prompts = len(self.effects.prompts) if self.effects else len(sheet)
        sizes = sheet.dtype == torch.uint8 and sheet.ndim == 5 and bool(sheet.numel())
        return sizes and sheet.shape[-1] == 3 and len(sheet) <= prompts and sheet.shape[1] == len(self.columns)

    def __repr__(self) -> str:
        said = f": {self.verdict}" if self.effects else ""
        return f"LayerScores({self.provenance.concept!r} by {self.provenance.method}, {counted(len(self.layers), 'layer')}{said})"

    def summary(self) -> Summary:
        """See `Shown`: what the scores say, and the best layers with their intervals."""
        table = self.to_frame().sort_values("score", ascending=False, kind="stable")
        return Summary.of(repr(self), table, {"score": self.scores}, f"score; layers {self.layers[0]} to {self.layers[-1]}")

    @classmethod
    def of(cls, effects: Effects, **fields: Any) -> Self:
        """The scores of every layer that the effects' patches cover: the mean over the patches that hold it."""
        layers = tuple(sorted({layer for patch in effects.patches for layer in patch.layers}))
        return cls(layers, tuple(effects.of_layers(layers).tolist()), effects=effects, **fields)

    def top(self, count: int) -> list[int]:
        """The `count` best layers, best first; ties go to the earlier layer.

        Raises:
            InvalidInput: `count` is not between 1 and the number of layers.
        """
        count = checks.whole("count", count, least=-np.inf)
        if not 1 <= count <= len(self.layers):
            raise InvalidInput(f"top({count}) is not possible here; choose from 1 to {len(self.layers)}")
        ranked = sorted(zip(self.layers, self.scores, strict=True), key=lambda each: -each[1])
        return [layer for layer, _ in ranked[:count]]

    @property
    def best(self) -> Patch:
        """The patch (a window of layers and a part of the schedule, or the pooled text path) with the largest mean effect."""
        effects = self._measured("best")
        return effects.patches[int(np.argmax(effects.means()))]

    @property
    def verdict(self) -> str:
        """What the scores say, in words: the layer, and whether single prompts agree on it."""
        effects = self._measured("verdict")
        best = self.best
        low, high = effects.intervals()[effects.patches.index(best)]
        beside = [f"{name} carries {_said_share(share)}" for name, share in self._shares_beside.items()]
        if not best.layers and effects.is_above_zero(best):
            others = [each for each in beside if not each.startswith(BESIDE[best])]
            strongest = f"{BESIDE[best]} carries {_said_share(effects.share_of(best))}, more than any layer"
            said: list[object] = [strongest, *others, self.confidence]
        else:
            said = [self._said_of_layers(low, high), *beside, self.fidelity, self.confidence]
        return "; ".join(str(each) for each in said if each)

    def _said_of_layers(self, low: float, high: float) -> str:
        found = [layer for layer in self.by_prompt()["layer"] if layer is not None]
        effects = self._measured("verdict")
        if not found or (not effects.is_above_zero(self.best) and effects.peak_interval(self.layers)[0] < _MATERIAL * effects.total_mean()):
            best = " and ".join(map(self.name, self.best.layers)) or BESIDE[self.best]
            return f"no layer stands out; the best, {best}, has {max(effects.means()):.2f} [{low:.2f}, {high:.2f}]"
        counts = Counter(found).most_common()
        of = counted(len(found), "prompt")
        tied = self._said_of_tie()
        if counts[0][1] >= _AGREEING * len(found):
            agreeing = f"all {of}" if len(counts) == 1 else f"{counts[0][1]} of {of}"
            if len(found) == 1:
                return tied or f"the one prompt says {self._called(counts[0][0])}"
            return tied or f"{agreeing} agree on {self._called(counts[0][0])}"
        places = ", ".join(f"{self._called(layer)} ({count})" for layer, count in counts[:4])
        return f"{f'{tied}; ' if tied else ''}the {of} disagree: {places}; the place depends on the prompt"

    def _said_of_tie(self) -> str:
        """The layers between which a search found no difference, with their scores; nothing where there is one best."""
        tied = self.confidence.tied if self.confidence else ()
        scores = [f"{self.scores[self.layers.index(layer)]:.2f}" for layer in tied]
        return f"{' and '.join(map(self.name, tied))} are statistically tied ({' and '.join(scores)})" if tied else ""

    @property
    def pooled_share(self) -> tuple[float, float, float] | None:
        """The share of the total effect that the pooled text path carries, with its interval (low, high); None without such a path."""
        return self._shares_beside.get(BESIDE[POOLED])

    @property
    def control_share(self) -> tuple[float, float, float] | None:
        """The same for what nets beside the denoiser, such as a ControlNet, read of the prompt; None without such nets."""
        return self._shares_beside.get(BESIDE[CONTROL])

    @property
    def _shares_beside(self) -> dict[str, tuple[float, float, float]]:
        """By name, the shares of what no layer can carry."""
        effects = self.effects
        return {name: effects.share_of(patch) for patch, name in BESIDE.items() if patch in effects.patches} if effects else {}

    @property
    def images(self) -> dict[str, list[Image.Image]]:
        """The contact sheet for `plots.images(scores.images, scores.columns)`: by prompt, one image a column."""
        if self.sheet is None or self.effects is None:
            return {}
        prompts = self.sheet_prompts or self.effects.prompts[: len(self.sheet)]
        return {prompt: [Image.fromarray(each.numpy()) for each in row] for prompt, row in zip(prompts, self.sheet, strict=True)}

    def name(self, layer: int) -> str:
        """How a layer is called."""
        if layer not in self.layers:
            raise InvalidInput(f"there is no layer {checks.shown(layer)} in these scores; they have {', '.join(map(str, self.layers))}")
        return self.names[self.layers.index(layer)] if self.names else f"layer {layer}"

    def _called(self, layer: int) -> str:
        """A layer's name; of one that was only ever changed with others, all their names."""
        (first, *others) = [patch for patch in self._measured("verdict").patches if layer in patch.layers]
        if others or len(first.layers) == 1:
            return self.name(layer)
        return f"{' and '.join(map(self.name, first.layers))} together"

    def agreement(self, other: LayerScores) -> float:
        """Spearman's rank correlation with other scores of the same layers.

        Raises:
            InvalidInput: the other scores are of other layers.
        """
        checks.instance("other", other, LayerScores, "scores of the same layers by another method")
        if self.layers != other.layers or self.names != other.names:
            raise InvalidInput(f"agreement needs scores of the same layers, not {len(self.layers)} and {len(other.layers)} different ones")
        return float(scipy.stats.spearmanr(self.scores, other.scores).statistic)

    def by_prompt(self) -> pd.DataFrame:
        """A table with each prompt's own best layer: prompt, layer (None where no layer has an effect), effect, next_best."""
        import pandas as pd

        effects = self._measured("by_prompt")
        rows = []
        for prompt, each in zip(effects.prompts, effects.of_layers_by_prompt(self.layers), strict=True):
            order = np.argsort(-each, kind="stable")
            best = self.layers[order[0]] if each[order[0]] > 0 else None
            rows.append((prompt, best, float(each[order[0]]), float(each[order[1]]) if len(order) > 1 else np.nan))
        table = pd.DataFrame(rows, columns=["prompt", "layer", "effect", "next_best"])
        return table.assign(layer=pd.Series([row[1] for row in rows], dtype=object))

    def grid(self) -> pd.DataFrame:
        """The effects as a table: one row a layer, one column a part of the schedule (or a kind of token)."""
        import pandas as pd

        effects = self._measured("grid")
        cells = [(layer, patch.part, mean) for patch, mean in zip(effects.patches, effects.means(), strict=True) for layer in patch.layers]
        table = pd.DataFrame(cells, columns=["layer", "part", "effect"])
        parts = list(dict.fromkeys(patch.part for patch in effects.patches if patch.layers))
        return table.pivot_table(index="layer", columns="part", values="effect", aggfunc="mean", dropna=False)[parts]

    def to_frame(self) -> pd.DataFrame:
        """A table in layer order: layer, name, score; with effects also its interval (low, high) and share of the total effect."""
        import pandas as pd

        table = pd.DataFrame({"layer": self.layers, "name": [self.name(layer) for layer in self.layers], "score": self.scores})
        if self.effects is None:
            return table
        low, high = self.effects.layer_intervals(self.layers).T
        return table.assign(low=low, high=high, share=self.effects.shares(self.layers))

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        tensors = {"scores": torch.tensor(self.scores, dtype=torch.float64)}
        header: dict[str, Any] = {
            "layers": list(self.layers),
            "provenance": asdict(self.provenance),
            "names": list(self.names),
            "columns": list(self.columns),
            "sheet_prompts": list(self.sheet_prompts),
        }
        header |= {name: asdict(each) if each else None for name, each in (("cost", self.cost), ("confidence", self.confidence))}
        header |= {"effects": None, "fidelity": self.fidelity.to_header() if self.fidelity else None}
        if self.sheet is not None:
            tensors["sheet"] = self.sheet
        if self.effects is not None:
            tensors |= {"effects": self.effects.values, "full": self.effects.total}
            header["effects"] = self.effects.to_header()
        return tensors, header

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: LayerScoresHeader) -> Self:
        """See `Artifact`."""
        scores, effects = take(tensors, "scores", torch.float64), header.effects
        if scores.ndim != 1:
            raise InvalidInput(f"the scores have shape {tuple(scores.shape)}; they are one for each layer")
        measured = [take(tensors, name, torch.float64) for name in ("effects", "full")] if effects else []
        return cls(
            layers=header.layers,
            scores=tuple(scores.tolist()),
            provenance=header.provenance,
            names=header.names,
            effects=Effects.from_header(effects, *measured) if effects else None,
            cost=header.cost,
            columns=header.columns,
            sheet=take(tensors, "sheet", torch.uint8) if "sheet" in tensors else None,
            fidelity=header.fidelity.restored() if header.fidelity else None,
            confidence=header.confidence,
            sheet_prompts=header.sheet_prompts,
        )

    def _measured(self, what: str) -> Effects:
        if self.effects is None:
            raise InvalidInput(f"{what} needs scores measured on generated images, as localize gives them, not {self.provenance.method!r}")
        return self.effects


def _said_share(share: tuple[float, float, float]) -> str:
    return f"{share[0]:.0%} [{share[1]:.0%}, {share[2]:.0%}] of the total effect"


def contact_sheet(rows: Sequence[Sequence[Image.Image]]) -> UInt8[Tensor, "prompt column height width rgb"]:
    """Images of one size as one tensor."""
    return torch.from_numpy(np.stack([np.stack([np.asarray(each.convert("RGB")) for each in row]) for row in rows]))

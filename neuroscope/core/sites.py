"""Sites: the tensors of a denoiser whose last axis is neurons."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args, overload

from neuroscope.core import checks
from neuroscope.core.checks import whole
from neuroscope.core.errors import InvalidInput, UnknownSite, choose, closest, counted
from neuroscope.core.sharing.summary import Shown, Summary

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["key", "value", "query", "heads", "output", "feedforward", "pooled", "context"]
ROLES: tuple[str, ...] = get_args(Role)
#: The roles of sites whose modules read nothing but what the prompt says (and, for pooled text, the image's size).
TEXT_ROLES = ("key", "value", "pooled", "context")
#: The roles of sites that belong to no layer, and reach every block.
BESIDE_LAYERS = ("pooled", "context")


@dataclass(frozen=True)
class Site:
    """One tensor of the denoiser whose last axis is neurons.

    Attributes:
        path: the pipeline component and the torch module path, and the key in every saved file. It names the module's
            output, or its input where the path ends in ":input".
        layer: the cross-attention layer, counted from 0 in execution order; None for what is in no layer (`BESIDE_LAYERS`).
        block: where the layer stands, such as "down.1", "mid" or "up.2".
        role: "key", "value" or "query" (a projection's output), "heads" (all heads' outputs side by side),
            "output" (after the output projection), "feedforward" (the hidden neurons of the feed-forward beside the layer), or
            "pooled" (what a summary of the prompt adds to the time embedding, by which it reaches every block), or "context" (the
            prompt's tokens as the first block is given them, where blocks rewrite the text and all of them read it).
        width: the number of neurons.
        text_only: whether the tensor depends on the prompt alone, so that recording it needs no denoising.

    Raises:
        InvalidInput: an unknown role, a width below 1, or a layer below 0.
    """

    path: str
    layer: int | None
    block: str
    role: Role
    width: int
    text_only: bool

    def __post_init__(self) -> None:
        choose("role", self.role, ROLES)
        whole(f"the width of {self.path}", self.width)
        if self.layer is not None:
            whole(f"the layer of {self.path}", self.layer, least=0)

    @property
    def module(self) -> str:
        """The path of the module whose input or output the site is, inside the denoiser."""
        return self.path.split(".", 1)[1].removesuffix(":input")

    @property
    def label(self) -> str:
        """How plots and tables call it: "8 value", or "pooled"."""
        return self.role if self.layer is None else f"{self.layer} {self.role}"

    @property
    def before_module(self) -> bool:
        """Whether the site is its module's input rather than its output."""
        return self.path.endswith(":input")


@dataclass(frozen=True)
class Component:
    """A whole component of a denoiser, which causal tracing restores.

    Attributes:
        path: the pipeline component and the torch module path.
        kind: "cross" or "self" (an attention; of text and image together is "cross"), "ff" (a feed-forward), "resnet", or where blocks
            rewrite the text "ff_context" (its feed-forward) or "pooled" (the pooled text and the time, embedded for all blocks).
        number: counted from 0 among its kind, in execution order.
        block: where it stands, such as "down.1".
    """

    path: str
    kind: str
    number: int
    block: str

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


class Sites(Shown, Sequence[Site]):
    """The ordered sites of a model, in execution order.

    Raises:
        InvalidInput: two sites have the same path.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(sites)
        self._by_path = {site.path: site for site in self._sites}
        if len(self._by_path) < len(self._sites):
            raise InvalidInput(
                f"{counted(len(self._sites), 'site', ('shares', 'share'))} {counted(len(self._by_path), 'path')}; "
                "every path must be given once"
            )

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    @overload
    def __getitem__(self, index: int) -> Site: ...

    @overload
    def __getitem__(self, index: slice) -> Sites: ...

    def __getitem__(self, index: int | slice) -> Site | Sites:
        found = self._sites[index]
        return Sites(found) if isinstance(found, tuple) else found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self) -> int:
        return hash(self._sites)

    def __repr__(self) -> str:
        roles = ", ".join(dict.fromkeys(site.role for site in self))
        counts = f"{counted(len(self), 'site')} in {counted(len(self.layers), 'layer')}"
        return f"Sites({counts}: {roles or 'none'}; {counted(self.neuron_count, 'neuron')})"

    def summary(self) -> Summary:
        """See `Shown`: the first sites, and how wide each layer's are, role by role."""
        table = self.to_frame().drop(columns="text_only")
        roles = dict.fromkeys(str(site.role) for site in self)
        widths = {role: {site.layer: site.width for site in self.where(role=role)} for role in roles}
        beside = [role for role in BESIDE_LAYERS if role in roles]
        columns: list[int | None] = [*self.layers, *([None] if beside else [])]
        heat = {role: [float(each.get(layer, math.nan)) for layer in columns] for role, each in widths.items()}
        last = f", the last for {' and '.join(beside)}" if beside else ""
        return Summary.of(repr(self), table, heat, f"neurons; one column a layer in execution order{last}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that these sites belong to, in order."""
        return tuple(sorted({site.layer for site in self if site.layer is not None}))

    @property
    def paths(self) -> tuple[str, ...]:
        """The sites' paths, in order."""
        return tuple(self._by_path)

    @property
    def neuron_count(self) -> int:
        """The number of neurons in all sites."""
        return sum(site.width for site in self)

    def where(
        self,
        *,
        layer: int | Collection[int] | None = None,
        role: str | Collection[str] | None = None,
        block: str | None = None,
        text_only: bool | None = None,
        path: str | None = None,
    ) -> Sites:
        """The sites that fit every given condition. `block` and `path` are shell patterns such as "up.*".

        Raises:
            InvalidInput: a layer or role that does not exist here.
        """
        for name, pattern in (("block", block), ("path", path)):
            if pattern is not None:
                checks.text(name, pattern, 'a shell pattern such as "up.*"')
        if text_only is not None:
            checks.flag("text_only", text_only)
        layers = self._known_layers(layer)
        wanted = None if role is None else [role] if isinstance(role, str) else checks.strings("role", role)
        roles = None if wanted is None else {choose("role", each, ROLES) for each in wanted}
        return Sites(
            site
            for site in self
            if (layers is None or site.layer in layers)
            and (roles is None or site.role in roles)
            and (block is None or fnmatch.fnmatch(site.block, block))
            and (text_only is None or site.text_only == text_only)
            and (path is None or fnmatch.fnmatch(site.path, path))
        )

    def at(self, paths: Iterable[str]) -> Sites:
        """The sites with these paths, in execution order.

        Raises:
            UnknownSite: the model has no such site; the message names up to three of them and the nearest real path.
        """
        wanted = {paths} if isinstance(paths, str) else set(checks.strings("paths", paths))
        if unknown := sorted(wanted - self._by_path.keys()):
            named = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise UnknownSite(f"the model has no site {named}{closest(unknown[0], self.paths) or ';'} `neuroscope sites` lists all")
        return Sites(site for site in self if site.path in wanted)

    def expect(self, count: int) -> Sites:
        """These sites, if there are exactly `count`.

        Raises:
            InvalidInput: there are more or fewer.
        """
        if len(self) != checks.whole("count", count, least=0):
            raise InvalidInput(f"expected {counted(count, 'site')} and found {len(self)}: {', '.join(self.paths[:6]) or 'none'}")
        return self

    def to_frame(self) -> pd.DataFrame:
        """A table with one row a site: path, layer, block, role, width, text_only."""
        import pandas as pd

        table = pd.DataFrame([asdict(site) for site in self], columns=["path", "layer", "block", "role", "width", "text_only"])
        return table.astype({"layer": "Int64"}) if any(site.layer is None for site in self) else table

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The flow of data between "prompt", "image" and the sites' paths, as (source, target)."""
        edges = [("prompt", path) for path in self.where(role=BESIDE_LAYERS).paths]
        stream = "image"
        for layer in self.layers:
            by_role = {site.role: site.path for site in self.where(layer=layer)}
            edges += [("prompt", by_role[role]) for role in ("key", "value") if role in by_role]
            edges += [(stream, by_role["query"])] if "query" in by_role else []
            edges += [(by_role[role], by_role["heads"]) for role in ("query", "key", "value") if {role, "heads"} <= by_role.keys()]
            chain = [by_role[role] for role in ("heads", "output", "feedforward") if role in by_role]
            edges += list(itertools.pairwise(chain))
            stream = chain[-1] if chain else stream
        return edges

    def _known_layers(self, layer: int | Collection[int] | None) -> set[int] | None:
        if layer is None:
            return None
        layers = set(checks.layers("layer", layer))
        if unknown := sorted(layers - set(self.layers)):
            known = f"{self.layers[0]} to {self.layers[-1]}" if self.layers else "none"
            raise InvalidInput(f"layer {unknown[0]!r} is unknown; these sites have layers {known}")
        return layers

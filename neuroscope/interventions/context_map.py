"""A low-rank map of what layers read: LOCOEDIT's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from neuroscope.core.artifacts import FLOATS, Provenance, take
from neuroscope.core.checks import finite, finite_tensor, instance, strings, whole
from neuroscope.core.conditions import Rows
from neuroscope.core.errors import InvalidInput, choose, counted
from neuroscope.core.intervention import Call, Intervention, ModelSpec, check_schedule_part, counted_sites
from neuroscope.core.sharing.summary import Shown, Summary
from neuroscope.core.sites import TEXT_ROLES

Factor = Float[Tensor, "rank channel"] | Mapping[str, Float[Tensor, "rank channel"]]


@dataclass(frozen=True)
class EditReport(Shown):
    """How well an edit is posed, and what it does beside what was asked.

    Attributes:
        keys: the number of edited context vectors.
        kept: the number of vectors that were asked to stay.
        rank: the rank of the map.
        penalty: the ridge, λ, in units of squared context vectors.
        condition: the condition number of the regularised Gram matrix.
        residual: how far the edited vectors remain from their targets, as a share of the way.
        outside: the largest move of inputs outside the span of all these vectors, relative to their length: 0 up to rounding.
        preserved: the largest move of the vectors that were asked to stay, relative to their length.
        unrelated: the mean move of the targets themselves, prompts without the concept, relative to their length.
        neighbours: by concept, the same for its own targets: what the edit does to what each concept is contrasted with.
        reach: what reads the edited text beside the sites' own layers, such as "all blocks"; "" where nothing does.
        r_squared: where keys depend on the image and were recorded in runs: 1 - ‖X + map(X) - T‖² / ‖T - X‖², for keys and targets of
            seeds that the map was not fitted to. None where keys depend on the prompt alone.

    Raises:
        InvalidInput: a figure that is negative or not finite.
    """

    keys: int
    kept: int
    rank: int
    penalty: float
    condition: float
    residual: float
    outside: float
    preserved: float
    unrelated: float
    neighbours: dict[str, float] = field(default_factory=dict)
    reach: str = ""
    r_squared: float | None = None

    def __post_init__(self) -> None:
        for name in ("keys", "kept", "rank"):
            whole(f"the report's {name}", getattr(self, name), least=0)
        for name in ("penalty", "condition", "residual", "outside", "preserved", "unrelated"):
            finite(f"the report's {name}", getattr(self, name), least=0)
        for name, move in self.neighbours.items():
            finite(f"the report's move of the neighbours of {name}", move, least=0)
        if self.r_squared is not None:
            finite("the report's r_squared", self.r_squared)

    def summary(self) -> Summary:
        """See `Shown`: every figure."""
        import pandas as pd

        return Summary.of(str(self), pd.DataFrame(asdict(self).items(), columns=["figure", "value"], dtype=object))

    @classmethod
    def worst(cls, reports: Sequence[EditReport]) -> EditReport:
        """One report for the maps of several layers: of each figure the largest, of R² the smallest."""
        own = ("neighbours", "reach", "r_squared")
        figures = {each.name: max(getattr(report, each.name) for report in reports) for each in fields(cls) if each.name not in own}
        fits = [report.r_squared for report in reports if report.r_squared is not None]
        reach = ", ".join(dict.fromkeys(report.reach for report in reports if report.reach))
        names = dict.fromkeys(name for report in reports for name in report.neighbours)
        neighbours = {name: max(report.neighbours.get(name, 0.0) for report in reports) for name in names}
        return cls(**figures, neighbours=neighbours, reach=reach, r_squared=min(fits, default=None))

    def __str__(self) -> str:
        tokens = counted(self.keys, "edited token")
        posed = f"{tokens}, {self.kept} preserved; rank {self.rank}, λ {self.penalty:.3g}, condition {self.condition:.1e}"
        effects = f"preserved prompts {self.preserved:.1%}, unrelated prompts {self.unrelated:.1%}, outside the span {self.outside:.1%}"
        if len(self.neighbours) > 1:
            effects += "".join(f", neighbours of {name} {move:.1%}" for name, move in self.neighbours.items())
        fit = "" if self.r_squared is None else f", R² {self.r_squared:.3f} on held-out seeds"
        reach = f"; acts on {self.reach} at once" if self.reach else ""
        return f"{posed}; residual {self.residual:.1%}{fit}; side effects: {effects}{reach}"


@dataclass(frozen=True)
class ContextMapHeader:
    """What a saved map's header says beside its tensors."""

    paths: tuple[str, ...]
    strength: float
    rows: Rows
    steps: tuple[float, float]
    provenance: Provenance
    report: EditReport | None


@dataclass(frozen=True, eq=False)
class ContextMap(Intervention):
    """Moves what some key and value sites read: `x + strength · (x @ readᵀ) @ write` for each context vector x.

    On a projection W it equals the changed weight W + strength · W writeᵀ read, so it stands for an edit of the weights
    without touching them (Basu et al. 2024, LOCOEDIT).

    Attributes:
        paths: the sites whose input is moved.
        read: [rank, channel], one for all sites or, where they read different vectors, one for each path.
        write: [rank, channel], likewise.
        strength: 0 leaves the model unchanged, 1 is the edit.
        rows: "all" (as changed weights would act) or "conditional".
        steps: the part of the denoising schedule, as fractions from 0 to 1.
        provenance: model, concept and method.
        report: how well the edit is posed, and what else it moves.

    Raises:
        InvalidInput: no site, factors of different shape, a number that is not finite, an unknown `rows`, or `steps` out of order.
    """

    kind: ClassVar[str] = "context-map"
    header_type: ClassVar[type] = ContextMapHeader

    paths: Sequence[str]
    read: Factor = field(repr=False)
    write: Factor = field(repr=False)
    strength: float = 1.0
    rows: Rows = "all"
    steps: tuple[float, float] = (0.0, 1.0)
    provenance: Provenance = field(default=Provenance(), repr=False)
    report: EditReport | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", strings("the map's paths", self.paths))
        if not self.paths:
            raise InvalidInput("the map has no site; choose keys and values, such as graph.sites.where(layer=8, text_only=True)")
        for path in self.paths:
            read, write = self.factors(path)
            if getattr(read, "ndim", 0) != 2 or read.shape != getattr(write, "shape", None):
                shapes = " and ".join(str(tuple(getattr(each, "shape", ()))) for each in (read, write))
                raise InvalidInput(f"the map's factors have shapes {shapes}; give two of one shape, [rank, channel]")
            for each in (read, write):
                finite_tensor(f"the map's factor at {path}", each, "rank", "channel")
        finite("strength", self.strength)
        instance("provenance", self.provenance, Provenance, "neuroscope.Provenance()")
        choose("rows", self.rows, ("conditional", "all"))
        check_schedule_part(self.steps)

    def __repr__(self) -> str:
        said = f"strength={self.strength}, rows={self.rows!r}, steps={self.steps}"
        return f"ContextMap({counted_sites(self.paths)}, rank {max(len(self.factors(path)[0]) for path in self.paths)}, {said})"

    def summary(self) -> Summary:
        """See `Shown`: the report, and how far each direction that is read moves what a site reads."""
        of = f" for {self.provenance.concept!r}" if self.provenance.concept else ""
        shared = not isinstance(self.read, Mapping)
        moved = {("all sites" if shared else f"site {number}"): self.factors(path) for number, path in enumerate(self.paths)}
        heat = {name: (read.norm(dim=1) * write.norm(dim=1)).tolist() for name, (read, write) in moved.items()}
        report = self.report.summary() if self.report else Summary("")
        said = f"{self!r}{of}; {report.verdict}" if self.report else f"{self!r}{of}"
        return replace(report, verdict=said, heat=heat, unit="length of each direction of the map, read times written")

    def factors(self, path: str) -> tuple[Float[Tensor, "rank channel"], Float[Tensor, "rank channel"]]:
        """What is read and written at a site.

        Raises:
            InvalidInput: the map holds nothing for this path.
        """
        found = [each.get(path) if isinstance(each, Mapping) else each for each in (self.read, self.write)]
        if found[0] is None or found[1] is None:
            raise InvalidInput(f"the map's factors lack {path}; give both for each of its paths, or one pair for all")
        return found[0], found[1]

    @property
    def changes_input(self) -> bool:
        """See `Intervention`."""
        return True

    def on_input(self, context: Float[Tensor, "row *token channel"], call: Call) -> Float[Tensor, "row *token channel"]:
        """See `Intervention`."""
        if not call.within(self.steps):
            return context
        rows = call.rows(self.rows, len(context))
        moved = context.clone()
        read, write = self.factors(call.site.path)
        moved[rows] += self.strength * (context[rows] @ read.to(context).T) @ write.to(context)
        return moved

    @property
    def made_on(self) -> str:
        """See `Intervention`."""
        return self.provenance.model

    def check(self, spec: ModelSpec) -> None:
        """Raises UnknownSite for sites that the model lacks, InvalidInput for sites that do not read text of this width."""
        family = self.provenance.family
        if family and family != spec.family:
            raise InvalidInput(f"the map was made for the family {family}, and this model is of {spec.family}; edit this model anew")
        for site in spec.sites.at(self.paths):
            if site.role not in TEXT_ROLES:
                raise InvalidInput(f"{site.path} does not read the prompt alone; map the context of keys and values")
            width, moved = spec.input_widths[site.path], self.factors(site.path)[0].shape[1]
            if width != moved:
                raise InvalidInput(f"the map moves {counted(moved, 'channel')}, and {site.path} reads {width}; edit this model anew")

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        header: dict[str, Any] = {"paths": list(self.paths), "strength": self.strength, "rows": self.rows, "steps": self.steps}
        header |= {"provenance": asdict(self.provenance), "report": asdict(self.report) if self.report else None}
        if not isinstance(self.read, Mapping):
            return dict(zip(("read", "write"), self.factors(self.paths[0]), strict=True)), header
        named = {path: self.factors(path) for path in self.paths}
        tensors = {f"read:{path}": read.clone() for path, (read, _) in named.items()}
        return tensors | {f"write:{path}": write.clone() for path, (_, write) in named.items()}, header

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: ContextMapHeader) -> Self:
        """See `Artifact`."""
        one = "read" in tensors or "write" in tensors
        read, write = (
            take(tensors, name, *FLOATS) if one else {path: take(tensors, f"{name}:{path}", *FLOATS) for path in header.paths}
            for name in ("read", "write")
        )
        return cls(header.paths, read, write, header.strength, header.rows, header.steps, header.provenance, header.report)

"""The exact linear updates that interventions stand for, composed in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.core.errors import InvalidInput, UnsupportedModel
from neuroscope.core.intervention import Intervention
from neuroscope.core.sites import Site
from neuroscope.interventions import ContextMap, ContextSwap, NeuronMask
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import has_bias, is_plain, read_parameter, reader_of

#: The current values of a parameter by its name inside the denoiser, such as "….to_v.weight" [out, in], in float64.
Weights = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """A low-rank change of one linear module: `weight + left @ right`, `bias + bias`.

    Attributes:
        module: the module's path inside the denoiser.
        left: float64 [out, rank].
        right: float64 [rank, in].
        bias: float64 [out], or None.
    """

    module: str
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]
    bias: Float[Tensor, "out"] | None = None

    @property
    def delta(self) -> Float[Tensor, "out in"]:
        """The change of the weight."""
        return self.left @ self.right


_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What weights can hold: they act on all rows, tokens and steps alike.
_WHOLE = {"rows": "all", "tokens": None, "steps": (0.0, 1.0)}

#: The roles of sites whose neurons are changed where they are read.
_READ = ("heads", "feedforward")


@functools.singledispatch
def linear_updates(change: Intervention, _graph: HookGraph, _site: Site, _weights: Weights) -> Iterator[LinearUpdate]:
    """The changes of weights that do the same as an intervention at a site, given the current weights. One function a kind.

    Args:
        change: the intervention; its kind chooses the function.
        _graph: the model.
        _site: one of the intervention's sites.
        _weights: reads the current values of parameters, with the updates so far.

    Raises:
        InvalidInput: no change of weights does the same.
    """
    raise InvalidInput(f"a {change.kind} cannot be written into weights; apply it instead")


@linear_updates.register
def _of_map(change: ContextMap, _graph: HookGraph, site: Site, weights: Weights) -> Iterator[LinearUpdate]:
    """W' = W + strength · W writeᵀ read, for the projection W that reads the mapped vectors: W (x + map(x)) = W' x."""
    weight = weights(f"{site.module}.weight")
    read, write = change.factors(site.path)
    yield LinearUpdate(site.module, change.strength * weight @ write.to(weight).T, read.to(weight))


@linear_updates.register
def _of_mask(change: NeuronMask, graph: HookGraph, site: Site, weights: Weights) -> Iterator[LinearUpdate]:
    """Chosen rows shrink, or chosen columns of the weight that reads them; the fill becomes a bias.

    A projection with a bias of its own takes the fill there, and so does a value's without one, for what reads it. Other
    projections have none: a constant at a key changes nothing, because softmax ignores a shift.
    """
    chosen = torch.tensor(change.neurons[site.path])
    fill = change.strength * change.values[site.path].double()
    reader = reader_of(graph.family, site)
    if not site.before_module and (site.role == "value" or getattr(graph.module(site), "bias", None) is not None):
        yield _scaled_rows(change, site.module, weights, chosen, fill - change.strength * weights(f"{site.module}.bias")[chosen])
    elif site.role in _READ and reader is not None:
        weight = weights(f"{reader}.weight")
        units = torch.nn.functional.one_hot(chosen, weight.shape[1]).double()
        yield LinearUpdate(reader, -change.strength * weight[:, chosen], units, weight[:, chosen] @ fill)
    else:
        if site.role != "key" and fill.any():
            raise InvalidInput(f"the mask's fill at {site.path} cannot be written into weights: nothing there is constant; apply it")
        yield _scaled_rows(change, site.module, weights, chosen)


def _scaled_rows(change: NeuronMask, module: str, weights: Weights, chosen: Tensor, shift: Tensor | None = None) -> LinearUpdate:
    """Chosen rows of a weight times 1 - strength, and a shift of their biases."""
    weight = weights(f"{module}.weight")
    units = torch.nn.functional.one_hot(chosen, len(weight)).double().T
    return LinearUpdate(module, -change.strength * units, weight[chosen], None if shift is None else units @ shift)


def _expect_foldable(change: Intervention) -> None:
    """Raises InvalidInput for a kind of change, or options of it, that weights cannot hold."""
    if isinstance(change, ContextSwap):
        raise InvalidInput(f"a {change.kind} cannot be written into weights: what it puts in comes from another prompt; apply it instead")
    for name, value in _WHOLE.items():
        given = getattr(change, name, value)
        if given != value:
            raise InvalidInput(
                f"{change.kind} with {name}={given!r} cannot be written into weights, which act on all rows, tokens and steps alike; "
                f"apply it instead, or make it with {name}={value!r}"
            )


def updates_of(graph: HookGraph, changes: Sequence[Intervention]) -> dict[str, LinearUpdate]:
    """One update a changed module, equal to applying the changes in this order; only modules that have a bias get another.

    A constant that is added to values passes through the attention as it is, because the attention's weights sum to 1, and
    becomes a bias of what reads them.

    Args:
        graph: the model; nothing of it is changed.
        changes: as `apply` takes them.

    Returns:
        By the module's path inside the denoiser, float64.

    Raises:
        InvalidInput: a change that weights cannot hold.
        UnsupportedModel: weights that cannot be read or written, or that the denoiser does not use now.
    """
    _refuse_shared(graph, changes)
    reader = _composed(graph, changes)
    root = uncompiled(graph.denoiser)
    readers = {site.module: reader_of(graph.family, site) for site in graph.sites.where(role="value")}
    for path, update in list(reader.updates.items()):
        if update.bias is None or has_bias(root, path):
            continue
        reader.updates[path] = replace(update, bias=None)
        if update.bias.any():
            following = readers.get(path)
            if following is None or not has_bias(root, following):
                raise UnsupportedModel(f"{following or path} has no bias, which the change needs; apply the change instead")
            weight = reader(f"{following}.weight")
            reader.add(LinearUpdate(following, weight[:, :0], weight[:0], weight @ update.bias))
    return reader.updates


def updates_with_constants(graph: HookGraph, changes: Sequence[Intervention]) -> dict[str, LinearUpdate]:
    """As `updates_of`, but a constant that is added to values stays with their own module, also where it has no bias.

    Raises:
        InvalidInput, UnsupportedModel: as `updates_of`.
    """
    _refuse_shared(graph, changes)
    return _composed(graph, changes).updates


def _refuse_shared(graph: HookGraph, changes: Sequence[Intervention]) -> None:
    """Raises InvalidInput for changes at sites whose weights the image reads as well."""
    if shared := {path for change in changes for path in change.paths} & graph.spec.shared:
        raise InvalidInput(f"{min(shared)} reads the image by the same weights, which cannot hold a change of the text; apply it instead")


def _composed(graph: HookGraph, changes: Sequence[Intervention]) -> _Reader:
    """The updates of all changes, and the weights with them.

    What is done to a module's input must see what is done to its result, so the last site and the last change come first.
    What is done to a module's result comes in order.
    """
    graph.family.refuse_unknown(graph.pipe)
    for change in changes:
        change.check(graph.spec)
        _expect_foldable(change)
    steps = [(site, change) for site in graph.sites for change in changes if site.path in change.paths]
    behind, inside = ([step for step in steps if _is_behind(*step) is wanted] for wanted in (True, False))
    reader = _Reader(uncompiled(graph.denoiser))
    for site, change in [*reversed(inside), *behind]:
        for update in linear_updates(change, graph, site, reader):
            reader.add(update)
    return reader


def _is_behind(site: Site, change: Intervention) -> bool:
    """Whether a change acts on the result of the linear module whose weight it changes, rather than on what that reads."""
    return not change.changes_input and site.role not in _READ


class _Reader:
    """The current values of parameters in float64, with the updates so far; of a bias that is not there, zeros."""

    def __init__(self, root: nn.Module) -> None:
        self.updates: dict[str, LinearUpdate] = {}
        self._root = root
        self._first: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        path, _, kind = name.rpartition(".")
        if name not in self._first:
            self._first[name] = self._load(path, kind)
        update = self.updates.get(path)
        delta = (update.delta if kind == "weight" else update.bias) if update else None
        return self._first[name] if delta is None else self._first[name] + delta

    def add(self, update: LinearUpdate) -> None:
        """Puts an update behind those of the same module."""
        before = self.updates.get(update.module)
        if before is None:
            self.updates[update.module] = update
            return
        biases = [each for each in (before.bias, update.bias) if each is not None]
        bias = torch.stack(biases).sum(dim=0) if biases else None
        left, right = torch.cat([before.left, update.left], dim=1), torch.cat([before.right, update.right])
        self.updates[update.module] = LinearUpdate(update.module, left, right, bias)

    def _load(self, path: str, kind: str) -> Tensor:
        module: Any = self._root.get_submodule(path)
        if hasattr(module, "base_layer"):
            raise UnsupportedModel(f"{path} carries a LoRA; unload it, or fuse it with `pipe.fuse_lora()`, before weights are changed")
        if not is_plain(module) or module.weight.dtype not in _FORMATS:
            what = f"{type(module).__name__} of {getattr(module.weight, 'dtype', 'unknown format')}"
            raise UnsupportedModel(f"{path} is a {what}, which cannot be changed exactly; load the model in a floating-point format")
        if kind == "bias" and not has_bias(self._root, path):
            return torch.zeros(len(module.weight), dtype=torch.float64)
        return read_parameter(self._root, f"{path}.{kind}").double()

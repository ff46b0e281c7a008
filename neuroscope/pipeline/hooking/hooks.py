"""What hooks do: changes of single rows of a batch at one site, and of whole components."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact
from neuroscope.core.conditions import PLAIN, BatchLayout
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Call, Intervention
from neuroscope.core.sites import Site, Sites
from neuroscope.pipeline.families import AttentionMask, Family, JointAttention
from neuroscope.pipeline.hooking.steps import Clock
from neuroscope.pipeline.hooking.text_streams import Donors, Taker

Images = tuple[int, ...] | None


class BoundIntervention(NamedTuple):
    """An intervention at one site: which images of the batch it changes (None: all), of how many, and a note that it acted."""

    intervention: Intervention
    images: Images
    batch: int | None
    acted: set[int]

    def acts_before(self, site: Site) -> bool:
        """Whether it acts on what the site's module is given rather than on what the module gives."""
        return self.intervention.changes_input or site.before_module

    def __call__(self, tensor: Tensor, call: Call) -> Tensor:
        """What the site becomes."""
        return self._change(self.intervention.on_input if self.intervention.changes_input else self.intervention.on_output, tensor, call)

    def acts_at(self, call: Call) -> bool:
        """Whether it acts in the run of an attention that goes on; where blocks rewrite the text, some changes act in one run alone."""
        taking = self.intervention.taking
        return call.reading is None or taking is None or (taking.definition == "edge" and call.reading)

    def tells_at(self, call: Call) -> bool:
        """Whether it tells the run of an attention that goes on which tokens that sees: the run in which the text is the other prompt's."""
        taking = self.intervention.taking
        return call.reading is None or taking is None or (taking.definition == "edge") is call.reading

    def on_mask(self, bias: Tensor, call: Call) -> Tensor:
        """What the bias of the attention's scores becomes."""
        return self._change(self.intervention.on_mask, bias, call)

    def _change(self, change: Callable[[Tensor, Call], Tensor], tensor: Tensor, call: Call) -> Tensor:
        rows = self._rows(len(tensor), call, tensor.device)
        part = tensor if rows is None else tensor[rows]
        changed = change(part, call)
        _check_changed(self.intervention, changed, part, call)
        if changed is part:
            return tensor
        self.acted.add(id(self.intervention))
        return changed if rows is None else tensor.index_copy(0, rows, changed)

    def _rows(self, count: int, call: Call, device: torch.device) -> Tensor | None:
        """The tensor's rows of the chosen images, in all parts of a guided batch; None for all."""
        if self.images is None and self.batch is None:
            return None
        layout = call.layout or PLAIN
        images = layout.images(count)
        if self.batch not in (None, images):
            raise InvalidInput(f"changes were given for {counted(self.batch, 'image')}, and the pipeline makes {images}; give one for each")
        if self.images is None or len(self.images) == images:
            return None
        return _index(layout.of_images(self.images, count), device)


def _check_changed(intervention: Intervention, changed: Any, given: Tensor, call: Call) -> None:
    """Raises InvalidInput for an intervention that returns something else than what a site can become."""
    if changed is given:
        return
    if not isinstance(changed, Tensor):
        raise InvalidInput(
            f"{type(intervention).__name__} returned {type(changed).__name__} at {call.site.path}; return a tensor there, or what it "
            "was given where it changes nothing"
        )
    if changed.shape != given.shape or changed.dtype != given.dtype:
        shapes = f"{list(changed.shape)} of {changed.dtype} instead of {list(given.shape)} of {given.dtype}"
        raise InvalidInput(f"{type(intervention).__name__} returned {shapes} at {call.site.path}; return a tensor like the given one")


@functools.lru_cache(maxsize=1024)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows as a tensor, kept, so that a device is sent each choice once; a later run may need gradients."""
    with torch.inference_mode(False):
        return torch.tensor(rows, device=device)


def check_intervention(change: Any) -> None:
    """Raises InvalidInput for what is no intervention, such as a list of them or neurons."""
    if isinstance(change, list | tuple):
        raise InvalidInput("interventions are given one by one; write graph.apply(*interventions)")
    checks.instance("an intervention", change, Artifact, 'ns.NeuronMask(scores.top(50)), or ns.load("mask.safetensors")')
    if not isinstance(change, Intervention):
        raise InvalidInput(f"{change!r} is no intervention; make one of it, such as ns.NeuronMask(scores.top(50))")


def note_origin(change: Intervention, model: str, noted: set[str]) -> None:
    """Warns once of a change that was made on another model, such as the one that this is a fine-tune of.

    Args:
        change: the change.
        model: the model's name.
        noted: the models of which was warned; this one is added.
    """
    if change.made_on and change.made_on != model and change.made_on not in noted:
        noted.add(change.made_on)
        warnings.warn(
            f"the {change.kind} was made on {change.made_on!r} and is applied to {model!r}; its sites and widths match, but "
            "what it does there may differ, so evaluate it on this model",
            UserWarning,
            stacklevel=2,
        )


def images_by_intervention(changes: Sequence[Sequence[Intervention]]) -> list[tuple[Intervention, tuple[int, ...]]]:
    """Each intervention with the images of the batch that it changes, in an order that keeps every image's own.

    Args:
        changes: for each image its interventions; one that stands in several images' lists at the same place acts on them at once.
    """
    images: dict[tuple[int, int], tuple[Intervention, list[int]]] = {}
    for image, change in enumerate(changes):
        for number, each in enumerate(change):
            images.setdefault((number, id(each)), (each, []))[1].append(image)
    ordered = [images[key] for key in sorted(images, key=lambda key: key[0])]
    return [(each, tuple(mine)) for each, mine in ordered]


def changes_by_side(bound: Sequence[BoundIntervention], site: Site) -> dict[bool, list[BoundIntervention]]:
    """The changes of a site that act before its module (True) and after it (False), in order; a side without any is left out."""
    here = [each for each in bound if site.path in each.intervention.paths]
    sides = {before: [each for each in here if each.acts_before(site) == before] for before in (True, False)}
    return {before: acting for before, acting in sides.items() if acting}


def takers_of(
    bound: Sequence[BoundIntervention],
    sites: Sites,
    attentions_at: Callable[[Sites], Mapping[str, JointAttention]],
    donors: Donors | None,
    family: Family,
    denoiser: nn.Module,
) -> list[Taker]:
    """The changes that take another prompt's text.

    Args:
        bound: all changes.
        sites: all of the model.
        attentions_at: by path, the attentions of those sites that read a text which blocks rewrite.
        donors: see `Donors`.
        family: of the denoiser.
        denoiser: gives the text that the first attention reads.
    """
    found, first = [], family.first_text
    for each in bound:
        taking, changed = each.intervention.taking, sites.at(each.intervention.paths).where(role=("key", "value"))
        here = attentions_at(changed)
        if taking is not None and here:
            begins = first is not None and {path.partition(".")[2] for path in here} == {first.attention}
            known = functools.partial(first.of, denoiser) if first and begins else None
            found.append(Taker(taking, each.images, here, donors, known, alone=all(site.text_only for site in changed)))
    return found


def apply_changes(changes: Sequence[BoundIntervention], tensor: Tensor, call: Call) -> Tensor:
    """What a site becomes after all changes, in order."""
    for change in changes:
        if change.acts_at(call):
            tensor = change(tensor, call)
    return tensor


def changes_of_text(bound: Sequence[BoundIntervention], site: Site) -> list[BoundIntervention]:
    """The changes that change, with a site, all of the text that its attention reads."""
    here = [each for each in bound if site.path in each.intervention.paths]
    return [each for each in here if each.intervention.taking is not None and each.intervention.taking.definition == "stream"]


def apply_to_text(changes: Sequence[BoundIntervention], text: Tensor, call: Call) -> Tensor:
    """What the text that a whole attention reads becomes after all changes, in order."""
    for change in changes:
        text = change(text, call)
    return text


def change_masks(changes: Sequence[BoundIntervention], bias: Tensor, call: Call) -> Tensor:
    """What the bias of a layer's attention becomes after all changes, in order."""
    for change in changes:
        if change.tells_at(call):
            bias = change.on_mask(bias, call)
    return bias


def replace_output(
    path: str,
    change: Callable[[Tensor, BatchLayout], Tensor],
    clock: Clock,
    ran: Counter[str],
    _module: nn.Module,
    _args: tuple[Any, ...],
    output: Any,
) -> Any:
    """A forward hook that replaces a component's output, of which an attention of image and text has two."""
    ran[path] += 1
    layout = clock.now.layout or PLAIN

    def changed(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        return change(tensor, layout) if clock.frames == 1 else change(tensor.unflatten(0, (-1, clock.frames)), layout).flatten(0, 1)

    return tree_map(changed, output)


def change_input(
    run: Callable[[Tensor], Tensor | None], _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook that replaces a module's first input."""
    changed = run(args[0])
    return None if changed is None else ((changed, *args[1:]), kwargs)


def change_output(run: Callable[[Tensor], Tensor | None], _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """A forward hook that replaces a module's output."""
    return run(output)


def change_mask(
    mask: AttentionMask,
    tokens: Callable[[], int],
    run: Callable[[Tensor], Tensor],
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook that replaces what an attention is told of the tokens that it sees, where it is told."""
    if (given := kwargs.get(mask.argument)) is None:
        return None
    bias = mask.as_bias(given, tokens(), (args[0] if args else kwargs["hidden_states"]).dtype)
    changed = run(bias)
    return None if changed is bias else (args, kwargs | {mask.argument: mask.as_given(changed, given)})

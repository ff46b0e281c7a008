"""What about a pipeline would make hooks silent or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from neuroscope.core.errors import UnsupportedModel
from neuroscope.pipeline.discovery import readers_beside
from neuroscope.pipeline.families import check_modes, family_of, is_compiled, refuse_pipeline, uncompiled
from neuroscope.pipeline.placement import footprint
from neuroscope.pipeline.weights import is_plain

#: diffusers' hooks that change where weights rest, and nothing that modules compute; all its others skip modules or change them.
_OFFLOADING = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
_CASTING = ("layerwise_casting", "peft_autocast_disable")

State = Literal["fine", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, its state ("fine", "note", "wrong") and what it means for hooks."""

    name: str
    state: State
    meaning: str


def diagnose(pipe: Any) -> list[Finding]:
    """Looks for everything known to make hooks silent or wrong in a pipeline; nothing is run or changed.

    Raises:
        UnsupportedModel: the denoiser is of no known family.
    """
    family = family_of(pipe)
    denoiser = getattr(pipe, family.component)
    inner = uncompiled(denoiser)
    refusals: list[tuple[str, State, str, bool]] = [
        (refusal.name, "wrong", refusal.reason, refusal.applies(inner)) for refusal in family.refusals
    ]
    first = [Finding("family", "fine", f"{family.name}, read from {type(inner).__name__}"), Finding("model", "fine", str(footprint(pipe)))]
    return first + [
        Finding(name, state, meaning) if found else Finding(name, "fine", "no")
        for name, state, meaning, found in [*refusals, *_checks(pipe, denoiser, inner)]
    ]


def _checks(pipe: Any, denoiser: Any, inner: nn.Module) -> Iterator[tuple[str, State, str, bool]]:
    for name, check in (("unknown kind of pipeline", refuse_pipeline), ("train mode", check_modes)):
        reason = _refusal(check, pipe)
        yield name, "wrong", reason, bool(reason)
    beside = readers_beside(family_of(pipe), pipe)
    meaning = f"{', '.join(beside)}: what it passes on of the prompt no layer of the denoiser changes; localize reports its share"
    yield "prompt read beside the denoiser", "note", meaning, bool(beside)
    compiled = "compiled code does not see hooks, so it runs uncompiled, and slower, inside blocks"
    yield "compiled denoiser", "note", compiled, is_compiled(denoiser)
    processors = {type(module.processor).__name__ for module in inner.modules() if hasattr(module, "processor")}
    others = {name for name in processors if not name.startswith(("AttnProcessor", "Fused", "Sliced"))}
    yield "replaced attention processors", "note", f"{', '.join(sorted(others))}: silent sites are reported after each run", bool(others)
    yield "attention slicing", "note", "slices change nothing at the sites known here", any("Sliced" in name for name in processors)
    adapters = _any_module(inner, lambda module: hasattr(module, "lora_A"))
    yield "LoRA", "note", "sites see the weights with the adapter's change", adapters
    wrapped = {name for module in inner.modules() for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", ())}
    offloaded = _any_module(inner, lambda module: hasattr(module, "_hf_hook")) or not wrapped.isdisjoint(_OFFLOADING)
    yield "offload", "note", "modules move between devices at each call; hooks still run", offloaded
    linear = [module for module in inner.modules() if hasattr(module, "in_features") and not hasattr(module, "base_layer")]
    meaning = "activations are read as they are; norms of outgoing weights are not known, and weights cannot be changed"
    yield "quantised weights", "note", meaning, not all(map(is_plain, linear))
    skipping = sorted(wrapped - {*_OFFLOADING, *_CASTING})
    yield "cached or skipped layers", "wrong", f"{', '.join(skipping)}: some layers do not run at every step; take it off", bool(skipping)
    casting = not wrapped.isdisjoint(_CASTING)
    yield "layerwise casting", "note", "weights rest in a narrow format; activations are read in the computing one", casting


def _refusal(check: Callable[[Any], None], pipe: Any) -> str:
    """Why a check refuses a pipeline; empty where it does not."""
    try:
        check(pipe)
    except UnsupportedModel as error:
        return str(error)
    return ""


def _any_module(root: nn.Module, test: Callable[[nn.Module], bool]) -> bool:
    return any(test(module) for module in root.modules())

"""The hooks of one block in which a pipeline runs: put on when it is entered, taken off on every way out."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.errors import SiteNeverRan, SiteRanUnevenly, counted
from neuroscope.core.intervention import Call
from neuroscope.core.sites import Site, Sites
from neuroscope.pipeline.families import Family, JointAttention, is_compiled, uncompiled
from neuroscope.pipeline.hooking.eager import running_eagerly
from neuroscope.pipeline.hooking.frames import in_videos
from neuroscope.pipeline.hooking.guidance import listen_for_guidance
from neuroscope.pipeline.hooking.hook import Hook
from neuroscope.pipeline.hooking.hooks import change_input, change_mask, change_output, replace_output
from neuroscope.pipeline.hooking.recomputing import is_recomputed
from neuroscope.pipeline.hooking.steps import Bind, Clock, StepState
from neuroscope.pipeline.hooking.text_streams import Taker
from neuroscope.pipeline.text import PromptEncoder

Act = Callable[[Tensor, Call], Tensor | None]
Read = Callable[[Conditions, int], Tensor]


@dataclass(frozen=True)
class LiveModel:
    """A live pipeline.

    Attributes:
        pipe: the pipeline.
        family: of its denoiser.
        denoiser: the pipeline's denoiser, in its wrapper if it was compiled.
        text: its text side.
        eager: whether compiled modules run as they were written inside blocks.
    """

    pipe: Any
    family: Family
    denoiser: Any
    text: PromptEncoder
    eager: bool

    def module(self, path: str) -> nn.Module:
        """The module of a site's or a component's path as it is now: adapters that come and go put others there."""
        root: nn.Module = uncompiled(self.denoiser)
        return root.get_submodule(path.partition(".")[2].removesuffix(":input"))

    @cached_property
    def bind(self) -> Bind:
        """Names the arguments of the denoiser's calls."""
        signature, names = inspect.signature(uncompiled(self.denoiser).forward), self.family.arguments

        def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
            given = signature.bind(*args, **kwargs).arguments
            return {name: given.get(argument) for name, argument in names.items()} | {"frames": self.family.frames(given[names["latents"]])}

        return bind

    def joints(self, sites: Iterable[Site]) -> dict[str, JointAttention]:
        """By path, the attentions of those keys and values that read a text which their block rewrites."""
        rewritten = [_attention_of(site) for site in sites if self.family.pattern(site.role, site.module).rewritten]
        found = {path: self.family.joint_of(path.partition(".")[2]) for path in rewritten}
        return {path: joint for path, joint in found.items() if joint is not None}

    def why_silent(self, path: str) -> str:
        """The likely cause of a hook that never ran."""
        if is_compiled(self.denoiser):
            return "the denoiser was compiled before it was hooked; make the graph with eager=True, or compile inside the block alone"
        attention = self.module(path.rpartition(".")[0])
        if "Fused" in type(getattr(attention, "processor", None)).__name__:
            return "its projections are fused; call `unfuse_qkv_projections()`"
        return "a wrapper that caches or skips layers, or a replaced attention processor; take it off"


class HookedBlock:
    """A block in which hooks are on a model.

    Args:
        model: the model.
        order: all its sites' paths in execution order, in which errors name them.

    Raises:
        UnsupportedModel: on entering, the model is in a state in which hooks would be silent or wrong.
        InvalidInput: on entering, another thread has a block open on it.
        SiteNeverRan, SiteRanUnevenly: on leaving, a hooked module did not run at every call of the denoiser.
    """

    def __init__(self, model: LiveModel, order: Sequence[str] = ()) -> None:
        self._model = model
        self._order = order
        self._stack = ExitStack()
        self._ran: Counter[str] = Counter()
        self._hooked: dict[str, nn.Module] = {}

    def __enter__(self) -> Self:
        model = self._model
        with ExitStack() as stack:
            model.family.refuse_unknown(model.pipe, silent=True)
            if model.eager:
                stack.enter_context(running_eagerly())
            stack.enter_context(model.family.inside(uncompiled(model.denoiser)))
            listener = stack.enter_context(listen_for_guidance(model.pipe, model.family, uncompiled(model.denoiser)))
            self._clock = Clock(listener, model.bind, functools.cache(lambda: uncompiled(model.denoiser).dtype), model.family.tokens_beside)
            stack.callback(model.denoiser.register_forward_pre_hook(Hook(self._clock.tick), with_kwargs=True).remove)
            if model.family.joint:
                end = Hook(lambda *_: self._clock.streams.end())
                stack.callback(model.denoiser.register_forward_hook(end, always_call=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            self._expect_runs()

    def hook(self, site: Site, act: Act, *, before: bool | None = None, counted: bool = True, watching: bool = False) -> None:
        """Puts a hook on a site, or on the other side of its module.

        Args:
            site: the site.
            act: given the tensor and the call, what it becomes; None for nothing else.
            before: whether the hook is on the module's input; by default where the site is.
            counted: False for a second hook on the same module.
            watching: it changes nothing; where an attention runs twice, it sees what the image reads.
        """
        module = self._module(site.path)
        ran = self._ran if counted else Counter()
        run: Callable[[Tensor], Tensor | None]
        if joints := self._model.joints([site]):
            run = self._in_joint(site, joints[_attention_of(site)], module, act, ran, watching)
        else:
            run = partial(self._run, site, module, act, self._read(site), ran)
        if site.before_module if before is None else before:
            self._add(module.register_forward_pre_hook(Hook(partial(change_input, run)), with_kwargs=True))
        else:
            self._add(module.register_forward_hook(Hook(partial(change_output, run))))

    def _read(self, site: Site) -> Read:
        """What a site's module reads of prompts: alike at every step, or what rows of a call give, where blocks rewrite the text."""
        if site.text_only or not self._model.joints([site]):
            return functools.cache(partial(self._model.text.read_at, site, self._clock.place))
        return lambda conditions, _: self._clock.streams.read(conditions)

    def _run(self, site: Site, module: nn.Module, act: Act, read: Read, ran: Counter[str], tensor: Tensor) -> Tensor | None:
        """What a hook does at every call of its module."""
        ran[site.path] += not is_recomputed()
        return in_videos(act, tensor, self._clock.call(site, module.forward, read), self._clock.frames)

    def _in_joint(
        self, site: Site, joint: JointAttention, module: nn.Module, act: Act, ran: Counter[str], watching: bool
    ) -> Callable[[Tensor], Tensor | None]:
        """What a hook does at a key or value of a text that blocks rewrite, in both runs of its attention."""
        streams, attention, read = self._clock.streams, _attention_of(site), self._read(site)
        first: list[Tensor] = []

        def run(tensor: Tensor) -> Tensor | None:
            call = streams.seen(self._clock.call(site, module.forward, read))
            text = streams.text_of(joint, tensor)
            if call.reading:
                changed = act(streams.whole(text, first[-1]), call)
                changed = None if changed is None else streams.chosen(changed)
            else:
                ran[site.path] += not is_recomputed()
                first[:] = [text] if streams.runs_twice(attention) else []
                changed = None if watching and first else act(text, call)
            return None if changed is None or changed is text else streams.with_text(joint, tensor, changed)

        return run

    def take_text(self, takers: Sequence[Taker]) -> None:
        """Lets images take other prompts' text, in a model whose blocks rewrite it."""
        denoiser, streams, clock = self._model.denoiser, self._clock.streams, self._clock
        signature = inspect.signature(uncompiled(denoiser).forward)

        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            others = streams.others
            given = streams.add(takers, signature.bind(*args, **kwargs).arguments, clock.now.layout, clock.now[:2])
            if streams.others > others:
                clock.add_others(streams.others - others)
            return (), given

        self._add(denoiser.register_forward_pre_hook(Hook(add), with_kwargs=True))
        self._add(denoiser.register_forward_hook(Hook(lambda _module, _args, output: streams.drop(output))))
        for path, joint in {path: joint for taker in takers for path, joint in taker.attentions.items()}.items():
            self._hook_attention(path, joint)

    def _hook_attention(self, path: str, joint: JointAttention) -> None:
        """Puts the hooks on an attention by which it runs twice, and by which streams know its text."""
        streams, module = self._clock.streams, self._model.module(path)

        def enter(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not streams.runs_again:
                streams.enter(joint, kwargs)

        def leave(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            twice = not streams.runs_again and streams.runs_twice(path)
            return streams.run_again(path, joint, module, kwargs, output) if twice else None

        self._add(module.register_forward_pre_hook(Hook(enter), with_kwargs=True))
        self._add(module.register_forward_hook(Hook(leave), with_kwargs=True))

    def hook_reads(self, sites: Sites, act: Callable[[Tensor, Call], Tensor]) -> None:
        """Puts hooks on what the image reads at keys and values of a text that blocks rewrite, whose attentions run twice for that.

        Args:
            sites: the keys and values.
            act: given what the image reads there, [row, token, neuron], and the call, what it becomes.
        """
        streams, clock, bind, joints = self._clock.streams, self._clock, self._model.bind, self._model.joints(sites)
        begin = Hook(lambda _module, args, kwargs: streams.let_read(joints, len(bind(args, kwargs)["latents"]), clock.now.layout))
        self._add(self._model.denoiser.register_forward_pre_hook(begin, with_kwargs=True))
        for path, joint in joints.items():
            self._hook_attention(path, joint)
        for site in sites:
            self.hook(site, lambda text, call: act(text, call) if call.reading else None)

    def hook_text(self, site: Site, act: Callable[[Tensor, Call], Tensor]) -> None:
        """Puts a hook on the text that a whole attention reads, queries among it.

        Args:
            site: its key.
            act: given that text, [row, token, channel], and the call, what it becomes.
        """
        streams, attention, joints = self._clock.streams, self._model.module(_attention_of(site)), self._model.joints([site])
        read = self._read(site)

        def change(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if streams.runs_again:
                return None
            call = self._clock.call(site, attention.forward, read)
            joint = joints[_attention_of(site)]
            return args, streams.changed(joint, kwargs, lambda text: act(text, replace(call, layout=streams.layout)))

        self._add(attention.register_forward_pre_hook(Hook(change), with_kwargs=True))

    def hook_mask(self, key: Site, act: Callable[[Tensor, Call], Tensor]) -> None:
        """Puts a hook on what the attention around a key is told of the tokens that it sees.

        Args:
            key: the key's site.
            act: given the bias of the attention's scores, [row, 1, token], and the call, what the bias becomes.
        """
        mask = self._model.family.mask
        if mask is None:
            return
        attention, streams, first = self._model.module(_attention_of(key)), self._clock.streams, [torch.empty(0)]
        rewritten = bool(self._model.joints([key]))

        def run(bias: Tensor) -> Tensor:
            call = self._clock.call(key, attention.forward, lambda conditions, _: mask.bias(conditions.of_tokens))
            if not rewritten:
                return act(bias, call)
            call = replace(streams.seen(call), layout=streams.layout)
            if call.reading:
                return streams.chosen(act(streams.whole(bias, first[0]), call))
            first[0] = bias
            return streams.of_own(bias, lambda own: act(own, call))

        self._add(attention.register_forward_pre_hook(Hook(partial(change_mask, mask, lambda: streams.tokens, run)), with_kwargs=True))

    def hook_component(self, path: str, change: Callable[[Tensor, BatchLayout], Tensor]) -> None:
        """Replaces a whole component's output by a function of it and of the batch's layout."""
        self._add(self._module(path).register_forward_hook(Hook(partial(replace_output, path, change, self._clock, self._ran))))

    def hook_denoiser(self, keep: Callable[[StepState, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        """Calls `keep(state, args, kwargs, output)` at every call of the denoiser; nothing is changed."""

        def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            keep(self._clock.now, args, kwargs, output)

        self._add(self._model.denoiser.register_forward_hook(Hook(watch), with_kwargs=True))

    def _module(self, path: str) -> nn.Module:
        module = self._hooked[path] = self._model.module(path)
        return module

    def _add(self, handle: RemovableHandle) -> None:
        self._stack.callback(handle.remove)

    def _skips(self, path: str) -> int:
        """How many calls of the denoiser left out the block of a module, as they were told to."""
        block, skipped = self._model.family.skipped_block, self._clock.skipped
        return (
            sum(count for number, count in skipped.items() if path.partition(".")[2].startswith(block.format(number) + ".")) if block else 0
        )

    def _expect_runs(self) -> None:
        """Raises SiteNeverRan or SiteRanUnevenly unless every hooked module ran at every call of the denoiser."""
        ran, ticks, hooked = self._ran, self._clock.ticks, self._hooked
        if replaced := [path for path, module in hooked.items() if self._model.module(path) is not module]:
            raise SiteNeverRan(
                f"another module was put in the place of {replaced[0]} inside the block, as adapters that are loaded or unloaded do, so "
                "what was done or seen there is not what was asked; do that before the block"
            )
        known = [*(path for path in self._order if path in hooked), *(path for path in hooked if path not in self._order)]
        silent, uneven = [path for path in known if not ran[path]], [path for path in known if ran[path] != ticks - self._skips(path)]
        if not silent and not uneven:
            return
        if not ticks:
            others = " and ".join(name for name in self._model.family.successors if getattr(self._model.pipe, name, None) is not None)
            taken = f", or in steps in which another denoiser ran alone (see {others})" if others else ""
            raise SiteNeverRan(
                f"the pipeline did not run inside the block{taken}, so {counted(len(silent), 'hooked site')} did nothing; call it inside"
            )
        if silent:
            cause = self._model.why_silent(silent[0])
            raise SiteNeverRan(f"the denoiser ran {counted(ticks, 'time')}, but {_named(silent)} never did; the likely cause: {cause}")
        cause = "it runs in chunks or slices" if ran[uneven[0]] > ticks else "a cache skips it at some steps"
        raise SiteRanUnevenly(
            f"the denoiser ran {counted(ticks, 'time')}, but {_named(uneven)} ran {counted(ran[uneven[0]], 'time')}, so what was "
            f"done or seen there is not what was asked; the likely cause: {cause}; take that off"
        )


def _attention_of(site: Site) -> str:
    """The path of the attention that a key or value belongs to."""
    return site.path.rpartition(".")[0]


def _named(paths: Collection[str]) -> str:
    first = list(paths)[:3]
    return ", ".join(first) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")

"""The hook graph: a live pipeline, its sites in execution order, and the blocks in which hooks live."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from neuroscope._errors import InvalidInput, SiteNeverRan, UnsupportedModel
from neuroscope.families import Family, SitePattern, family_of
from neuroscope.sites import Site, Sites
from neuroscope.tokens import warn_of_lost_words

if TYPE_CHECKING:
    from neuroscope.interventions import Intervention

Rows = Literal["all", "conditional"]


@dataclass(frozen=True)
class Call:
    """One call of a site's module inside a running pipeline.

    Attributes:
        site: the site.
        step: the denoising step, counted from 0; None outside a pipeline's schedule.
        steps: the number of denoising steps; None outside a pipeline's schedule.
        guided: whether the batch holds unconditional rows before the conditional ones.
        project: the module's own computation on another input, without hooks.
    """

    site: Site
    step: int | None
    steps: int | None
    guided: bool
    project: Callable[[Tensor], Tensor] = field(repr=False)

    def rows(self, rows: Rows, batch: int) -> slice:
        """The batch rows meant: all, or only those that carry the prompt."""
        return slice(batch // 2, batch) if rows == "conditional" and self.guided else slice(0, batch)

    def within(self, steps: tuple[float, float]) -> bool:
        """Whether this call's step lies in a part of the schedule, given as fractions from 0 (first) to 1 (end)."""
        if steps == (0.0, 1.0):
            return True
        if self.step is None or self.steps is None:
            raise InvalidInput(f"steps={steps} needs a pipeline's schedule, but the denoiser was called on its own; use (0.0, 1.0) there")
        return steps[0] <= self.step / self.steps < steps[1]


class HookGraph:
    """A pipeline with its sites as nodes, in the order in which one run of the denoiser was seen to call them.

    The only object that holds live modules. Nothing is hooked outside the `with` blocks of `apply` and `capture`.

    Attributes:
        pipe: the pipeline.
        family: how its architecture exposes sites.
        sites: all sites, in execution order.
        model: the model's name: where it was loaded from.

    Raises:
        UnsupportedModel: the denoiser is of no known family, or has no sites.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.family: Family = family_of(pipe)
        self.family.refuse_unknown(pipe)
        self.denoiser: nn.Module = getattr(pipe, self.family.component)
        self._modules = dict(getattr(self.denoiser, "_orig_mod", self.denoiser).named_modules())
        self.sites = _observe(self.family, self.denoiser, self._modules)
        self.model = str(getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__)

    def __repr__(self) -> str:
        counts = f"{len(self.sites.layers)} layers, {len(self.sites)} sites, {self.sites.neuron_count:,} neurons"
        return f"HookGraph({type(self.pipe).__name__} {self.model!r}, {self.family.name}: {counts})"

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The flow of data between "prompt", "image" and the sites' paths, as (source, target)."""
        edges: list[tuple[str, str]] = []
        stream = "image"
        for layer in self.sites.layers:
            by_role = {site.role: site.path for site in self.sites.where(layer=layer)}
            edges += [("prompt", by_role[role]) for role in ("key", "value") if role in by_role]
            edges += [(stream, by_role["query"])] if "query" in by_role else []
            edges += [(by_role[role], by_role["heads"]) for role in ("query", "key", "value") if {role, "heads"} <= by_role.keys()]
            chain = [by_role[role] for role in ("heads", "output", "feedforward") if role in by_role]
            edges += list(itertools.pairwise(chain))
            stream = chain[-1] if chain else stream
        return edges

    def module(self, site: Site) -> nn.Module:
        """The live module whose input or output the site is."""
        return self._modules[site.module]

    def outgoing_norm(self, site: Site) -> Float[Tensor, "neuron"]:
        """The norm of the weights that read each neuron, float64; ones where neurons are added to the residual stream."""
        pattern = self._pattern(site)
        if pattern.reader is None:
            return torch.ones(site.width, dtype=torch.float64)
        weight = self._modules[f"{pattern.block_of(site.module)}.{pattern.reader}"].weight
        return weight.detach().to("cpu", torch.float64).norm(dim=1 if pattern.reader_rows else 0)

    def fingerprint(self) -> str:
        """A short hash of the denoiser's weights, from sums over each, so that results of changed weights are told apart."""
        digest = hashlib.sha256()
        for name, weight in self.denoiser.state_dict().items():
            values = weight.detach().to("cpu", torch.float64).flatten()
            sums = [float(values.sum()), float(values.square().sum())]
            digest.update(f"{name} {tuple(weight.shape)} {sums}".encode())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "prompt token channel"]:
        """The contexts that the pipeline's own text encoder makes of the prompts.

        Warns of prompts that are longer than the encoder reads, naming the lost words.
        """
        if not prompts:
            raise InvalidInput("there is no prompt to encode; give at least one")
        warn_of_lost_words(self.pipe.tokenizer, prompts)
        device = self.pipe._execution_device
        batches = (list(prompts[first : first + batch_size]) for first in range(0, len(prompts), batch_size))
        return torch.cat([self.pipe.encode_prompt(batch, device, 1, False)[0] for batch in batches])

    @contextmanager
    def apply(self, *interventions: Intervention) -> Iterator[Self]:
        """Runs the pipeline changed by these interventions, in this order; it is restored on every way out.

        Raises:
            UnknownSite: an intervention names a site that the model lacks, or that has another width.
            SiteNeverRan: on leaving, a hooked site had not run.
        """
        for intervention in interventions:
            intervention.check(self)
        ran: Counter[str] = Counter()
        acted: set[int] = set()
        with ExitStack() as stack:
            clock = self._start_clock(stack)
            for intervention in interventions:
                for site in self.sites.at(intervention.paths):
                    self._attach(stack, site, clock, ran, intervention, acted)
            yield self
        self._expect_runs({path for each in interventions for path in each.paths}, ran, clock)
        for each in interventions:
            if id(each) not in acted:
                raise SiteNeverRan(f"no denoising step lies in the part of the schedule of {each!r}; widen its steps or take more steps")

    @contextmanager
    def capture(self, sites: Iterable[Site] | None = None) -> Iterator[Captured]:
        """Keeps raw activations of sites (by default all) of every call inside the block, on the CPU.

        Raises:
            UnknownSite: the model has no such site.
            SiteNeverRan: on leaving, a site had not run.
        """
        captured = Captured(self.sites if sites is None else self.sites.at(site.path for site in sites))
        with self.observe(captured.sites, captured.keep):
            yield captured

    @contextmanager
    def observe(self, sites: Sites, keep: Callable[[Tensor, Call], None]) -> Iterator[Self]:
        """Calls `keep(activation, call)` at every run of the sites inside the block; what it returns changes nothing.

        Raises:
            SiteNeverRan: on leaving, a site had not run.
        """

        def watch(activation: Tensor, call: Call) -> None:
            keep(activation, call)

        ran: Counter[str] = Counter()
        with ExitStack() as stack:
            clock = self._start_clock(stack)
            for site in sites:
                self._hook(stack, site, clock, ran, watch)
            yield self
        self._expect_runs(set(sites.paths), ran, clock)

    def _start_clock(self, stack: ExitStack) -> _Clock:
        clock = _Clock(self.pipe)
        stack.callback(self.denoiser.register_forward_pre_hook(clock.tick, with_kwargs=True).remove)
        return clock

    def _attach(self, stack: ExitStack, site: Site, clock: _Clock, ran: Counter[str], intervention: Intervention, acted: set[int]) -> None:
        change = intervention.on_input if intervention.changes_input else intervention.on_output

        def act(tensor: Tensor, call: Call) -> Tensor:
            changed = change(tensor, call)
            if changed is not tensor:
                acted.add(id(intervention))
            return changed

        self._hook(stack, site, clock, ran, act, before=intervention.changes_input or site.before_module)

    def _hook(self, stack: ExitStack, site: Site, clock: _Clock, ran: Counter[str], act: Callable, before: bool | None = None) -> None:
        module = self.module(site)

        def run(tensor: Tensor) -> Tensor | None:
            ran[site.path] += 1
            return act(tensor, clock.call(site, module.forward))

        if site.before_module if before is None else before:
            handle = module.register_forward_pre_hook(partial(_change_input, run), with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda _module, _args, output: run(output))
        stack.callback(handle.remove)

    def _expect_runs(self, paths: set[str], ran: Counter[str], clock: _Clock) -> None:
        silent = [path for path in self.sites.paths if path in paths - ran.keys()]
        if not silent:
            return
        if not clock.ticks:
            raise SiteNeverRan(f"the pipeline did not run inside the block, so {len(silent)} hooked sites did nothing; call it inside")
        named = ", ".join(silent[:3]) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
        raise SiteNeverRan(
            f"the denoiser ran {clock.ticks} times, but {named} never did; the likely cause: {self._likely_cause(silent[0])}"
        )

    def _likely_cause(self, path: str) -> str:
        if hasattr(self.denoiser, "_orig_mod"):
            return "the denoiser was compiled before it was hooked; hook first, or use the uncompiled module"
        attention = self._modules.get(path.split(".", 1)[1].rsplit(".", 1)[0])
        if "Fused" in type(getattr(attention, "processor", None)).__name__:
            return "its projections are fused; call `unfuse_qkv_projections()`"
        return "a wrapper that caches or skips layers, or a replaced attention processor; take it off"

    def _pattern(self, site: Site) -> SitePattern:
        return next(pattern for pattern in self.family.patterns if pattern.role == site.role)


class Captured:
    """Raw activations, kept in the order of the calls.

    `captured[path]` is a tensor [call, row, token, neuron]; `select` picks steps, guidance rows and tokens.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self._kept: dict[str, list[tuple[Call, Tensor]]] = {path: [] for path in sites.paths}

    def __repr__(self) -> str:
        return f"Captured({len(self.sites)} sites, {max(map(len, self._kept.values()), default=0)} calls each)"

    def __getitem__(self, path: str) -> Float[Tensor, "call row token neuron"]:
        return self.select(path)

    def select(
        self, path: str, *, step: int | None = None, rows: Rows = "all", token: int | slice = slice(None)
    ) -> Float[Tensor, "call row token neuron"]:
        """The activations of one site: of one step or all, of all rows or the prompt's, of some tokens or all.

        Raises:
            UnknownSite: the site was not captured.
            InvalidInput: nothing was captured at that step.
        """
        self.sites.at([path])
        chosen = [tensor[call.rows(rows, len(tensor))] for call, tensor in self._kept[path] if step is None or call.step == step]
        if not chosen:
            steps = sorted({call.step for call, _ in self._kept[path] if call.step is not None})
            raise InvalidInput(f"nothing was captured at step {step}; captured steps: {steps}")
        if len({each.shape for each in chosen}) > 1:
            sizes = ", ".join(sorted({str(tuple(each.shape)) for each in chosen}))
            raise InvalidInput(f"the runs differ in size: {sizes}; capture each in a block of its own")
        return torch.stack(chosen)[:, :, token if isinstance(token, slice) else slice(token, token + 1 or None)]

    def keep(self, activation: Tensor, call: Call) -> None:
        """The hook: stores a copy on the CPU and changes nothing."""
        self._kept[call.site.path].append((call, activation.detach().to("cpu", copy=True)))


class _Clock:
    """Knows the current denoising step from the pipeline's schedule, whatever the number of denoiser calls a step takes."""

    def __init__(self, pipe: Any) -> None:
        self.ticks = 0
        self._pipe = pipe
        self._step: int | None = None
        self._steps: int | None = None
        self._guided = False
        self._schedule: Tensor | None = None
        self._order: dict[float, int] = {}

    def tick(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the denoiser."""
        self.ticks += 1
        self._guided = hasattr(self._pipe, "_guidance_scale") and bool(self._pipe.do_classifier_free_guidance)
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        number = self._numbers().get(now)
        self._guided = self._guided and number is not None
        self._step = self._steps = None
        if number is not None:  # schedulers of second order may put timesteps of their own between the steps'
            self._steps = min(self._pipe.scheduler.num_inference_steps, len(self._numbers()))
            self._step = number * self._steps // len(self._numbers())

    def _numbers(self) -> dict[float, int]:
        """The number of each distinct timestep of the current schedule; empty before the pipeline has set one."""
        scheduler = self._pipe.scheduler
        if getattr(scheduler, "num_inference_steps", None) is None:
            return {}
        if scheduler.timesteps is not self._schedule:
            self._schedule = scheduler.timesteps
            self._order = {timestep: number for number, timestep in enumerate(dict.fromkeys(self._schedule.tolist()))}
        return self._order

    def call(self, site: Site, project: Callable[[Tensor], Tensor]) -> Call:
        """What a hook is told about the current call."""
        return Call(site, self._step, self._steps, self._guided, project)


def _change_input(run: Callable[[Tensor], Tensor | None], _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    changed = run(args[0])
    return None if changed is None else ((changed, *args[1:]), kwargs)


def _observe(family: Family, denoiser: nn.Module, modules: dict[str, nn.Module]) -> Sites:
    """Runs the denoiser once on fake tensors and notes the sites' modules in the order of their calls."""
    order: list[tuple[str, SitePattern, str, int]] = []

    def watch(path: str, block: str, pattern: SitePattern, _module: nn.Module, args: tuple, output: Any = None) -> None:
        order.append((path, pattern, block, (args[0] if pattern.before_module else output).shape[-1]))

    with ExitStack() as stack:
        for path, module in modules.items():
            for pattern in family.patterns:
                block = pattern.block_of(path)
                if block is None:
                    continue
                register = module.register_forward_pre_hook if pattern.before_module else module.register_forward_hook
                stack.callback(register(partial(watch, path, block, pattern)).remove)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            getattr(denoiser, "_orig_mod", denoiser)(**family.inputs(denoiser))
    if not order:
        raise UnsupportedModel(f"this {type(denoiser).__name__} has no cross-attention site; fused projections must be unfused first")
    blocks = list(dict.fromkeys(block for _, _, block, _ in order))
    return Sites(
        Site(
            path=f"{family.component}.{path}{':input' if pattern.before_module else ''}",
            layer=blocks.index(block),
            block=family.block_name(block),
            role=pattern.role,
            width=width,
            text_only=pattern.text_only,
        )
        for path, pattern, block, width in order
    )

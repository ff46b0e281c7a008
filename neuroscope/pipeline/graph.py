"""The hook graph: a live pipeline, its sites in execution order, and the blocks in which hooks live."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact
from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.errors import InvalidInput, SiteNeverRan, SiteRanUnevenly, UnknownSite, UnsupportedModel, closest
from neuroscope.core.intervention import Call, Intervention, ModelSpec
from neuroscope.core.sites import TEXT_ROLES, Component, Site, Sites
from neuroscope.core.tokens import warn_of_lost_words
from neuroscope.pipeline.activation_cache import ActivationCache
from neuroscope.pipeline.block import block
from neuroscope.pipeline.discovery import find_components, find_sites, readers_beside, row_bytes, stage_shares
from neuroscope.pipeline.eager import running_eagerly
from neuroscope.pipeline.families import Family, SitePattern, encode_without_run, family_of, is_compiled, split_encoded, uncompiled
from neuroscope.pipeline.guidance import listen_for_guidance
from neuroscope.pipeline.hook import Hook
from neuroscope.pipeline.hooks import BoundIntervention, CachedInput, Images, apply_changes, change_input, rewire
from neuroscope.pipeline.steps import Bind, Clock, StepState
from neuroscope.pipeline.weights import read_effective_weight

if TYPE_CHECKING:
    from PIL.Image import Image


class HookGraph:
    """A pipeline with its sites as nodes, in the order in which one run of the denoiser was seen to call them.

    The only object that holds live modules. Nothing is hooked outside the `with` blocks of `apply` and `capture`.

    Attributes:
        pipe: the pipeline.
        family: how its architecture exposes sites.
        sites: all sites, in execution order.
        model: the model's name: where it was loaded from.
        eager: whether compiled modules run as they were written inside the blocks. Compiled code keeps the hooks that it was
            compiled with; False is for a run that compiles inside its block, which ends in an error where a site then never ran.

    Raises:
        UnsupportedModel: the denoiser is of no known family, or has no sites, or is in a state that operations would treat wrongly.
    """

    def __init__(self, pipe: Any, *, eager: bool = True) -> None:
        self.pipe = pipe
        self.eager = eager
        self.family: Family = family_of(pipe)
        self.family.refuse_unknown(pipe)
        self.denoiser: Any = getattr(pipe, self.family.component)
        self._stage_shares: dict[tuple[int, ...], dict[str, float]] = {}
        try:
            self.sites = find_sites(self.family, self.denoiser)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{type(pipe).__name__} is not supported: {error}") from error
        self.model = str(getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__)

    def __repr__(self) -> str:
        counts = f"{len(self.sites.layers)} layers, {len(self.sites)} sites, {self.sites.neuron_count:,} neurons"
        return f"HookGraph({type(self.pipe).__name__} {self.model!r}, {self.family.name}: {counts})"

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The components that causal tracing restores, in execution order."""
        return find_components(self.family, self.denoiser)

    @cached_property
    def readers_beside(self) -> tuple[str, ...]:
        """The pipeline's components beside the denoiser that read the prompt on their own, such as a ControlNet."""
        return readers_beside(self.family, self.pipe)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The flow of data between "prompt", "image" and the sites' paths, as (source, target)."""
        edges = [("prompt", path) for path in self.sites.where(role="pooled").paths]
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
        return self._live(site.path)

    def reader(self, site: Site) -> str | None:
        """The path, inside the denoiser, of the linear module whose columns read these neurons; None where there is none."""
        pattern = self._pattern(site)
        if pattern.reader is None or pattern.reader_rows:
            return None
        return self._beside(site, pattern.reader)

    def heads(self, sites: Iterable[Site]) -> dict[str, int]:
        """Into how many attention heads the neurons of key, value and query sites are split, by path.

        Raises:
            InvalidInput: a site whose neurons are not split into heads.
        """
        found = {site.path: getattr(self._live(site.path.rpartition(".")[0]), "heads", None) for site in sites}
        if none := [path for path, heads in found.items() if heads is None]:
            raise InvalidInput(f"{none[0]} is not split into attention heads; choose keys, values or queries")
        return {path: int(heads) for path, heads in found.items() if heads is not None}

    def outgoing_norm(self, site: Site) -> Float[Tensor, "neuron"]:
        """The norm of the weights that read each neuron, float64; ones where neurons are added to the residual stream.

        Raises:
            UnsupportedModel: the weights are quantised.
        """
        pattern = self._pattern(site)
        if pattern.reader is None:
            return torch.ones(site.width, dtype=torch.float64)
        weight = read_effective_weight(uncompiled(self.denoiser), self._beside(site, pattern.reader))
        result: Float[Tensor, "neuron"] = weight.double().norm(dim=1 if pattern.reader_rows else 0)
        return result

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, as the pipeline calls it.

        Raises:
            UnsupportedModel: the pipeline's tokenizers split text differently, so that a position means two things.
        """
        every = [getattr(self.pipe, name) for name in ("tokenizer", "tokenizer_2") if getattr(self.pipe, name, None) is not None]
        first = every[0]
        if any(each.model_max_length != first.model_max_length or each.get_vocab() != first.get_vocab() for each in every[1:]):
            raise UnsupportedModel(f"the tokenizers of {type(self.pipe).__name__} split text differently, so positions mean two things")
        return self.family.words(first)

    @property
    def text_encoders(self) -> list[Any]:
        """The pipeline's text encoders, whose outputs lie side by side in the context."""
        return [part for name in ("text_encoder", "text_encoder_2") if (part := getattr(self.pipe, name, None)) is not None]

    def conditions(self, prompts: Sequence[str], batch_size: int = 64, clip_skip: int | None = None) -> Conditions:
        """What the pipeline's own text encoders make of the prompts.

        Warns of prompts that are longer than the encoders read, naming the lost words.
        """
        prompts = list(checks.strings("prompts", prompts))
        if not prompts:
            raise InvalidInput("there is no prompt to encode; give at least one")
        checks.whole("batch_size", batch_size)
        if clip_skip is not None:
            checks.whole("clip_skip", clip_skip, least=0)
        warn_of_lost_words(self.tokenizer, prompts)
        batches = (list(prompts[first : first + batch_size]) for first in range(0, len(prompts), batch_size))
        return Conditions.of([self._encode(batch, clip_skip) for batch in batches])

    def negative(self, prompt: str | None = None) -> Conditions:
        """What the unconditional rows are told: a negative prompt, or what the pipeline takes without one."""
        return self._encode([""], None, None if prompt is None else [prompt], against=True)

    def encode(self, prompts: Sequence[str], batch_size: int = 64, clip_skip: int | None = None) -> Float[Tensor, "prompt token channel"]:
        """The contexts that cross-attention reads of the prompts: `conditions` without pooled text."""
        return self.conditions(prompts, batch_size, clip_skip).context

    @cached_property
    def spec(self) -> ModelSpec:
        """What an intervention may ask about the model."""
        modules: dict[str, Any] = {site.path: self.module(site) for site in self.sites if site.role in TEXT_ROLES}
        return ModelSpec(
            family=self.family.name,
            sites=self.sites,
            input_widths={path: module.in_features for path, module in modules.items() if hasattr(module, "in_features")},
            context_channels=self.family.inputs(uncompiled(self.denoiser), None)[self.family.arguments["context"]].shape[-1],
            token_count=self._token_count(),
            has_summary="pooled_prompt_embeds" in self.family.encoded,
        )

    def _token_count(self) -> int | None:
        try:
            return int(self.tokenizer.model_max_length)
        except (UnsupportedModel, IndexError):  # tokenizers that do not agree, or none
            return None

    @cached_property
    def context_shape(self) -> tuple[int, int]:
        """The tokens and channels of every prompt's context."""
        tokens, channels = self.negative().context.shape[1:]
        return tokens, channels

    def arguments(self, conditions: Conditions, negative: Conditions) -> dict[str, Tensor]:
        """The conditions of conditional and unconditional rows as the pipeline's call takes them."""
        values = (conditions.context, negative.context, conditions.pooled, negative.pooled)
        return {name: value for name, value in zip(self.family.encoded, values, strict=False) if value is not None}

    def read(self, site: Site, conditions: Conditions, batch: int | None = None) -> Float[Tensor, "prompt *token channel"]:
        """What a text-side site's module reads of prompts; of modules that read more, these are the first channels.

        Args:
            site: it is `text_only`.
            conditions: of the prompts.
            batch: the rows of the batch in which the denoiser would read them: products of matrices of other sizes round otherwise.
        """
        return self._read(site, self._place, conditions, batch)

    def read_each(self, sites: Iterable[Site], conditions: Conditions) -> Iterator[tuple[Site, Tensor]]:
        """Each of these sites with what its module reads, as `read` gives it."""
        place = functools.cache(self._place)
        return ((site, self._read(site, place, conditions, None)) for site in sites)

    def _read(
        self, site: Site, place: Callable[[], tuple[torch.device | None, torch.dtype]], conditions: Conditions, batch: int | None
    ) -> Tensor:
        given = conditions.to(*place())
        repeated = Conditions.of([given] * max(1, (batch or 0) // len(given)))
        with torch.no_grad():
            return self.family.read(uncompiled(self.denoiser), site.module, repeated)[: len(given)]

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Where the pipeline computes, and in which number format; finding out takes a walk through all its modules."""
        return self.pipe._execution_device, uncompiled(self.denoiser).dtype

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "image channel height width"]) -> list[Image]:
        """The images of final latents (or final pixels, of a model without an autoencoder), one at a time to spare the memory."""
        images: list[Image]
        if self.has_latents:
            scaled = latents / self.pipe.vae.config.scaling_factor
            pixels = torch.cat([self.pipe.vae.decode(each[None], return_dict=False)[0] for each in scaled])
            images = self.pipe.image_processor.postprocess(pixels, output_type="pil")
        else:
            images = self.pipe.numpy_to_pil((latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy())
        return images

    @property
    def has_latents(self) -> bool:
        """Whether the denoiser works on an autoencoder's latents rather than on pixels."""
        return getattr(self.pipe, "vae", None) is not None

    def row_bytes(self, height: int | None = None, width: int | None = None) -> int:
        """An upper bound of the memory that one denoiser row takes for images of a size in pixels, by default the model's."""
        scale, size = self.pipe.vae_scale_factor if self.has_latents else 1, int(self.denoiser.config.sample_size)
        latents = (height // scale if height else size, width // scale if width else size)
        return row_bytes(self.family, self.denoiser, latents)

    def stage_shares(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        """See `discovery.stage_shares`: of a call of the denoiser with arguments of these sizes."""
        size = tuple(inputs["sample"].shape[1:])
        if size not in self._stage_shares:
            self._stage_shares[size] = stage_shares(self.family, self.denoiser, inputs)
        return self._stage_shares[size]

    @block
    def apply(self, *interventions: Intervention) -> Iterator[Self]:
        """Runs the pipeline changed by these interventions; it is restored on every way out.

        Changes of a site's input come before changes of its output; among each, the given order holds.

        Raises:
            UnknownSite: an intervention names a site that the model lacks, or that has another width.
            SiteNeverRan: on leaving, a hooked site had not run.
        """
        with self._changed([(each, None) for each in interventions]):
            yield self

    @block
    def apply_each(self, changes: Sequence[Sequence[Intervention]], *, growing: bool = False) -> Iterator[Self]:
        """Runs one batch in which every image has interventions of its own, so that many conditions share a run.

        Args:
            changes: for each image of the batch its interventions, none or several.
            growing: images may be added to the batch while the denoiser runs, each before its first changed site.

        Raises:
            InvalidInput: the pipeline is called for another number of images.
            UnknownSite, SiteNeverRan: as in `apply`.
        """
        images: dict[tuple[int, int], tuple[Intervention, list[int]]] = {}
        for image, change in enumerate(changes):
            for number, each in enumerate(change):
                images.setdefault((number, id(each)), (each, []))[1].append(image)
        ordered = [images[key] for key in sorted(images, key=lambda key: key[0])]  # every image's own order
        with self._changed([(each, tuple(mine)) for each, mine in ordered], None if growing else len(changes)):
            yield self

    @block
    def watch(self, keep: Callable[[StepState, tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[Self]:
        """Calls `keep(moment, args, kwargs, output)` at every call of the denoiser inside the block; nothing is changed."""

        def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            keep(clock.now, args, kwargs, output)

        with ExitStack() as stack:
            clock = self._start_clock(stack)
            stack.callback(self.denoiser.register_forward_hook(Hook(watch), with_kwargs=True).remove)
            yield self

    @block
    def rewire(self, changes: Mapping[str, Callable[[Tensor, BatchLayout], Tensor]]) -> Iterator[Self]:
        """Replaces the outputs of whole components (see `components`) while the block runs.

        Args:
            changes: by path, a function of the component's output and of the batch's layout.

        Raises:
            UnknownSite: the model has no such component.
            SiteNeverRan: on leaving, a component had not run.
        """
        known = [component.path for component in self.components]
        if unknown := [path for path in changes if path not in known]:
            raise UnknownSite(f"the model has no component {unknown[0]}{closest(unknown[0], known) or ';'} `graph.components` lists all")
        ran: Counter[str] = Counter()
        with ExitStack() as stack:
            clock = self._start_clock(stack)
            for path, change in changes.items():
                hook = partial(rewire, path, change, clock, ran)
                module = clock.hooked[path] = self._live(path)
                stack.callback(module.register_forward_hook(Hook(hook)).remove)
            yield self
        self._expect_runs(list(changes), ran, clock)

    @block
    def capture(self, sites: Iterable[Site] | None = None) -> Iterator[ActivationCache]:
        """Keeps raw activations of sites (by default all) of every call inside the block, on the CPU.

        Raises:
            UnknownSite: the model has no such site.
            SiteNeverRan: on leaving, a site had not run.
        """
        captured = ActivationCache(self.sites if sites is None else self._chosen(sites))
        with self.observe(captured.sites, captured.keep):
            yield captured

    @block
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
            for site in self._chosen(sites):
                self._hook(stack, site, clock, ran, watch)
            yield self
        self._expect_runs(set(sites.paths), ran, clock)

    @torch.no_grad()
    def _encode(self, prompts: list[str], clip_skip: int | None, negative: list[str] | None = None, against: bool = False) -> Conditions:
        """The pipeline's own conditions of prompts, or of what stands against them."""
        options: dict[str, Any] = {} if clip_skip is None else {"clip_skip": clip_skip}
        encode = encode_without_run(self.pipe)
        if unknown := options.keys() - inspect.signature(encode).parameters.keys():
            raise InvalidInput(f"{type(self.pipe).__name__} takes no {unknown.pop()}; leave it out")
        given = {"prompt": prompts, "device": self.pipe._execution_device, "num_images_per_prompt": 1, "negative_prompt": negative}
        options |= given | {"do_classifier_free_guidance": against}
        found = encode(**options)
        if isinstance(found, tuple):
            return Conditions(*found[int(against) :: 2])
        conditional, unconditional = split_encoded(self.pipe, found, (), options)
        return Conditions(unconditional if against and unconditional is not None else conditional)

    @cached_property
    def _bind(self) -> Bind:
        """Names the arguments of the denoiser's calls."""
        signature, names = inspect.signature(uncompiled(self.denoiser).forward), self.family.arguments

        def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
            given = signature.bind(*args, **kwargs).arguments
            return {name: given[argument] for name, argument in names.items()}

        return bind

    def _start_clock(self, stack: ExitStack) -> Clock:
        self.family.refuse_unknown(self.pipe, silent=True)
        if self.eager:
            stack.enter_context(running_eagerly())
        listener = stack.enter_context(listen_for_guidance(self.pipe, uncompiled(self.denoiser)))
        clock = Clock(listener, self._bind, functools.cache(lambda: uncompiled(self.denoiser).dtype))
        stack.callback(self.denoiser.register_forward_pre_hook(Hook(clock.tick), with_kwargs=True).remove)
        return clock

    def _chosen(self, sites: Iterable[Site]) -> Sites:
        """The model's own sites that are meant, in execution order."""
        given = checks.several("sites", sites, Site, "graph.sites.where(layer=8)")
        return self.sites.at(site.path for site in given)

    @contextmanager
    def _changed(self, changes: Sequence[tuple[Intervention, Images]], batch: int | None = None) -> Iterator[None]:
        for each, _ in changes:
            _check_intervention(each)
            each.check(self.spec)
        ran: Counter[str] = Counter()
        acted: set[int] = set()
        shared: dict[tuple[Any, ...], CachedInput] = {}
        with ExitStack() as stack:
            clock = self._start_clock(stack)
            for site in self.sites.at({path for each, _ in changes for path in each.paths}):
                counts = [ran, Counter()]  # a site may be hooked on both sides of its module, and counts once
                for before in (True, False):
                    here = [
                        BoundIntervention(each, images, batch, acted)
                        for each, images in changes
                        if site.path in each.paths and (each.changes_input or site.before_module) == before
                    ]
                    if here:
                        change: Callable[[Tensor, Call], Tensor] = partial(apply_changes, here)
                        if before and all(each.intervention.same_input_for_layer for each in here):
                            key = (site.layer, *((id(each.intervention), each.images) for each in here))
                            change = shared.setdefault(key, CachedInput(change, clock))
                            shared[key].readers += 1
                        self._hook(stack, site, clock, counts.pop(0), change, before)
            yield
        self._expect_runs({path for each, _ in changes for path in each.paths}, ran, clock)
        for each, _ in changes:
            if id(each) not in acted:
                raise SiteNeverRan(f"no denoising step lies in the part of the schedule of {each!r}; widen its steps or take more steps")

    def _hook(
        self, stack: ExitStack, site: Site, clock: Clock, ran: Counter[str], act: Callable[..., Any], before: bool | None = None
    ) -> None:
        module = clock.hooked[site.path] = self.module(site)
        read = functools.cache(partial(self._read, site, clock.place))  # what prompts say is the same at every step

        def run(tensor: Tensor) -> Tensor | None:
            ran[site.path] += 1
            result: Tensor | None = act(tensor, clock.call(site, module.forward, read))
            return result

        if site.before_module if before is None else before:
            handle = module.register_forward_pre_hook(Hook(partial(change_input, run)), with_kwargs=True)
        else:
            handle = module.register_forward_hook(Hook(lambda _module, _args, output: run(output)))
        stack.callback(handle.remove)

    def _expect_runs(self, paths: Collection[str], ran: Counter[str], clock: Clock) -> None:
        known = (*self.sites.paths, *(path for path in paths if path not in self.sites.paths))
        if replaced := [path for path, module in clock.hooked.items() if self._live(path) is not module]:
            raise SiteNeverRan(
                f"another module was put in the place of {replaced[0]} inside the block, as adapters that are loaded or unloaded do, so "
                "what was done or seen there is not what was asked; do that before the block"
            )
        silent = [path for path in known if path in paths and not ran[path]]
        uneven = [path for path in known if path in paths and ran[path] != clock.ticks]
        if not silent and not uneven:
            return
        if not clock.ticks:
            raise SiteNeverRan(f"the pipeline did not run inside the block, so {len(silent)} hooked sites did nothing; call it inside")
        found = silent or uneven
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        if silent:
            cause = self._likely_cause(silent[0])
            raise SiteNeverRan(f"the denoiser ran {clock.ticks} times, but {named} never did; the likely cause: {cause}")
        cause = "it runs in chunks or slices" if ran[uneven[0]] > clock.ticks else "a cache skips it at some steps"
        raise SiteRanUnevenly(
            f"the denoiser ran {clock.ticks} times, but {named} ran {ran[uneven[0]]} times, so what was done or seen there is not "
            f"what was asked; the likely cause: {cause}; take that off"
        )

    def _likely_cause(self, path: str) -> str:
        if is_compiled(self.denoiser):
            return "the denoiser was compiled before it was hooked; make the graph with eager=True, or compile inside the block alone"
        attention = self._live(path.rpartition(".")[0])
        if "Fused" in type(getattr(attention, "processor", None)).__name__:
            return "its projections are fused; call `unfuse_qkv_projections()`"
        return "a wrapper that caches or skips layers, or a replaced attention processor; take it off"

    def _live(self, path: str) -> nn.Module:
        """The module of a site's or a place's path as it is now: adapters that come and go put others there."""
        result: nn.Module = uncompiled(self.denoiser).get_submodule(path.partition(".")[2].removesuffix(":input"))
        return result

    def _beside(self, site: Site, module: str) -> str:
        """The path of a module that belongs to the same block as a site."""
        block = self._pattern(site).block_of(site.module)
        return f"{block}.{module}" if block else module

    def _pattern(self, site: Site) -> SitePattern:
        return next(pattern for pattern in self.family.patterns if pattern.role == site.role)


def _check_intervention(change: Any) -> None:
    """Raises InvalidInput for what is no intervention, such as a list of them or neurons."""
    if isinstance(change, list | tuple):
        raise InvalidInput("interventions are given one by one; write graph.apply(*interventions)")
    checks.instance("an intervention", change, Artifact, 'ns.NeuronMask(scores.top(50)), or ns.load("mask.safetensors")')
    if not hasattr(change, "on_output"):
        raise InvalidInput(f"{change!r} is no intervention; make one of it, such as ns.NeuronMask(scores.top(50))")

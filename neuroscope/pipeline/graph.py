"""The hook graph: a live pipeline, its sites in execution order, and the blocks in which hooks live."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Self

from torch import Tensor, nn

from neuroscope.core import checks
from neuroscope.core.conditions import BatchLayout
from neuroscope.core.errors import SiteNeverRan, UnknownSite, UnsupportedModel, closest, counted
from neuroscope.core.intervention import Call, Intervention, ModelSpec
from neuroscope.core.sharing.summary import Shown, Summary
from neuroscope.core.sites import Component, Site, Sites
from neuroscope.pipeline.discovery import find_components, find_sites, readers_beside, spec_of
from neuroscope.pipeline.families import Family, family_of, uncompiled
from neuroscope.pipeline.hooking.activation_cache import ActivationCache
from neuroscope.pipeline.hooking.block import block
from neuroscope.pipeline.hooking.hooked_block import HookedBlock, LiveModel
from neuroscope.pipeline.hooking.hooks import (
    BoundIntervention,
    Images,
    apply_changes,
    apply_to_text,
    change_masks,
    changes_by_side,
    changes_of_text,
    check_intervention,
    images_by_intervention,
    note_origin,
    takers_of,
)
from neuroscope.pipeline.hooking.steps import StepState
from neuroscope.pipeline.hooking.text_streams import Donors
from neuroscope.pipeline.placement import dtype_name, name_of
from neuroscope.pipeline.text import PromptEncoder
from neuroscope.pipeline.weights import head_counts


class HookGraph(Shown):
    """A pipeline with its sites as nodes, in the order in which one run of the denoiser was seen to call them.

    The only object that holds live modules. Nothing is hooked outside the `with` blocks of `apply` and `capture`.

    Attributes:
        pipe: the pipeline.
        family: how its architecture exposes sites.
        sites: all sites, in execution order.
        model: the model's name: where it was loaded from.
        text: encodes prompts, and reads what text-side sites read of them.

    Args:
        pipe: the pipeline.
        eager: compiled modules run as they were written inside blocks.
        component: which denoiser, where the pipeline has several that take turns, such as "transformer_2" of Wan 2.2; by default the
            first. Blocks of a graph of each may be open at once.

    Raises:
        UnsupportedModel: the denoiser is of no known family, or has no sites, or is in a state that operations would treat wrongly.
        InvalidInput: the pipeline has no such denoiser.
    """

    def __init__(self, pipe: Any, *, eager: bool = True, component: str | None = None) -> None:
        self.pipe = pipe
        self.family: Family = family_of(pipe, component)
        self.family.refuse_unknown(pipe)
        self.text = PromptEncoder(pipe, self.family)
        self.denoiser: Any = getattr(pipe, self.family.component)
        self._live = LiveModel(pipe, self.family, self.denoiser, self.text, eager)
        try:
            self.sites = find_sites(self.family, self.denoiser)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{type(pipe).__name__} is not supported: {error}") from error
        self.model = name_of(pipe)
        self._noted: set[str] = set()

    def __repr__(self) -> str:
        sizes = {"layer": len(self.sites.layers), "site": len(self.sites), "neuron": self.sites.neuron_count}
        counts = ", ".join(counted(count, noun) for noun, count in sizes.items())
        where = f"{self.pipe._execution_device}, {dtype_name(uncompiled(self.denoiser))}"
        return f"HookGraph({type(self.pipe).__name__} {self.model!r}, {self.family.name}: {counts}, {where})"

    def summary(self) -> Summary:
        """See `Shown`: the model, and its sites."""
        return replace(self.sites.summary(), verdict=repr(self))

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The components that causal tracing restores, in execution order."""
        return find_components(self.family, self.denoiser)

    @cached_property
    def readers_beside(self) -> tuple[str, ...]:
        """The pipeline's components beside the denoiser that read the prompt on their own, such as a ControlNet."""
        return readers_beside(self.family, self.pipe)

    @cached_property
    def spec(self) -> ModelSpec:
        """What an intervention may ask about the model."""
        return spec_of(self.family, uncompiled(self.denoiser), self.sites, self.text.token_count)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The flow of data between "prompt", "image" and the sites' paths, as (source, target)."""
        return self.sites.edges

    def module(self, site: Site) -> nn.Module:
        """The live module whose input or output the site is."""
        return self._live.module(site.path)

    def heads(self, sites: Iterable[Site]) -> dict[str, int]:
        """Into how many attention heads the neurons of key, value and query sites are split, by path.

        Raises:
            InvalidInput: a site whose neurons are not split into heads.
        """
        return head_counts(uncompiled(self.denoiser), sites)

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
    def apply_each(
        self, changes: Sequence[Sequence[Intervention]], *, growing: bool = False, donors: Donors | None = None
    ) -> Iterator[Self]:
        """Runs one batch in which every image has interventions of its own, so that many conditions share a run.

        Args:
            changes: for each image of the batch its interventions, none or several.
            growing: images may be added to the batch while the denoiser runs, each before its first changed site.
            donors: for each image, the number of an image of the batch from whose run its changes take another prompt's text, where blocks
                rewrite the text: it begins from the same noise, reads that prompt and is not changed. None, for one image or for all:
                the text comes from a row that is added to each call of the denoiser, with the image's own latents.

        Raises:
            InvalidInput: the pipeline is called for another number of images, or an image that is to give its text reads another prompt.
            UnknownSite, SiteNeverRan: as in `apply`.
        """
        with self._changed(images_by_intervention(changes), None if growing else len(changes), donors):
            yield self

    @contextmanager
    def _changed(
        self, changes: Sequence[tuple[Intervention, Images]], batch: int | None = None, donors: Donors | None = None
    ) -> Iterator[None]:
        for each, _ in changes:
            check_intervention(each)
            each.check(self.spec)
            note_origin(each, self.model, self._noted)
        acted: set[int] = set()
        bound = [BoundIntervention(each, images, batch, acted) for each, images in changes]
        takers = takers_of(bound, self.sites, self._live.joints, donors, self.family, uncompiled(self.denoiser))
        with HookedBlock(self._live, self.sites.paths) as hooks:
            if takers:
                hooks.take_text(takers)
            for site in self.sites.at({path for each, _ in changes for path in each.paths}):
                if site.role == "key" and (whole := changes_of_text(bound, site)):
                    hooks.hook_text(site, partial(apply_to_text, whole))
                for number, (before, acting) in enumerate(changes_by_side(bound, site).items()):
                    hooks.hook(site, partial(apply_changes, acting), before=before, counted=not number)
            masks = [(each, frozenset(each.intervention.masked(self.sites))) for each in bound]
            for site in self.sites.at({path for _, keys in masks for path in keys}):
                hooks.hook_mask(site, partial(change_masks, [each for each, keys in masks if site.path in keys]))
            yield
        for each, _ in changes:
            if id(each) not in acted:
                raise SiteNeverRan(f"no denoising step lies in the part of the schedule of {each!r}; widen its steps or take more steps")

    @block
    def capture(self, sites: Iterable[Site] | None = None) -> Iterator[ActivationCache]:
        """Keeps raw activations of sites (by default all) of every call inside the block, on the CPU.

        Raises:
            UnknownSite: the model has no such site.
            SiteNeverRan: on leaving, a site had not run.
        """
        kept = ActivationCache(self.sites if sites is None else self._chosen(sites))
        with self.observe(kept.sites, kept.keep):
            yield kept

    @block
    def observe(self, sites: Sites, keep: Callable[[Tensor, Call], None], *, reads: bool = False) -> Iterator[Self]:
        """Calls `keep(activation, call)` at every run of the sites inside the block; what it returns changes nothing.

        Args:
            sites: the sites.
            keep: given each activation, and the call.
            reads: it is given what the sites' modules read instead.

        Raises:
            SiteNeverRan: on leaving, a site had not run.
        """

        def watch(activation: Tensor, call: Call) -> None:
            keep(activation, call)

        with HookedBlock(self._live, self.sites.paths) as hooks:
            for site in self._chosen(sites):
                hooks.hook(site, watch, before=True if reads else None, watching=True)
            yield self

    @block
    def change_reads(self, sites: Sites, change: Callable[[Tensor, Call], Tensor]) -> Iterator[Self]:
        """Replaces what the image reads at keys and values of a text that blocks rewrite, while the blocks' own text goes on.

        Args:
            sites: keys and values; all of them read such a text (`spec.rewritten`).
            change: given what the image reads there, [row, token, neuron], and the call, what it becomes.

        Raises:
            SiteNeverRan: on leaving, a site had not run.
        """
        with HookedBlock(self._live, self.sites.paths) as hooks:
            hooks.hook_reads(self._chosen(sites), change)
            yield self

    @block
    def watch(self, keep: Callable[[StepState, tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[Self]:
        """Calls `keep(state, args, kwargs, output)` at every call of the denoiser inside the block; nothing is changed."""
        with HookedBlock(self._live) as hooks:
            hooks.hook_denoiser(keep)
            yield self

    @block
    def rewire(self, changes: Mapping[str, Callable[[Tensor, BatchLayout], Tensor]]) -> Iterator[Self]:
        """Replaces the outputs of whole components (see `components`) while the block runs.

        Args:
            changes: by path, a function of the component's output and of the batch's layout; where an attention gives image and text, it
                is called for each.

        Raises:
            UnknownSite: the model has no such component.
            SiteNeverRan: on leaving, a component had not run.
        """
        known = [component.path for component in self.components]
        if unknown := [path for path in changes if path not in known]:
            raise UnknownSite(f"the model has no component {unknown[0]}{closest(unknown[0], known) or ';'} `graph.components` lists all")
        with HookedBlock(self._live) as hooks:
            for path, change in changes.items():
                hooks.hook_component(path, change)
            yield self

    def _chosen(self, sites: Iterable[Site]) -> Sites:
        """The model's own sites that are meant, in execution order."""
        given = checks.several("sites", sites, Site, "graph.sites.where(layer=8)")
        return self.sites.at(site.path for site in given)

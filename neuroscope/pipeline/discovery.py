"""Finding a denoiser's sites and components by watching one run: order comes from what ran, never from names.

What runs is a twin on the meta device, made from the denoiser's config: no weight is read, and no live module is hooked,
so that offloaded, quantised or compiled models are found as they are.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, NeuroscopeError, UnsupportedModel, counted, first_line
from neuroscope.core.intervention import ModelSpec
from neuroscope.core.sites import TEXT_ROLES, Component, Site, Sites
from neuroscope.pipeline.families import Family, SitePattern, family_of_denoiser, uncompiled
from neuroscope.pipeline.shapes import ShapesAlone

Found = TypeVar("Found")
_DEEPEST = 1000  # layers of a block


def _once_a_config(find: Callable[..., Found]) -> Callable[..., Found]:
    """Keeps what was found of a denoiser: its class and its config, and sizes given by position, decide all that its twin does."""
    kept: dict[tuple[Any, ...], tuple[Family, Found]] = {}

    @functools.wraps(find)
    def found(family: Family, denoiser: Any, *sizes: Any, **given: Any) -> Found:
        inner = uncompiled(denoiser)
        config = json.dumps(dict(inner.config), sort_keys=True, default=str)
        key = id(family), type(inner), config, *sizes
        if key not in kept:
            kept[key] = family, find(family, denoiser, *sizes, **given)  # the family is kept, so that no other has its id
        return kept[key][1]

    return found


@_once_a_config
def find_sites(family: Family, denoiser: Any) -> Sites:
    """The family's sites in this denoiser, in execution order.

    Raises:
        UnsupportedModel: it has none.
    """
    order: list[tuple[str, SitePattern, str, int]] = []

    def watch(path: str, block: str, pattern: SitePattern, _module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        order.append((path, pattern, block, (args[0] if pattern.before_module else output).shape[-1]))

    twin = _twin(denoiser)
    readers = _watch_readers(family, twin)
    for path, module in twin.named_modules():
        for pattern in family.patterns:
            if (block := pattern.block_of(path)) is not None and family.reads_of(twin, path) is not None:
                register = module.register_forward_pre_hook if pattern.before_module else module.register_forward_hook
                register(partial(watch, path, block, pattern))
    _run(family, twin)
    if not order:
        raise UnsupportedModel(f"this {type(denoiser).__name__} has no cross-attention site that neuroscope knows")
    _check_readers(family, denoiser, readers, [path for path, pattern, *_ in order if _reads_text_alone(family, pattern, path)])
    blocks = list(dict.fromkeys(block for _, pattern, block, _ in order if pattern.in_layer))
    return Sites(
        Site(
            path=f"{family.component}.{path}{':input' if pattern.before_module else ''}",
            layer=blocks.index(block) if pattern.in_layer else None,
            block=_place(family, twin, block) if pattern.in_layer else "time" if pattern.role == "pooled" else "text",
            role=pattern.role,
            width=width,
            text_only=pattern.text_only,
        )
        for path, pattern, block, width in order
    )


def _reads_text_alone(family: Family, pattern: SitePattern, module: str) -> bool:
    """Whether the module of a site in a layer is given the text's tokens without the image's."""
    joint = family.joint_of(module.rpartition(".")[0]) if pattern.rewritten else None
    return pattern.in_layer and (pattern.text_only if joint is None else not joint.leads)


def _place(family: Family, denoiser: Any, block: str) -> str:
    """Where a layer stands, and which of several encoders it reads."""
    encoder = family.reads_of(denoiser, block)
    return f"{family.block_name(block)}.{encoder}" if encoder else family.block_name(block)


def spec_of(family: Family, denoiser: Any, sites: Sites, token_count: int | None) -> ModelSpec:
    """What an intervention may ask about a model."""
    modules: dict[str, Any] = {site.path: denoiser.get_submodule(site.module) for site in sites if site.role in TEXT_ROLES}
    of_texts = [site for site in sites if family.pattern(site.role, site.module).rewritten]
    rewritten = {site.path: family.joint_of(site.module.rpartition(".")[0]) for site in of_texts}
    return ModelSpec(
        family=family.name,
        sites=sites,
        input_widths={path: module.in_features for path, module in modules.items() if hasattr(module, "in_features")},
        context_channels=family.shape_of_context(denoiser)[1],
        token_count=token_count,
        has_summary=family.has_summary,
        has_mask=any(each.kind == "mask" for each in family.encoded),
        tokens_beside=family.tokens_beside,
        wordless=frozenset(path for path, module in modules.items() if family.is_wordless(denoiser, path.partition(".")[2])),
        rewritten=frozenset(rewritten),
        shared=frozenset(path for path, joint in rewritten.items() if joint is not None and joint.leads),
    )


def _watch_readers(family: Family, twin: nn.Module) -> list[str]:
    """The paths of the modules with weights that are given one vector a token of the prompt, filled while the twin runs.

    Known by their size: the family's inputs have a number of tokens that no image has.
    """
    tokens, _ = family.shape_of_context(twin)
    readers: list[str] = []

    def watch(path: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].ndim == 3 and args[0].shape[1] == tokens:
            readers.append(path)

    for path, module in twin.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not family.prepares_text.fullmatch(path):
            module.register_forward_pre_hook(partial(watch, path))
    return readers


def _check_readers(family: Family, denoiser: Any, readers: Sequence[str], sites: Sequence[str]) -> None:
    """Raises UnsupportedModel where modules other than keys and values read the prompt, or a key or value reads none."""
    if missed := [path for path in readers if path not in sites]:
        raise UnsupportedModel(
            f"this {type(denoiser).__name__} reads the prompt at {family.component}.{missed[0]} as well, and at "
            f"{counted(len(missed) - 1, 'more module')}, where neuroscope knows no site, so that what passes there would be missed; "
            "it is not supported"
        )
    if blind := [path for path in sites if path not in readers]:
        raise UnsupportedModel(
            f"{family.component}.{blind[0]} of this {type(denoiser).__name__} is called like a layer that reads the prompt, and reads "
            "something else; it is not supported"
        )


def readers_beside(family: Family, pipe: Any) -> tuple[str, ...]:
    """The components of a pipeline, beside its denoiser and its text encoders, that are given the prompt's states."""
    context = family.arguments["context"]
    return tuple(
        name
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
        and name != family.component
        and not name.startswith("text_encoder")
        and context in inspect.signature(uncompiled(part).forward).parameters
    )


def sites_from_config(config: str | os.PathLike[str] | Mapping[str, Any]) -> Sites:
    """The sites of a denoiser that is known by its config alone, such as a published model's "unet/config.json"; no weight is made.

    Raises:
        InvalidInput: the file cannot be read, or is no config of a diffusers model.
        UnsupportedModel: no family knows such a denoiser, or it does not run.
    """
    found = dict(config) if isinstance(config, Mapping) else _read_config(checks.path("config", config))
    name = found.get("_class_name", "UNet2DConditionModel")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or not hasattr(kind, "from_config"):
        raise InvalidInput(f"the config is of a {checks.shown(name)}, which is no model of diffusers; give a denoiser's config.json")
    _refuse_endless(found)
    _check_sample_size(found.get("sample_size"))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initial weights, which are never made
            denoiser = kind.from_config(found)
    except Exception as error:  # whatever diffusers raises of values that fit no model
        raise InvalidInput(
            f"the config makes no {name}: {_in_a_line(error)}; give a denoiser's config.json as diffusers wrote it"
        ) from error
    return find_sites(family_of_denoiser(denoiser), denoiser)


def _check_sample_size(size: Any) -> None:
    for each in size if isinstance(size, list | tuple) else (size,):
        if each is not None:
            checks.whole("sample_size", each)


def _refuse_endless(config: Mapping[str, Any]) -> None:
    """Refuses depths with which making the model's modules would not end."""
    for name, value in config.items():
        if "layers" in str(name) and max(_numbers(value), default=0) > _DEEPEST:
            raise InvalidInput(f"the config's {name}={value} is deeper than any model; give at most {_DEEPEST}")


def _numbers(value: Any) -> list[float]:
    """All numbers of nested lists."""
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []


def _in_a_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"the config {path} cannot be read: {error.strerror}; give a denoiser's config.json") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the config {path} is not JSON: {error}; give a denoiser's config.json") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"the config {path} holds no settings; give a denoiser's config.json")
    return found


@_once_a_config
def find_components(family: Family, denoiser: Any) -> tuple[Component, ...]:
    """The components that causal tracing restores, in execution order; each kind is numbered from 0."""
    twin = _twin(denoiser)
    found = {
        path: "self" if family.reads_of(twin, path) is None and kind == "cross" else kind
        for path, _ in twin.named_modules()
        for kind, pattern in family.components.items()
        if pattern.fullmatch(path)
    }
    order: list[str] = []
    for path in found:
        twin.get_submodule(path).register_forward_hook(lambda *_, path=path: order.append(path))
    _run(family, twin)
    numbered = [(path, found[path], sum(found[each] == found[path] for each in order[:index])) for index, path in enumerate(order)]
    return tuple(
        Component(f"{family.component}.{path}", kind, number, "time" if kind == "pooled" else family.block_name(path))
        for path, kind, number in numbered
    )


def stage_shares(family: Family, denoiser: Any, inputs: Mapping[str, Any]) -> dict[str, float]:
    """By stage, in execution order: the share of a row's floating-point operations that a row runs which begins there.

    An upper bound: what lies outside all stages is counted whole.

    Args:
        family: the denoiser's.
        denoiser: it.
        inputs: a call's arguments; their sizes count, not what they hold.
    """
    sizes = tuple(tuple(each.shape) for each in tree_leaves(dict(inputs)) if isinstance(each, Tensor))
    return _shares_of_sizes(family, denoiser, sizes, inputs=inputs)


@_once_a_config
def _shares_of_sizes(family: Family, denoiser: Any, _sizes: tuple[Any, ...], *, inputs: Mapping[str, Any]) -> dict[str, float]:
    twin = _twin(denoiser)
    order: list[str] = []
    for path, module in twin.named_modules():
        if family.stages.fullmatch(path):
            module.register_forward_pre_hook(lambda *_, path=path: order.append(path))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        given = tree_map(lambda each: _on_meta(each, twin.dtype) if isinstance(each, Tensor) else each, family.spread(inputs))
        family.walk(twin, given)
    counts = {path.partition(".")[2]: sum(operations.values()) for path, operations in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    before = itertools.accumulate((counts.get(path, 0) for path in order), initial=0)
    return {path: 1 - earlier / total for path, earlier in zip(order, before, strict=False)}


def row_bytes(family: Family, denoiser: Any, size: tuple[int, ...]) -> int:
    """An upper bound of the memory that one row of latents [height, width] takes: all modules' outputs together.

    Args:
        family: the denoiser's.
        denoiser: it.
        size: of the latents, as `Family.inputs` takes it.
    """
    return _row_numbers(family, denoiser, size) * int(denoiser.dtype.itemsize)


@_once_a_config
def _row_numbers(family: Family, denoiser: Any, size: tuple[int, ...]) -> int:
    total = 0

    def add(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    twin = _twin(denoiser)
    for module in twin.modules():
        if not any(module.children()):
            module.register_forward_hook(add)
    _run(family, twin, size)
    return total


def _on_meta(given: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor's size on the meta device; the denoiser's own number format, such as bfloat16, is not its twin's."""
    return given.to("meta", dtype if given.is_floating_point() else given.dtype)


def _twin(denoiser: Any) -> Any:
    inner = uncompiled(denoiser)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initial weights, which are never made
        return type(inner).from_config(inner.config).eval()


def _run(family: Family, twin: Any, size: tuple[int, ...] | None = None) -> None:
    """One call of a twin, after which its hooks have seen all modules.

    Raises:
        UnsupportedModel: it does not run.
    """
    try:
        with torch.no_grad(), ShapesAlone():
            family.walk(twin, family.inputs(twin, size))
    except NeuroscopeError:
        raise
    except Exception as error:  # whatever diffusers raises of settings that do not fit together
        raise UnsupportedModel(
            f"this {type(twin).__name__} does not run with what its family ({family.name}) is given, by its config: {_in_a_line(error)}"
        ) from error

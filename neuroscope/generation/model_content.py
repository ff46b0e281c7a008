"""What images of a pipeline depend on, as hashes: the bytes of all parameters and buffers, and all other state of its parts."""

from __future__ import annotations

import dis
import json
import os
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from accelerate.utils import align_module_device
from diffusers import ConfigMixin
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from neuroscope.core.errors import InvalidInput
from neuroscope.generation.content import (
    FUNCTIONS,
    Walk,
    class_content,
    content,
    framed,
    function_content,
    is_of_library,
    refuse,
    tensor_content,
)
from neuroscope.pipeline.families import uncompiled
from neuroscope.pipeline.weights import entries

#: What modules hold beside their values: how they are called, hooked, saved, compiled and offloaded.
_MACHINERY = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl"}
_MACHINERY |= {f"_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre", "state_dict", "state_dict_pre")}
_MACHINERY |= {f"_forward{kind}_hooks_with_kwargs" for kind in ("", "_pre")} | {"_forward_hooks_always_called"}
_MACHINERY |= {"_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_hf_hook", "_old_forward", "forward", "_diffusers_hook"}
_MACHINERY |= {"gradient_checkpointing", "_gradient_checkpointing_func", "name_or_path", "_is_hf_initialized", "_require_grads_hook"}
_MACHINERY |= {"_output_capturing_hooks_installed"}  # transformers notes it in the first run
_MACHINERY |= {"_internal_dict"}  # diffusers' config, which is read as such
_MACHINERY |= {"_is_torch_compile"}  # a note that it was wrapped once
#: What saving a model writes into its config: where it comes from, and what its weights say better.
_ORIGIN = {"name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
#: What a scheduler's noise levels come from.
_CURVES = ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod")
#: The settings of a tokenizer that change what it makes of text.
_WORDING = ("model_max_length", "padding_side", "truncation_side", "pad_token_id", "clean_up_tokenization_spaces", "split_special_tokens")


def pipeline_content(pipe: Any) -> str:
    """The hash of all that images of a pipeline depend on, 64 hexadecimal digits.

    Raises:
        InvalidInput: a module or the pipeline was given a function of its own in place of one of its methods.
    """
    parts = {name: part_content(name, part) for name, part in pipe.components.items()}
    settings = {name: value for name, value in pipe.config.items() if name not in parts and not name.startswith("_")}
    own = {name: value for name, value in vars(pipe).items() if name not in parts and not name.startswith("_")}
    for name, value in own.items():
        if isinstance(value, FUNCTIONS) and not is_of_library(getattr(value, "func", value)):
            raise InvalidInput(_replaced(f"the pipeline's {name}"))
    plain = {name: value for name, value in own.items() if not isinstance(value, FUNCTIONS)}
    return content("the pipeline", [type(pipe), parts, settings, plain], state)


def part_content(name: str, part: Any) -> str:
    """The hash of one component of a pipeline, or of a model beside it."""
    if isinstance(part, nn.Module):
        return module_content(name, uncompiled(part))
    if isinstance(part, PreTrainedTokenizerBase):
        return content(name, _tokenizer(part), state)
    if hasattr(part, "set_timesteps"):
        return content(name, [type(part), _settings(part.config), _levels(part)], state)
    return content(name, part, state)


def module_content(name: str, module: nn.Module) -> str:
    """The hash of a module: the bytes of its parameters and buffers, and all other state of all modules inside it."""
    walk = Walk(state)
    modules = list(module.named_modules())
    for _, each in modules:
        walk.name(each)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        stored = [_stored(pool, each) for _, each in modules]
        parts = [framed(path, _described(walk, f"{name}.{path}", each)) for path, each in modules]
        parts += [framed(key, each if isinstance(each, bytes) else each.result()) for own in stored for key, each in own.items()]
    return framed("module", *parts).hex()


def _stored(pool: ThreadPoolExecutor, module: nn.Module) -> dict[str, Future[bytes] | bytes]:
    """By name, the hashes of what a module itself stores; several are made at a time where all is in the memory."""
    if hasattr(module, "_hf_hook"):
        with align_module_device(module):
            return {key: _entry(key, value) for key, value in entries(module)}
    return {key: pool.submit(_entry, key, value) for key, value in entries(module)}


def _entry(key: str, value: Any) -> bytes:
    return tensor_content(value) if isinstance(value, Tensor) else Walk(state).of(key, value)


def _described(walk: Walk, where: str, module: nn.Module) -> bytes:
    """The hash of a module's class and of its state beside parameters and buffers."""
    _check_forward(where, module)
    registry = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
    hooked = {name: [type(hook), getattr(hook, "config", None)] for name, hook in registry.items()}
    plain = {name: value for name, value in vars(module).items() if name not in _MACHINERY}
    plain |= {name: _settings(value) for name, value in plain.items() if isinstance(value, PreTrainedConfig)}
    plain |= {"config": _settings(module)} if isinstance(module, ConfigMixin) else {}
    return framed(class_content(walk, type(module)), walk.of(where, plain), walk.of(where, hooked))


def _check_forward(where: str, module: nn.Module) -> None:
    given = vars(module).get("forward")
    given = getattr(given, "_torchdynamo_orig_callable", given)
    own = getattr(given, "__func__", None) is type(module).forward
    if given is not None and not own and not is_of_library(given):
        raise InvalidInput(_replaced(f"the forward of {where}"))


def _replaced(what: str) -> str:
    return (
        f"{what} was replaced by a function, whose content has no stable form, so that a ledger cannot tell it from another one; "
        "leave out `output` (--resume), or put the original back"
    )


def state(walk: Walk, where: str, value: Any) -> bytes:
    """The content of what modules hold: modules, functions, configs, and objects by their class and what is in them."""
    if isinstance(value, type):
        return class_content(walk, value)
    if isinstance(value, nn.Module):
        return framed("module", walk.named(value) or module_content(where, value))
    if isinstance(value, FUNCTIONS):
        return function_content(walk, where, value)
    if isinstance(value, ConfigMixin | PreTrainedConfig | GenerationConfig):
        return framed("config", class_content(walk, type(value)), walk.of(where, _settings(value)))
    return _object(walk, where, value) or framed("object", class_content(walk, type(value)))


def scorer(walk: Walk, where: str, value: Any) -> bytes:
    """The content of what metrics hold: as `state`, but what has no stable form is refused."""
    if isinstance(value, type):
        return class_content(walk, value)
    if isinstance(value, nn.Module):
        return framed("module", module_content(where, value))
    if isinstance(value, PreTrainedTokenizerBase):
        return framed("tokenizer", part_content(where, value))
    if isinstance(value, FUNCTIONS):
        return refuse(walk, where, value)
    return _object(walk, where, value) or refuse(walk, where, value)


def _object(walk: Walk, where: str, value: Any) -> bytes:
    """An object by its class and by all that a copy of it would be made from; nothing where it cannot be copied."""
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # whatever an object's own method raises, it has no form that could be kept
        return b""
    if isinstance(made, str):
        return framed("global", class_content(walk, type(value)), made)
    maker, arguments, *rest = made
    arguments = [each for each in arguments if each is not type(value)]
    held = [None if each is None else list(each) if number else each for number, each in enumerate(rest)]
    name = getattr(maker, "__qualname__", "")
    return framed("object", class_content(walk, type(value)), name, walk.of(where, arguments), walk.of(where, held))


def _settings(config: Any) -> dict[str, Any]:
    """A config's settings, without where it came from."""
    config = getattr(config, "config", config)
    values: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else config
    return {name: value for name, value in values.items() if not name.startswith("_") and name not in _ORIGIN}


def _levels(scheduler: Any) -> dict[str, Any]:
    """A scheduler's state beside its config and beside what a run puts there."""
    runs = set(_assigned(type(scheduler)))
    return {name: value for name, value in vars(scheduler).items() if name in _CURVES or (name not in runs and name != "_internal_dict")}


def _assigned(kind: type) -> Iterator[str]:
    """The attributes that a class's methods set, whole or an item of them, once its object is made."""
    functions = [(name, value) for each in kind.__mro__ for name, value in vars(each).items() if isinstance(value, types.FunctionType)]
    for name, function in functions:
        if name != "__init__":
            yield from _stores(function)


def _stores(function: types.FunctionType) -> Iterator[str]:
    """The attributes that a function sets; an item is stored in the attribute that was loaded last."""
    loaded = None
    for each in dis.get_instructions(function):
        if each.opname == "LOAD_ATTR":
            loaded = each.argval
        elif each.opname == "STORE_ATTR":
            yield each.argval
        elif each.opname == "STORE_SUBSCR" and loaded is not None:
            yield loaded


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """A tokenizer's vocabulary, rules and settings, without those of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"merges": list(getattr(tokenizer, "bpe_ranks", ()))}
    rules = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    settings = {name: getattr(tokenizer, name, None) for name in _WORDING}
    return [type(tokenizer).__qualname__, tokenizer.get_vocab(), added, tokenizer.special_tokens_map, settings, rules]

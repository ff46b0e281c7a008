"""The text-side modules of a constructed denoiser, found and watched by plain torch hooks.

Nothing here knows of hook graphs, so that proofs of plants are independent of what they are to test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroscope.testbed.construction.pipelines import component_of, denoiser_of

_SINGLE = "single_transformer_blocks."
_KEY = re.compile(rf"(.+)\.(attn2\.to_k|add_k_proj)|{_SINGLE}\d+\.attn\.to_k")
_ROUNDING = 1e-9
_MASKS = ("encoder_attention_mask", "encoder_attention_mask_1")
_POOLED = (
    "add_embedding.linear_1",
    "add_embedding.proj",
    "time_extra_emb.extra_embedder.linear_1",
    "time_text_embed.text_embedder.linear_1",
)


@dataclass(frozen=True)
class TextModules:
    """By path: the keys and values of each layer in execution order, and the pooled text's projection."""

    keys: tuple[str, ...]
    pooled: str | None
    component: str

    def site(self, path: str) -> str:
        """The site's path of a module's."""
        return f"{self.component}.{path}"

    def values(self, layer: int) -> str:
        """The path of a layer's value projection."""
        return self.keys[layer].replace("to_k", "to_v").replace("add_k_proj", "add_v_proj")

    def layer_of(self, path: str) -> int:
        """The layer of a key or value projection."""
        return next(layer for layer, key in enumerate(self.keys) if path in (key, self.values(layer)))

    def reader(self, layer: int) -> str:
        """The path of the module that reads a layer's heads."""
        attention = self.keys[layer].rpartition(".")[0]
        return f"{attention.removesuffix('.attn')}.proj_out" if is_single(attention) else f"{attention}.to_out.0"

    def of(self, layers: Sequence[int]) -> list[str]:
        """The paths of some layers' keys and values."""
        return [path for layer in layers for path in (self.keys[layer], self.values(layer))]


def find(pipe: Any, run: Callable[[], Any]) -> TextModules:
    """The modules in the order in which one run calls them."""
    order: list[str] = []
    blind: set[str] = set()

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> None:
        if len(args) < 2 and kwargs.get("encoder_hidden_states") is None:
            blind.add(path)  # such attentions read the image twice

    with ExitStack() as stack:
        for path, module in denoiser_of(pipe).named_modules():
            if _KEY.fullmatch(path) and not is_single(path):
                attention = denoiser_of(pipe).get_submodule(path.rpartition(".")[0])
                stack.callback(attention.register_forward_pre_hook(partial(note, path=path), with_kwargs=True).remove)
            if _KEY.fullmatch(path) or path in _POOLED:
                stack.callback(module.register_forward_hook(lambda *_, path=path: order.append(path)).remove)
        run()
    called = [path for path in dict.fromkeys(order) if path not in blind]
    pooled = [path for path in called if path in _POOLED]
    return TextModules(tuple(path for path in called if path not in _POOLED), pooled[0] if pooled else None, component_of(pipe))


def columns(denoiser: Any, values: str, reader: str, neurons: Sequence[int]) -> list[int]:
    """The columns of a reader's weight that read value neurons; several heads of queries may share one of values."""
    if is_single(values):
        return list(neurons)  # what reads a feed-forward stands behind
    attention, width = denoiser.get_submodule(values.rpartition(".")[0]), denoiser.get_submodule(values).out_features
    every = torch.arange(width).view(-1, 1, attention.inner_dim // attention.heads)
    read = every.expand(-1, denoiser.get_submodule(reader).in_features // width, -1).flatten()
    return torch.isin(read, torch.tensor(list(neurons))).nonzero().flatten().tolist()


def basis(vectors: Float[Tensor, "vector channel"]) -> Float[Tensor, "direction channel"]:
    """Orthonormal directions that span vectors."""
    _, sizes, directions = torch.linalg.svd(vectors, full_matrices=False)
    result: Float[Tensor, "direction channel"] = directions[sizes > _ROUNDING * sizes[0].clamp_min(torch.finfo(torch.float64).tiny)]
    return result


def is_single(path: str) -> bool:
    """Whether a module reads text and image by one set of weights."""
    return path.startswith(_SINGLE)


def module_of(site: str) -> str:
    """The module's path of a site's."""
    return site.partition(".")[2]


@contextmanager
def watched(denoiser: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What each module first reads and gives inside the block, by path; zero at tokens that a mask hides from attention.

    Where text and image are one sequence, it is that of the text's tokens. Of a video whose frames are rows of their own, one row is seen.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    masks: list[Tensor] = []
    tokens: list[int] = []
    frames = [1]

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frames[0] = len(kwargs["encoder_hidden_states"]) // len(args[0]) if args else 1
        masks[:] = [mask[..., None] for name in _MASKS if (mask := kwargs.get(name)) is not None]
        tokens[:] = [text.shape[1] for name in ("encoder_hidden_states",) if (text := kwargs.get(name)) is not None]

    def shown(tensor: Tensor) -> Tensor:
        mask = next((each for each in masks if each.shape[:2] == tensor.shape[:2]), None)
        return tensor.clone() if mask is None else tensor * mask.to(tensor)

    def keep(path: str, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if path not in seen:
            read, given = (each[:, : tokens[0]] if is_single(path) else each for each in (args[0], output))
            seen[path] = (shown(read)[:: frames[0]], shown(given)[:: frames[0]])

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for path in paths:
            stack.callback(denoiser.get_submodule(path).register_forward_hook(partial(keep, path)).remove)
        yield seen


def always(_step: int) -> bool:
    """Every step."""
    return True


@contextmanager
def replaced(denoiser: nn.Module, outputs: dict[str, Tensor], steps: Callable[[int], bool] = always) -> Iterator[None]:
    """Gives modules other outputs inside the block, at some of the denoiser's calls."""
    calls = [-1]

    def tick(*_: Any) -> None:
        calls[0] += 1

    def give(output: Tensor, _module: nn.Module, _args: tuple[Any, ...], own: Tensor) -> Tensor:
        if not steps(calls[0]):
            return own
        given = output.repeat_interleave(len(own) // len(output), dim=0)
        return torch.cat([given, own[:, given.shape[1] :]], dim=1)  # behind the text may be the image

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(tick).remove)
        for path, output in outputs.items():
            stack.callback(denoiser.get_submodule(path).register_forward_hook(partial(give, output)).remove)
        yield


@torch.no_grad()
def final(pipe: Any, prompts: Sequence[str], generation: Any) -> Tensor:
    """The final latents (or pixels) of prompts, each from the noise of its number."""
    kind = "latent" if getattr(pipe, "vae", None) is not None else "pt"
    options = dict(generation)
    if "image" in options:
        options["image"] = options["image"].expand(len(prompts), -1, -1, -1)
    noise = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    result: Tensor = pipe(list(prompts), generator=noise, output_type=kind, **options)[0]
    return result

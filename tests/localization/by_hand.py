"""Single predictions by other means: plain torch hooks on one call of the denoiser, autograd, and attention written out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: By module, what to make of what it puts out.
Changes = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@dataclass
class Attention:
    """What one layer attends to: weights [head, place, token] and values [head, token, channel], and what reads its heads.

    On DeepFloyd the tokens are the text's, and then the image's own.
    """

    weights: Tensor
    values: Tensor
    reader: Tensor
    bias: Tensor

    def said(self, tokens: Any = slice(None)) -> Tensor:
        """[place, channel]: what these tokens add to the layer's output; the bias is nobody's."""
        heads = self.weights[..., tokens] @ self.values[:, tokens]
        return heads.transpose(0, 1).flatten(1) @ self.reader.T


class Prediction:
    """The denoiser's call at one step of a run of the first prompt, towards what it predicts for the second."""

    def __init__(self, pipe: Any, pair: Sequence[str], seed: int, step: int, generation: Mapping[str, Any]) -> None:
        self.unet = pipe.unet
        own, other = ([made["encoder_hidden_states"] for made in self._made(pipe, prompt, seed, generation)] for prompt in pair)
        self.inputs = self._made(pipe, pair[0], seed, generation)[step]
        self.own, self.other = own[0], other[0]
        self.layers: list[nn.Module] = []
        self.given: list[tuple[Tensor, Tensor]] = []
        self._attend(self.other)
        others = [text for _, text in self.given]
        self._attend(self.own)
        self.given_other = [(hidden, text) for (hidden, _), text in zip(self.given, others, strict=True)]
        with torch.no_grad():
            self.source, goal = (self.call(context) for context in (self.own, self.other))
        self.way = goal - self.source

    def call(self, context: Tensor, changes: Changes | None = None) -> Tensor:
        """What the denoiser predicts where it reads a prompt and what modules put out is changed."""
        with ExitStack() as stack:
            for module, change in (changes or {}).items():
                stack.callback(module.register_forward_hook(lambda _m, _args, out, change=change: change(out)).remove)
            return noise(self.unet, self.unet(**(self.inputs | {"encoder_hidden_states": context}))[0].double())

    def share(self, predicted: Tensor) -> Tensor:
        return ((predicted - self.source) * self.way).sum() / self.way.square().sum()

    @property
    def texts(self) -> list[nn.Module]:
        """The modules that make keys and values of the text; each layer's two stand side by side."""
        names = ("add_k_proj", "add_v_proj") if is_added(self.layers[0]) else ("to_k", "to_v")
        return [getattr(layer, name) for layer in self.layers for name in names]

    def attention(self, layer: int, *, other: bool = False) -> Attention:
        """A layer's attention as it is, or with the other prompt in place of its own."""
        return attend(self.layers[layer], *(self.given_other if other else self.given)[layer])

    def outputs(self, modules: Sequence[nn.Module], context: Tensor) -> list[Tensor]:
        """What modules put out where the denoiser reads a prompt."""
        kept: dict[nn.Module, Tensor] = {}
        handles = [module.register_forward_hook(lambda here, _args, out: kept.update({here: out})) for module in modules]
        with torch.no_grad():
            self.call(context)
        for handle in handles:
            handle.remove()
        return [kept[module] for module in modules]

    def slopes(self, modules: Sequence[nn.Module], changes: Changes | None = None) -> list[Tensor]:
        """The share's gradients at what modules put out, after these changes."""
        zeros: dict[nn.Module, Tensor] = {}

        def marked(module: nn.Module) -> Callable[[Tensor], Tensor]:
            def add(out: Tensor) -> Tensor:
                out = (changes or {}).get(module, lambda same: same)(out)
                zeros[module] = torch.zeros_like(out, requires_grad=True)
                return out + zeros[module]

            return add

        share = self.share(self.call(self.own, {**(changes or {}), **{module: marked(module) for module in modules}}))
        return list(torch.autograd.grad(share, [zeros[module] for module in modules]))

    @torch.no_grad()
    def _attend(self, context: Tensor) -> None:
        """Keeps all cross-attentions in the order in which they run, with the hidden states and the text that each is given."""
        self.layers, self.given = [], []

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.layers.append(module)
            self.given.append((args[0], kwargs["encoder_hidden_states"]))

        crossing = [module for path, module in self.unet.named_modules() if path.endswith(".attn2") or is_added(module)]
        handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in crossing]
        self.call(context)
        for handle in handles:
            handle.remove()

    @staticmethod
    def _made(pipe: Any, prompt: str, seed: int, generation: Mapping[str, Any]) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        names = ("sample", "timestep")
        handle = pipe.unet.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append(dict(zip(names, args, strict=False)) | kwargs), with_kwargs=True
        )
        kind = "latent" if getattr(pipe, "vae", None) is not None else "pt"
        pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type=kind, **generation)
        handle.remove()
        return [each | {"return_dict": False} for each in seen]


def noise(unet: Any, predicted: Tensor) -> Tensor:
    """Without the three channels of variance that DeepFloyd predicts beside its three of noise."""
    return predicted[:, :3] if unet.config.out_channels == 6 else predicted


def is_added(module: nn.Module) -> bool:
    """Whether it is an attention of DeepFloyd's, in which the text stands beside the image."""
    return getattr(module, "add_k_proj", None) is not None


@torch.no_grad()
def attend(module: nn.Module, hidden: Tensor, text: Tensor) -> Attention:
    """softmax(Q K' / sqrt(d)) and V, of one row."""
    if is_added(module):
        places = module.group_norm(hidden.flatten(2)).transpose(1, 2)
        text = module.norm_encoder_hidden_states(text)
        keys = torch.cat([module.add_k_proj(text), module.to_k(places)], dim=1)
        values = torch.cat([module.add_v_proj(text), module.to_v(places)], dim=1)
    else:
        places, keys, values = hidden, module.to_k(text), module.to_v(text)
    queries, keys, values = (
        each[0].double().unflatten(1, (module.heads, -1)).transpose(0, 1) for each in (module.to_q(places), keys, values)
    )
    weights = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
    return Attention(weights, values, *(each.detach().double() for each in (module.to_out[0].weight, module.to_out[0].bias)))

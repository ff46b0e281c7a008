"""Corrupt a prompt's subject inside the text encoder, and restore single states of the clean run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput, SiteNeverRan
from neuroscope.pipeline.graph import HookGraph


class Corruption:
    """Gaussian noise on the token embeddings of a subject, in the pipeline's own text encoder.

    Args:
        graph: the model.
        subject: the word or words that the noise is added to.
        noise: its standard deviation, in units of that of the subject's own token embeddings.
        **options: by which prompts are encoded; see `graph.text.conditions`.
    """

    def __init__(self, graph: HookGraph, subject: str, noise: float, **options: Any) -> None:
        self._graph = graph
        self._subject = subject
        self._noise = noise
        self._options = options
        self._states: dict[str, list[Tensor]] = {}

    @property
    def layer_count(self) -> int:
        """The number of layers of all text encoders together."""
        return len(self._layers)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises InvalidInput for a prompt that does not hold the subject."""
        for prompt, kinds in zip(prompts, self._kinds(prompts), strict=True):
            if not (kinds == "last subject").any():
                raise InvalidInput(f"the prompt {prompt!r} does not hold {self._subject!r}, so nothing in it can be corrupted; reword it")

    def parts(self, prompts: Sequence[str]) -> list[str]:
        """The kinds of tokens in these prompts, in order of appearance; see `kinds_of_tokens`."""
        return list(dict.fromkeys(self._kinds(prompts).flatten().tolist()))

    @torch.no_grad()
    def encode(self, prompt: str, seed: int, restored: tuple[int, str] | None = None) -> Conditions:
        """The conditions of a corrupted prompt, pooled text included.

        Args:
            prompt: it holds the subject.
            seed: of the noise.
            restored: the number of a text encoder layer and a kind of token; there, the clean output is put back.

        Raises:
            SiteNeverRan: a text encoder does not use its token embedding.
        """
        with ExitStack() as stack:
            if restored is not None:
                number, kind = restored
                encoder, layer = self._layers[number]
                put = self._put_back(self._clean(prompt)[number], partial(self._chosen, encoder, prompt, (kind,)))
                handle = layer.register_forward_hook(put, prepend=True)  # before transformers' own, which collect states
                stack.callback(handle.remove)
            ran: list[nn.Module] = []
            for encoder, embedding in self._embeddings:
                chosen = partial(self._chosen, encoder, prompt, ("subject", "last subject"))
                stack.callback(embedding.register_forward_hook(partial(self._corrupt, chosen, seed, ran)).remove)
            conditions = self._graph.text.conditions([prompt], **self._options)
        if len(ran) < len(self._graph.text.encoders):
            raise SiteNeverRan("a text encoder's token embedding never ran, so nothing was corrupted; use another component than its noise")
        return conditions

    def _corrupt(
        self,
        subject: Callable[[int], Tensor],
        seed: int,
        ran: list[nn.Module],
        module: nn.Module,
        _args: tuple[Any, ...],
        output: Tensor,
    ) -> Tensor:
        """A forward hook of the token embedding, whose output is [prompt, token, channel]: adds noise at the subject's tokens."""
        ran.append(module)
        noise = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(seed)).to(output)
        chosen = subject(output.shape[1]).to(output.device)
        spread = output[:, chosen].float().std().to(output.dtype)
        return torch.where(chosen[:, None], output + self._noise * spread * noise, output)

    def _clean(self, prompt: str) -> list[Tensor]:
        """The output of each text encoder layer for the clean prompt; computed once a prompt."""
        if prompt not in self._states:
            kept: list[Tensor] = []
            with ExitStack() as stack:
                for _, layer in self._layers:
                    stack.callback(layer.register_forward_hook(lambda _module, _args, output: kept.append(_state(output).clone())).remove)
                self._graph.text.encode([prompt])
            self._states[prompt] = kept
        return self._states[prompt]

    def _kinds(self, prompts: Sequence[str]) -> np.ndarray:
        return self._graph.text.kinds_of_tokens(prompts, self._subject)

    def _chosen(self, encoder: int, prompt: str, kinds: Sequence[str], length: int) -> Bool[Tensor, "token"]:
        """Which of so many tokens that an encoder reads are of these kinds."""
        return torch.from_numpy(np.isin(self._graph.text.kinds_in_encoder(encoder, prompt, self._subject, length), list(kinds)))

    @staticmethod
    def _put_back(clean: Tensor, chosen: Callable[[int], Tensor]) -> Any:
        """A forward hook that puts the clean state back at the chosen tokens."""
        places = chosen(clean.shape[1])

        def put(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            state = torch.where(places[:, None].to(clean.device), clean, _state(output))
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return put

    @cached_property
    def _embeddings(self) -> Sequence[tuple[int, nn.Module]]:
        """With their encoder's number the modules that may be token embeddings.

        An encoder may hold several with one shape and run another than it names.
        """
        named = [(number, encoder, encoder.get_input_embeddings().weight) for number, encoder in enumerate(self._graph.text.encoders)]
        return [
            (number, module)
            for number, encoder, weight in named
            for module in encoder.modules()
            if isinstance(module, nn.Embedding) and module.weight.shape == weight.shape
        ]

    @cached_property
    def _layers(self) -> Sequence[tuple[int, nn.Module]]:
        """All encoders' layers, each with its encoder's number."""
        return [(number, layer) for number, encoder in enumerate(self._graph.text.encoders) for layer in _stack(encoder)]


def _stack(encoder: nn.Module) -> nn.ModuleList:
    """An encoder's layers: its longest list of modules, whatever its name."""
    return max((module for module in encoder.modules() if isinstance(module, nn.ModuleList)), key=len)


def _state(output: Any) -> Tensor:
    """The hidden state in a layer's output."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state

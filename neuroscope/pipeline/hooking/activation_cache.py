"""Raw activations, kept by a hook."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.conditions import Rows
from neuroscope.core.errors import InvalidInput, counted
from neuroscope.core.intervention import Call
from neuroscope.core.sites import Sites


class ActivationCache:
    """Raw activations, kept in the order of the calls.

    `captured[path]` is a tensor [call, row, token, neuron], of pooled text [call, row, neuron]; `select` picks steps,
    guidance rows and tokens.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self._kept: dict[str, list[tuple[Call, Tensor]]] = {path: [] for path in sites.paths}

    def __repr__(self) -> str:
        return f"ActivationCache({counted(len(self.sites), 'site')}, {counted(max(map(len, self._kept.values()), default=0), 'call')} each)"

    def __getitem__(self, path: str) -> Float[Tensor, "call row *token neuron"]:
        return self.select(path)

    def select(
        self, path: str, *, step: int | None = None, rows: Rows = "all", token: int | slice = slice(None)
    ) -> Float[Tensor, "call row *token neuron"]:
        """The activations of one site: of one step or all, of all rows or the prompt's, of some tokens or all.

        Raises:
            UnknownSite: the site was not captured.
            InvalidInput: nothing was captured at that step.
        """
        self.sites.at([path])
        parts = [tensor[call.rows(rows, len(tensor))] for call, tensor in self._kept[path] if step is None or call.step == step]
        chosen = [each for each in parts if len(each)] or parts  # a call may be of the negative prompt alone
        if not chosen:
            steps = sorted({call.step for call, _ in self._kept[path] if call.step is not None})
            raise InvalidInput(f"nothing was captured at step {step}; captured steps: {steps}")
        if len({each.shape for each in chosen}) > 1:
            sizes = ", ".join(sorted({str(tuple(each.shape)) for each in chosen}))
            raise InvalidInput(f"the runs differ in size: {sizes}; capture each in a block of its own")
        every = torch.stack(chosen)
        if every.ndim < 4:  # pooled text has no tokens
            return every
        return every[:, :, token if isinstance(token, slice) else slice(token, token + 1 or None)]

    def keep(self, activation: Tensor, call: Call) -> None:
        """The hook: stores a copy on the CPU and changes nothing."""
        self._kept[call.site.path].append((call, activation.detach().to("cpu", copy=True)))

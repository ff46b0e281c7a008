"""Running a model on the meta device for its shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: Functions whose result has the shape of their first argument.
_KEEPING: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.dropout,
        functional.gelu,
        functional.group_norm,
        functional.layer_norm,
        functional.relu,
        functional.rms_norm,
        functional.silu,
        functional.softmax,
        Tensor.softmax,
        torch.softmax,
    }
)


class ShapesAlone(TorchFunctionMode):
    """Inside, the commonest functions give a tensor of the right shape and nothing else.

    On the meta device PyTorch derives their shapes in Python, from what they would compute, which takes most of a run's time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What PyTorch calls in a function's place."""
        if args and func in _KEEPING:
            return args[0]
        if func is functional.linear and len(args) > 1 and args[0].shape[-1] == args[1].shape[-1]:
            return args[0].new_empty((*args[0].shape[:-1], args[1].shape[0]))
        if func is functional.scaled_dot_product_attention and len(args) > 2 and args[0].shape[:-2] == args[2].shape[:-2]:
            return args[0].new_empty((*args[0].shape[:-1], args[2].shape[-1]))
        return func(*args, **(kwargs or {}))

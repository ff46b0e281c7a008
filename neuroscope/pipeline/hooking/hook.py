"""A hook for one module, which copies of the module do not carry on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """A hook for one module: on copies and in pickles of the module that are made while it is there, it does nothing."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def __call__(self, *given: Any) -> Any:
        """What PyTorch calls."""
        return self._act(*given)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Hook:
        return Hook(_do_nothing)

    def __reduce__(self) -> tuple[type[Hook], tuple[Callable[..., None]]]:
        return Hook, (_do_nothing,)


def take_off_hooks(root: nn.Module) -> None:
    """Removes all of these hooks from a copied module and those inside it."""
    for module in root.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Hook)]:
                del hooks[key]


def _do_nothing(*_given: Any) -> None:
    """What the hooks of copies do."""

"""Hooks that a user has put on a pipeline: they may watch while a ledger is written, and may change nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neuroscope.core.errors import InvalidInput
from neuroscope.generation.content import is_of_library, qualified_name
from neuroscope.pipeline.hooking.hook import Hook


@contextmanager
def only_watching(pipe: Any) -> Iterator[None]:
    """A block in which the hooks that are on the pipeline's modules already are errors as soon as they change anything.

    A hook of a library is as its module's class and state say; what any other does is in no ledger's key.

    Raises:
        InvalidInput: inside, a hook changed what its module is given or puts out.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    with ExitStack() as stack:
        for path, module in ((f"{name}.{path}", each) for name, part in parts.items() for path, each in part.named_modules()):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number, hook in list(hooks.items()):
                    if not _is_library(hook):
                        stack.callback(_replace(hooks, number, functools.partial(_watched, path, hook)))
        yield


def _is_library(hook: Any) -> bool:
    return not isinstance(hook, Hook) and is_of_library(hook if hasattr(hook, "__qualname__") else type(hook))


def _replace(hooks: dict[int, Any], number: int, watched: Callable[..., Any]) -> Callable[[], None]:
    """Puts a hook in another's place; what it returns puts the other back, if it is still there."""
    hook, hooks[number] = hooks[number], watched

    def restore() -> None:
        if hooks.get(number) is watched:
            hooks[number] = hook

    return restore


def _watched(path: str, hook: Callable[..., Any], _module: nn.Module, *given: Any) -> None:
    """Calls a hook and looks whether it changed anything."""
    tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor) and not each.is_inference()]
    before = [each._version for each in tensors]
    if hook(_module, *given) is not None or before != [each._version for each in tensors]:
        name = qualified_name(hook if hasattr(hook, "__qualname__") else type(hook))
        raise InvalidInput(
            f"{path} carries a hook, {name}, that changes the run and whose content has no stable form, so that a ledger cannot tell it "
            "from another one; leave out `output` (--resume), or remove the hook first (leave the block that set it)"
        )

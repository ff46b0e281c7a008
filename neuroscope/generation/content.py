"""Content: values as hashes that are equal where the values are, in every process, and different where they are not.

Nothing is hashed by its address or by an abbreviated text. What has no stable form is refused by its name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from neuroscope.core.errors import InvalidInput

#: What a kind of value that is no plain data becomes: from the walk, where the value stands, and the value.
Otherwise = Callable[["Walk", str, Any], bytes]
#: Packages whose classes and functions are known by their names; of all others the code is part of the content.
_LIBRARIES = {"accelerate", "diffusers", "neuroscope", "numpy", "optimum", "peft", "PIL", "scipy", "tokenizers", "torch", "transformers"}
_LIBRARIES |= {"beartype", "jaxtyping"}
_LIBRARIES |= set(sys.stdlib_module_names) - {"__main__"}
#: Values that are written out rather than hashed, by their exact types: models hold tens of thousands of them.
_LITERALS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _value: b"=None",
    bool: lambda value: b"=True" if value else b"=False",
    int: lambda value: b"=%x" % value if value >= 0 else b"=-%x" % -value,
    float: lambda value: b"=" + value.hex().encode(),
    str: lambda value: b"'" + value.encode("utf-8", "surrogatepass"),
}
_BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, PurePath, range, slice)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType, functools.partial)


def content(name: str, value: Any, otherwise: Otherwise | None = None) -> str:
    """The hash of a value's content, 64 hexadecimal digits.

    Args:
        name: how a refusal calls the value, such as "image".
        value: plain data: numbers, text, tensors, arrays, images, and lists, mappings, sets and dataclasses of these.
        otherwise: what to do with other objects; by default they are refused.

    Raises:
        InvalidInput: a part of the value has no stable form.
    """
    try:
        return framed(Walk(otherwise or refuse).of(name, value)).hex()
    except RecursionError as error:
        raise InvalidInput(f"{name} is nested too deeply for a ledger; leave out `output` (--resume), or give it less deep") from error


def refuse(_walk: Walk, where: str, value: Any) -> bytes:
    """Raises InvalidInput: the value has no stable form."""
    raise InvalidInput(
        f"{where} holds a {type(value).__qualname__}, whose content has no stable form, so that a ledger cannot tell it from another one; "
        "leave out `output` (--resume), or give plain data: numbers, text, tensors, arrays or images"
    )


def framed(*parts: str | bytes) -> bytes:
    """The hash of parts, told apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()


class Walk:
    """One walk through a value.

    Args:
        otherwise: what a value becomes that is no plain data.
    """

    def __init__(self, otherwise: Otherwise) -> None:
        self._otherwise = otherwise
        self._open: list[int] = []
        self._names: dict[int, str] = {}

    def name(self, value: Any) -> None:
        """Gives a value a number, so that others that refer to it do not walk through it."""
        self._names[id(value)] = f"number {len(self._names)}"

    def named(self, value: Any) -> str:
        """The number of a value that has one, else nothing."""
        return self._names.get(id(value), "")

    def of(self, where: str, value: Any) -> bytes:
        """The hash of a value, which a refusal names by where it stands."""
        if (literal := _LITERALS.get(type(value))) is not None:
            return literal(value)
        if (scalar := _scalar(value)) is not None:
            return scalar
        if not self.enter(value):
            return framed("cycle", str(len(self._open) - self._open.index(id(value))))
        found = self._of(where, value)
        self.leave()
        return found

    def enter(self, value: Any) -> bool:
        """Notes that the walk is inside a value; False where it already is, as in one that holds itself."""
        inside = id(value) in self._open
        if not inside:
            self._open.append(id(value))
        return not inside

    def leave(self) -> None:
        """Notes that the walk has left the value that it entered last."""
        self._open.pop()

    def each(self, where: str, values: Any) -> list[bytes]:
        """The hashes of several values, in order."""
        return [self.of(f"{where}[{number}]", value) for number, value in enumerate(values)]

    def _of(self, where: str, value: Any) -> bytes:
        kind = qualified_name(type(value))
        if isinstance(value, Tensor):
            return tensor_content(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return framed("array", value.dtype.str, str(value.shape), np.ascontiguousarray(value).tobytes())
        if isinstance(value, Image):
            return self._image(where, value)
        if isinstance(value, torch.Generator):
            return framed("generator", str(value.device), value.get_state().numpy().tobytes())
        if isinstance(value, Mapping):
            return framed("mapping", *sorted(self._pairs(where, value)))
        if isinstance(value, set | frozenset):
            return framed("set", *sorted(self.each(where, value)))
        if isinstance(value, list | tuple | np.ndarray):
            return framed("sequence", kind, *self.each(where, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = (framed(each.name, self.of(f"{where}.{each.name}", getattr(value, each.name))) for each in dataclasses.fields(value))
            return framed("dataclass", class_content(self, type(value)), *parts)
        return self._otherwise(self, where, value)

    def _pairs(self, where: str, values: Mapping[Any, Any]) -> Iterator[bytes]:
        for key, each in values.items():
            named = self.of(where, key)
            literal = _LITERALS.get(type(each))
            yield b"%d %b%b" % (len(named), named, literal(each) if literal else self.of(f"{where}[{key!r:.80}]", each))

    def _image(self, where: str, image: Image) -> bytes:
        palette = self.of(where, [image.getpalette(), image.info.get("transparency")]) if image.mode in ("P", "PA") else b""
        return framed("image", image.mode, str(image.size), image.tobytes(), palette)


def _scalar(value: Any) -> bytes | None:
    """The hash of a number, a text or a name; None for anything else."""
    kind = qualified_name(type(value))
    if isinstance(value, enum.Enum):
        return framed("enum", kind, value.name)
    if isinstance(value, np.generic):
        return framed("scalar", value.dtype.str, value.tobytes())
    if isinstance(value, float):
        return framed(kind, value.hex())
    if isinstance(value, complex):
        return framed(kind, value.real.hex(), value.imag.hex())
    if isinstance(value, int):
        return framed(kind, hex(value))
    if isinstance(value, str | bytes | bytearray):
        return framed(kind, bytes(value) if isinstance(value, bytearray) else value)
    return framed(kind, str(value)) if isinstance(value, _BY_TEXT) else None


def tensor_content(values: Tensor) -> bytes:
    """The hash of a tensor's dtype, shape and bytes, wherever it is; of packed ones of what they pack."""
    dtype = str(values.dtype)
    if values.device.type == "meta":
        return framed("tensor", dtype, str(tuple(values.shape)), "meta")
    return framed("tensor", dtype, str(tuple(values.shape)), *(_hash_of(part) for part in packed(values)))


def packed(values: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, or what a quantised or a sparse one packs."""
    if isinstance(values, Tensor) and hasattr(values, "__tensor_flatten__"):
        values = [getattr(values, each) for each in values.__tensor_flatten__()[0]]
    if isinstance(values, list | tuple):
        yield from (part for each in values for part in packed(each))
    elif isinstance(values, Tensor):
        plain = values.detach().as_subclass(Tensor)
        if plain.is_quantized:
            plain = plain.dequantize()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        yield plain


def _hash_of(values: Tensor) -> bytes:
    flat = values.resolve_conj().resolve_neg().cpu().contiguous().flatten()
    raw: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return framed(str(values.dtype), str(tuple(values.shape)), hashlib.sha256(raw).digest())


def qualified_name(thing: Any) -> str:
    """A class's or function's module and name."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def is_of_library(thing: Any) -> bool:
    """Whether a class or function is known by its name: of Python, of this package or of those that it stands on."""
    thing = thing.func if isinstance(thing, functools.partial) else getattr(thing, "__func__", thing)
    inside = getattr(thing, "__globals__", {})  # where it was written, whatever name a decorator gave it
    name = inside.get("__name__", None) or getattr(thing, "__module__", None) or "builtins"
    return str(name).partition(".")[0] in _LIBRARIES


def class_content(walk: Walk, kind: type) -> bytes:
    """The hash of a class: its name and, unless a library's, the code of its methods and its own values."""
    found = [qualified_name(kind)]
    for each in _written_by_users(kind):
        if walk.enter(each):
            members = sorted(vars(each).items())
            found += [f"{name} {_member(walk, f'{kind.__qualname__}.{name}', value).hex()}" for name, value in members]
            walk.leave()
    return framed("class", *found)


@functools.lru_cache(maxsize=1024)
def _written_by_users(kind: type) -> tuple[type, ...]:
    """A class and its bases, without those of libraries."""
    return tuple(each for each in inspect.getmro(kind) if not is_of_library(each))


def _member(walk: Walk, where: str, value: Any) -> bytes:
    """What a class holds under one name."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        return framed("property", *(_member(walk, where, each) for each in (value.fget, value.fset, value.fdel)))
    if isinstance(value, functools.cached_property):
        value = value.func
    if isinstance(value, FUNCTIONS):
        return function_content(walk, where, value)
    return walk.of(where, value) if type(value) in _LITERALS or _scalar(value) is not None else framed(type(value).__qualname__)


def function_content(walk: Walk, where: str, function: Any) -> bytes:
    """The hash of a function: its name and, unless a library's, its code, defaults and what it encloses."""
    if isinstance(function, functools.partial):
        inner = function_content(walk, where, function.func)
        return framed("partial", inner, *walk.each(where, function.args), walk.of(where, function.keywords))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or is_of_library(function):
        return framed("function", qualified_name(function))
    given = walk.of(where, [function.__defaults__, function.__kwdefaults__])
    return framed("function", function.__qualname__, _code(walk, where, code), given, *_enclosed(walk, where, function))


def _enclosed(walk: Walk, where: str, function: types.FunctionType) -> Iterator[bytes]:
    """What a function takes from the function in which it was made."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(value, type):
            yield class_content(walk, value)
        elif isinstance(value, FUNCTIONS):
            yield function_content(walk, where, value)
        else:
            yield walk.of(f"{where} ({name})", value)


def _code(walk: Walk, where: str, code: types.CodeType) -> bytes:
    constants = [_code(walk, where, each) if isinstance(each, types.CodeType) else walk.of(where, each) for each in code.co_consts]
    return framed("code", code.co_code, *code.co_names, "|", *constants)

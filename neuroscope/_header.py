"""Headers of saved files: strict JSON, validated against the types of its fields, and a checksum over it and the tensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from neuroscope._errors import InvalidFile, closest

#: The version of the files that are written: a newer major cannot be read, a newer minor only adds fields.
FORMAT = "2.0"
_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII)
_LARGEST = 2**64

Header = TypeVar("Header")


@dataclass(frozen=True)
class Envelope:
    """What every header says.

    Attributes:
        kind: what the file holds, such as "neuron-mask".
        format: the version of the file, "major.minor".
        packages: by name, the versions of the packages that wrote it.
        sha256: the checksum, in hexadecimal digits.
    """

    kind: str
    format: str
    packages: dict[str, str]
    sha256: str


def canonical(header: Mapping[str, Any]) -> bytes:
    """The one way to write a header: keys sorted, no spaces, UTF-8.

    Raises:
        ValueError: a number is not finite, or a text is not Unicode.
    """
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal digits, of the header without its own checksum and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(canonical({name: value for name, value in header.items() if name != "sha256"}))
    for name, tensor in sorted(tensors.items()):
        digest.update(canonical({"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)}))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def parse(text: str) -> dict[str, Any]:
    """A header as it is written.

    Raises:
        InvalidFile: it is no JSON object, a key stands in it twice, a number is not finite or too large, or it is nested too deeply.
    """
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_moderate)
        canonical(header)
    except RecursionError:
        raise InvalidFile("it is nested too deeply") from None
    except ValueError as error:
        raise InvalidFile(str(error)) from error
    if not isinstance(header, dict):
        raise InvalidFile(f"it is a {type(header).__name__}, not an object")
    return header


def check_format(header: Mapping[str, Any]) -> bool:
    """Whether the header's format is a newer minor one than this version's.

    Raises:
        InvalidFile: the format is the first one, which had no checksum; a newer major one; or no version.
    """
    given = header.get("format")
    if type(given) is int and given == 1:
        raise InvalidFile("has format 1, which has no checksum; make it again with this version")
    version = _VERSION.fullmatch(given) if isinstance(given, str) else None
    if version is None or version[1] in ("0", "1"):
        raise InvalidFile(f"has the format {str(given)[:40]!r}, which is none such as {FORMAT!r}; make or copy it again")
    (major, minor), (ours, newest) = (map(int, version.groups()), map(int, FORMAT.split(".")))
    if major > ours:
        raise InvalidFile(f"has format {given}, and this version reads up to {FORMAT}; install a newer neuroscope")
    return minor > newest


def typed(fields: Mapping[str, Any], kind: type[Header], newer: bool) -> tuple[Header, list[str]]:
    """A header's fields as the dataclass that declares them, and the fields that only a newer format knows.

    Raises:
        InvalidFile: a field has another type than declared, is missing, or is unknown although the format is not newer.
    """
    try:
        header = msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidFile(str(error)) from error
    known = asdict(header)  # type: ignore[call-overload]
    if missing := list(_beyond(known, fields, "$")):
        raise InvalidFile(f"the field {missing[0][0]} is missing")
    unknown = list(_beyond(fields, known, "$"))
    if unknown and not newer:
        raise InvalidFile(f"the field {unknown[0][0]} is unknown{unknown[0][1]}")
    return header, [path for path, _ in unknown]


def _beyond(wider: Any, narrower: Any, path: str) -> Iterator[tuple[str, str]]:
    """The paths of fields that the first has and the second lacks, at any depth, each with a hint at a near name."""
    if isinstance(wider, Mapping) and isinstance(narrower, Mapping):
        for name, value in wider.items():
            if name in narrower:
                yield from _beyond(value, narrower[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}", closest(name, narrower)
    elif isinstance(wider, list | tuple) and isinstance(narrower, list | tuple):
        for number, (one, other) in enumerate(zip(wider, narrower, strict=True)):
            yield from _beyond(one, other, f"{path}[{number}]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no finite number")


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError(f"it holds {digits[:40]}, which is no finite number")
    return float(digits)


def _moderate(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= _LARGEST:
        raise ValueError(f"it holds a whole number of {len(digits)} digits; at most 64 bits are allowed")
    return int(digits)

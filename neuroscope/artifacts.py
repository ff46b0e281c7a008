"""Saved results: one safetensors file each, with a JSON header that says what it is and for which model.

Nothing is pickled. A file is written beside its place and renamed, so that a failure leaves nothing half-written.
"""

from __future__ import annotations

import abc
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from neuroscope._errors import ForeignFile, InvalidFile, closest
from neuroscope._files import write_beside

FORMAT = 1
_KEY = "neuroscope"
_PACKAGES = ("neuroscope", "torch", "diffusers", "transformers")


class Artifact(abc.ABC):
    """A result that can be saved and loaded: tensors and a header of plain JSON values."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, and the header without kind, format and package versions."""

    @classmethod
    @abc.abstractmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Self:
        """The inverse of `to_parts`."""


Loaded = TypeVar("Loaded", bound=Artifact)


def save(artifact: Artifact, path: str | os.PathLike[str]) -> Path:
    """Writes a recording, scores, neurons or an intervention to one safetensors file.

    Raises:
        InvalidFile: the file cannot be written (no such folder, no permission, a full disk); nothing is left behind.
    """
    tensors, header = artifact.to_parts()
    header = {"kind": artifact.kind, "format": FORMAT, "packages": _versions()} | header
    data = to_bytes(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, {_KEY: json.dumps(header)}
    )
    return write_beside(Path(path), data)


@overload
def load(path: str | os.PathLike[str]) -> Artifact: ...


@overload
def load(path: str | os.PathLike[str], kind: type[Loaded]) -> Loaded: ...


def load(path: str | os.PathLike[str], kind: type[Artifact] = Artifact) -> Artifact:
    """Reads what `save` wrote; the class comes from the file's header.

    Args:
        path: the file.
        kind: the class that is expected; by default any.

    Raises:
        InvalidFile: there is no such file, it is damaged, not neuroscope's, of a newer format, or of another kind.
    """
    tensors, header = _read(Path(path))
    kinds = _kinds(Artifact)
    found = kinds.get(header["kind"])
    if found is None:
        raise InvalidFile(f"{path} holds a {header['kind']!r}, which this version cannot read{closest(header['kind'], kinds)}")
    if not issubclass(found, kind):
        raise InvalidFile(
            f"{path} holds {_article(found.kind)}, but {_article(getattr(kind, 'kind', kind.__name__.lower()))} is needed here"
        )
    try:
        return found.from_parts(tensors, header)
    except KeyError as error:
        raise InvalidFile(f"{path} lacks {error}, which {_article(found.kind)} needs; make or copy it again") from error


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a saved file; raises InvalidFile like `load`."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        near = closest(path.name, [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise InvalidFile(f"there is no file {path}{near}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # aligned, or sums would be rounded otherwise
    except (SafetensorError, OSError) as error:
        raise InvalidFile(f"{path} is damaged or not a safetensors file ({error}); make or copy it again") from error
    if _KEY not in metadata:
        raise ForeignFile(f"{path} is a safetensors file that neuroscope did not write; it has no {_KEY!r} header")
    try:
        header = json.loads(metadata[_KEY])
        _kind, newer = header["kind"], header["format"] > FORMAT
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidFile(f"{path} has a damaged {_KEY!r} header ({error}); make or copy it again") from error
    if newer:
        raise InvalidFile(f"{path} has format {header['format']}, and this version reads up to {FORMAT}; install a newer neuroscope")
    return tensors, header


def _kinds(base: type[Artifact]) -> dict[str, type[Artifact]]:
    found: dict[str, type[Artifact]] = {}
    for each in base.__subclasses__():
        found |= _kinds(each)
        if "kind" in vars(each):
            found[each.kind] = each
    return found


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}

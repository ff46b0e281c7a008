"""Saved results: one safetensors file each, with a JSON header that says what it is and for which model.

Nothing is pickled. A file is written beside its place and renamed, so that a failure leaves nothing half-written. Its header has a
checksum over all of it, which every reading compares.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, overload

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from neuroscope.core.checks import instance
from neuroscope.core.distribution import version
from neuroscope.core.errors import ForeignFile, InvalidFile, InvalidInput, NeuroscopeError, closest
from neuroscope.core.sharing import hub
from neuroscope.core.sharing.pushing import Pushable
from neuroscope.core.storage import (
    ADDED_FIELDS,
    FORMAT,
    RENAMED_FIELDS,
    Envelope,
    canonical,
    check_format,
    checksum,
    parse,
    typed,
    with_present_names,
    write_beside,
)


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: the model's family and name, the concept, the repr of the method, and the concept's contrast."""

    family: str = ""
    model: str = ""
    concept: str = ""
    method: str = ""
    contrast: str = ""


__all__ = ["ADDED_FIELDS", "FLOATS", "RENAMED_FIELDS", "Artifact", "load", "part", "read_header", "save", "take", "write_beside"]

#: The number formats of tensors that are taken from a model as they are.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_KEY = "neuroscope"
_PACKAGES = ("torch", "diffusers", "transformers")
_ENVELOPE = {each.name for each in fields(Envelope)}
_AGAIN = "make or copy it again"


class Artifact(Pushable):
    """A result that can be saved and loaded: tensors and a header of plain JSON values.

    Attributes:
        kind: what the file's header calls it.
        header_type: a frozen dataclass with a field for each of the header's, whose types a loaded header must have.
    """

    kind: ClassVar[str]
    header_type: ClassVar[type]

    @abc.abstractmethod
    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, and the header without kind, format, package versions and checksum."""

    @classmethod
    @abc.abstractmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: Any) -> Self:
        """The inverse of `to_parts`.

        Args:
            tensors: by name; each must be taken with `take`, or the file is refused for holding it.
            header: an object of `header_type`, whose fields have the declared types.
        """

    def to_file(self) -> tuple[bytes, dict[str, Any]]:
        """The bytes of its file, and the header without the checksum; raises InvalidInput for what no file can hold."""
        tensors, header = self.to_parts()
        tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        header = {"kind": self.kind, "format": FORMAT, "packages": _versions()} | header
        try:
            text = canonical(header | {"sha256": checksum(header, tensors)}).decode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the {self.kind} holds what no file can: {error}; nothing was saved") from error
        return to_bytes(tensors, {_KEY: text}), header


Loaded = TypeVar("Loaded", bound=Artifact)


def save(artifact: Artifact, path: str | os.PathLike[str]) -> Path:
    """Writes a recording, scores, neurons or an intervention to one safetensors file.

    Raises:
        InvalidInput: this is nothing that can be saved.
        InvalidFile: the file cannot be written (no such folder, no permission, a full disk); nothing is left behind.
    """
    instance("what is saved", artifact, Artifact, "neuroscope.NeuronMask(scores.top(50))")
    return write_beside(_path(path), artifact.to_file()[0])


@overload
def load(path: str | os.PathLike[str], *, revision: str | None = None) -> Artifact: ...


@overload
def load(path: str | os.PathLike[str], kind: type[Loaded], *, revision: str | None = None) -> Loaded: ...


def load(path: str | os.PathLike[str], kind: type[Artifact] = Artifact, *, revision: str | None = None) -> Artifact:
    """Reads what `save` or `push_to_hub` wrote; the class comes from the file's header.

    Args:
        path: the file, or `owner/name` of a repository of the Hugging Face hub. A path that exists is read; only `owner/name`
            without a suffix asks the hub, and the log says so at level INFO.
        kind: the class that is expected; by default any.
        revision: of a repository a branch, a tag or a commit; by default the newest.

    Raises:
        InvalidInput: `kind` is no class of results, or a revision of a file.
        InvalidFile: there is no such file or repository, the hub cannot be reached, or the file is damaged, not neuroscope's, of an
            older or a newer format, or of another kind.
    """
    if not isinstance(kind, type) or not issubclass(kind, Artifact):
        raise InvalidInput(f"kind={kind!r} is no class of results; give one such as ns.NeuronMask, or leave it out")
    file = _read(_here(path, revision))
    found = file.kind
    if found is None:
        named = file.header["kind"]
        raise InvalidFile(f"{path} holds a {named!r}, which this version cannot read{closest(named, _kinds(Artifact.__subclasses__()))}")
    if not issubclass(found, kind):
        raise InvalidFile(
            f"{path} holds {_article(found.kind)}, but {_article(getattr(kind, 'kind', kind.__name__.lower()))} is needed here"
        )
    tensors = _Tensors(file.tensors)
    with _damaged(path):
        made = found.from_parts(tensors, file.typed)
        if tensors.left and not file.newer:
            raise InvalidFile(f"the tensor {tensors.left[0]!r} is unknown{closest(tensors.left[0], tensors.taken)}")
    if unknown := [*file.unknown, *tensors.left]:
        warnings.warn(
            f"{path} has the newer format {file.header['format']}; what this version does not know in it is left out: {', '.join(unknown)}",
            stacklevel=2,
        )
    return made


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a saved file, or of a repository of the hub; raises InvalidFile like `load`."""
    return _read(_here(path)).header


def take(tensors: Mapping[str, Tensor], name: str, *dtypes: torch.dtype) -> Tensor:
    """A tensor of a file.

    Raises:
        InvalidFile: it is not there, or has none of these number formats.
    """
    if name not in tensors:
        raise InvalidFile(f"the tensor {name!r} is missing")
    tensor = tensors[name]
    if isinstance(tensors, _Tensors):
        tensors.mark(name)
    if tensor.dtype not in dtypes:
        raise InvalidFile(f"the tensor {name!r} holds {tensor.dtype}, not {' or '.join(map(str, dtypes))}")
    return tensor


def part(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Those of a file's tensors whose names begin so, by the rest of their names; `take` works on them too."""
    return tensors.part(prefix) if isinstance(tensors, _Tensors) else _without(prefix, tensors)


class _Tensors(Mapping[str, Tensor]):
    """A file's tensors, or a part of them, which remember which of them were taken."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", taken: set[str] | None = None) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self.taken: set[str] = set() if taken is None else taken

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def mark(self, name: str) -> None:
        self.taken.add(self._prefix + name)

    def part(self, prefix: str) -> _Tensors:
        return _Tensors(_without(prefix, self._tensors), self._prefix + prefix, self.taken)

    @property
    def left(self) -> list[str]:
        return sorted(self._tensors.keys() - self.taken)


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class _File:
    """A file whose checksum is right.

    Attributes:
        tensors: by name.
        header: as it is written.
        kind: the class that it is of; None where this version has none of this name.
        typed: an object of the class's `header_type`; None without a class.
        newer: whether its format is a newer minor one.
        unknown: the fields that only the newer format knows.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    kind: type[Artifact] | None
    typed: Any
    newer: bool
    unknown: list[str]


def _read(path: Path) -> _File:
    text, tensors = _open(path)
    with _damaged(path, f"a damaged {_KEY!r} header"):
        header = parse(text)
    try:
        newer = check_format(header)
    except InvalidFile as error:
        raise InvalidFile(f"{path} {error}") from None
    with _damaged(path, f"a damaged {_KEY!r} header"):
        envelope, _ = typed({name: header[name] for name in _ENVELOPE & header.keys()}, Envelope, newer)
    with _damaged(path):
        if checksum(header, tensors) != envelope.sha256:
            raise InvalidFile("its checksum is not that of its contents")
    header = with_present_names(header)
    kind = _kind(envelope.kind)
    if kind is None:
        return _File(tensors, header, None, None, newer, [])
    with _damaged(path, f"a damaged {_KEY!r} header"):
        known: Any
        known, unknown = typed({name: value for name, value in header.items() if name not in _ENVELOPE}, kind.header_type, newer)
    return _File(tensors, header, kind, known, newer, unknown)


def _open(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The header's text and the tensors of a safetensors file."""
    _expect_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # aligned, or sums would be rounded otherwise
    except Exception as error:  # whatever a hostile file provokes in the reader
        raise InvalidFile(f"{path} is damaged or not a safetensors file ({error}); {_AGAIN}") from error
    if _KEY not in metadata:
        raise ForeignFile(f"{path} is a safetensors file that neuroscope did not write; it has no {_KEY!r} header")
    return metadata[_KEY], tensors


def _expect_file(path: Path) -> None:
    try:
        if path.is_file():
            return
        near = closest(path.name, [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else [])
    except (OSError, ValueError) as error:
        raise InvalidFile(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    raise InvalidFile(f"there is no file {path}{near}")


@contextlib.contextmanager
def _damaged(path: str | os.PathLike[str], what: str = "damaged contents") -> Iterator[None]:
    """Whatever a damaged file provokes, as the one clear error that names the file."""
    try:
        yield
    except (NeuroscopeError, ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, NeuroscopeError) else f"{type(error).__name__}: {error}"
        raise InvalidFile(f"{path} has {what} ({said}); {_AGAIN}") from error


def _here(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The file itself, or what the hub has of a repository."""
    if hub.is_repository(_path(path)):
        return hub.download(os.fspath(path), revision)
    if revision is not None:
        raise InvalidInput(f"revision={revision!r} would be ignored: {path} is no repository of the hub; leave it out, or give owner/name")
    return _path(path)


def _path(path: str | os.PathLike[str]) -> Path:
    return Path(instance("path", path, (str, os.PathLike), '"mask.safetensors"'))


def _kind(name: str) -> type[Artifact] | None:
    """The class that a header names; imports the homes of the public names, one after the other, until it is there."""
    for home in ("neuroscope", *importlib.import_module("neuroscope").HOMES):
        importlib.import_module(home)
        if found := _kinds(Artifact.__subclasses__()).get(name):
            return found
    return None


def _kinds(classes: Iterable[type[Artifact]]) -> dict[str, type[Artifact]]:
    found: dict[str, type[Artifact]] = {}
    for each in classes:
        found |= _kinds(each.__subclasses__())
        if "kind" in vars(each):
            found[each.kind] = each
    return found


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _versions() -> dict[str, str]:
    return {"neuroscope": version()} | {package: importlib.metadata.version(package) for package in _PACKAGES}

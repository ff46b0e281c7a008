"""Files: written whole or not at all, and headers that are validated and have a checksum.

Data go to a temporary file with a random name in the target's folder, which is then renamed. A writer holds its temporary file
under a lock that dies with its process, so a temporary file that can be locked belongs to a killed run. Headers are strict JSON,
validated against the types of their fields, with a checksum over header and tensors.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import msgspec
import torch
from torch import Tensor

from neuroscope.core.errors import InvalidFile, closest, counted

#: Header fields of earlier files by their paths, and what they are called now.
RENAMED_FIELDS = MappingProxyType(
    {
        "effects.probes": "patches",
        "cost.rows": "nfe",
        "confidence.alone": "measured_layers",
        "confidence.pictures": "measured_images",
        "confidence.of": "total_images",
        "confidence.screened": "screened_images",
        "report.bystanders": "unrelated",
    }
)
#: Header fields by their paths that earlier files lack, and what makes the value that they would have.
ADDED_FIELDS = MappingProxyType({"provenance.contrast": str, "report.neighbours": dict})
_PARTIAL = re.compile(r"\.neuroscope-[0-9a-f]{32}\.partial")
_KINDS = {
    stat.S_IFDIR: "Is a directory",
    stat.S_IFIFO: "it is a named pipe, not a regular file",
    stat.S_IFSOCK: "it is a socket, not a regular file",
    stat.S_IFBLK: "it is a device, not a regular file",
    stat.S_IFCHR: "it is a device, not a regular file",
}


def write_beside(path: Path, data: bytes) -> Path:
    """Writes `data` to a temporary file in the same folder and renames it to `path`.

    A symbolic link is written through to what it points at. A file that is replaced keeps its mode. Of two writers of one path
    the later one wins; the file is always one writer's whole data. Temporary files of killed writers in the folder are removed.

    Args:
        path: the file.
        data: all that it will hold.

    Returns:
        The path as given.

    Raises:
        InvalidFile: the target is no regular file, or the operating system refuses; nothing is left behind.
    """
    with _in_words(path):
        target, former = _target(path)
        _remove_leftovers(target.parent)
        with _temporary(target.parent) as (descriptor, temporary):
            if former is not None:
                os.fchmod(descriptor, stat.S_IMODE(former.st_mode))
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(target)
    return path


def check_writable(path: Path) -> Path:
    """`path`, if a file can be written there: called before any work is done. No existing file is touched.

    Raises:
        InvalidFile: there is no such folder, nothing can be written in it, or the target is no regular file.
    """
    with _in_words(path):
        if not path.is_symlink() and not path.parent.is_dir():
            raise InvalidFile(f"{path} cannot be written: there is no folder {path.parent}; make it or choose another")
        if path.is_dir():
            raise InvalidFile(f"{path} is a folder; give a file's name with --output")
        target, _ = _target(path)
        with _temporary(target.parent):
            pass
    return path


def check_writable_folder(folder: Path) -> Path:
    """`folder`, made if it is not there, if files can be written in it. No existing file is touched.

    Raises:
        InvalidFile: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder):
            pass
    except (OSError, ValueError) as error:
        raise InvalidFile(f"the folder {folder} cannot be written: {_reason(error)}; choose another with --output-dir") from error
    return folder


def refuse_overwriting_inputs(output: Path, inputs: Iterable[Path]) -> None:
    """Raises InvalidFile where the output is one of the inputs, under whatever name."""
    for each in inputs:
        if _same(output, each):
            said = f"{output}" if each == output else f"{output} is the same file as {each}, which"
            raise InvalidFile(f"{said} is an input and would be overwritten by the output; give the output another name")


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.realpath(first) == os.path.realpath(second) or first.samefile(second)
    except (OSError, ValueError):  # one of them is not there, or can have no file
        return False


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What the operating system refuses, as the one clear error."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidFile):
            raise
        raise InvalidFile(f"{path} cannot be written: {_reason(error)}; nothing was saved. Choose another place") from error


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file that is meant, behind symbolic links, and its status if it is there.

    Raises:
        InvalidFile: it is no regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        former = target.stat()
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(former.st_mode):
        reason = _KINDS.get(stat.S_IFMT(former.st_mode), "it is not a regular file")
        raise InvalidFile(f"{path} cannot be written: {reason}; nothing was saved. Choose another place")
    return target, former


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[tuple[int, Path]]:
    """A new file under a random name in `folder`, locked; it is removed at the end unless it was renamed."""
    descriptor, path = _locked(folder)
    try:
        yield descriptor, path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(folder: Path) -> tuple[int, Path]:
    while True:
        path = folder / f".neuroscope-{secrets.token_hex(16)}.partial"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: then nothing there is taken for a leftover either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # taken for a leftover between its making and its lock


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files whose writer is dead; those of living writers, which hold the lock, stay."""
    with os.scandir(folder) as entries:
        found = [Path(each.path) for each in entries if _PARTIAL.fullmatch(each.name) and each.is_file(follow_symlinks=False)]
    for path in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


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


def with_present_names(header: dict[str, Any]) -> dict[str, Any]:
    """A header whose fields are called as they are now, with those that earlier files lack."""
    renamed = dict(header)
    for path, name in RENAMED_FIELDS.items():
        parent, _, former = path.partition(".")
        fields_of = renamed.get(parent)
        if isinstance(fields_of, dict) and former in fields_of and name not in fields_of:
            renamed[parent] = {name if each == former else each: value for each, value in fields_of.items()}
    for path, value in ADDED_FIELDS.items():
        parent, _, name = path.partition(".")
        if isinstance(renamed.get(parent), dict):
            renamed[parent] = {name: value()} | renamed[parent]
    return renamed


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
    known = asdict(cast("Any", header))
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
        raise ValueError(f"it holds a whole number of {counted(len(digits), 'digit')}; at most 64 bits are allowed")
    return int(digits)

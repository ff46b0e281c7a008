"""Locations: folders on any file system that fsspec knows, in which files are written whole or not at all."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.core.storage import write_beside

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_HIDDEN = "."


def is_url(where: str) -> bool:
    """Whether a text is a URL such as "s3://bucket/run", not a path."""
    return bool(_URL.match(where))


class Location:
    """A folder, by its path or URL. It need not exist before something is written.

    Args:
        where: a path, or a URL of a file system that fsspec knows, such as "s3://bucket/run" or "memory://run".

    Raises:
        InvalidInput: no such file system is known, or the package that it needs is not installed.
    """

    def __init__(self, where: str) -> None:
        self.name = where
        try:
            self._files, self._folder = _opened(where)
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"{where} cannot be opened: {error}; install what it needs, or choose another place") from error
        self._is_local = "file" in _protocols(self._files)

    def __str__(self) -> str:
        return self.name

    def names(self) -> list[str]:
        """The names of all files in it that are not hidden, sorted; none where it does not exist.

        Raises:
            InvalidFile: it cannot be read.
        """
        try:
            self._files.invalidate_cache(self._folder)
            found = self._files.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InvalidFile(f"{self} cannot be read: {_reason(error)}; choose another place") from error
        return sorted(name for each in found if not (name := each.rstrip("/").rpartition("/")[2]).startswith(_HIDDEN))

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none of this name.
            InvalidFile: it cannot be read.
        """
        try:
            raw: bytes = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise InvalidFile(f"{self._path(name)} cannot be read: {_reason(error)}") from error
        return raw

    def write(self, name: str, data: bytes) -> None:
        """Writes a new file: to a temporary name, then renamed.

        Raises:
            InvalidFile: the place is read-only or full, or cannot be written for another reason; nothing is left of the file.
        """
        try:
            self._files.makedirs(self._folder, exist_ok=True)
            if self._is_local:
                write_beside(Path(self._path(name)), data)
            else:
                self._write_remote(name, data)
        except (OSError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, InvalidFile) and isinstance(error.__cause__, OSError) else error
            said = f"{self} cannot be written: {_reason(cause)}; what is finished is kept: run again once it can be, or in another place"
            raise InvalidFile(said) from error

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; what cannot be removed stays."""
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                self._files.rm_file(self._path(name))

    def _write_remote(self, name: str, data: bytes) -> None:
        temporary = self._path(f"{_HIDDEN}{name}.{secrets.token_hex(8)}.partial")
        try:
            self._files.pipe_file(temporary, data)
            self._files.mv(temporary, self._path(name))
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                self._files.rm_file(temporary)
            raise

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"


def _opened(where: str) -> tuple[Any, str]:
    """The file system, and the folder in it."""
    if not is_url(where):
        return fsspec.filesystem("file"), str(Path(where).expanduser())
    files, folder = fsspec.url_to_fs(where)
    return files, folder


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)

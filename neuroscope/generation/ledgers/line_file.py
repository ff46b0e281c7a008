"""The ledger in one JSON-lines file.

One process writes it at a time. Each line is a row with a checksum; lines of several ledgers may be joined in one file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.core.results.quality import Cost
from neuroscope.generation.ledgers.ledger import Ledger
from neuroscope.generation.ledgers.rows import Lines, Scores, cost_line, score_line

_OPEN: set[tuple[int, int]] = set()
_OPENING = threading.Lock()


class LineFile(Ledger):
    """Finished rows, appended to a file as they come; what runs need and where they fail is not kept.

    Inside its block no other process writes the file. One that wants to waits, and then finds what was written.

    Args:
        path: the file.

    Raises:
        InvalidFile: the file cannot be written or read, or is no ledger.
        InvalidInput: this process writes it already.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: int | None = None
        self._lines = Lines()
        self._part = uuid.uuid4().hex
        self._part_at = -1

    def __enter__(self) -> Self:
        try:
            self._file = _locked(self._path)
        except OSError as error:
            raise InvalidFile(f"{self._path} cannot be written: {error.strerror}; choose another place") from error
        try:
            self._read(self._path, self._file)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with _OPENING:
                _OPEN.discard(_identity(self._file))
            os.close(self._file)
            self._file = None

    @property
    def is_kept(self) -> bool:
        """True: rows are written to the file."""
        return True

    def _keep(self, rows: Mapping[str, Scores]) -> None:
        lines = (score_line(key, scores, self._lines.attempt(key), key in self.halved) for key, scores in rows.items())
        self._append(b"".join(lines))

    def spend(self, run: str, cost: Cost) -> None:
        """See `Ledger.spend`; it is written at once, in the place of what was written before."""
        if self._file is None:
            return
        at = self._part_at if self._part_at >= 0 else os.lseek(self._file, 0, os.SEEK_END)
        self._write(cost_line(run, self._part, cost), at)
        self._part_at = at

    def spent(self, run: str) -> Cost:
        """See `Ledger.spent`."""
        return sum((cost for part, cost in self._lines.parts.get(run, {}).items() if part != self._part), Cost())

    def _append(self, lines: bytes) -> None:
        if self._file is not None and lines:
            self._write(lines, os.lseek(self._file, 0, os.SEEK_END))

    def _write(self, lines: bytes, at: int) -> None:
        try:
            while lines and self._file is not None:
                written = os.pwrite(self._file, lines, at)
                lines, at = lines[written:], at + written
        except OSError as error:
            raise InvalidFile(
                f"{self._path} cannot be written: {error.strerror}; finished images are kept, so run again with room"
            ) from error

    def _read(self, path: Path, file: int) -> None:
        self._lines = Lines.of(path.read_bytes())
        if not self._lines.is_ledger:
            raise InvalidFile(f"{path} is no ledger, none of its lines is a row of one, and it stays as it is; choose another place")
        if self._lines.torn:
            os.ftruncate(file, self._lines.length)
        elif self._lines.unended:
            self._append(b"\n")
        self.rows, self.halved = dict(self._lines.scores), set(self._lines.halved)
        if said := self._lines.complaint(path):
            warnings.warn(said, UserWarning, stacklevel=5)


def _locked(path: Path) -> int:
    """The file, made if it is missing, and locked; waits for another process that has locked it."""
    _check_regular(path)
    waiting = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _claim(path, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    warnings.warn(f"another process writes {path}; waiting until it is done", UserWarning, stacklevel=6)
                waiting = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException as error:
            if not isinstance(error, InvalidInput):
                _release(file)
            os.close(file)
            raise
        _release(file)  # the file was replaced meanwhile
        os.close(file)


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
        raise InvalidFile(f"{path} is no regular file, so no rows can be kept there; choose another place")


def _claim(path: Path, file: int) -> None:
    """Notes that this process writes a file: a second block of its own would wait for ever."""
    with _OPENING:
        if _identity(file) in _OPEN:
            raise InvalidInput(f"this process writes {path} already, in another call; wait for it, or choose another file")
        _OPEN.add(_identity(file))


def _release(file: int) -> None:
    with _OPENING:
        _OPEN.discard(_identity(file))


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino

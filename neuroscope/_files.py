"""Writing files: whole or not at all, never over something that is no file, with nothing left behind.

Data go to a temporary file with a random name in the target's folder, which is then renamed. A writer holds its temporary file
under a lock that dies with its process, so a temporary file that can be locked belongs to a killed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from neuroscope._errors import InvalidFile

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

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from neuroscope import InvalidFile
from neuroscope.core import storage
from neuroscope.core.storage import check_writable, check_writable_folder, refuse_overwriting_inputs, write_beside
from neuroscope.report import plots

LEFTOVER = f".neuroscope-{'0' * 32}.partial"


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@contextlib.contextmanager
def no_file(folder: Path, kind: str):
    """Something under the name `x` that is no regular file."""
    path = folder / "x"
    if kind == "folder":
        path.mkdir()
        yield "Is a directory"
    elif kind == "pipe":
        os.mkfifo(path)
        yield "it is a named pipe, not a regular file"
    elif kind == "device":
        path.symlink_to("/dev/null")
        yield "it is a device, not a regular file"
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(str(path))
            yield "it is a socket, not a regular file"
    else:
        path.symlink_to(path)
        yield "levels of symbolic links"


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket", "loop"])
@pytest.mark.parametrize("write", [lambda path: write_beside(path, b"data"), check_writable], ids=["write", "check"])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, kind, write):
    with no_file(tmp_path, kind) as said:
        before = (tmp_path / "x").lstat()
        with pytest.raises(InvalidFile, match="is a folder; give a file's name" if kind == "folder" and write is check_writable else said):
            write(tmp_path / "x")
        after = (tmp_path / "x").lstat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == ["x"]
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "x"
    path.touch()
    path.chmod(mode)
    write_beside(path, b"data")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"data"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_files_get(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_beside(tmp_path / "x", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    if there:
        target.write_bytes(b"before")
    link.symlink_to(target)
    assert write_beside(check_writable(link), b"data") == link
    assert link.is_symlink()
    assert target.read_bytes() == b"data"
    assert names(target.parent) == ["target"]


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_and_the_users_files_stay(tmp_path):
    living = tmp_path / f".neuroscope-{'1' * 32}.partial"
    users = [".neuroscope", ".neuroscope-notes.partial", f"{LEFTOVER}.txt", f"x{LEFTOVER}", ".x.1.partial"]
    linked = tmp_path / f".neuroscope-{'2' * 32}.partial"
    for name in (LEFTOVER, living.name, *users):
        (tmp_path / name).write_text("notes")
    linked.symlink_to(tmp_path / ".neuroscope")
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_beside(tmp_path / "x", b"data")
    assert names(tmp_path) == sorted(["x", living.name, linked.name, *users])
    assert all((tmp_path / name).read_text() == "notes" for name in users)


def test_a_killed_writer_leaves_the_former_file_and_its_leftover_goes(tmp_path):
    """The writer stops before its rename, when everything is on the disk, and is killed there."""
    (tmp_path / "x").write_bytes(b"before")
    script = """if True:
        import pathlib, sys, time
        from neuroscope.core import storage
        pathlib.Path.replace = lambda self, target: print("waiting", flush=True) or time.sleep(60)
        storage.write_beside(pathlib.Path(sys.argv[1]), b"half")
    """
    # the package itself imports torch, which takes seconds: a module of that name with the same folder will do
    light = f"import sys, types; package = types.ModuleType('neuroscope'); package.__path__ = [{str(package())!r}]\n"
    light += "sys.modules['neuroscope'] = package\n"
    with subprocess.Popen([sys.executable, "-c", light + script, tmp_path / "x"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        assert len(names(tmp_path)) == 2
        write_beside(tmp_path / "other", b"data")
        assert len(names(tmp_path)) == 3, "the living writer's file stays"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "x").read_bytes() == b"before"
    write_beside(tmp_path / "other", b"data")
    assert names(tmp_path) == ["other", "x"]


def package() -> Path:
    return Path(storage.__file__).parent.parent


def test_writers_of_one_path_do_not_collide(tmp_path):
    """Threads stand for processes: each has its own open file, and locks belong to open files."""
    path, errors = tmp_path / "x", []
    data = [bytes([number]) * 100_000 for number in range(4)]

    def write(each: bytes) -> None:
        try:
            for _ in range(25):
                check_writable(path)
                write_beside(path, each)
                assert path.read_bytes() in data
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(each,)) for each in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, " ", "-o", "x\ny"])
def test_names_as_long_and_odd_as_files_may_have_work(tmp_path, name):
    assert write_beside(check_writable(tmp_path / name), b"data").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("name", "said"),
    [("a" * 256, "File name too long"), ("a" * 5000, "File name too long"), ("a\0b", "null byte"), ("\ud800", "surrogate")],
)
@pytest.mark.parametrize("write", [lambda path: write_beside(path, b"data"), check_writable], ids=["write", "check"])
def test_names_that_no_file_can_have_are_refused_in_one_line(tmp_path, name, said, write):
    with pytest.raises(InvalidFile, match=f"cannot be written: .*{said}.*; nothing was saved. Choose another place$"):
        write(tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "fchmod", "open", "scandir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_every_refusal_of_the_system_is_one_clear_line(tmp_path, monkeypatch, call, number):
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(InvalidFile, match=f"x cannot be written: {os.strerror(number)}; nothing was saved. Choose another place$"):
            write_beside(path, b"data")
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["x"]


def test_a_full_device_is_refused_in_one_line(tmp_path, monkeypatch):
    """A write that the kernel refuses: /dev/full stands where the temporary file would."""
    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *mode: opened("/dev/full", os.O_RDWR) if "partial" in str(path) else opened(path, flags, *mode)
    )
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    with pytest.raises(InvalidFile, match="x cannot be written: No space left on device; nothing was saved"):
        write_beside(tmp_path / "x", b"data")
    assert names(tmp_path) == []


def test_a_missing_folder_is_named_before_any_work(tmp_path):
    with pytest.raises(InvalidFile, match="there is no folder .*none; make it or choose another"):
        check_writable(tmp_path / "none" / "x")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidFile, match="there is no folder .*file; make it or choose another"):
        check_writable(tmp_path / "file" / "x")
    with pytest.raises(InvalidFile, match="the folder .*file cannot be written: File exists; choose another with --output-dir"):
        check_writable_folder(tmp_path / "file")
    assert check_writable_folder(tmp_path / "new" / "inner").is_dir()
    assert names(tmp_path / "new" / "inner") == []


def test_a_check_touches_no_file(tmp_path):
    path, hidden = tmp_path / "x", tmp_path / ".neuroscope"
    for each in (path, hidden):
        each.write_text("notes")
    before = [each.stat().st_mtime_ns for each in (path, hidden)]
    time.sleep(0.01)
    check_writable(path)
    check_writable_folder(tmp_path)
    assert [each.stat().st_mtime_ns for each in (path, hidden)] == before
    assert names(tmp_path) == [".neuroscope", "x"]


@pytest.mark.parametrize("other", ["x", "folder/../x", "link", "hard", "new", "folder/../new"])
def test_an_output_that_is_an_input_is_refused(tmp_path, other):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x").touch()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "hard").hardlink_to(tmp_path / "x")
    output = tmp_path / ("new" if "new" in other else "x")
    with pytest.raises(InvalidFile, match="is an input and would be overwritten by the output; give the output another name"):
        refuse_overwriting_inputs(output, [tmp_path / "unrelated", tmp_path / other])
    refuse_overwriting_inputs(tmp_path / "unrelated", [tmp_path / "x", tmp_path / other])


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")])
def test_a_figure_is_written_in_the_format_of_its_suffix(tmp_path, suffix, begins):
    written = plots.write(plt.subplots(figsize=(1, 1))[1], tmp_path / f"x{suffix}")
    assert written.read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["x.xyz", "x", "x.jpg", ".png", "x.png.gz"])
def test_another_suffix_of_a_figure_is_refused(tmp_path, name):
    ax = plt.subplots(figsize=(1, 1))[1]
    with pytest.raises(InvalidFile, match="a figure is written as .png, .pdf, .svg"):
        plots.write(ax, tmp_path / name)
    plt.close("all")
    assert names(tmp_path) == []

"""Segments: the immutable files of a ledger. Each is a header and lines of rows, under checksums."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from neuroscope.core.errors import InvalidFile, counted
from neuroscope.generation.ledgers.rows import Lines
from neuroscope.generation.ledgers.run_conditions import RunConditions

#: How the names of segments end.
SUFFIX = ".rows"
_FORMAT = 1


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The first line of a segment.

    Attributes:
        ledger: the version of the format.
        conditions: under which the rows were made; None where that is not known, as of rows of a JSON-lines file.
        is_merged: whether `merge` wrote it.
        sha256: of the lines.
        check: of the other fields.
    """

    ledger: int
    conditions: RunConditions | None
    is_merged: bool
    sha256: str
    check: str = ""

    def checked(self) -> str:
        """The checksum that the header should hold."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, check=""))).hexdigest()


_HEADERS = msgspec.json.Decoder(_Header)


@dataclass(frozen=True)
class Segment:
    """What a file of a ledger holds.

    Attributes:
        conditions: under which its rows were made; None where that is not known.
        lines: what its lines say.
        raw: its lines.
        is_merged: whether `merge` wrote it.
        complaint: what is wrong with it; nothing where all is sound.
    """

    conditions: RunConditions | None
    lines: Lines
    raw: bytes
    is_merged: bool = False
    complaint: str = ""


def encode(raw: bytes, conditions: RunConditions | None, *, is_merged: bool = False) -> bytes:
    """The bytes of a segment with these lines."""
    header = _Header(_FORMAT, conditions, is_merged, hashlib.sha256(raw).hexdigest())
    return msgspec.json.encode(msgspec.structs.replace(header, check=header.checked())) + b"\n" + raw


def decode(name: str, data: bytes) -> Segment:
    """What a segment holds. Of a damaged one, the rows whose own checksum holds, if its header does.

    Args:
        name: how a refusal calls it.
        data: its bytes.

    Raises:
        InvalidFile: a newer version of neuroscope wrote it.
    """
    first, _, raw = data.partition(b"\n")
    header = _header(name, first)
    if header is None:
        return Segment(None, Lines(), b"", complaint=f"the header of {name} is damaged, so that none of its rows is used")
    lines = Lines.of(raw)
    complaint = ""
    if hashlib.sha256(raw).hexdigest() != header.sha256:
        complaint = f"{name} is damaged; used of it: {counted(len(lines.scores), 'row')} whose own checksum holds"
    return Segment(header.conditions, lines, raw, header.is_merged, complaint)


def _header(name: str, line: bytes) -> _Header | None:
    """The header, or None where it is damaged."""
    try:
        header = _HEADERS.decode(line)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        _refuse_newer(name, line)
        return None
    if header.check != header.checked():
        return None
    _refuse_newer(name, line)
    return header


def _refuse_newer(name: str, line: bytes) -> None:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return
    version = found.get("ledger") if isinstance(found, dict) else None
    if type(version) is int and version > _FORMAT:
        raise InvalidFile(f"{name} has the ledger format {version}, and this version reads {_FORMAT}; install a newer neuroscope")

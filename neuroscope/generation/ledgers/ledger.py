"""The ledger of a long run: finished rows' scores by a key of all that they depend on, so that a stopped run goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from neuroscope.core.results.quality import Cost
from neuroscope.generation.ledgers.rows import Scores


class Ledger:
    """The finished rows' scores by key; this one keeps them in memory alone. A block, in which rows are added.

    Attributes:
        rows: by key, each row's scores by the metrics' names.
        halved: the keys of rows that were made in groups which did not fit the memory and were halved, so that they are rounded otherwise.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Scores] = {}
        self.halved: set[str] = set()
        self._used: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @property
    def is_kept(self) -> bool:
        """Whether the rows are written somewhere."""
        return False

    @property
    def keeps_plans(self) -> bool:
        """Whether it keeps what runs need, where they fail and what they cost, beside rows."""
        return False

    @property
    def is_merged(self) -> bool:
        """Whether `merge` has written rows of it."""
        return False

    def known(self, key: str, names: Collection[str]) -> Scores | None:
        """A row's scores, if the ledger holds one for just these metrics."""
        found = self.rows.get(key)
        if found is None or found.keys() != set(names):
            return None
        self._used.add(key)
        return found

    @property
    def halved_count(self) -> int:
        """How many of the rows that were found or added since it was opened were made in groups that were halved."""
        return len(self.halved & self._used)

    def add(self, rows: Mapping[str, Scores], *, halved: bool = False) -> None:
        """Keeps finished rows; raises InvalidFile where they cannot be written.

        Args:
            rows: by key the scores of each.
            halved: whether they were made in a group that did not fit the memory and was halved.
        """
        new = {key: dict(scores) for key, scores in rows.items() if self.known(key, scores) is None}
        self.rows |= new
        self._used |= new.keys()
        self.halved = self.halved | new.keys() if halved else self.halved - new.keys()
        self._keep(new)

    def plan(self, run: str, title: str, images: Mapping[str, str], todo: Collection[str]) -> None:
        """Notes which images a run needs, before any of them is made.

        Args:
            run: the hash of what was asked for.
            title: what was asked for, for readers.
            images: by key what each shows, for readers.
            todo: the keys of those that are to be made now.

        Raises:
            InvalidFile: it cannot be written.
            InvalidInput: rows of this run were made under other conditions.
        """

    def fail(self, keys: Sequence[str], error: BaseException) -> None:
        """Notes that images could not be made, and why."""

    def spend(self, run: str, cost: Cost) -> None:
        """Keeps what this part of a run has cost so far, in place of what was kept of it before."""

    def spent(self, run: str) -> Cost:
        """What earlier parts of a run have cost."""
        return Cost()

    def _keep(self, rows: Mapping[str, Scores]) -> None:
        """Writes rows that are new."""

"""Files and arguments as commands open and check them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuroscope.core.errors import InvalidFile, InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from neuroscope.core.concepts import Concept
    from neuroscope.core.intervention import Intervention


def open_interventions(paths: list[Path] | None) -> list[Intervention]:
    """The saved interventions of `--apply`, in order."""
    from neuroscope.core import artifacts
    from neuroscope.core.intervention import Intervention

    return [artifacts.load(path, cast("Any", Intervention)) for path in paths or []]


def generation_options(image: Path | None = None, **options: Any) -> dict[str, Any]:
    """The options that were given, for the pipeline's call.

    Raises:
        InvalidInput: a height without a width, or the other way round.
        InvalidFile: an image that cannot be read.
    """
    from neuroscope.generation.arguments import check_values

    given = {name: value for name, value in options.items() if value is not None}
    check_values(given)
    return given if image is None else given | {"image": open_image(image)}


def open_image(path: Path) -> Image:
    """An image file, in RGB; raises InvalidFile for one that cannot be read."""
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise InvalidFile(f"{path} is no image that can be read: {error}; give a PNG or JPEG file with --image") from error


def counted_seeds(first: int, count: int) -> tuple[int, ...]:
    """Seeds from the first on; raises InvalidInput for one that no generator takes."""
    from neuroscope.core import checks

    return checks.seeds(range(first, first + count))


def pairs_of(concept: Concept, pairs: int | None) -> dict[str, int]:
    """The option `pairs` of a verb, where it was given.

    Raises:
        InvalidInput: the concept has fewer.
    """
    if pairs is None:
        return {}
    if pairs > len(concept.present):
        raise InvalidInput(f"--pairs={pairs} are more than the concept's {len(concept.present)}; give at most these")
    return {"pairs": pairs}


def pairs_of_each(concepts: Sequence[Concept], pairs: int | None) -> dict[str, int]:
    """See `pairs_of`; raises InvalidInput also where another of the concepts has fewer."""
    found = [pairs_of(concept, pairs) for concept in concepts]
    return found[0]


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Checks that an output can be written and is none of the inputs, before any work is done.

    Raises:
        InvalidFile: it cannot be, or it would overwrite an input.
    """
    from neuroscope.core import storage

    if output is not None:
        storage.refuse_overwriting_inputs(output, [each for each in inputs if each is not None])
        storage.check_writable(output)


def check_ledger(where: str | None, *inputs: Path | None) -> None:
    """Checks a ledger that is one file, as `check_output`; one in a folder or at a URL is checked when it is opened."""
    from neuroscope.generation.ledgers.opening import is_line_file

    if where is not None and is_line_file(where):
        check_output(Path(where), *inputs)


def local_path(where: str | None) -> Path | None:
    """The path of a ledger; None of one at a URL."""
    from neuroscope.generation.ledgers.location import is_url

    return None if where is None or is_url(where) else Path(where)


def restored_url(where: str) -> str:
    """A URL that was read as a path, which leaves one slash of two; paths stay as they are."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", where)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell files apart: each one's stem, with as much of its path in front as is needed."""
    parts = [Path(os.path.realpath(path)).with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):  # files that differ in their suffixes alone
        parts = [Path(os.path.realpath(path)).parts for path in paths]
    return ["/".join(_shortest_ending(each, parts)) for each in parts]


def _shortest_ending(own: tuple[str, ...], every: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    counts = range(1, len(own) + 1)
    return next((own[-count:] for count in counts if sum(each[-count:] == own[-count:] for each in every) == 1), own)

"""Rewrites the tables of docs/supported-pipelines.md from the pipelines that the tests build and the classes that are refused.

python -m docs.pipelines
"""

from __future__ import annotations

from pathlib import Path

from neuroscope.pipeline.families import REFUSED_PIPELINES
from tests.pipelines.build import PIPELINES
from tests.pipelines.example import Example

PAGE = Path(__file__).parent / "supported-pipelines.md"
BEGIN, END = "<!-- {} from the tests -->", "<!-- end of {} -->"
_PARTS = {"a": "prompt", "n": "negative prompt", "-": "other"}


def supported() -> str:
    """The classes that are right, with what the parts of a guided batch carry."""
    lines = ["| pipeline | rows of one call, with guidance |", "|---|---|"]
    lines += [f"| `{each.kind}`{_variant(each)} | {_parts(each)} |" for each in PIPELINES.values() if not each.refusal]
    return "\n".join(lines)


def refused() -> str:
    """The classes that are refused, why, and what to use on the same components."""
    lines = ["| pipeline | why | use instead |", "|---|---|---|"]
    lines += [f"| `{name}` | {each.reason} | {f'`{each.instead}`' if each.instead else '–'} |" for name, each in REFUSED_PIPELINES.items()]
    others = (each for each in PIPELINES.values() if each.refusal and each.kind not in REFUSED_PIPELINES)
    lines += [f"| `{each.kind}`{_variant(each)} | {each.why} | – |" for each in others]
    return "\n".join(lines)


def page(text: str) -> str:
    """A page's text with both tables as they are now."""
    for name, table in (("supported", supported()), ("refused", refused())):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return text


def _variant(example: Example) -> str:
    return f", {example.variant}" if example.variant else ""


def _parts(example: Example) -> str:
    calls = example.rows[True, 1]
    return "; then ".join(", ".join(_PARTS[letter] for letter in call) for call in calls)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()

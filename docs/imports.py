"""Draws which room of the package imports which, from its source: `python -m docs.imports`.

Imports that only a type checker follows count as well. A test says when the drawing is out of date.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
DRAWING = Path(__file__).parent / "pictures" / "imports.svg"
PACKAGE = "neuroscope"
Edge = tuple[str, str]
_HEIGHT, _GAP, _WIDTH, _LEFT, _MARGIN = 26, 20, 124, 236, 16


def rooms() -> list[str]:
    """The rooms from the top to the bottom, in the order that the import linter enforces."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [name for name in layers if (ROOT / PACKAGE / name).is_dir() or name == "demo"]


def edges(names: Sequence[str]) -> set[Edge]:
    """(importer, imported) for each two rooms of which one imports the other."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    pairs = {(above, below) for above in names for below in names if above != below}
    return {
        (above, below)
        for above, below in pairs
        if graph.direct_import_exists(importer=f"{PACKAGE}.{above}", imported=f"{PACKAGE}.{below}", as_packages=True)
    }


def essential(found: Collection[Edge]) -> set[Edge]:
    """The edges that no longer way through other rooms implies (the transitive reduction)."""
    below: dict[str, set[str]] = {}
    for importer, imported in found:
        below.setdefault(importer, set()).add(imported)

    def reach(name: str) -> set[str]:
        return below.get(name, set()).union(*(reach(each) for each in below.get(name, ())))

    return {(importer, imported) for importer, imported in found if not any(imported in reach(each) for each in below[importer])}


def svg(names: Sequence[str], found: Collection[Edge]) -> str:
    """The drawing: one box a room, an arc for each import, dark where no longer way implies it."""
    kept = essential(found)
    height = 2 * _MARGIN + len(names) * (_HEIGHT + _GAP) - _GAP + 22
    arcs = [_arc(names, edge, dark=edge in kept) for edge in sorted(found, key=lambda edge: (edge in kept, edge))]
    boxes = [_box(name, _top(place)) for place, name in enumerate(names)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 {height}" font-family="sans-serif" font-size="13" role="img">',
        "<title>The rooms of neuroscope, and which imports which</title>",
        f'<rect width="520" height="{height}" fill="white"/>',
        _arrow_head("dark", "#1f4e79"),
        _arrow_head("light", "#c4ccd4"),
        *arcs,
        *boxes,
        f'<text x="{_MARGIN}" y="{height - 8}" font-size="11" fill="#555">An arrow points from a room to one that it imports. '
        "Grey: implied by a way through other rooms.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _top(place: int) -> int:
    return _MARGIN + place * (_HEIGHT + _GAP)


def _arrow_head(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def _box(name: str, top: int) -> str:
    return (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="#eef3f8" stroke="#1f4e79"/>'
        f'<text x="{_LEFT + _WIDTH // 2}" y="{top + 17}" text-anchor="middle" fill="#12304c">{name}</text>'
    )


def _arc(names: Sequence[str], edge: Edge, *, dark: bool) -> str:
    """A straight arrow to the next room; to a farther one, a curve: dark ones on the right, grey ones on the left."""
    importer, imported = (names.index(name) for name in edge)
    style = 'stroke="#1f4e79" stroke-width="1.6"' if dark else 'stroke="#c4ccd4" stroke-width="1"'
    marker = "dark" if dark else "light"
    if imported - importer == 1:
        middle = _LEFT + _WIDTH // 2
        way = f"M{middle} {_top(importer) + _HEIGHT}V{_top(imported)}"
    else:
        side, sign = (_LEFT + _WIDTH, 1) if dark else (_LEFT, -1)
        start, end = _top(importer) + _HEIGHT // 2 + 5, _top(imported) + _HEIGHT // 2 - 5
        bend = side + sign * (20 + 22 * abs(imported - importer))
        way = f"M{side} {start}C{bend} {start} {bend} {end} {side} {end}"
    return f'<path d="{way}" fill="none" {style} marker-end="url(#{marker})"/>'


def drawing() -> str:
    """The drawing of the package as it is."""
    names = rooms()
    return svg(names, edges(names))


def main() -> None:
    """Writes the drawing."""
    DRAWING.write_text(drawing())


if __name__ == "__main__":
    main()

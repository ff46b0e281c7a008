"""Draws the images of the README and the docs: `make docs`."""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

import neuroscope as ns
from neuroscope.demo import run_demo
from neuroscope.report import plots
from neuroscope.testbed.world import COLOURS, OBJECTS, STYLES, Placement, Scene, render

PICTURES = Path(__file__).parent / "pictures"
TRAINING = Path(__file__).parent / "training"


def main() -> None:
    """Draws all images anew."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder))
        for image in Path(folder).glob("*.png"):
            shutil.copy(image, PICTURES)
    plots.write(world(), PICTURES / "world.png")
    plots.write(plots.graph(ns.HookGraph(ns.testbed.load("sd1"))), PICTURES / "graph.png")
    plots.write(losses(), PICTURES / "losses.png")
    plots.write(swaps(), PICTURES / "joint-swaps.png")


def world() -> plt.Axes:
    """One image of each style and object."""
    rng = np.random.default_rng(0)
    colours = list(COLOURS)
    rows = {
        style: [
            render(Scene(shape, colours[(row + column) % len(colours)], style), Placement.draw(rng)) for column, shape in enumerate(OBJECTS)
        ]
        for row, style in enumerate(STYLES)
    }
    return plots.images(rows, OBJECTS)


def losses() -> plt.Axes:
    """The training losses of all stages, of at most 200 steps each, smoothed over 15 of these."""
    files = sorted(TRAINING.glob("*.csv"))
    figure, axes = plt.subplots(2, 5, figsize=(11, 4), layout="constrained", dpi=150)
    for ax, file in zip(axes.flat, files, strict=True):
        with file.open() as lines:
            steps, values = np.array([(float(row["step"]), float(row["loss"])) for row in csv.DictReader(lines)]).T
        ax.plot(steps, values, color="0.85", linewidth=0.5)
        ax.plot(steps[7:-7], np.convolve(values, np.full(15, 1 / 15), "valid"), color="tab:blue", linewidth=1)
        ax.set_yscale("log")
        ax.set_title(file.stem, fontsize=8)
        ax.set_xlabel("step", fontsize=7)
        ax.tick_params(labelsize=6, which="both")
        sns.despine(ax=ax)
        ax.set_ylabel("loss", fontsize=7)
    return figure.axes[0]


def swaps() -> plt.Axes:
    """What a block with joint attention takes of another prompt by either definition, and what the blocks behind it read."""
    _, axes = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained", dpi=150)
    for ax, definition in zip(axes, ("edge", "stream"), strict=True):
        _swap(ax, definition)
    return axes[0]


IMAGE, SOURCE, TARGET, MIXED = "0.55", "tab:blue", "tab:orange", "tab:purple"
HEIGHT = {"other": 2, "image": 1, "text": 0}


def _swap(ax: plt.Axes, definition: str) -> None:
    """Three blocks from left to right, of which the middle one has another prompt."""
    behind = SOURCE if definition == "edge" else MIXED
    for row, colours in {"other": (TARGET,) * 3, "image": (IMAGE,) * 3, "text": (SOURCE, SOURCE, behind)}.items():
        for place, colour in enumerate(colours):
            ax.scatter(place, HEIGHT[row], s=420, color=colour, zorder=2)
            if place < 2:
                _arrow(ax, (place, row), (place + 1, row), colour)
    for place in range(3):
        swapped = place == 1
        _arrow(ax, (place, "other" if swapped else "text"), (place, "image"), TARGET if swapped else (SOURCE, SOURCE, behind)[place], 2.5)
    if definition == "stream":
        _arrow(ax, (1, "other"), (2, "text"), TARGET, 2.5)
    ax.set_title(f'definition="{definition}"', fontsize=10)
    ax.set_yticks(list(HEIGHT.values()), ["other prompt's text", "image", "prompt's text"])
    ax.set_xticks(range(3), ["block l − 1", "block l", "block l + 1"])
    ax.set(xlim=(-0.4, 2.4), ylim=(-0.4, 2.4))
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)


def _arrow(ax: plt.Axes, start: tuple[int, str], end: tuple[int, str], colour: str, width: float = 1.0) -> None:
    """From one part of a block to another."""
    (left, above), (right, below) = start, end
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 11, "shrinkB": 11, "mutation_scale": 12}
    ax.annotate("", (right, HEIGHT[below]), (left, HEIGHT[above]), arrowprops=style, zorder=1)


if __name__ == "__main__":
    main()

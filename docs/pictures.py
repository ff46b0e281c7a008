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
    figure, axes = plt.subplots(2, 3, figsize=(7, 4), layout="constrained", dpi=150)
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


if __name__ == "__main__":
    main()

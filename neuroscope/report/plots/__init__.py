"""Plots of neurons, layers, images, doses and the hook graph.

Each plot draws into `ax`, or into a new figure as wide as one or two columns of a paper, and returns the axes. No global setting of
matplotlib is changed. `write` saves the figure and closes it.
"""

from neuroscope.report.plots._concepts import concepts, prompts
from neuroscope.report.plots._dose import dose
from neuroscope.report.plots._graph import graph
from neuroscope.report.plots._images import images
from neuroscope.report.plots._layers import grid, layers
from neuroscope.report.plots._neurons import neurons
from neuroscope.report.plots._strengths import strengths
from neuroscope.report.plots._volcano import volcano
from neuroscope.report.plots._where import where
from neuroscope.report.plots._write import FORMATS, write

__all__ = [
    "FORMATS",
    "concepts",
    "dose",
    "graph",
    "grid",
    "images",
    "layers",
    "neurons",
    "prompts",
    "strengths",
    "volcano",
    "where",
    "write",
]

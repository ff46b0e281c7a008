"""Plots, and reports: one self-contained HTML page of a run's results."""

from neuroscope.report.page import report

__all__ = ["report"]

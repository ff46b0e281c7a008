"""Reports: one self-contained page of a run's results."""

from neuroscope.report.page import report

__all__ = ["report"]

"""The installed distribution, which is not called as the package: on the package index, "neuroscope" is another project."""

from __future__ import annotations

import importlib.metadata

#: The name in pyproject.toml.
DISTRIBUTION = "neuroscope-diffusion"


def version() -> str:
    """The installed version, such as "0.1.0". It is written in pyproject.toml alone."""
    return importlib.metadata.version(DISTRIBUTION)

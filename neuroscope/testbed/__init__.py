"""The testbed: small text-to-image models whose inside is known, and the rendered world that they draw."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroscope.testbed.bundled import GENERATION, generation, load, names, path, pipelines
from neuroscope.testbed.readers import Reader, read

if TYPE_CHECKING:
    from neuroscope.testbed.construction import FAMILIES, PLANTS, Claim, Planted, Proof, build, planted, verify

__all__ = [
    "FAMILIES",
    "GENERATION",
    "PLANTS",
    "Claim",
    "Planted",
    "Proof",
    "Reader",
    "build",
    "generation",
    "load",
    "names",
    "path",
    "pipelines",
    "planted",
    "read",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Re-exports the rest of `__all__`: it is made of diffusers' pipelines, which take a while to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module("neuroscope.testbed.construction"), name)

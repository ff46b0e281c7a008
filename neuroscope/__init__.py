"""neuroscope: find, switch off and edit what a text-to-image diffusion model knows, neuron by neuron.

A `HookGraph` finds the sites of a live diffusers pipeline: its cross-attention keys, values, queries and outputs, and
the feed-forward neurons beside them. A `Concept` is a name with prompts in which it is present and absent. `rank`
scores every neuron by how much it controls the concept, giving `NeuronScores`; `.top(k)` of these are `Neurons`. (`record` and
`score` rank neurons by how they respond to prompts instead, by a method such as `Welch`.) A `NeuronMask` drives neurons to a value
while the pipeline runs inside `graph.apply(mask)`. `evaluate` measures what changed, on other prompts and seeds; `plots`
shows it. Results are saved and loaded as single safetensors files by `save` and `load`; `report` puts a folder of them on one page.

Each name is imported when it is first asked for, so that `import neuroscope` takes no time; `__init__.pyi` says from where.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

#: Where the public names are, as in `from MODULE import NAME`, in the order of the stub file, which alone lists them.
HOMES: dict[str, tuple[str, ...]] = {
    str(line.module): tuple(each.name for each in line.names)
    for line in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(line, ast.ImportFrom)
}
_HOME_OF = {name: home for home, names in HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)
#: The public names that are modules.
_MODULES = ("plots", "testbed")


class _Package(ModuleType):
    """This package: importing the room `neuroscope.report` leaves the function of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, ModuleType) or value.__name__ != _HOME_OF.get(name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from neuroscope.core.distribution import version

        value = version()
    elif name in _HOME_OF:
        home = _HOME_OF[name]
        value = import_module(f"{home}.{name}") if name in _MODULES else getattr(import_module(home), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

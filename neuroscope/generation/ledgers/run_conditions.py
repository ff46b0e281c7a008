"""The conditions of a run: what its results depend on to the last bit, beside the content of model, options and metric."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Self

import torch

from neuroscope.core.distribution import version
from neuroscope.pipeline.graph import HookGraph

_PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class RunConditions:
    """Where images were made. Under equal conditions the same task gives the same scores to the bit.

    Attributes:
        device: the device's type, with the GPU's name, or with the instruction set that torch uses on the CPU.
        threads: torch's threads for each replica of the model.
        packages: by name, the versions of the packages that compute.
    """

    device: str
    threads: int
    packages: Mapping[str, str]

    @classmethod
    def of(cls, graph: HookGraph) -> Self:
        """Those of images that this process makes with a model."""
        packages = {"neuroscope": version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
        return cls(described(torch.device(graph.pipe._execution_device)), torch.get_num_threads(), packages)

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {found}" for name, found in self.packages.items())
        return f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}, {packages}"

    def differences(self, former: RunConditions) -> str:
        """What is different under the former conditions, such as "torch 2.10.0 (now 2.11.0)"."""
        return ", ".join(f"{name} {then} (now {now})" for name, then, now in self._compared(former) if then != now)

    def _compared(self, former: RunConditions) -> Iterator[tuple[str, object, object]]:
        yield "device", former.device, self.device
        yield "threads", former.threads, self.threads
        for name in sorted({*self.packages, *former.packages}):
            yield name, former.packages.get(name, "missing"), self.packages.get(name, "missing")

    def to_header(self) -> dict[str, object]:
        """As plain data, for a file's header."""
        return asdict(self)


def described(device: torch.device) -> str:
    """A device's type and what its rounding depends on beside it."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type

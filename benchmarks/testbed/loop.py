"""One training loop for every model of the testbed: seeded, with checkpoints, resumed after a kill.

A batch is drawn from the seed and the step's number alone, so that a resumed run continues as if never stopped.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from neuroscope.core.errors import InvalidFile

Loss = Callable[[np.random.Generator], Tensor]
#: The losses that a file keeps at most.
_POINTS = 200


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. The rate warms up linearly, then falls to a twentieth along a cosine."""

    steps: int
    batch: int
    rate: float
    warmup: int = 50
    averaging: float = 0.995
    seed: int = 0
    checkpoint_every: int = 100

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(module: nn.Module, loss: Loss, schedule: Schedule, folder: Path, quiet: bool = False) -> nn.Module:
    """Trains `module` in place and returns its running average of weights.

    `loss` is given a random generator of its own at each step. `folder` keeps `checkpoint.safetensors` and
    `losses.csv`, which holds the losses of `kept_steps`; a run that was stopped goes on from the last checkpoint.

    Raises:
        InvalidFile: the folder holds a checkpoint of another schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.rate, weight_decay=0.01)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(schedule.averaging))
    first = _resume(folder / "checkpoint.safetensors", schedule, module, average, optimizer)
    kept, losses = kept_steps(schedule.steps), {}
    module.train()
    for step in tqdm(range(first, schedule.steps), initial=first, total=schedule.steps, desc=folder.name, disable=quiet):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        torch.manual_seed(schedule.seed * 1_000_003 + step)
        value = loss(np.random.default_rng((schedule.seed, step)))
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(module)
        if step in kept:
            losses[step] = value.item()
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            _append_losses(folder / "losses.csv", losses)
            losses.clear()
            _save(folder / "checkpoint.safetensors", step + 1, schedule, module, average, optimizer)
    return average.module.eval()


def kept_steps(steps: int) -> frozenset[int]:
    """The steps whose losses are written down: all of them, or 200 evenly spaced ones, with the first and the last."""
    return frozenset(np.linspace(0, steps - 1, min(steps, _POINTS)).round().astype(int).tolist())


def _state(module: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = [name for name, _ in module.named_parameters()]
    moments = {
        f"optimizer.{kind}.{names[index]}": value
        for index, state in optimizer.state_dict()["state"].items()
        for kind, value in state.items()
    }
    weights = {f"model.{name}": value for name, value in module.state_dict().items()}
    averaged = {f"average.{name}": value for name, value in average.module.state_dict().items()}
    return {name: value.contiguous().clone() for name, value in (weights | averaged | moments).items()}


def _save(path: Path, step: int, schedule: Schedule, module: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer) -> None:
    partial = path.with_suffix(".partial")
    header = {"step": str(step), "schedule": json.dumps(asdict(schedule))}
    save_file(_state(module, average, optimizer), partial, metadata=header)
    partial.replace(path)


def _resume(path: Path, schedule: Schedule, module: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if json.loads(header["schedule"]) != asdict(schedule):
        raise InvalidFile(f"{path} was made with another schedule, {header['schedule']}; choose another folder or delete it")
    _load(module, tensors, "model.")
    _load(average.module, tensors, "average.")
    average.n_averaged.fill_(1)
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, kind, parameter = name.split(".", 2)
            optimizer.state[parameters[parameter]][kind] = value
    return int(header["step"])


def _load(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})


def _append_losses(path: Path, losses: dict[int, float]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "loss"])
        writer.writerows([step, f"{value:.6f}"] for step, value in losses.items())

import csv
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.testbed.loop import Schedule, fit, kept_steps
from neuroscope import InvalidFile

SCHEDULE = Schedule(steps=12, batch=8, rate=0.05, warmup=3, averaging=0.5, seed=4, checkpoint_every=4)


#: Where the losses of the bundled models are kept.
CURVES = Path(__file__).parents[3] / "docs" / "training"


class Killed(BaseException):
    """What stops a run, as a power cut would."""


def train(folder, schedule: Schedule = SCHEDULE, stop_at: int | None = None) -> tuple[nn.Module, nn.Module]:
    """Fits a small network to a line, with noise of both generators; returns the model and its average."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    calls = 0

    def loss(rng):
        nonlocal calls
        if calls == stop_at:
            raise Killed
        calls += 1
        inputs = torch.from_numpy(rng.normal(size=(schedule.batch, 3))).float()
        return (model(inputs + 0.01 * torch.randn_like(inputs)) - inputs.sum(dim=1, keepdim=True)).square().mean()

    return model, fit(model, loss, schedule, folder, quiet=True)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, stop_at):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", stop_at=stop_at)
    resumed = train(tmp_path / "killed")
    assert same(whole[0], resumed[0])
    assert same(whole[1], resumed[1])
    assert (tmp_path / "whole" / "losses.csv").read_text() == (tmp_path / "killed" / "losses.csv").read_text()


def test_a_finished_run_is_not_repeated(tmp_path):
    whole = train(tmp_path)
    again = train(tmp_path, stop_at=0)
    assert same(whole[0], again[0])
    assert same(whole[1], again[1])


def test_another_seed_is_another_run(tmp_path):
    other = Schedule(**(vars(SCHEDULE) | {"seed": 5}))
    assert not same(train(tmp_path / "a")[0], train(tmp_path / "b", other)[0])


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(InvalidFile, match="was made with another schedule, .*choose another folder or delete it"):
        train(tmp_path, Schedule(**(vars(SCHEDULE) | {"steps": 20})))


def test_it_learns_and_writes_every_loss_down(tmp_path):
    train(tmp_path, Schedule(**(vars(SCHEDULE) | {"steps": 200})))
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(200))
    losses = [float(row["loss"]) for row in rows]
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


def test_a_long_run_keeps_two_hundred_losses_with_the_first_and_the_last(tmp_path):
    """The same ones as a run that was stopped on the way."""
    schedule = Schedule(**(vars(SCHEDULE) | {"steps": 450}))
    train(tmp_path / "whole", schedule)
    with pytest.raises(Killed):
        train(tmp_path / "killed", schedule, stop_at=301)
    train(tmp_path / "killed", schedule)
    text = (tmp_path / "whole" / "losses.csv").read_text()
    assert text == (tmp_path / "killed" / "losses.csv").read_text()
    steps = _steps(tmp_path / "whole" / "losses.csv")
    assert steps == sorted(kept_steps(450))
    assert (len(steps), steps[0], steps[-1]) == (200, 0, 449)
    assert {after - before for before, after in itertools.pairwise(steps)} == {2, 3}


@pytest.mark.parametrize("path", sorted(CURVES.glob("*.csv")), ids=lambda path: path.stem)
def test_the_curves_of_the_bundled_models_are_kept_so(path):
    steps = _steps(path)
    assert steps == sorted(kept_steps(steps[-1] + 1))
    assert len(steps) == 200


def _steps(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_the_average_follows_the_weights(tmp_path):
    """With a decay of a half the average is the last weights, the ones before by a half, and so on."""
    history = []
    model = nn.Linear(1, 1, bias=False)
    torch.manual_seed(0)

    def loss(rng):
        history.append(model.weight.detach().clone())
        return (model(torch.ones(1, 1)) - 3).square().mean()

    average = fit(model, loss, Schedule(steps=5, batch=1, rate=0.1, warmup=1, averaging=0.5, checkpoint_every=5), tmp_path, quiet=True)
    weights = [*history[1:], model.weight.detach()]
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(average.weight.detach(), expected)
    assert not average.training


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine_to_a_twentieth():
    schedule = Schedule(steps=110, batch=1, rate=2.0, warmup=10)
    assert [schedule.rate_at(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert schedule.rate_at(10) == pytest.approx(2.0)
    assert schedule.rate_at(60) == pytest.approx(2.0 * (0.05 + 0.95 * (1 + math.cos(math.pi / 2)) / 2))
    assert schedule.rate_at(110) == pytest.approx(0.1)

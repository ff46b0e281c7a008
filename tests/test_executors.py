"""Tasks are data that can be made in any order, from a copy, and more than once: results are the same to the bit."""

import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuroscope import (
    CausalAttribution,
    Executor,
    HookGraph,
    ImageShare,
    InvalidInput,
    LatentShare,
    Local,
    Localization,
    LocoGen,
    NeuronAblation,
    Welch,
    dose_response,
    evaluate,
    localize,
    rank,
)
from neuroscope.evaluation._image_change import UntouchedImages
from neuroscope.generation.executors import Part, Task, Work, Workers
from neuroscope.metrics.metric import bind, unbind
from tests.families import tiny
from tests.laws import test_causal_attribution_laws, test_localization_laws
from tests.laws.members import members
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of, planted

CONCEPT = concept_of(STIPPLE[:2])
#: Batches of five begin and end within an image's runs, so that shares wait for ends of other tasks.
ONCE = SMALL | {"seeds": [3], "batch_size": 5, "quiet": True}
LAYER_METHODS = [each for methods in test_localization_laws.EXAMPLES.values() for each in methods]
NEURON_METHODS = [each for methods in test_causal_attribution_laws.EXAMPLES.values() for each in methods]


class Scattered(Workers):
    """Makes copies of tasks in a random order, each of them twice."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.made = 0

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        for number in self._rng.permutation(np.repeat(np.arange(len(tasks)), 2)):
            self.made += 1
            for _, part in Local().run(work, [pickle.loads(pickle.dumps(tasks[number]))]):
                yield int(number), part


@pytest.fixture(scope="module")
def graph() -> HookGraph:
    return planted(STIPPLE[:2], dict.fromkeys(range(7), STIPPLE), pipe=tiny.shallow())


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_every_method_is_here():
    assert {type(each) for each in LAYER_METHODS} == set(members(Localization))
    assert {type(each) for each in NEURON_METHODS} == set(members(CausalAttribution))


@pytest.mark.parametrize("method", LAYER_METHODS, ids=repr)
def test_layers_do_not_depend_on_the_executor(method, graph):
    alone = localize(graph, CONCEPT, method, LatentShare(), keep_images=1, **ONCE)
    scattered = localize(graph, CONCEPT, method, LatentShare(), keep_images=1, executor=Scattered(), **ONCE)
    assert scattered.scores == alone.scores
    same(scattered.effects.values, alone.effects.values)
    same(scattered.effects.total, alone.effects.total)
    assert scattered.images == alone.images
    assert (scattered.confidence, scattered.fidelity) == (alone.confidence, alone.fidelity)


@pytest.mark.parametrize("method", NEURON_METHODS, ids=repr)
def test_neurons_do_not_depend_on_the_executor(method, graph):
    if not method.makes_images:
        refused = rf"executor would be ignored: {type(method).__name__}.* takes gradients in this process and makes no image; leave it out"
        with pytest.raises(InvalidInput, match=refused):
            rank(graph, CONCEPT, method, layers=3, executor=Scattered(), **ONCE)
        return
    alone, scattered = (rank(graph, CONCEPT, method, layers=3, executor=each, **ONCE) for each in (Local(), Scattered()))
    for path, values in alone.scores.items():
        same(scattered.scores[path], values)


@pytest.mark.parametrize("metric", [LatentShare(), ImageShare(), Corner()], ids=repr)
def test_a_stopped_run_goes_on_elsewhere(metric, graph, tmp_path):
    """Scores of a ledger are not made again, though ends of shares are; its tables are those of one run."""
    alone = localize(graph, CONCEPT, LocoGen(), metric, output=tmp_path / "one.jsonl", **ONCE)
    with tiny.stopping(graph.denoiser, 4), pytest.raises(KeyboardInterrupt):
        localize(graph, CONCEPT, LocoGen(), metric, output=tmp_path / "two.jsonl", **ONCE)
    workers = Scattered()
    again = localize(graph, CONCEPT, LocoGen(), metric, output=tmp_path / "two.jsonl", executor=workers, **ONCE)
    assert workers.made > 0
    assert again.scores == alone.scores
    assert again.images == alone.images
    finished = Scattered()
    last = localize(graph, CONCEPT, LocoGen(), metric, output=tmp_path / "two.jsonl", keep_images=0, executor=finished, **ONCE)
    assert (last.scores, finished.made) == (alone.scores, 0)


def test_an_evaluation_does_not_depend_on_the_executor(graph):
    asked = {"mask": tiny.mask(graph, layer=3)}, CONCEPT.present, [0, 1], [Corner(), Corner(-1.0, "opposite")]
    options = SMALL | {"batch_size": 5, "quiet": True}
    alone, scattered = (evaluate(graph, *asked, executor=each, **options) for each in (Local(), Scattered()))
    pd.testing.assert_frame_equal(scattered, alone, check_exact=True)


def test_a_dose_response_does_not_depend_on_the_executor(graph):
    scores = rank(graph, CONCEPT, Welch(), layers=3, quiet=True)
    options = SMALL | {"metrics": Corner(), "budgets": [2], "unrelated": ["a cup"], "seeds": [0, 1], "batch_size": 5, "quiet": True}
    alone, scattered = (dose_response(graph, scores, CONCEPT.present, executor=each, **options) for each in (Local(), Scattered()))
    assert torch.equal(alone.scores, scattered.scores)
    assert torch.equal(alone.changes, scattered.changes)


def test_a_change_of_images_does_not_depend_on_what_is_asked_first(graph):
    """A replica makes the same groups of untouched images as the original, whichever it needs."""
    prompts = tuple(f"a {color} cup" for color in ("red", "blue", "green"))
    images = [Image.new("RGB", (32, 32))] * len(prompts)
    metric = UntouchedImages(3, prompts, SMALL, batch_size=2).bound_to(graph)
    forwards = metric(images, prompts)
    replica = bind(pickle.loads(pickle.dumps(unbind(metric))), graph)
    assert list(reversed([float(replica(images[:1], [prompt])[0]) for prompt in reversed(prompts)])) == forwards.tolist()


class Weighed(Workers):
    """Notes how many bytes are sent for what tasks share, for a task, and back."""

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        self.shared, self.tasks = len(pickle.dumps(work.shipped)), max(len(pickle.dumps(task)) for task in tasks)
        self.back = 0
        for number, part in Local().run(work, tasks, done):
            self.back = max(self.back, len(pickle.dumps(part)) / len(part.numbers))
            yield number, part


def test_no_more_is_sent_than_is_needed(graph):
    """A view of a tensor is pickled with all that it is a view of, which would make the bytes grow with the square of a batch."""
    weighed = Weighed()
    localize(graph, CONCEPT, LocoGen(), LatentShare(), keep_images=0, executor=weighed, **ONCE)
    prompts = [*CONCEPT.present, *CONCEPT.absent]
    context = graph.text.conditions(prompts[:1]).context
    latent = 4 * (SMALL["height"] // graph.pipe.vae_scale_factor) ** 2 * context.element_size()
    header = 1000  # of names and of each tensor's form
    assert weighed.shared < (len(prompts) + 1) * (context.nbytes + header)
    assert weighed.tasks < len(prompts) * (context.nbytes + header) + ONCE["batch_size"] * header
    assert weighed.back < latent + header


class Forgetful(Workers):
    """Leaves the last task out."""

    def run(self, work: Work, tasks: Sequence[Task], done: int = 0) -> Iterator[tuple[int, Part]]:
        yield from Local().run(work, tasks[:-1], done)


def test_a_task_that_is_left_out_is_refused(graph):
    wanted = r"Forgetful did not make all rows of 1 of (1 task|\d+ tasks); an executor gives back every row of each"
    with pytest.raises(InvalidInput, match=wanted):
        localize(graph, CONCEPT, LocoGen(), LatentShare(), executor=Forgetful(), **ONCE)
    with pytest.raises(InvalidInput, match=wanted):
        evaluate(graph, {"mask": tiny.mask(graph, layer=3)}, CONCEPT.present, [3], Corner(), executor=Forgetful(), quiet=True, **SMALL)


def test_a_metric_that_fails_is_the_callers_own_error(graph):
    class Broken:
        name = "broken"

        def __call__(self, images, prompts):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(graph, {}, CONCEPT.present, [0], Broken(), executor=Scattered(), quiet=True, **SMALL)
    assert tiny.hooks(graph.pipe) == []


def test_workers_are_an_executor_that_verbs_can_share(graph):
    workers = Scattered()
    with workers.open(graph) as opened:
        assert opened is workers
    assert isinstance(Local(), Executor)
    assert Local() == Local()


def test_what_is_no_executor_is_refused_before_any_image(graph, untyped):
    refused = r"executor is the string 'ray', not an object; write ns.Local\(\)"
    with tiny.counted(graph.denoiser) as calls:
        for call in (
            lambda: localize(graph, CONCEPT, LocoGen(), LatentShare(), executor="ray", **ONCE),
            lambda: rank(graph, CONCEPT, NeuronAblation(), executor="ray", **ONCE),
            lambda: rank(graph, CONCEPT, executor="ray", **ONCE),
            lambda: evaluate(graph, {}, CONCEPT.present, [0], Corner(), executor="ray", **SMALL),
        ):
            with pytest.raises(InvalidInput, match=refused):
                call()
        with pytest.raises(InvalidInput, match="executor would be ignored: Welch.* scores recorded responses and makes no image"):
            rank(graph, CONCEPT, Welch(), executor=Scattered())
    assert calls == []

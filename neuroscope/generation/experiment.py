"""An experiment: the model, prompts, seeds and metric that a method works with."""

from __future__ import annotations

import abc
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from neuroscope.core import checks
from neuroscope.core.artifacts import Provenance
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput
from neuroscope.core.results.effects import Effects, Patch
from neuroscope.core.results.layer_scores import LayerScores
from neuroscope.core.results.quality import Cost, Plan
from neuroscope.core.results.scores import NeuronScores
from neuroscope.generation.arguments import check_generation, check_options, choose_layers
from neuroscope.generation.batches import Row, Sweep
from neuroscope.generation.executors import Executor, Local, TaskContext, Workers
from neuroscope.generation.foreign_hooks import only_watching
from neuroscope.generation.keys import key_of, method_key, metric_key, origin
from neuroscope.generation.ledgers import Ledger, LedgerPlace, check_output, open_ledger
from neuroscope.generation.metering import metered
from neuroscope.metrics.metric import Metric, bind
from neuroscope.metrics.shares import Share
from neuroscope.pipeline.graph import HookGraph

#: How many of a concept's pairs `localize` and `rank` use by default.
PAIRS = 8


class Pair(NamedTuple):
    """A prompt with the concept and its partner without it."""

    present: str
    absent: str


class RunKey(NamedTuple):
    """Names one run: what is patched in it, the number of its pair, and its seed.

    The patch is "source" for the unchanged run, and "target" for the run that reads the other prompt everywhere.
    """

    patch: Patch | str
    pair: int
    seed: int


#: Names an image whatever is patched in it: the number of its pair, and its seed.
ImageKey = tuple[int, int]


@dataclass(frozen=True)
class RunBatch:
    """Runs that may share batches of the pipeline.

    Attributes:
        rows: what to make for each run.
        shared_rows: rows that are made again at the beginning of every batch, because the others take something from them.
        context: called with the model and all rows of a batch; the batch runs inside the block that it returns. None applies each row's
            own changes.
        force: make the runs even where their scores are known, because the block records them; in this process, whatever the executor.
    """

    rows: Mapping[RunKey, Row]
    shared_rows: tuple[Row, ...] = ()
    context: TaskContext | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a method works with; `localize` and `rank` document the options.

    Attributes:
        graph: the model.
        name: the concept's name.
        contrast: what the prompts without it say instead; see `Concept.contrast`.
        pairs: prompts with the concept and without it.
        layers: the layers whose neurons `rank` scores; None for all.
        metric: what is measured in each image.
        seeds: seeds of the initial noise, the same for each pair.
        generation: options of the pipeline.
        batch_size: images at a time; None for as many as fit.
        ledger: keeps finished scores.
        origin: a hash of all that scores depend on beside the method and the run.
        keep_images: how many prompts the contact sheet shows.
        quiet: show no progress bar.
        progress: what the progress bar says that is done.
        workers: make the images.
        run: in a ledger, the hash of all that was asked for.
        title: in a ledger, what was asked for.
        shown: the images on the contact sheet; by default each of the first prompts with the first seed.
    """

    graph: HookGraph
    name: str
    pairs: tuple[Pair, ...]
    metric: Metric | Share
    seeds: tuple[int, ...]
    generation: Mapping[str, Any]
    batch_size: int | None
    ledger: Ledger
    origin: str
    keep_images: int
    quiet: bool
    workers: Workers
    run: str = ""
    title: str = ""
    progress: str = "localizing"
    shown: tuple[ImageKey, ...] = ()
    contrast: str = ""
    layers: tuple[int, ...] | None = None

    def provenance(self, method: object) -> Provenance:
        """Where this experiment's results come from."""
        return Provenance(self.graph.family.name, self.graph.model, self.name, f"{method!r}, {self.metric!r}", self.contrast)

    def of(self, **generation: Any) -> Experiment:
        """The same experiment with other options of the pipeline, and without a contact sheet."""
        changed = {**self.generation, **generation}
        return replace(self, generation=changed, origin=key_of(self.origin, generation), keep_images=0)

    def sweep(self, texts: Iterable[str], **options: Any) -> Sweep:
        """A sweep over these texts with the experiment's options."""
        space = self.metric.space if isinstance(self.metric, Share) else "image"
        return Sweep(self.graph, list(texts), self.generation, batch_size=self.batch_size, space=space, **options)

    @property
    def image_keys(self) -> list[ImageKey]:
        """All images, one pair after the other."""
        return list(itertools.product(range(len(self.pairs)), self.seeds))

    def run_keys(self, patches: Sequence[Patch | str], image_keys: Sequence[ImageKey] | None = None) -> Iterator[RunKey]:
        """The runs of these patches on these images (by default all), one image after the other."""
        return (RunKey(patch, *image_key) for image_key in (self.image_keys if image_keys is None else image_keys) for patch in patches)

    @property
    def sheet_keys(self) -> tuple[ImageKey, ...]:
        """The images of the contact sheet, one a row."""
        count = min(self.keep_images, len(self.pairs))
        return self.shown[:count] or tuple((pair, self.seeds[0]) for pair in range(count))

    def warn_of_no_change(self, effects: Effects) -> None:
        """Warns where the total effect is not told apart from 0, so that scores mean nothing."""
        if not effects.is_moved():
            warnings.warn(
                f"the total effect hardly moves {self.metric!r} ({effects.total_mean():.3f} on average), so no layer can be "
                "found by it; choose another metric, other prompts or more seeds",
                UserWarning,
                stacklevel=2,
            )


Found = TypeVar("Found", bound=LayerScores | NeuronScores)


@dataclass(frozen=True, repr=False)
class ExperimentMethod(abc.ABC, Generic[Found]):
    """A method that changes a running model and measures the effect. A frozen dataclass with one `__call__`."""

    def __repr__(self) -> str:
        """The class name with the options that differ from their defaults, as results store it."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> Found:
        """Scores the layers or the neurons.

        Args:
            experiment: the model, prompts, seeds and metric.

        Raises:
            InvalidInput: an option that does not fit the model.
        """

    def plan(self, experiment: Experiment) -> Plan | None:
        """What `__call__` will cost, without a finished ledger; None where the method cannot know before it runs.

        Nothing is denoised. See `neuroscope.generation.dry_run` for what counts runs.
        """
        return None

    #: Whether it is right for models whose blocks rewrite the text.
    of_rewritten_text: ClassVar[bool] = False

    @property
    def not_of_rewritten_text(self) -> str:
        """Why it would be wrong for models whose blocks rewrite the text, as a sentence without its point; nothing where it is right."""
        return "" if self.of_rewritten_text else "It takes what layers read for the same at every step and for every image"

    @property
    def not_sharded(self) -> str:
        """Why its images cannot be made in shards, as the end of a sentence; nothing where all are known before the first is made."""
        return "which images it makes depends on what it found before, or it takes single predictions, which are made in one process"


def planned(experiment: Experiment, method: ExperimentMethod[Any]) -> Plan | None:
    """What a method will cost; see `ExperimentMethod.plan`.

    Raises:
        InvalidInput: the method is not for this model.
    """
    _check_known(experiment, method)
    return method.plan(experiment)


def _check_known(experiment: Experiment, method: ExperimentMethod[Any]) -> None:
    """Raises InvalidInput for a method that would be wrong on a model whose blocks rewrite the text."""
    family = experiment.graph.family
    if family.joint and (reason := method.not_of_rewritten_text):
        raise InvalidInput(
            f"{type(method).__name__} is not known to be right for {family.name}, whose blocks rewrite the text; give ns.LocoGen() for "
            f"layers, or ns.NeuronGradient() for neurons. {reason}"
        )


class Localization(ExperimentMethod[LayerScores]):
    """A method of `localize`, which finds the layers that control a concept. A frozen dataclass with one `__call__`.

    To add a method, derive a frozen dataclass whose fields are its options, and compute the scores in `__call__`.
    """

    @abc.abstractmethod
    def __call__(self, experiment: Experiment) -> LayerScores:
        """Scores the layers.

        Args:
            experiment: the model, prompts, seeds and metric.

        Raises:
            InvalidInput: an option that does not fit the model.
        """


def run_method(experiment: Experiment, method: ExperimentMethod[Found]) -> Found:
    """The method's scores; with a ledger, their cost is that of all parts of a run that was stopped and continued.

    The denoiser's NFE are kept at each call, so that those of a killed part count. The method's final cost replaces them.

    Raises:
        InvalidInput: the method cannot be made in shards, and a shard is asked for.
    """
    _check_known(experiment, method)
    if experiment.workers.is_partial and method.not_sharded:
        raise InvalidInput(
            f"{method!r} cannot be made in shards: {method.not_sharded}. Leave out the shard (--shard), or give a method whose images are "
            "all known before the first is made, such as LocoGen() or NeuronAblation()"
        )
    return _with_halved(_run(experiment, method), experiment.ledger)


def _with_halved(found: Found, ledger: Ledger) -> Found:
    """The scores, whose cost says how many of their images were made in groups that did not fit the memory."""
    if found.cost is None or not ledger.halved_count:
        return found
    return replace(found, cost=replace(found.cost, halved=ledger.halved_count))


def _run(experiment: Experiment, method: ExperimentMethod[Found]) -> Found:
    """See `run_method`."""
    if not experiment.ledger.is_kept:
        return method(experiment)
    asked = ([list(pair) for pair in experiment.pairs], list(experiment.seeds), list(experiment.layers or ()))
    run = key_of(experiment.origin, experiment.name, method_key(method), *asked)
    titled = replace(experiment, run=run, title=f"{experiment.name}: {method!r}, {experiment.metric!r}")
    with metered(experiment.graph.denoiser, lambda cost: experiment.ledger.spend(run, cost)):
        found = method(titled)
    before, cost = experiment.ledger.spent(run), found.cost or Cost()
    if not cost.nfe and before.nfe:
        return replace(found, cost=before)
    experiment.ledger.spend(run, cost)
    return replace(found, cost=before + cost)


@contextmanager
def open_experiment(
    verb: Callable[..., Any],
    graph: HookGraph,
    concept: Concept,
    metric: Metric | Share,
    seeds: Iterable[int],
    generation: Mapping[str, Any],
    *,
    layers: Iterable[int] | int | None = None,
    pairs: int | None,
    keep_images: int = 0,
    batch_size: int | None,
    output: LedgerPlace = None,
    quiet: bool = True,
    executor: Executor = Local(),
) -> Iterator[Experiment]:
    """Checks what a verb was given, and opens the experiment with its ledger. `localize` and `rank` document the arguments.

    A plan, which makes nothing, leaves the last three out.

    Raises:
        InvalidInput: no pair or seed, a layer that the model lacks, a value of another kind, or an option that the pipeline does not have.
        InvalidFile: `output` cannot be written.
    """
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.instance("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    checks.instance("metric", metric, Metric, "ns.LatentShare()")
    checks.instance("executor", executor, Executor, "ns.Local()")
    name = verb.__name__
    seeds = checks.seeds(seeds, f" to {name} with")
    chosen = choose_layers(graph, layers)
    check_options(pairs, keep_images, batch_size, quiet)
    check_output(output)
    check_generation(graph.pipe, generation, verb)
    if len(set(seeds)) < len(seeds):
        raise InvalidInput(f"the seeds {seeds} are not all different; give each once")
    bound = metric if isinstance(metric, Share) else bind(metric, graph)
    made_by = key_of(origin(graph, generation), metric_key(bound)) if output else ""
    watched = only_watching(graph.pipe) if output else nullcontext()
    with open_ledger(output, lambda: executor.conditions(graph)) as ledger, watched, executor.open(graph) as workers:
        yield Experiment(
            graph=graph,
            name=concept.name,
            contrast=concept.contrast,
            pairs=_chosen_pairs(concept, pairs, name),
            layers=chosen,
            metric=bound,
            seeds=seeds,
            generation=generation,
            batch_size=batch_size,
            ledger=ledger,
            origin=made_by,
            keep_images=keep_images,
            quiet=quiet,
            workers=workers,
            progress=f"{name.removesuffix('e')}ing",
        )


def _chosen_pairs(concept: Concept, pairs: int | None, verb: str) -> tuple[Pair, ...]:
    every = [Pair(present, absent) for present, absent in zip(concept.present, concept.absent, strict=True)]
    if pairs is not None and pairs < 1:
        raise InvalidInput(f"pairs={pairs} leaves nothing to {verb} with; give 1 or more, or None for all {len(every)}")
    count = len(every) if pairs is None else min(pairs, len(every))
    return tuple(every[number * len(every) // count] for number in range(count))

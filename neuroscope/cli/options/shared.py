"""The options that several commands share, alone and in groups, and how results are printed; a group opens what its options name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from neuroscope.cli import choices, opening, values
from neuroscope.core.errors import InvalidInput

if TYPE_CHECKING:
    from neuroscope.core.concepts import Concept
    from neuroscope.core.results.quality import Plan
    from neuroscope.pipeline.graph import HookGraph

Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
OutputFolder = Annotated[Path, typer.Option("--output-dir", "-o", help="The folder to write to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar, and no line about the model and the work.")]
Apply = Annotated[
    list[Path] | None, typer.Option("--apply", callback=values.files(), help="A saved mask or other intervention; repeat to compose.")
]
Seed = Annotated[int, typer.Option(callback=values.whole(**values.SEED_RANGE), help="The seed of the (first) image's noise.")]
Method = Annotated[
    str,
    choices.method("Attribution", help="The method that scores a recording, as in Python, such as Welch; an unknown one lists all."),
]
Pairs = Annotated[
    int | None,
    typer.Option(callback=values.whole(), help="How many pairs of prompts; by default 8, all for NeuronGradient."),
]


@dataclass(frozen=True)
class Printing:
    """How a command shows its progress and its result."""

    panel: ClassVar[str] = "Printing"
    quiet: Quiet = False
    as_json: AsJson = False

    def report(self, facts: Any, text: str) -> None:
        """Prints the result, as text or as JSON."""
        report(facts, text, self.as_json)

    def note_model(self, pipe: Any) -> None:
        """Prints where a model runs and how large it is, on standard error."""
        from neuroscope.pipeline.placement import footprint

        self.note(str(footprint(pipe)))

    def note(self, text: str) -> None:
        """Prints a line beside the result, on standard error."""
        if not self.quiet and not self.as_json:
            typer.echo(text.encode(errors="backslashreplace").decode(), err=True)


@dataclass(frozen=True)
class Running(Printing):
    """How a command that computes runs, and how it shows that."""

    panel: ClassVar[str] = "Running"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number of images and NFE, and stop; nothing is made.")] = False
    rate: Annotated[
        str | None,
        typer.Option(callback=values.rate(), help="With --dry-run: NFE a second, or measure (of sweeps) to time a batch; says the time."),
    ] = None

    def stops_at(self, plan: Plan | None, pipe: Any) -> bool:
        """Says where the model runs and what the work will cost, if that is known; True where nothing more is asked.

        Raises:
            InvalidInput: a rate without --dry-run.
        """
        from neuroscope.generation.forecast import MEASURE, said_time

        self.check_rate()
        if self.rate == MEASURE:
            raise InvalidInput("--rate measure is for sweeps, such as localize; give NFE a second, as a former run showed")
        self.note_model(pipe)
        rate = None if self.rate is None else float(self.rate)
        seconds = plan.nfe / rate if plan is not None and rate is not None else None
        text = "the cost of this method is not known before it runs" if plan is None else f"{plan}"
        if seconds is not None:
            text += f", about {said_time(seconds)} at {rate:g} NFE a second"
        elif plan is None or plan.nfe:
            text += "; the time is known after the first batch"
        if self.dry_run:
            facts = {} if plan is None else asdict(plan)
            self.report(facts | {"seconds": seconds}, text)
        else:
            self.note(text)
        return self.dry_run

    def check_rate(self) -> None:
        """Raises InvalidInput for a rate without --dry-run."""
        if self.rate is not None and not self.dry_run:
            raise InvalidInput("--rate would be ignored: it is for the time that --dry-run says; add --dry-run, or leave it out")


@dataclass(frozen=True)
class RunningInBatches(Running):
    """How a command that makes images runs."""

    batch_size: Annotated[
        int | None, typer.Option("--batch-size", callback=values.whole(), help="Images at a time; by default as many as fit the memory.")
    ] = None


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    panel: ClassVar[str] = "Model"
    model: Annotated[
        str, choices.model("--model", "-m", callback=values.text(), help="testbed:NAME, a folder, a .safetensors checkpoint or a hub id.")
    ] = "testbed:sd1"
    device: Annotated[str, choices.option(choices.DEVICES, help="auto: a GPU where there is one.")] = "auto"
    dtype: Annotated[str, choices.option(choices.DTYPES, help="auto: float16 on a GPU, float32 on the CPU.")] = "auto"
    offload: Annotated[str, choices.option(choices.OFFLOADS, help="model, sequential: one part, one module at a time on the GPU.")] = "none"
    variant: Annotated[str | None, typer.Option(callback=values.text(), help="Of the weights' files, such as fp16.")] = None
    revision: Annotated[str | None, typer.Option(callback=values.text(), help="Of a hub id: a branch, a tag or a commit.")] = None
    config: Annotated[
        Path | None, typer.Option(help="Of a .safetensors checkpoint: a folder with its configuration; of sites: a denoiser's config.json.")
    ] = None
    lora: Annotated[
        list[str] | None, typer.Option(callback=values.texts(), help="A LoRA to put on top: a file, folder or hub id; repeat for several.")
    ] = None

    @property
    def bundled(self) -> bool:
        """Whether it is the testbed's."""
        return self.model.startswith("testbed:")

    @property
    def is_file(self) -> bool:
        """Whether it is a single checkpoint."""
        return Path(self.model).suffix == ".safetensors"

    def open_pipeline(self, printed: Printing | None) -> Any:
        """The pipeline, after a line on where it runs and how large it is.

        `Running` commands, and those without `printed`, say that once all is checked.
        """
        from neuroscope.pipeline.loading import load_pipeline

        given = {name: value for name, value in vars(self).items() if name not in ("model", "lora", "config")}
        pipe = load_pipeline(self.model, **given, config=None if self.config is None else str(self.config), loras=self.lora or ())
        if printed is not None and not isinstance(printed, Running):
            printed.note_model(pipe)
        return pipe

    def open(self, printed: Printing | None) -> HookGraph:
        """The hook graph of the pipeline, as `open_pipeline`."""
        from neuroscope.pipeline.graph import HookGraph

        return HookGraph(self.open_pipeline(printed))


@dataclass(frozen=True)
class SiteOptions:
    """Which of a model's sites."""

    panel: ClassVar[str] = "Sites"
    layer: Annotated[list[int] | None, typer.Option("--layer", callback=values.texts(), help="A layer; repeat for several.")] = None
    role: Annotated[
        list[str] | None, choices.option(choices.ROLES, "--role", callback=values.texts(), help="A role; repeat for several.")
    ] = None


@dataclass(frozen=True)
class NamedConcept:
    """A concept by name, as far as its test prompts need it."""

    panel: ClassVar[str] = "Concept"
    style: Annotated[str | None, typer.Option(callback=values.text(), help="A style, by name.")] = None
    object_: Annotated[str | None, typer.Option("--object", callback=values.text(), help="An object, by name.")] = None
    fact: Annotated[str | None, typer.Option(callback=values.text(), help='A fact, by what it is about: "the emblem of astoria".')] = None
    attribute: Annotated[str | None, typer.Option("--attribute", callback=values.text(), help="Any other attribute, by name.")] = None
    concept: Annotated[Path | None, typer.Option("--concept", help="A TOML file with name, present, absent, test.")] = None

    def open(self, model: ModelOptions) -> Concept:
        """The one concept that is named; its built-in prompts fit the model.

        Raises:
            InvalidInput: none or several are named.
        """
        from neuroscope.core.concepts import Concept

        named = {"style": self.style, "object": self.object_, "fact": self.fact, "attribute": self.attribute, "concept": self.concept}
        given = [name for name, value in named.items() if value is not None]
        if len(given) != 1:
            found = f"not {' and '.join('--' + name for name in given)}" if given else "none was given"
            raise InvalidInput(f"name one concept by --style, --object, --fact, --attribute or --concept FILE; {found}")
        if self.concept is not None:
            return Concept.from_file(self.concept)
        prompts = "testbed" if model.bundled else "general"
        if self.fact is not None:
            return Concept.fact(self.fact, self._new_answer(), prompts)
        return Concept.attribute(str(named[given[0]]), given[0], prompts, against=self._others())

    def _new_answer(self) -> str:
        return ""

    def _others(self) -> list[str] | None:
        return None


@dataclass(frozen=True)
class ConceptOptions(NamedConcept):
    """A concept by name, with what its absent prompts say instead."""

    answer: Annotated[str | None, typer.Option(callback=values.text(), help="The fact's new answer.")] = None
    against: Annotated[
        list[str] | None,
        typer.Option(callback=values.texts(), help="What prompts without it say instead; repeat for several. By default several others."),
    ] = None

    def open(self, model: ModelOptions) -> Concept:
        """See `NamedConcept.open`; raises InvalidInput also for an answer to no fact, and for others where prompts are given."""
        if self.answer is not None and self.fact is None:
            raise InvalidInput("--answer would be ignored: it is a --fact's new answer, and no fact is given; leave it out, or give --fact")
        if self.against and (self.fact is not None or self.concept is not None):
            instead = "give --answer" if self.concept is None else "write the absent prompts in the file"
            raise InvalidInput(f"--against would be ignored: it is for a style, an object or an attribute; {instead}")
        return super().open(model)

    def open_with_one_counterpart(self, model: ModelOptions) -> Concept:
        """See `open`; without --against a style is against the first of the prompt set's others alone, as an edit has one target."""
        from neuroscope.core.concepts import Concept

        found = self.open(model)
        if self.style is None or self.against:
            return found
        return Concept.style(self.style, "testbed" if model.bundled else "general", against=found.against[0])

    def _new_answer(self) -> str:
        return self.answer or ""

    def _others(self) -> list[str] | None:
        return self.against or None


@dataclass(frozen=True)
class SeedOptions:
    """Which seeds of noise each prompt's images start from."""

    panel: ClassVar[str] = "Seeds"
    seeds: Annotated[int, typer.Option(callback=values.whole(), help="Seeds of each prompt, which make an image each.")] = 4
    seed: Seed = 0

    def open(self) -> tuple[int, ...]:
        """The seeds, counted up; raises InvalidInput for one that no generator takes."""
        return opening.counted_seeds(self.seed, self.seeds)


@dataclass(frozen=True)
class ChosenSeedOptions:
    """Which seeds, as many by default as the method needs."""

    panel: ClassVar[str] = "Seeds"
    seeds: Annotated[
        int | None, typer.Option(callback=values.whole(), help="Seeds of each prompt; by default 1 for neurons, 4 for layers.")
    ] = None
    seed: Seed = 0

    def open(self, default: int) -> tuple[int, ...]:
        """The seeds, counted up; raises InvalidInput for one that no generator takes."""
        return opening.counted_seeds(self.seed, default if self.seeds is None else self.seeds)


@dataclass(frozen=True)
class RecordingSeedOptions(ChosenSeedOptions):
    """Which seeds of runs in which keys are recorded, if there are any."""

    seeds: Annotated[
        int | None, typer.Option(callback=values.whole(), help="Runs of each prompt, where blocks rewrite the text; by default 4.")
    ] = None


@dataclass(frozen=True)
class FewSeedOptions(SeedOptions):
    """Which seeds, one by default."""

    seeds: Annotated[int, typer.Option(callback=values.whole(), help="Seeds of each prompt, which make an image each.")] = 1


@dataclass(frozen=True)
class DenoisingOptions:
    """How the pipeline is called."""

    panel: ClassVar[str] = "Generation"
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", callback=values.whole(), help="Denoising steps; by default the model's own.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", callback=values.finite(least=0), help="Classifier-free guidance; by default the model's own."),
    ] = None
    image: Annotated[Path | None, typer.Option("--image", help="Low-resolution input (super-resolution models such as IF-II).")] = None

    def open(self) -> dict[str, Any]:
        """The options that were given, for the pipeline's call.

        Raises:
            InvalidInput: a value that the pipeline does not take.
            InvalidFile: an image that cannot be read.
        """
        return opening.generation_options(**vars(self))


@dataclass(frozen=True)
class SizedDenoisingOptions(DenoisingOptions):
    """How the pipeline is called, with the size of the image."""

    height: Annotated[int | None, typer.Option(callback=values.side(), help="Image height in pixels; give --width too.")] = None
    width: Annotated[int | None, typer.Option(callback=values.side(), help="Image width in pixels; give --height too.")] = None
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", callback=values.whole(), help="Frames of a video; by default the model's own.")
    ] = None


def report(facts: Any, text: str, as_json: bool) -> None:
    """Prints a command's result, as text or as JSON."""
    say(json.dumps(facts, indent=1) if as_json else text)


def say(text: str) -> None:
    """Prints to standard output, also names of files that are no text."""
    typer.echo(text.encode(errors="backslashreplace").decode())

"""The options that commands share, and how a model, a concept and interventions are opened from them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from PIL import Image

from neuroscope import testbed
from neuroscope.attribution import Attribution
from neuroscope.cli import values
from neuroscope.core import artifacts, storage
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidFile, InvalidInput, choose
from neuroscope.core.intervention import Intervention
from neuroscope.generation.arguments import LARGEST_SIDE, check_values
from neuroscope.metrics.metric import Metric
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.loading import load_pipeline
from neuroscope.testbed.world import ATTRIBUTES


def files(param: typer.CallbackParam, paths: list[Path] | None) -> list[Path] | None:
    """A callback that refuses a file given twice, under whatever name."""
    found = [os.path.realpath(path) for path in paths or []]
    if twice := [path for number, path in enumerate(paths or []) if found[number] in found[:number]]:
        raise InvalidInput(f"{values.flag_of(param)} {twice[0]} is given twice; give each file once")
    return paths


Model = Annotated[str, typer.Option("--model", "-m", callback=values.text, help="testbed:NAME, a folder or a hub id.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
OutputFolder = Annotated[Path, typer.Option("--output-dir", "-o", help="The folder to write to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]
Style = Annotated[str | None, typer.Option(callback=values.text, help="A style, by name.")]
Object = Annotated[str | None, typer.Option("--object", callback=values.text, help="An object, by name.")]
Fact = Annotated[str | None, typer.Option(callback=values.text, help='A fact, by what it is about: "the emblem of astoria".')]
Answer = Annotated[str | None, typer.Option(callback=values.text, help="The fact's new answer.")]
AttributeName = Annotated[str | None, typer.Option("--attribute", callback=values.text, help="Any other attribute, by name.")]
ConceptFile = Annotated[Path | None, typer.Option("--concept", help="A TOML file with name, present, absent, test.")]
Layers = Annotated[list[int] | None, typer.Option("--layer", callback=values.texts, help="A layer; repeat for several.")]
Roles = Annotated[list[str] | None, typer.Option("--role", callback=values.texts, help="A role, such as value; repeat for several.")]
Apply = Annotated[list[Path] | None, typer.Option("--apply", callback=files, help="A saved mask or other intervention; repeat to compose.")]
Seed = Annotated[int, typer.Option(callback=values.whole(**values.SEED_RANGE), help="The seed of the (first) image's noise.")]
Read = Annotated[str | None, typer.Option(help="Testbed only: measure by an exact reader, such as style=stipple.")]
Steps = Annotated[
    int | None, typer.Option("--num-inference-steps", callback=values.whole(), help="Denoising steps; by default the model's own.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", callback=values.finite(least=0), help="Classifier-free guidance; by default the model's own."),
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Low-resolution input (super-resolution models such as IF-II).")]
Height = Annotated[int | None, typer.Option(callback=values.whole(most=LARGEST_SIDE), help="Image height in pixels; give --width too.")]
Width = Annotated[int | None, typer.Option(callback=values.whole(most=LARGEST_SIDE), help="Image width in pixels; give --height too.")]


def open_graph(model: str) -> HookGraph:
    """The hook graph of `--model`."""
    return HookGraph(load_pipeline(model))


def open_concept(
    model: str, style: str | None, thing: str | None, fact: str | None, answer: str | None, attribute: str | None, file: Path | None
) -> Concept:
    """The one concept that the options name; its built-in prompts fit the model.

    Raises:
        InvalidInput: none or several are named, or an answer to no fact.
    """
    named = {"style": style, "object": thing, "fact": fact, "attribute": attribute, "concept": file}
    given = [name for name, value in named.items() if value is not None]
    if answer is not None and fact is None:
        raise InvalidInput("--answer would be ignored: it is a --fact's new answer, and no fact is given; leave it out, or give --fact")
    if len(given) != 1:
        found = f"not {' and '.join('--' + name for name in given)}" if given else "none was given"
        raise InvalidInput(f"name one concept by --style, --object, --fact, --attribute or --concept FILE; {found}")
    if file is not None:
        return Concept.from_file(file)
    prompts = "testbed" if model.startswith("testbed:") else "general"
    if fact is not None:
        return Concept.fact(fact, answer or "", prompts)
    return Concept.attribute(str(named[given[0]]), given[0], prompts)


def open_interventions(paths: list[Path] | None) -> list[Intervention]:
    """The saved interventions of `--apply`, in order."""
    return [artifacts.load(path, cast("Any", Intervention)) for path in paths or []]


def open_method(name: str) -> Attribution:
    """An attribution method by its name, such as "welch" or "mean-difference"."""
    known = {_dashed(each.__name__): each for each in Attribution.__subclasses__() if each.__module__.startswith("neuroscope.")}
    return known[choose("method", name, sorted(known))]()


def open_reader(text: str, model: str) -> Metric:
    """The testbed's exact reader of --read ATTRIBUTE=VALUE."""
    attribute, _, value = text.partition("=")
    if not value or attribute not in ATTRIBUTES:
        raise InvalidInput(f"--read {text!r} is not ATTRIBUTE=VALUE; attributes: {', '.join(ATTRIBUTES)}")
    if not model.startswith("testbed:"):
        raise InvalidInput(f"--read works on the testbed's images, not on {model}; use --clip TEXT")
    return testbed.Reader(attribute, value)


def generation_options(image: Path | None = None, **options: Any) -> dict[str, Any]:
    """The options that were given, for the pipeline's call.

    Raises:
        InvalidInput: a height without a width, or the other way round.
        InvalidFile: an image that cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    check_values(given)
    return given if image is None else given | {"image": _open_picture(image)}


def _open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise InvalidFile(f"{path} is no image that can be read: {error}; give a PNG or JPEG file with --image") from error


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Checks that an output can be written and is none of the inputs, before any work is done.

    Raises:
        InvalidFile: it cannot be, or it would overwrite an input.
    """
    if output is not None:
        storage.refuse_overwriting_inputs(output, [each for each in inputs if each is not None])
        storage.check_writable(output)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell files apart: each one's stem, with as much of its path in front as is needed."""
    parts = [Path(os.path.realpath(path)).with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):  # files that differ in their suffixes alone
        parts = [Path(os.path.realpath(path)).parts for path in paths]
    return ["/".join(_shortest_ending(each, parts)) for each in parts]


def _shortest_ending(own: tuple[str, ...], every: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    counts = range(1, len(own) + 1)
    return next((own[-count:] for count in counts if sum(each[-count:] == own[-count:] for each in every) == 1), own)


def report(facts: Any, text: str, as_json: bool) -> None:
    """Prints a command's result, as text or as JSON."""
    say(json.dumps(facts, indent=1) if as_json else text)


def say(text: str) -> None:
    """Prints to standard output, also names of files that are no text."""
    typer.echo(text.encode(errors="backslashreplace").decode())


def _dashed(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")

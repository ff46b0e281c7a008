"""The options that commands share, and how a model, a concept and interventions are opened from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from PIL import Image

from neuroscope import artifacts, testbed
from neuroscope._errors import InvalidFile, InvalidInput, choose
from neuroscope.attribution import Attribution
from neuroscope.concepts import Concept
from neuroscope.graph import HookGraph
from neuroscope.interventions import Intervention
from neuroscope.metrics import Metric
from neuroscope.testbed.world import ATTRIBUTES, Attribute

Model = Annotated[str, typer.Option("--model", "-m", help="testbed:NAME, a folder or a hub id.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
OutputFolder = Annotated[Path, typer.Option("--output-dir", "-o", help="The folder to write to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]
Style = Annotated[str | None, typer.Option(help="A style, by name.")]
Object = Annotated[str | None, typer.Option("--object", help="An object, by name.")]
Fact = Annotated[str | None, typer.Option(help='A fact, by what it is about: "the emblem of astoria".')]
Answer = Annotated[str, typer.Option(help="The fact's new answer.")]
AttributeName = Annotated[str | None, typer.Option("--attribute", help="Any other attribute, by name.")]
ConceptFile = Annotated[Path | None, typer.Option("--concept", help="A TOML file with name, present, absent, test.")]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="A layer; repeat for several.")]
Roles = Annotated[list[str] | None, typer.Option("--role", help="A role, such as value; repeat for several.")]
Apply = Annotated[list[Path] | None, typer.Option("--apply", help="A saved mask or other intervention; repeat to compose.")]
Seed = Annotated[int, typer.Option(help="The seed of the (first) image's noise.")]
Read = Annotated[str | None, typer.Option(help="Testbed only: measure by an exact reader, such as style=stipple.")]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", help="Denoising steps; by default the model's own.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="Classifier-free guidance; by default the model's own.")]
Picture = Annotated[Path | None, typer.Option("--image", help="The small picture that a model for enlarging starts from.")]
Height = Annotated[int | None, typer.Option(help="Picture height in pixels.")]
Width = Annotated[int | None, typer.Option(help="Picture width in pixels.")]


def open_pipeline(model: str) -> Any:
    """The pipeline of `--model`.

    Raises:
        InvalidInput: there is no such bundled model, folder or hub id that can be reached.
    """
    if model.startswith("testbed:"):
        return testbed.load(model.removeprefix("testbed:"))
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InvalidInput(
            f"the model {model!r} cannot be loaded: {first} Give testbed:NAME, a folder of save_pretrained, or a hub id"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_graph(model: str) -> HookGraph:
    """The hook graph of `--model`."""
    return HookGraph(open_pipeline(model))


def open_concept(
    model: str, style: str | None, thing: str | None, fact: str | None, answer: str, attribute: str | None, file: Path | None
) -> Concept:
    """The one concept that the options name; its built-in prompts fit the model.

    Raises:
        InvalidInput: none or several are named.
    """
    given = [
        name for name, value in (("style", style), ("object", thing), ("fact", fact), ("attribute", attribute), ("concept", file)) if value
    ]
    if len(given) != 1:
        found = f"not {' and '.join('--' + name for name in given)}" if given else "none was given"
        raise InvalidInput(f"name one concept by --style, --object, --fact, --attribute or --concept FILE; {found}")
    if file:
        return Concept.from_file(file)
    prompts = "testbed" if model.startswith("testbed:") else "general"
    if fact:
        return Concept.fact(fact, answer, prompts)
    return Concept.attribute(style or thing or attribute or "", given[0], prompts)


def open_interventions(paths: list[Path] | None) -> list[Intervention]:
    """The saved interventions of `--apply`, in order."""
    return [artifacts.load(path, Intervention) for path in paths or []]


def open_method(name: str) -> Attribution:
    """An attribution method by its name, such as "welch" or "mean-difference"."""
    known = {_dashed(each.__name__): each for each in Attribution.__subclasses__()}
    return known[choose("method", name, sorted(known))]()


def open_reader(text: str, model: str) -> Metric:
    """The testbed's exact reader of --read ATTRIBUTE=VALUE."""
    attribute, _, value = text.partition("=")
    if not value or attribute not in ATTRIBUTES:
        raise InvalidInput(f"--read {text!r} is not ATTRIBUTE=VALUE; attributes: {', '.join(ATTRIBUTES)}")
    if not model.startswith("testbed:"):
        raise InvalidInput(f"--read works on the testbed's pictures, not on {model}; use --clip TEXT")
    return testbed.Reader(cast("Attribute", attribute), value)


def generation_options(image: Path | None = None, **options: Any) -> dict[str, Any]:
    """The options that were given, for the pipeline's call; raises InvalidFile for a picture that cannot be read."""
    given = {name: value for name, value in options.items() if value is not None}
    return given if image is None else given | {"image": _open_picture(image)}


def _open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise InvalidFile(f"{path} is no picture that can be read: {error}; give a PNG or JPEG file with --image") from error


def writable_folder(folder: Path) -> Path:
    """`folder`, made if it is not there; raises InvalidFile if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".neuroscope").touch()
        (folder / ".neuroscope").unlink()
    except OSError as error:
        raise InvalidFile(f"the folder {folder} cannot be written: {error.strerror}; choose another with --output-dir") from error
    return folder


def writable_file(path: Path) -> Path:
    """`path`, if its folder can be written; raises InvalidFile before any work is done."""
    if not path.parent.is_dir():
        raise InvalidFile(f"{path} cannot be written: there is no folder {path.parent}; make it or choose another")
    if path.is_dir():
        raise InvalidFile(f"{path} is a folder; give a file's name with --output")
    writable_folder(path.parent)
    return path


def report(facts: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result, as text or as JSON."""
    typer.echo(json.dumps(facts, indent=1) if as_json else text)


def _dashed(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")

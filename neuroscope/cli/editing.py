"""Commands that change what a model knows, and that give the change to others: edit, export, push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from neuroscope.cli import opening, options, values
from neuroscope.cli.commands import LightCommand


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(edit)
    app.command()(export)
    app.command(cls=LightCommand)(push)


def edit(
    *,
    output: options.Output,
    layer: Annotated[list[int], typer.Option("--layer", callback=values.texts(), help="A layer to edit; repeat for several.")],
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    ridge: Annotated[float, typer.Option(callback=values.finite(least=0), help="In units of the keys' mean squared length.")] = 0.01,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", callback=values.texts(), help="subject, eos, padding or all; repeat for several."),
    ] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option("--preserve", callback=values.texts(), help="A prompt that should stay; repeat for several."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make layers read a concept as its absence, or a fact as its new answer (LOCOEDIT)."""
    from neuroscope.core import artifacts
    from neuroscope.editing import LocoEdit
    from neuroscope.editing import edit as run

    opening.check_output(output, concept.concept)
    chosen = concept.open(model)
    method = LocoEdit(ridge=ridge, tokens=tuple(token or ["subject"]), preserve=tuple(preserve or ()))
    made = run(model.open(), chosen, method, layer)
    artifacts.save(made, output)
    facts = {"output": str(output), "report": asdict(made.report) if made.report else None}
    options.report(facts, f"{made}\n{made.report}\nwrote {output}", as_json)


def export(
    *,
    files: Annotated[list[Path], typer.Argument(callback=values.files(), help="Saved edits and masks, composed in this order.")],
    output_dir: options.OutputFolder = Path("lora"),
    model: options.ModelOptions,
    as_json: options.AsJson = False,
) -> None:
    """Write edits and masks as a standard LoRA, which diffusers loads without neuroscope."""
    from neuroscope.core import storage
    from neuroscope.editing import export_lora
    from neuroscope.editing.lora import FILE

    storage.refuse_overwriting_inputs(output_dir / FILE, files)
    changes = opening.open_interventions(files)
    storage.check_writable_folder(output_dir)
    path = export_lora(model.open(), changes, output_dir)
    options.report({"output": str(path)}, f"wrote {path}\nload it with pipe.load_lora_weights({str(output_dir)!r})", as_json)


def push(
    *,
    file: Path,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub; it is made if it is not there.")],
    base_model: Annotated[str, typer.Option(help="The hub's name of the model that it is for; by default the file's own.")] = "",
    licence: Annotated[str, typer.Option(help="The licence's short name on the hub, such as mit.")] = "",
    image: Annotated[
        list[Path] | None, typer.Option("--image", callback=values.files(), help="An image for the card, called by its name; repeatable.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="A LoRA file that does the same, as `export` writes it.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Let nobody else read a repository that is made.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; by default the main one.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Push a saved file with a model card to the Hugging Face hub; log in with `hf auth login` first."""
    from neuroscope.core import artifacts

    shown = dict(zip(opening.distinct_names(image or []), map(opening.open_image, image or []), strict=True))
    found = artifacts.load(file)
    address = found.push_to_hub(
        repository, base_model=base_model, licence=licence, images=shown, lora=lora, private=private, revision=revision
    )
    options.report({"address": address}, f"pushed {file} to {address}\nload it with ns.load({repository!r})", as_json)

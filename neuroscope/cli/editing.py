"""Commands that change what a model knows: edit, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from neuroscope.cli import options, values
from neuroscope.core import artifacts, storage
from neuroscope.editing import LocoEdit, export_lora
from neuroscope.editing import edit as run
from neuroscope.editing.lora import FILE


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(edit)
    app.command()(export)


def edit(
    output: options.Output,
    layer: Annotated[list[int], typer.Option("--layer", callback=values.texts, help="A layer to edit; repeat for several.")],
    model: options.Model = "testbed:sd1",
    style: options.Style = None,
    object_: options.Object = None,
    fact: options.Fact = None,
    answer: options.Answer = None,
    attribute: options.AttributeName = None,
    concept: options.ConceptFile = None,
    ridge: Annotated[
        float, typer.Option(callback=values.finite(least=0), help="In units of the keys' mean squared length.")
    ] = LocoEdit.ridge,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", callback=values.texts, help="subject, eos, padding or all; repeat for several."),
    ] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option("--preserve", callback=values.texts, help="A prompt that should stay; repeat for several."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make layers read a concept as its absence, or a fact as its new answer (LOCOEDIT)."""
    options.check_output(output, concept)
    chosen = options.open_concept(model, style, object_, fact, answer, attribute, concept)
    method = LocoEdit(ridge=ridge, tokens=tuple(token or ["subject"]), preserve=tuple(preserve or ()))
    made = run(options.open_graph(model), chosen, method, layer)
    artifacts.save(made, output)
    facts = {"output": str(output), "report": asdict(made.report) if made.report else None}
    options.report(facts, f"{made}\n{made.report}\nwrote {output}", as_json)


def export(
    files: Annotated[list[Path], typer.Argument(callback=options.files, help="Saved edits and masks, composed in this order.")],
    output_dir: options.OutputFolder = Path("lora"),
    model: options.Model = "testbed:sd1",
    as_json: options.AsJson = False,
) -> None:
    """Write edits and masks as a standard LoRA, which diffusers loads without neuroscope."""
    storage.refuse_overwriting_inputs(output_dir / FILE, files)
    changes = options.open_interventions(files)
    storage.check_writable_folder(output_dir)
    path = export_lora(options.open_graph(model), changes, output_dir)
    options.report({"output": str(path)}, f"wrote {path}\nload it with pipe.load_lora_weights({str(output_dir)!r})", as_json)

"""Commands that change what a model knows: edit, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from neuroscope.cli import opening, options, values


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(edit)
    app.command()(export)


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
    printed: options.Running,
) -> None:
    """Make layers read a concept as its absence, or a fact as its new answer (LOCOEDIT)."""
    from neuroscope.core import artifacts
    from neuroscope.core.quality import Plan
    from neuroscope.editing import LocoEdit
    from neuroscope.editing import edit as run

    opening.check_output(output, concept.concept)
    chosen = concept.open(model)
    method = LocoEdit(ridge=ridge, tokens=tuple(token or ["subject"]), preserve=tuple(preserve or ()))
    graph = model.open(printed)
    graph.sites.where(layer=layer)
    if printed.stops_at(Plan(0, 0), graph.pipe):
        return
    made = run(graph, chosen, method, layer)
    artifacts.save(made, output)
    facts = {"output": str(output), "report": asdict(made.report) if made.report else None}
    printed.report(facts, f"{made}\n{made.report}\nwrote {output}")


def export(
    *,
    files: Annotated[list[Path], typer.Argument(callback=values.files(), help="Saved edits and masks, composed in this order.")],
    output_dir: options.OutputFolder = Path("lora"),
    model: options.ModelOptions,
    printed: options.Printing,
) -> None:
    """Write edits and masks as a standard LoRA, which diffusers loads without neuroscope."""
    from neuroscope.core import storage
    from neuroscope.editing import export_lora
    from neuroscope.editing.lora import FILE

    storage.refuse_overwriting_inputs(output_dir / FILE, files)
    changes = opening.open_interventions(files)
    storage.check_writable_folder(output_dir)
    path = export_lora(model.open(printed), changes, output_dir)
    printed.report({"output": str(path)}, f"wrote {path}\nload it with pipe.load_lora_weights({str(output_dir)!r})")

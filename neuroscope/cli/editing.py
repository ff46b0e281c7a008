"""Commands that change what a model knows, and that give the change to others: edit, export, push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from neuroscope.cli import choices, opening, options, values
from neuroscope.cli.commands import LightCommand
from neuroscope.core.errors import choose


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(edit)
    app.command()(export)
    app.command(cls=LightCommand)(push)


def edit(
    *,
    output: options.Output,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", callback=values.texts(), help="A layer to edit; repeat for several.")
    ] = None,
    model: options.ModelOptions,
    concept: options.ConceptOptions,
    ridge: Annotated[float, typer.Option(callback=values.finite(least=0), help="In units of the keys' mean squared length.")] = 0.01,
    token: Annotated[
        list[str] | None,
        choices.option(choices.EDITED_TOKENS, "--token", callback=values.texts(), help="Which tokens; repeat for several."),
    ] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option("--preserve", callback=values.texts(), help="A prompt that should stay; repeat for several."),
    ] = None,
    role: Annotated[
        list[str] | None,
        choices.option(
            choices.EDITED_ROLES, "--role", callback=values.texts(), help="What is edited, by default key and value; repeat for several."
        ),
    ] = None,
    seeds: options.RecordingSeedOptions,
    generation: options.SizedDenoisingOptions,
    printed: options.Running,
) -> None:
    """Make layers read a concept as its absence, or a fact as its new answer (LOCOEDIT). A style becomes one other: see --against."""
    from neuroscope.core import artifacts
    from neuroscope.editing import LocoEdit, plan_edit
    from neuroscope.editing import edit as run

    opening.check_output(output, concept.concept)
    chosen = concept.open_with_one_counterpart(model)
    roles = tuple(role or LocoEdit.roles)
    method = LocoEdit(ridge=ridge, tokens=tuple(token or ["subject"]), preserve=tuple(preserve or ()), roles=roles)
    called: dict[str, Any] = generation.open()
    if seeds.seeds is not None or seeds.seed:
        called["seeds"] = seeds.open(4)
    graph = model.open(printed)
    if printed.stops_at(plan_edit(graph, chosen, method, layer, **called), graph.pipe):
        return
    made = run(graph, chosen, method, layer, quiet=printed.quiet, **called)
    artifacts.save(made, output)
    facts = {"output": str(output), "report": asdict(made.report) if made.report else None}
    printed.report(facts, f"{made}\n{made.report}\nwrote {output}")


def export(
    *,
    files: Annotated[list[Path], typer.Argument(callback=values.files(), help="Saved edits and masks, composed in this order.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="A folder, or a file that ends in .safetensors.")] = Path("lora"),
    lora_format: Annotated[str, choices.option(choices.FORMATS, "--format", help="kohya: for ComfyUI, A1111 and diffusers.")] = "diffusers",
    file_dtype: Annotated[str, choices.option(choices.FILE_DTYPES, "--file-dtype", help="The file's numbers.")] = "float32",
    model: options.ModelOptions,
    printed: options.Printing,
) -> None:
    """Write edits and masks as a LoRA file for diffusers, or for ComfyUI, A1111 and diffusers."""
    from neuroscope.core import storage
    from neuroscope.editing import export_lora
    from neuroscope.editing.lora import LoraDtype, LoraFormat, lora_file

    choose("dtype", file_dtype, get_args(LoraDtype))
    file = lora_file(output_dir, lora_format)
    storage.refuse_overwriting_inputs(file, files)
    changes = opening.open_interventions(files)
    storage.check_writable_folder(file.parent)
    path = export_lora(
        model.open(printed), changes, output_dir, format=cast("LoraFormat", lora_format), dtype=cast("LoraDtype", file_dtype)
    )
    place = f"pipe.load_lora_weights({str(path.parent)!r}, weight_name={path.name!r})"
    tools = f"put it into ComfyUI's models/loras or A1111's models/Lora, or load it with {place}"
    printed.report(
        {"output": str(path), "format": lora_format},
        f"wrote {path}\n{tools if lora_format == 'kohya' else f'load it with {place}'}",
    )


def push(
    *,
    file: Annotated[Path, typer.Argument(help="A saved mask, edit, recording, scores or neurons.")],
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

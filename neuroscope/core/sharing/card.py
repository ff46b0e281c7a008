"""The model card of a pushed result: what it is, its figures, and how to load it with and without neuroscope."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from neuroscope.core.errors import counted
from neuroscope.core.sharing.hub import FILE
from neuroscope.core.sharing.summary import Summary

#: What a model of the hub is called: `name` or `owner/name`.
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What a kind of file is called in a sentence, and what its code does with it.
_KINDS = {
    "neuron-mask": ("a mask of neurons", 'with graph.apply(loaded):\n    image = pipe("…").images[0]'),
    "context-map": ("an edit of what layers read", 'with graph.apply(loaded):\n    image = pipe("…").images[0]'),
    "context-swap": ("a swap of what layers read", 'with graph.apply(loaded):\n    image = pipe("…").images[0]'),
    "neuron-scores": ("scores of neurons", "mask = ns.NeuronMask(loaded.top(50))"),
    "layer-scores": ("scores of layers", "print(loaded.to_frame())"),
    "dose-response": ("the effect of masks of growing size", "print(loaded.smallest())"),
    "neurons": ("a set of neurons", "mask = ns.NeuronMask(loaded)"),
    "recording": ("statistics of activations", "scores = ns.score(loaded, ns.Welch())"),
}
#: The kinds that change a model, which a LoRA may hold.
_CHANGES = ("neuron-mask", "context-map")


def text(
    repository: str, header: Mapping[str, Any], summary: Summary, *, base_model: str, licence: str, images: Sequence[str], lora: str
) -> str:
    """The card, with its metadata in front.

    Args:
        repository: `owner/name`.
        header: the result's, as its file has it.
        summary: what it says.
        base_model: the hub's name of the model that it is for; by default the result's own model, if that is a name of the hub.
        licence: the licence's short name on the hub, such as "mit"; left out if empty.
        images: the paths of images in the repository.
        lora: the path of a LoRA file in the repository that does the same; empty without one.
    """
    from huggingface_hub import ModelCard, ModelCardData

    kind = str(header["kind"])
    provenance = {name: str(value) for name, value in (header.get("provenance") or {}).items() if value}
    model = provenance.get("model", "")
    named = base_model or (model if _MODEL.fullmatch(model) else "")
    tags = ["neuroscope", "diffusers", "interpretability", kind]
    data = ModelCardData(library_name="neuroscope", tags=tags, base_model=named or None, license=licence or None)
    what, use = _KINDS.get(kind, (kind, "print(loaded)"))
    title = f"{provenance['concept']}: {what}" if provenance.get("concept") else what.capitalize()
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(title)}",
        _plain(summary.verdict),
        _origin(provenance, header),
        "\n\n".join(f"![{name.rpartition('.')[0]}]({name})" for name in images),
        _table(summary),
        _with_neuroscope(repository, named or "the model's name", use, kind in (*_CHANGES, "context-swap")),
        _without(repository, lora, kind in _CHANGES),
    ]
    return str(ModelCard("\n\n".join(part for part in parts if part) + "\n"))


def _origin(provenance: Mapping[str, str], header: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(header.get("packages", {}).items()))
    facts = [f"- {name}: {_plain(value)}" for name, value in {**provenance, "made with": versions}.items() if value]
    return "\n".join(facts)


def _table(summary: Summary) -> str:
    if not summary.columns:
        return ""
    lines = [summary.columns, tuple("---" for _ in summary.columns), *summary.rows]
    more = f"\n\nThe first {len(summary.rows)} of {counted(summary.count, 'row')}." if summary.count > len(summary.rows) else ""
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines) + more


def _with_neuroscope(repository: str, model: str, use: str, changes: bool) -> str:
    opened = f'pipe = DiffusionPipeline.from_pretrained("{model}")\ngraph = ns.HookGraph(pipe)\n' if changes else ""
    needed = "from diffusers import DiffusionPipeline\n\n" if changes else "\n"
    return f'## With neuroscope\n\n```python\nimport neuroscope as ns\n{needed}{opened}loaded = ns.load("{repository}")\n{use}\n```'


def _without(repository: str, lora: str, changes: bool) -> str:
    return (
        f"## Without neuroscope\n\n{_lora(repository, lora) if changes else ''}"
        "The file is safetensors: tensors by name, and a JSON header that says what they are.\n\n"
        "```python\nimport json\n\nfrom huggingface_hub import hf_hub_download\nfrom safetensors import safe_open\n\n"
        f'with safe_open(hf_hub_download("{repository}", "{FILE}"), "pt") as file:\n'
        '    header = json.loads(file.metadata()["neuroscope"])\n'
        "    tensors = {name: file.get_tensor(name) for name in file.keys()}\n```"
    )


def _lora(repository: str, path: str) -> str:
    """How the change is loaded as a LoRA: the one in the repository, or one that is still to be exported."""
    if path:
        load = f'pipe.load_lora_weights("{repository}", weight_name="{path}")'
        return f"The LoRA beside it does the same in diffusers:\n\n```python\n{load}\n```\n\n"
    return (
        "A LoRA needs no neuroscope where images are made. Where the change can be one, export it once and load it in diffusers:\n\n"
        '```python\nns.export_lora(graph, loaded, "lora")\npipe.load_lora_weights("lora")\n```\n\n'
    )


def _plain(words: str) -> str:
    """Words as Markdown shows them as they are, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(words.split()))

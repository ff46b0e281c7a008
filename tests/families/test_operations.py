"""Every operation on every family, on pipelines whose answer is built in. `docs/models.py` makes the docs' table from these tests."""

import json

import pytest
import torch
from PIL import Image

import neuroscope as ns
from neuroscope.cli import main
from neuroscope.testbed import FAMILIES, build, planted

SHORT = ("--num-inference-steps", 1, "--guidance-scale", 1)


class Case:
    """A family's pipeline in which one layer alone carries the concept."""

    def __init__(self, family: str) -> None:
        self.pipe = build(family, "layer", seed=0)
        self.plant = planted(self.pipe)
        self.graph = ns.HookGraph(self.pipe)
        self.concept = self.plant.concept
        (self.layer,) = self.plant.layers
        self.values = self.graph.sites.where(layer=self.layer, role="value")

    def draw(self, prompt: str | None = None) -> torch.Tensor:
        """The final latents or pixels of a prompt, by default the first with the concept."""
        kind = "latent" if self.graph.has_latents else "pt"
        noise = torch.Generator().manual_seed(0)
        return self.pipe(prompt or self.concept.present[0], generator=noise, output_type=kind, **self.plant.generation).images

    def localize(self, method: ns.Localization) -> ns.LayerScores:
        return ns.localize(
            self.graph, self.concept, method, ns.LatentShare(), [0], pairs=2, keep_images=0, quiet=True, **self.plant.generation
        )

    def mask(self) -> ns.NeuronMask:
        recording = ns.record(self.graph, self.concept, self.values, "all", quiet=True)
        return ns.NeuronMask(ns.score(recording, ns.MeanDifference()).top(8), fill=1.0, rows="all")

    def edit(self) -> ns.ContextMap:
        return ns.edit(self.graph, self.concept, ns.LocoEdit(tokens="all", ridge=1e-4), self.layer)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def untouched(case) -> torch.Tensor:
    return case.draw()


@pytest.fixture(scope="module")
def goal(case) -> torch.Tensor:
    return case.draw(case.concept.absent[0])


def test_rank(case):
    """Only the planted layer's keys and values tell the prompts apart, so that its neurons lead every ranking."""
    recording = ns.record(case.graph, case.concept, token="all", quiet=True)
    for method in (ns.MeanDifference(), ns.Welch()):
        assert ns.score(recording, method).by_layer().top(1) == [case.layer]


def test_mask(case, untouched):
    with case.graph.apply(case.mask()):
        masked = case.draw()
    assert (masked - untouched).norm() > 1e-3 * untouched.norm()
    assert torch.equal(case.draw(), untouched)


def test_apply(case, untouched, goal):
    """All layers and the pooled text swapped is the other prompt; the planted layer alone is, too, because it is planted."""
    sites = case.graph.sites
    every = ns.ContextSwap.of(case.graph, sites.where(role=("key", "value", "pooled")), case.concept.absent[0])
    planted_alone = ns.ContextSwap.of(case.graph, sites.where(layer=case.layer, role=("key", "value")), case.concept.absent[0])
    with case.graph.apply(every):
        assert torch.equal(case.draw(), goal)
    with case.graph.apply(planted_alone):
        assert (case.draw() - goal).norm() < 1e-4 * (untouched - goal).norm() + 1e-5 * goal.norm()


def test_locogen(case):
    scores = case.localize(ns.LocoGen())
    assert scores.top(1) == [case.layer]
    assert scores.to_frame().set_index("layer")["score"][case.layer] > 0.999
    assert max(scores.scores[layer] for layer in scores.layers if layer != case.layer) < 1e-3
    assert (scores.pooled_share is not None) == bool(case.graph.sites.where(role="pooled"))
    assert scores.pooled_share is None or abs(scores.pooled_share[0]) < 1e-3


def test_tracing(case):
    """The noise is no stated prompt, so that other layers hear some of it; the planted layer stands out all the same."""
    scores = case.localize(ns.CausalTracing(noise=3.0))
    assert len(scores.layers) == len(case.graph.sites.layers)
    assert scores.top(1) == [case.layer]
    assert case.localize(ns.CausalTracing(component="text")).effects.means().max() > 0.05


def test_locoedit(case, untouched, goal):
    with case.graph.apply(case.edit()):
        edited = case.draw()
    assert (edited - goal).norm() < 0.25 * (untouched - goal).norm()


def test_locoedit_of_the_subjects_token_alone(case, untouched, goal):
    """Encoders carry a word on into other tokens (bidirectional ones into all), and the planted layer reads it there."""
    with case.graph.apply(ns.edit(case.graph, case.concept, ns.LocoEdit(tokens="subject", ridge=1e-4), case.layer)):
        edited = case.draw()
    assert (edited - goal).norm() > 0.5 * (untouched - goal).norm()


@pytest.mark.parametrize("kind", ["mask", "edit"])
def test_fold(case, untouched, kind):
    change = getattr(case, kind)()
    with case.graph.apply(change):
        applied = case.draw()
    with ns.fold(case.graph, change):
        folded = case.draw()
    assert (applied - folded).norm() < 1e-3 * (applied - untouched).norm() + 1e-5 * untouched.norm()
    assert torch.equal(case.draw(), untouched)


def test_lora_export(case, untouched, tmp_path):
    edit = case.edit()
    with case.graph.apply(edit):
        applied = case.draw()
    ns.export_lora(case.graph, edit, tmp_path)
    case.pipe.load_lora_weights(tmp_path)
    try:
        loaded = case.draw()
    finally:
        case.pipe.unload_lora_weights()
    assert (applied - loaded).norm() < 1e-3 * (applied - untouched).norm() + 1e-5 * untouched.norm()
    assert torch.equal(case.draw(), untouched)


def test_save_and_load(case, tmp_path):
    swap = ns.ContextSwap.of(case.graph, case.graph.sites.where(role=("value", "pooled")), case.concept.absent[0])
    for number, change in enumerate((case.mask(), case.edit(), swap)):
        ns.save(change, tmp_path / f"{number}.safetensors")
        with case.graph.apply(change):
            expected = case.draw()
        with case.graph.apply(ns.load(tmp_path / f"{number}.safetensors")):
            assert torch.equal(case.draw(), expected)


def test_command_line(case, tmp_path, capsys):
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit, match="0"):
            main([str(each) for each in arguments])
        return capsys.readouterr().out

    model = ["--model", f"testbed:{case.plant.family}/layer"]
    assert len(json.loads(run("sites", *model, "--role", "key", "--json"))) == len(case.graph.sites.layers)
    recorded, mask = tmp_path / "recorded.safetensors", tmp_path / "mask.safetensors"
    run("record", *model, "--style", "stipple", "--layer", case.layer, "--role", "value", "--quiet", "-o", recorded)
    run("mask", recorded, "--top", 4, "-o", mask)
    picture = tmp_path / "small.png"
    Image.new("RGB", (16, 16), "orange").save(picture)
    image = ("--image", picture) if "image" in case.plant.generation else ()
    made = json.loads(
        run("generate", *model, "--apply", mask, "--prompt", "a red star", *SHORT, *image, "-o", tmp_path, "--quiet", "--json")
    )
    assert len(made["images"]) == 1
    assert bool(made["pooled"]) == bool(case.graph.sites.where(role="pooled"))

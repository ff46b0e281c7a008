"""Every operation on every family, on pipelines whose answer is built in. `docs/models.py` makes the docs' table from these tests."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha
from diffusers.pipelines.sana import pipeline_sana
from PIL import Image

import neuroscope as ns
from neuroscope.cli import main
from neuroscope.pipeline.families import has_latents
from neuroscope.testbed import FAMILIES, build, planted
from neuroscope.testbed.construction.plants import REWRITING

#: HunyuanDiT's edits say what else they move, see test_hunyuandit.py.
pytestmark = pytest.mark.filterwarnings("ignore:an edit of hunyuan-dit also moves:UserWarning")

#: DeepFloyd's pipelines keep their guidance to themselves, so that every operation is run guided there as well.
GUIDED = ("if-1", "if-2")
SCALE = 4.0
#: AudioLDM 2's prompts are padded inside blocks alone, where no attention sees the padding; sums of other lengths round otherwise.
ROUNDING = {"audioldm2": 1e-6}
#: Its GPT-2 carries strong noise on into layers that hear none of the stated prompts.
NOISE = {"audioldm2": 1.0}
#: Edits' ridges; among normed keys, what tells prompts apart is smaller beside what they share.
RIDGES = {"sana": 1e-6}

built = cache(build)


def reads_loras(pipe: object) -> bool:
    return hasattr(pipe, "load_lora_weights")


class RunKey:
    """A family's pipeline in which one layer (or what else the plant says) alone carries the concept, with or without guidance."""

    def __init__(self, family: str, scale: float, plant: str = "layer") -> None:
        self.pipe = built(family, plant, 0)
        self.plant = planted(self.pipe)
        self.graph = ns.HookGraph(self.pipe)
        self.concept = self.plant.concept
        self.scale = scale
        self.ridge = RIDGES.get(family, 1e-4)
        self.generation = {**self.plant.generation, "guidance_scale": scale}
        (self.layer,) = self.plant.layers
        self.values = self.graph.sites.where(layer=self.layer, role="value")

    def draw(self, prompt: str | None = None, **options: object) -> torch.Tensor:
        """The final latents or pixels of a prompt, by default the first with the concept."""
        kind = "latent" if has_latents(self.pipe) else "pt"
        noise = torch.Generator().manual_seed(0)
        return self.pipe(prompt or self.concept.present[0], generator=noise, output_type=kind, **(self.generation | options))[0]

    def localize(self, method: ns.Localization) -> ns.LayerScores:
        return ns.localize(self.graph, self.concept, method, ns.LatentShare(), [0], pairs=2, keep_images=0, quiet=True, **self.generation)

    def mask(self) -> ns.NeuronMask:
        recording = ns.record(self.graph, self.concept, self.values, "all", quiet=True)
        return ns.NeuronMask(ns.score(recording, ns.MeanDifference()).top(8), fill=1.0, rows="all")

    def edit(self) -> ns.ContextMap:
        """The edit of the planted layer; where unconditional rows read the changed weights as well, their prompt is kept."""
        kept = ("",) if self.scale > 1 else ()
        return ns.edit(self.graph, self.concept, ns.LocoEdit(tokens="all", ridge=self.ridge, preserve=kept), self.layer)


#: Where blocks rewrite the text, see test_joint.py.
CASES = {**{name: (name, 1.0) for name in FAMILIES if name not in REWRITING}, **{f"{name}-guided": (name, SCALE) for name in GUIDED}}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> RunKey:
    return RunKey(*CASES[request.param])


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


def test_mask(case):
    """Masked, the planted neurons tell the concept's prompts apart no more, and as many others of the same layer change nothing."""
    inside = RunKey(case.plant.family, case.scale, "neurons")
    ((path, chosen),) = inside.plant.neurons.items()
    (site,) = inside.graph.sites.at([path])
    others = [neuron for neuron in range(site.width) if neuron not in chosen][: len(chosen)]
    fill = ns.record(inside.graph, inside.concept, [site], "all", quiet=True).mean("absent")
    prompts = (inside.concept.present[0], inside.concept.absent[0])
    before = [inside.draw(prompt) for prompt in prompts]
    differences = []
    for neurons in (chosen, others):
        with inside.graph.apply(ns.NeuronMask(ns.Neurons.at(inside.graph.sites, {path: neurons}), fill)):
            masked = [inside.draw(prompt) for prompt in prompts]
        differences.append(float((masked[0] - masked[1]).norm() / (before[0] - before[1]).norm()))
    assert differences[0] < 1e-4
    assert 0.99 < differences[1] < 1.01
    assert torch.equal(inside.draw(), before[0])


def test_apply(case, untouched, goal):
    """All layers and the pooled text swapped is the other prompt; the planted layer alone is, too, because it is planted."""
    sites = case.graph.sites
    every = ns.ContextSwap.of(case.graph, sites.where(role=("key", "value", "pooled")), case.concept.absent[0])
    planted_alone = ns.ContextSwap.of(case.graph, sites.where(layer=case.layer, role=("key", "value")), case.concept.absent[0])
    with case.graph.apply(every):
        assert (case.draw() - goal).norm() <= ROUNDING.get(case.plant.family, 0.0) * goal.norm()
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
    scores = case.localize(ns.CausalTracing(noise=NOISE.get(case.plant.family, 3.0)))
    assert len(scores.layers) == len(case.graph.sites.layers)
    assert scores.top(1) == [case.layer]
    assert case.localize(ns.CausalTracing(component="text")).effects.means().max() > 0.05


def test_locoedit(case, untouched, goal):
    skip_moved_durations(case)
    with case.graph.apply(case.edit()):
        edited = case.draw()
    assert (edited - goal).norm() < 0.25 * (untouched - goal).norm()


def test_locoedit_of_the_subjects_token_alone(case, untouched, goal):
    """Encoders carry a word on into other tokens (bidirectional ones into all), and the planted layer reads it there."""
    with case.graph.apply(ns.edit(case.graph, case.concept, ns.LocoEdit(tokens="subject", ridge=1e-4), case.layer)):
        edited = case.draw()
    assert (edited - goal).norm() > 0.5 * (untouched - goal).norm()


def skip_moved_durations(case: RunKey) -> None:
    if case.plant.family == "stable-audio":
        pytest.skip("an edit moves the tokens of durations as well, which no prompt tells")
    if case.plant.family == "hunyuandit":
        pytest.skip("an edit moves the learned vectors at padding as well, which no prompt tells and attention sees")


@pytest.mark.parametrize("kind", ["mask", "edit"])
def test_fold(case, untouched, kind):
    change = getattr(case, kind)()
    if case.plant.family == "stable-audio" and kind == "mask":
        with pytest.raises(ns.UnsupportedModel, match="has no bias, which the change needs; apply the change instead"):
            ns.fold(case.graph, change)
        return
    with case.graph.apply(change):
        applied = case.draw()
    with ns.fold(case.graph, change):
        folded = case.draw()
    assert (applied - folded).norm() < 1e-3 * (applied - untouched).norm() + 1e-5 * untouched.norm()
    assert torch.equal(case.draw(), untouched)


def test_lora_export(case, untouched, tmp_path):
    edit = case.edit()
    if not reads_loras(case.pipe):
        pytest.skip("diffusers reads no LoRA files there")
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


def test_lora_export_is_refused_where_nothing_would_read_the_file(tmp_path):
    case = RunKey("pixart", 1.0)
    with pytest.raises(ns.UnsupportedModel, match="PixArtAlphaPipeline reads no LoRA files; write the change .* with ns.fold instead"):
        ns.export_lora(case.graph, case.edit(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_save_and_load(case, tmp_path):
    swap = ns.ContextSwap.of(case.graph, case.graph.sites.where(role=("value", "pooled")), case.concept.absent[0])
    for number, change in enumerate((case.mask(), case.edit(), swap)):
        ns.save(change, tmp_path / f"{number}.safetensors")
        with case.graph.apply(change):
            expected = case.draw()
        with case.graph.apply(ns.load(tmp_path / f"{number}.safetensors")):
            assert torch.equal(case.draw(), expected)


@pytest.mark.parametrize("case", [name for name in FAMILIES if name not in REWRITING], indirect=True)
def test_locoedit_guided(case):
    """Unconditional rows read the changed weights too, as in the published edit: their prompt is kept, or they are left alone."""
    skip_moved_durations(case)
    untouched, goal = (case.draw(arm[0], guidance_scale=SCALE) for arm in (case.concept.present, case.concept.absent))
    published, kept = (ns.LocoEdit(tokens="all", ridge=case.ridge, preserve=preserve) for preserve in ((), ("",)))
    alone = replace(ns.edit(case.graph, case.concept, published, case.layer), rows="conditional")
    for change in (ns.edit(case.graph, case.concept, kept, case.layer), alone):
        with case.graph.apply(change):
            edited = case.draw(guidance_scale=SCALE)
        assert (edited - goal).norm() < 0.1 * (untouched - goal).norm()


def test_command_line(case, tmp_path, capsys, monkeypatch, untyped):
    """Every command on a family's model; `testbed.load` gives this test's own, which is made once."""

    # sizes on which PixArt, Sana and HunyuanDiT were trained
    monkeypatch.setitem(pipeline_pixart_alpha.ASPECT_RATIO_256_BIN, "1.0", [32.0, 32.0])
    monkeypatch.setitem(pipeline_sana.ASPECT_RATIO_1024_BIN, "1.0", [32.0, 32.0])
    monkeypatch.setattr(pipeline_hunyuandit, "SUPPORTED_SHAPE", [(64, 64)])

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit, match="0"):
            main([str(each) for each in arguments])
        return capsys.readouterr().out

    name, concept = f"{case.plant.family}/layer", tmp_path / "concept.toml"
    monkeypatch.setattr(ns.testbed, "load", {name: case.pipe}.__getitem__)
    fields = {"name": case.concept.name, "present": case.concept.present, "absent": case.concept.absent}
    concept.write_text("\n".join(f"{field} = {json.dumps(value)}" for field, value in fields.items()))
    model = ["--model", f"testbed:{name}"]
    sounds, videos = "height" not in case.generation, "num_frames" in case.generation
    size = [] if sounds else ["--height", case.generation["height"], "--width", case.generation["width"]]
    size += ["--num-frames", case.generation["num_frames"]] if videos else []
    options = ["--guidance-scale", case.scale, "--num-inference-steps", 2, *size, "--quiet", "--json"]
    assert len(json.loads(run("sites", *model, "--role", "key", "--json"))) == len(case.graph.sites.layers)
    recorded, mask = tmp_path / "recorded.safetensors", tmp_path / "mask.safetensors"
    run("record", *model, "--style", "stipple", "--layer", case.layer, "--role", "value", "--quiet", "-o", recorded)
    run("mask", recorded, "--top", 4, "-o", mask)
    image = tmp_path / "small.png"
    Image.new("RGB", (16, 16), "orange").save(image)
    image = ("--image", image) if "image" in case.plant.generation else ()
    made = json.loads(run("generate", *model, "--prompt", "a red star", *options, *image, "--apply", mask, "-o", tmp_path))
    assert len(made["images"]) == 1
    assert len(list(tmp_path.glob("*.wav"))) == sounds
    assert len(list(tmp_path.glob("*.gif"))) == videos
    assert bool(made["pooled"]) == bool(case.graph.sites.where(role="pooled"))
    small = ["--share", "latent", "--pairs", 1, "--seeds", 1, *options, *image]
    found = json.loads(run("localize", *model, "--concept", concept, *small, "-o", tmp_path / "layers.safetensors"))
    assert max(found["layers"], key=lambda each: each["score"])["layer"] == case.layer
    edit = tmp_path / "edit.safetensors"
    run("edit", *model, "--concept", concept, "--layer", case.layer, "--token", "all", "-o", edit)
    if not reads_loras(case.pipe):
        return
    run("export", edit, *model, "-o", tmp_path / "lora")
    case.pipe.load_lora_weights(tmp_path / "lora")
    case.pipe.unload_lora_weights()

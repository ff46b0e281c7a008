"""Constructed pipelines: their plants are proven by plain hooks, proofs can fail, and seeds give models and places."""

import pytest
import torch

import neuroscope as ns
from neuroscope import HookGraph, InvalidInput, testbed
from neuroscope.testbed import FAMILIES, PLANTS, build, planted, verify
from neuroscope.testbed.construction.builders.words import build_t5_tokenizer
from neuroscope.testbed.construction.pipelines import build_unplanted

LAYERS = {"sd1": 16, "sd2": 16, "openjourney": 16, "sdxl": 70, "if-1": 22, "if-2": 23, "pixart": 16, "sana": 12}
LAYERS |= {"audioldm2": 48, "stable-audio": 12, "ltx": 12, "wan": 12, "animatediff": 16, "hunyuandit": 12, "sd3": 12, "flux": 9}
POOLED = ("sdxl", "if-1", "if-2", "hunyuandit", "sd3", "flux")
HELD_BY = {"pooled": POOLED, "relayed": ("sd3",)}
EVERY = [(family, plant) for family in FAMILIES for plant in PLANTS if family in HELD_BY.get(plant, FAMILIES)]
FAST = [
    *[("sd1", plant) for plant in ("apart", "redundant", "schedule", "neurons", "decoy", "nothing")],
    ("sd2", "pair"),
    ("if-1", "prompt"),
    ("if-2", "pooled"),
    ("flux", "layer"),
]


@pytest.mark.parametrize(("family", "plant"), FAST)
def test_what_is_planted_is_proven(family, plant):
    proof = verify(build(family, plant, seed=0))
    assert proof.holds, proof
    assert len(proof.claims) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("family", "plant"), [each for each in EVERY if each not in FAST])
def test_what_is_planted_is_proven_in_every_family(family, plant):
    proof = verify(build(family, plant, seed=0))
    assert proof.holds, proof


@pytest.fixture
def built():
    return build("sd1", "layer", seed=0)


class TestProofsCanFail:
    def test_when_another_layer_hears_the_difference(self, built):
        (layer,) = planted(built).layers
        other = "down_blocks.0.attentions.0" if layer else "up_blocks.3.attentions.2"
        weight = built.unet.get_submodule(f"{other}.transformer_blocks.0.attn2.to_v").weight
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        proof = verify(built)
        assert not proof.holds
        assert "broken: keys and values outside the plant do not tell the prompts apart" in repr(proof)

    def test_when_the_planted_layer_hears_nothing(self, built):
        everything = [module for path, module in built.unet.named_modules() if path.endswith(("attn2.to_k", "attn2.to_v"))]
        for module in everything:
            module.weight.data.zero_()
        table = verify(built).to_frame()
        assert not table["holds"].all()
        assert not table.set_index("claim")["holds"]["the two prompts give different images"]

    def test_when_a_decoy_is_read(self):
        pipe = build("sd1", "decoy", seed=0)
        (path,) = planted(pipe).decoy_neurons
        reader = pipe.unet.get_submodule(path.removeprefix("unet.").replace("to_v", "to_out.0"))
        reader.weight.data += torch.randn(reader.weight.shape, generator=torch.Generator().manual_seed(0))
        assert not verify(pipe).to_frame().set_index("claim")["holds"]["swapping the decoy's neurons changes nothing"]


class TestBuild:
    def test_a_seed_gives_the_weights_and_the_place(self):
        first, again, other = build("sd1", "neurons", 3), build("sd1", "neurons", 3), build("sd1", "neurons", 4)
        weights = [torch.cat([each.flatten() for each in pipe.unet.state_dict().values()]) for pipe in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert planted(first) == planted(again)
        assert planted(first).neurons != planted(other).neurons

    def test_blocked_layers_hear_other_words(self, built):
        (layer,) = planted(built).layers
        module = built.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v") if layer else None
        present, thing = (built.encode_prompt(text, "cpu", 1, False)[0] for text in ("a red circle", "a blue star"))
        assert (module(present) - module(thing)).norm() > 0.05 * module(present).norm()

    def test_fresh_seeds_give_fresh_places(self):
        assert len({planted(build("sd2", "layer", seed)).layers for seed in range(3)}) > 1

    def test_the_name_says_how_to_build_it_again(self, built):
        assert built.config._name_or_path == "testbed:sd1/layer/0"
        assert planted(testbed.load("sd1/layer/0")) == planted(built)
        assert planted(testbed.load("sd1/layer")) == planted(built)

    def test_neurons_that_count_are_those_that_exact_ablation_finds_to_push(self):
        pipe = build("sd1", "neurons", seed=31)  # two of the six push away
        record = planted(pipe)
        ((path, chosen),), (layer,) = record.neurons.items(), record.layers
        scores = []
        for number, texts in enumerate(zip(record.concept.present, record.concept.absent, strict=True)):
            concept = ns.Concept("one pair", *[[text] for text in texts])
            method, options = ns.NeuronAblation(roles="value"), {"layers": layer, "seeds": [number], "quiet": True}
            scores.append(ns.rank(HookGraph(pipe), concept, method, **options, **record.generation).scores[path])
        effects = torch.stack(scores).mean(dim=0)
        assert effects[list(chosen)].tolist() == pytest.approx(record.effects[path], abs=1e-3)
        assert set(record.towards[path]) == set(torch.nonzero(effects > 2e-3).flatten().tolist())
        assert 0 < len(record.towards[path]) < len(chosen)

    def test_only_neurons_have_effects(self, built):
        assert planted(built).effects == planted(built).towards == {}

    def test_global_random_numbers_are_left_alone(self):
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        build("sd1", "nothing")
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_images_are_finite_and_not_flat(self, family):
        pipe = build(family, "nothing")
        image = pipe("a red circle", generator=torch.Generator().manual_seed(0), output_type="np", **planted(pipe).generation)[0][0]
        assert image.min() < image.max() <= 1
        assert image.min() >= (0 if image.shape[-1] == 3 else -1)  # of a sound
        named = [path for path, _ in HookGraph(pipe).denoiser.named_modules() if "motion_modules" not in path]
        layers = [path for path in named if path.endswith(("attn2.to_k", "add_k_proj"))]
        layers += list(getattr(HookGraph(pipe).denoiser, "single_transformer_blocks", []))
        assert len(layers) == LAYERS[family]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("sd9", "layer"), "family 'sd9' is unknown; choose one of sd1, "),
            (("sd1", "layers"), "plant 'layers' is unknown; choose one of layer, .*did you mean 'layer'"),
            (
                ("sd1", "pooled"),
                "sd1 has no pooled text path, so nothing can be planted there; choose sdxl, if-1, if-2, hunyuandit, sd3, flux",
            ),
            (("flux", "relayed"), "no block of flux passes a concept on to a later one in its text; choose sd3"),
        ],
    )
    def test_what_cannot_be_built_is_said(self, arguments, message):
        with pytest.raises(InvalidInput, match=message):
            build(*arguments)

    @pytest.mark.parametrize("name", ["sd1/layer/x", "sd1/layer/1/2"])
    def test_names_of_another_form_are_refused(self, name):
        with pytest.raises(
            InvalidInput, match="names no constructed pipeline; write FAMILY/PLANT or FAMILY/PLANT/SEED, such as sdxl/pair/3"
        ):
            testbed.load(name)

    @pytest.mark.parametrize("ask", [planted, verify])
    def test_other_pipelines_have_no_plant(self, ask):
        with pytest.raises(InvalidInput, match="was not made by testbed.build, so nothing is known of it; build one"):
            ask(build_unplanted("sd1", 0))


class TestT5Words:
    def test_known_words_are_one_token_and_others_are_spelled(self):
        tokenizer = build_t5_tokenizer(["a red circle, a star"])
        assert tokenizer.tokenize("a red circle, zig") == ["▁a", "▁red", "▁circle", ",", "▁", "z", "i", "g"]

    def test_the_end_of_text_stands_behind_and_nothing_before(self):
        encoded = build_t5_tokenizer(["a star"])("a star", return_offsets_mapping=True)
        assert encoded.offset_mapping == [(0, 1), (2, 6), (0, 0)]
        assert encoded.input_ids[-1] == build_t5_tokenizer(["a star"]).eos_token_id

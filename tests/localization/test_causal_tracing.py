from contextlib import ExitStack

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from neuroscope import CausalTracing, HookGraph, InvalidInput, LatentShare, localize, testbed
from neuroscope.core.tokens import kinds_of_tokens
from neuroscope.localization.patching.corruption import Corruption
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, Corner, concept_of

SHARE = LatentShare()
PROMPT = STIPPLE[0][0]
CLEAN, CORRUPTED = 0, 1
FAST = SMALL | {"seeds": [0], "batch_size": 32, "keep_images": 0, "quiet": True}


def run(graph: HookGraph, method: CausalTracing, metric=SHARE, pairs=STIPPLE[:1], name: str = "stipple", **options):
    return localize(graph, concept_of(pairs, name), method, metric, **(FAST | options))


def draw(graph: HookGraph, contexts: list[torch.Tensor], **options) -> torch.Tensor:
    """Final latents for contexts, all from the same noise."""
    negative = graph.text.encode([""]).expand(len(contexts), -1, -1)
    noise = [torch.Generator().manual_seed(0) for _ in contexts]
    embeddings = {"prompt_embeds": torch.stack(contexts), "negative_prompt_embeds": negative}
    return graph.pipe(**embeddings, generator=noise, output_type="latent", **(SMALL | options)).images


@pytest.fixture(scope="module")
def contexts(graph) -> list[torch.Tensor]:
    return [graph.text.encode([PROMPT])[0], Corruption(graph, "stipple", 3.0).encode(PROMPT, seed=0).context[0]]


def replayed(graph: HookGraph, contexts: list[torch.Tensor], path: str, rows: str, **options) -> torch.Tensor:
    """A corrupted run alone, with one component's outputs taken from a record of the clean run."""
    module, record = graph.denoiser.get_submodule(path.removeprefix("unet.")), []
    handle = module.register_forward_hook(lambda _module, _args, output: record.append(output.clone()))
    draw(graph, contexts[:1], **options)
    handle.remove()
    clean = iter(record)

    def replay(_module, _args, output):
        kept = next(clean)
        return torch.cat([output[:1], kept[1:]]) if rows == "conditional" and len(output) == 2 else kept

    handle = module.register_forward_hook(replay)
    restored = draw(graph, contexts[1:], **options)
    handle.remove()
    assert next(clean, None) is None
    return restored[0]


def share_of(run: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> float:
    way = (target - source).double()
    return float(((run - source).double() * way).sum() / (way * way).sum())


class TestScores:
    @pytest.mark.parametrize(("scale", "rows"), [(1.0, "all"), (7.5, "all"), (7.5, "conditional")])
    def test_a_restored_run_is_the_corrupted_one_into_which_a_record_is_replayed(self, graph, contexts, scale, rows):
        scores = run(graph, CausalTracing(component="all", rows=rows), guidance_scale=scale)
        target, source = (draw(graph, [each], guidance_scale=scale)[0] for each in contexts)
        names = ["cross 0", "cross 15", "self 1", "self 14", "ff 0", "ff 13", "resnet 0", "resnet 21"]
        expected = {
            place: share_of(replayed(graph, contexts, place.path, rows, guidance_scale=scale), source, target)
            for place in graph.components
            if str(place) in names
        }
        assert len(expected) == len(names)
        for place, share in expected.items():
            assert scores.scores[graph.components.index(place)] == pytest.approx(share, abs=1e-4)
        assert max(expected.values()) > 0.1

    def test_rows_make_a_difference_where_there_is_guidance(self, graph):
        found = [run(graph, CausalTracing(component="resnet", rows=rows), guidance_scale=7.5).scores for rows in ("all", "conditional")]
        assert not np.allclose(*found, atol=1e-3)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_a_score_is_what_comes_back_over_what_was_lost(self, graph, contexts, sign):
        pairs, seeds = STIPPLE[:2], [0, 1]
        scores = run(graph, CausalTracing(component="resnet"), Corner(sign), pairs, seeds=seeds, guidance_scale=7.5)
        images = [graph.family.decode(graph.pipe, draw(graph, [each], guidance_scale=7.5), {})[0] for each in contexts]
        clean, corrupted = Corner()(images, [PROMPT] * 2)
        assert abs(float(scores.effects.total[0, 0])) == pytest.approx(abs(clean - corrupted), abs=0.02)
        np.testing.assert_allclose(scores.scores, scores.effects.values.mean(dim=(1, 2)) / scores.effects.total.mean())
        assert scores.effects.total.mean() > 0.1

    def test_places_are_restored_one_by_one_under_their_names(self, graph):
        kinds = {"cross": 16, "self": 16, "ff": 16, "resnet": 22}
        for kind, count in kinds.items():
            scores = run(graph, CausalTracing(component=kind), num_inference_steps=1)
            assert scores.names == tuple(f"{kind} {number}" for number in range(count))
            assert [patch.layers for patch in scores.effects.patches] == [(number,) for number in range(count)]
        scores = run(graph, CausalTracing(component="all"), num_inference_steps=1)
        assert scores.names == tuple(map(str, graph.components))
        assert scores.layers == tuple(range(70))

    def test_each_component_alone_is_as_among_all(self, graph):
        every, cross = (run(graph, CausalTracing(component=component)) for component in ("all", "cross"))
        among = [score for name, score in zip(every.names, every.scores, strict=True) if name.startswith("cross")]
        np.testing.assert_allclose(cross.scores, among, atol=1e-4)

    def test_prompts_and_seeds_are_measured_each_on_its_own(self, graph):
        together = run(graph, CausalTracing(), pairs=STIPPLE[:2], seeds=[4, 5]).effects.values
        for pair in range(2):
            for seed in range(2):
                alone = run(graph, CausalTracing(), pairs=STIPPLE[pair : pair + 1], seeds=[4 + seed]).effects.values
                torch.testing.assert_close(together[:, pair, seed], alone[:, 0, 0], rtol=0, atol=1e-4)
        assert not torch.allclose(together[:, 0, 0], together[:, 0, 1], atol=1e-3)

    @pytest.mark.parametrize(("batch_size", "batches"), [(32, 1), (10, 2), (4, 6)])
    def test_rows_are_the_runs_and_a_clean_one_for_every_batch(self, graph, batch_size, batches):
        """Corrupted, clean and 16 restored runs, in batches with one place for the clean run that they take from."""
        found = run(graph, CausalTracing(), pairs=STIPPLE[:2], batch_size=batch_size)
        assert found.cost.nfe == 2 * (2 + 16 + batches) * SMALL["num_inference_steps"]

    def test_the_contact_sheet_goes_from_corrupted_to_clean(self, graph, contexts):
        scores = run(graph, CausalTracing(), keep_images=1)
        assert scores.columns == ("source", *map(str, range(16)), "target")
        clean, corrupted = graph.family.decode(graph.pipe, draw(graph, contexts), {})
        (row,) = scores.images.values()
        for found, expected in ((row[0], corrupted), (row[-1], clean)):
            assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
        assert row[0].tobytes() != row[-1].tobytes()


class TestTextEncoder:
    @pytest.fixture(scope="class")
    @staticmethod
    def kinds(graph) -> np.ndarray:
        (kinds,) = kinds_of_tokens(graph.pipe.tokenizer, [PROMPT], "stipple")
        return kinds

    @pytest.fixture(scope="class")
    @staticmethod
    def corruption(graph) -> Corruption:
        return Corruption(graph, "stipple", 3.0)

    def test_the_last_layers_tokens_are_the_clean_contexts(self, corruption, contexts, kinds):
        """Each kind of token is put back alone; all of them together are the clean context."""
        for kind in corruption.parts([PROMPT]):
            restored = corruption.encode(PROMPT, 0, restored=(corruption.layer_count - 1, kind)).context[0]
            assert torch.equal(restored[kinds == kind], contexts[CLEAN][kinds == kind])
            assert torch.equal(restored[kinds != kind], contexts[CORRUPTED][kinds != kind])
        assert corruption.parts([PROMPT]) == ["start", "before", "last subject", "eos", "padding"]

    def test_words_before_the_subject_do_not_know_of_it(self, graph, corruption, contexts, kinds):
        """The encoder reads from left to right, so nothing in front of the noise has changed and can be restored."""
        before = np.isin(kinds, ["start", "before"])
        assert torch.equal(contexts[CLEAN][before], contexts[CORRUPTED][before])
        assert not torch.isclose(contexts[CLEAN][~before], contexts[CORRUPTED][~before], atol=1e-3).all(dim=1).any()
        for layer in range(corruption.layer_count):
            for kind in ("start", "before"):
                assert torch.equal(corruption.encode(PROMPT, 0, restored=(layer, kind)).context[0], contexts[CORRUPTED])

    def test_what_is_restored_early_is_read_by_later_tokens(self, corruption, contexts, kinds):
        restored = corruption.encode(PROMPT, 0, restored=(0, "last subject")).context[0]
        after = np.isin(kinds, ["eos", "padding"])
        assert not torch.isclose(restored[after], contexts[CORRUPTED][after], atol=1e-3).all(dim=1).any()
        near, far = ((each - contexts[CLEAN])[after].norm() for each in (restored, contexts[CORRUPTED]))
        assert near < far

    def test_a_layers_score_is_the_share_that_its_contexts_bring_back(self, graph, corruption, contexts):
        scores = run(graph, CausalTracing(component="text"))
        assert scores.names == ("text layer 0", "text layer 1", "text layer 2")
        grid = scores.grid()
        assert list(grid.columns) == ["start", "before", "last subject", "eos", "padding"]
        target, source = draw(graph, contexts)
        for layer, kind in ((0, "last subject"), (2, "padding"), (1, "eos")):
            restored = draw(graph, [corruption.encode(PROMPT, 0, restored=(layer, kind)).context[0]])[0]
            assert grid.loc[layer, kind] == pytest.approx(share_of(restored, source, target), abs=1e-4)
        assert (grid[["start", "before"]].abs() < 1e-4).all(axis=None)
        assert (grid[["last subject", "eos", "padding"]].abs() > 1e-3).any(axis=None)
        np.testing.assert_allclose(scores.scores, grid.mean(axis=1), atol=1e-9)

    def test_layers_are_in_order_where_there_are_more_than_ten(self, fresh):
        """By name the eleventh would come before the third; restored, the last one gives the clean contexts of its tokens."""
        config = CLIPTextConfig.from_dict(fresh.text_encoder.config.to_dict() | {"num_hidden_layers": 12})
        torch.manual_seed(0)
        graph = HookGraph(tiny.with_parts(fresh, text_encoder=CLIPTextModel(config).eval()))
        deep = Corruption(graph, "stipple", 3.0)
        assert deep.layer_count == 12
        clean, base = graph.text.encode([tiny.OTHER])[0], deep.encode(tiny.OTHER, 0).context[0]
        last = torch.from_numpy(kinds_of_tokens(graph.text.tokenizer, [tiny.OTHER], "stipple")[0] == "eos")
        restored = (deep.encode(tiny.OTHER, 0, (layer, "eos")).context[0] for layer in range(12))
        left = [float((each - clean)[last].norm()) for each in restored]
        assert left[11] < 1e-5 < left[10] < left[2] < (base - clean)[last].norm()

    def test_a_skipped_layer_is_skipped_in_every_context(self, fresh):
        """On a pipeline of its own: `clip_skip` leaves hooks of transformers, and diffusers looks for an old attribute."""
        vars(fresh.text_encoder)["text_model"] = fresh.text_encoder
        graph = HookGraph(fresh)
        corruption = Corruption(graph, "stipple", 3.0, clip_skip=1)
        clean, corrupted = graph.text.encode([PROMPT], clip_skip=1)[0], corruption.encode(PROMPT, 0).context[0]
        (kinds,) = kinds_of_tokens(fresh.tokenizer, [PROMPT], "stipple")
        before = np.isin(kinds, ["start", "before"])
        assert torch.equal(clean[before], corrupted[before])
        assert not torch.allclose(corrupted, Corruption(graph, "stipple", 3.0).encode(PROMPT, 0).context[0], atol=1e-2)
        restored = corruption.encode(PROMPT, 0, restored=(corruption.layer_count - 2, "eos")).context[0]
        assert torch.equal(restored[kinds == "eos"], clean[kinds == "eos"])
        scores = run(graph, CausalTracing(), clip_skip=1)
        (place,) = [place for place in graph.components if str(place) == "cross 15"]
        target, source = draw(graph, [clean, corrupted])
        expected = share_of(replayed(graph, [clean, corrupted], place.path, "all"), source, target)
        assert scores.scores[15] == pytest.approx(expected, abs=1e-4)
        assert scores.scores[15] != pytest.approx(run(graph, CausalTracing()).scores[15], abs=1e-3)


class TestNoise:
    @pytest.mark.parametrize("name", ["stipple", "white square"])
    def test_it_is_normal_noise_on_the_names_tokens_in_units_of_their_spread(self, graph, name):
        embedding, seen = graph.pipe.text_encoder.get_input_embeddings(), []
        (kinds,) = kinds_of_tokens(graph.pipe.tokenizer, [PROMPT], name)
        subject = np.isin(kinds, ["subject", "last subject"])
        layer = graph.pipe.text_encoder.encoder.layers[0]
        handle = layer.register_forward_pre_hook(lambda _module, args, kwargs: seen.append(args[0].clone()), with_kwargs=True)
        graph.text.encode([PROMPT])
        Corruption(graph, name, 2.5).encode(PROMPT, seed=7).context[0]
        handle.remove()
        clean, corrupted = (each[0] for each in seen)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7)).to(clean)
        ids = torch.tensor(graph.pipe.tokenizer(PROMPT, padding="max_length").input_ids)
        spread = embedding.weight[ids[torch.from_numpy(subject)]].std().item()
        assert int(subject.sum()) == len(graph.pipe.tokenizer(name).input_ids) - 2
        assert torch.equal(corrupted[~subject], clean[~subject])
        torch.testing.assert_close((corrupted - clean)[subject], 2.5 * spread * noise[subject], rtol=1e-4, atol=1e-5)

    def test_the_same_seed_is_the_same_noise_and_another_is_not(self, graph):
        first, again, other = (Corruption(graph, "stipple", 3.0).encode(PROMPT, seed).context[0] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-2)

    def test_more_noise_corrupts_more(self, graph, contexts):
        far = [(Corruption(graph, "stipple", noise).encode(PROMPT, 0).context[0] - contexts[CLEAN]).norm() for noise in (0.01, 0.1, 1.0)]
        assert far == sorted(far)
        assert far[0] < 0.1 * far[2]

    def test_the_text_encoder_is_left_as_it_was(self, graph, contexts):
        Corruption(graph, "stipple", 3.0).encode(PROMPT, 0, restored=(1, "eos")).context[0]
        assert torch.equal(graph.text.encode([PROMPT])[0], contexts[CLEAN])
        assert tiny.hooks(graph.pipe) == []

    def test_after_an_exception_too(self, graph, monkeypatch):
        corruption = Corruption(graph, "stipple", 3.0)
        with ExitStack() as stack:
            layer = graph.pipe.text_encoder.encoder.layers[2]
            stack.callback(layer.register_forward_pre_hook(lambda *_: 1 / 0).remove)
            with pytest.raises(ZeroDivisionError):
                corruption.encode(PROMPT, 0, restored=(1, "eos")).context[0]
        assert tiny.hooks(graph.pipe) == []


class TestRefusals:
    @pytest.mark.parametrize("component", ["cross", "text"])
    def test_a_prompt_without_the_name_is_refused_before_any_picture(self, graph, component):
        message = f"the prompt {STIPPLE[1][1]!r} does not hold 'stipple', so nothing in it can be corrupted; reword it"
        with tiny.counted(graph.denoiser) as calls, pytest.raises(InvalidInput, match=message):
            run(graph, CausalTracing(component=component), pairs=[STIPPLE[0], STIPPLE[1][::-1]])
        assert calls == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": 0.0}, "noise=0.0 corrupts nothing; give a positive number, such as 3.0"),
            ({"noise": -1.0}, "noise=-1.0 corrupts nothing"),
            (
                {"component": "crosss"},
                "component 'crosss' is unknown; choose one of cross, self, ff, resnet, ff_context, pooled, all, text; did you mean",
            ),
            ({"rows": "al"}, r"rows 'al' is unknown; choose one of all, conditional; did you mean 'all'\?"),
        ],
    )
    def test_an_impossible_option_is_refused(self, untyped, options, message):
        with pytest.raises(InvalidInput, match=message):
            CausalTracing(**options)


@pytest.mark.parametrize("family", ["sd1", "if-1"])
def test_restoring_an_attention_restores_what_it_adds_and_not_the_stream_around_it(family):
    """DeepFloyd's attentions return their residual stream, so that all of them would bring everything back."""
    pipe = tiny.exact(testbed.build(family, "layer", 0))
    plant = testbed.planted(pipe)
    scores = localize(HookGraph(pipe), plant.concept, CausalTracing(), LatentShare(), [0], quiet=True, **plant.generation)
    assert scores.top(1) == list(plant.layers)
    assert scores.scores[plant.layers[0]] > 10 * sorted(scores.scores)[-2]

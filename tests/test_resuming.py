"""What a ledger gives back is what would be made without it, whatever was changed between two calls."""

import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

from neuroscope import HookGraph, ImageShare, InvalidInput, LatentShare, LocoGen, evaluate, localize
from neuroscope.generation.keys import fingerprint
from tests.families import tiny
from tests.localization.planted import SMALL, STIPPLE, concept_of
from tests.test_evaluation import Brightness

FAST: dict[str, Any] = SMALL | {"num_inference_steps": 1, "quiet": True}


def adapted() -> Any:
    pipe = tiny.sd1()
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=64, target_modules=["to_k", "to_v"], init_lora_weights=False), "x")
    return pipe


def value(pipe: Any) -> torch.Tensor:
    return pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v.weight.data


def flip(pipe: Any) -> None:
    value(pipe).copy_(value(pipe).flip(0))


def exchange(pipe: Any) -> None:
    flat = pipe.unet.conv_in.bias.data
    flat[[0, 1]] = flat[[1, 0]]


def rescale(pipe: Any) -> None:
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod * 0.9


def louder(pipe: Any) -> None:
    class Louder(AttnProcessor):
        def __call__(self, *given: Any, **named: Any) -> torch.Tensor:
            return 2 * super().__call__(*given, **named)

    pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.set_processor(Louder())


#: Changes of a pipeline that sums, squares and names of its parameters do not see.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "a LoRA's scale": lambda pipe: pipe.set_adapters(["x"], [0.0]),
    "a LoRA off": lambda pipe: pipe.disable_lora(),
    "flipped rows": flip,
    "two weights exchanged": exchange,
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.1, s2=0.1, b1=3, b2=3),
    "an attention processor": louder,
    "noise levels": rescale,
    "a module's number": lambda pipe: setattr(pipe.unet.down_blocks[0].resnets[0], "output_scale_factor", 3.0),
    "a tokenizer's words": lambda pipe: pipe.tokenizer.add_tokens(["circle"]) or pipe.tokenizer.__setattr__("padding_side", "left"),
}


def table(pipe: Any, output: Any = None, **options: Any) -> pd.DataFrame:
    return evaluate(HookGraph(pipe), {"none": None}, [STIPPLE[0][0]], [3], [Brightness()], output=output, **(FAST | options))


def effects(pipe: Any, output: Any = None) -> torch.Tensor:
    options = FAST | {"seeds": [3], "pairs": 1, "keep_images": 0, "output": output}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return localize(HookGraph(pipe), concept_of(STIPPLE), LocoGen(window=16), Brightness(), **options).effects.values


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_after_any_change_the_fingerprint_is_another(change):
    pipe = adapted()
    before = fingerprint(HookGraph(pipe))
    change(pipe)
    assert fingerprint(HookGraph(pipe)) != before


@pytest.mark.parametrize("change", [CHANGES[name] for name in ("a LoRA's scale", "flipped rows", "FreeU")])
def test_after_a_change_a_ledger_gives_what_is_made_without_it(tmp_path, change):
    pipe = adapted()
    first = table(pipe, tmp_path / "table.jsonl")
    before = effects(pipe, tmp_path / "layers.jsonl")
    with tiny.counted(pipe.unet) as calls:
        assert torch.equal(effects(pipe, tmp_path / "layers.jsonl"), before)
        pd.testing.assert_frame_equal(table(pipe, tmp_path / "table.jsonl"), first)
    assert calls == []
    change(pipe)
    with tiny.counted(pipe.unet) as calls:
        pd.testing.assert_frame_equal(table(pipe, tmp_path / "table.jsonl"), table(pipe))
        assert torch.equal(effects(pipe, tmp_path / "layers.jsonl"), effects(pipe))
    assert len(calls) == 2 * (1 + 1)  # each time one batch, with the ledger and without


@pytest.mark.parametrize("build", tiny.PIPELINES.values(), ids=tiny.PIPELINES.keys())
def test_a_run_changes_no_fingerprint(build):
    pipe, graph = (made := build()), HookGraph(made)
    before = fingerprint(graph)
    tiny.draw(pipe, num_inference_steps=1)
    assert fingerprint(graph) == before


def test_the_number_format_is_part_of_the_fingerprint():
    pipe = tiny.sd1()
    graph, found = HookGraph(pipe), set()
    for dtype in (torch.bfloat16, torch.float32):  # the second holds the same values
        pipe.unet.to(dtype)
        found.add(fingerprint(graph))
    assert len(found) == 2


class TestOptions:
    def test_tensors_are_told_apart_by_every_element(self, tmp_path):
        pipe = tiny.sd1()
        noise = torch.zeros(1, 4, 32, 32, dtype=pipe.dtype)
        white = noise.clone()
        white[..., 16, 16] = 9.0
        options = {"output": tmp_path / "rows.jsonl", "height": 128, "width": 128}
        for latents in (noise, white):
            with tiny.counted(pipe.unet) as calls:
                found = table(pipe, latents=latents, **options)
            assert len(calls) == 1
            pd.testing.assert_frame_equal(found, table(pipe, latents=latents, height=128, width=128))

    def test_what_has_no_stable_form_is_refused_by_its_name_before_any_image(self, pipe, tmp_path):
        def callback(_pipe: Any, _step: int, _time: Any, given: dict) -> dict:
            return given

        with tiny.counted(pipe.unet) as calls:
            for run in (table, partial(table, output=tmp_path / "rows.jsonl")):
                refused = pytest.raises(InvalidInput, match="the option 'callback_on_step_end' holds a function, whose content has no")
                with refused if run is not table else nullcontext():
                    run(pipe, callback_on_step_end=callback)
        assert len(calls) == 1
        assert list(tmp_path.iterdir()) == []


def in_place(_module: Any, _args: Any, out: torch.Tensor) -> None:
    out.mul_(2)


class TestForeignHooks:
    @contextmanager
    def hooked(self, module: torch.nn.Module, hook: Callable[..., Any]) -> Any:
        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @pytest.mark.parametrize("hook", [lambda _module, _args, out: 2 * out, in_place])
    def test_one_that_changes_a_run_is_refused_by_its_name(self, pipe, tmp_path, hook):
        with self.hooked(pipe.unet.conv_in, hook):
            assert len(table(pipe)) == 1
            with pytest.raises(InvalidInput, match="unet.conv_in carries a hook, .*, that changes the run and whose content"):
                table(pipe, tmp_path / "rows.jsonl")
        assert (tmp_path / "rows.jsonl").read_text() == ""

    def test_an_open_block_is_refused_too(self, pipe, graph, tmp_path):
        with (
            graph.apply(tiny.mask(graph, rows="all")),
            pytest.raises(InvalidInput, match="carries a hook, neuroscope.pipeline.hooking.hook.Hook, that"),
        ):
            table(pipe, tmp_path / "rows.jsonl", guidance_scale=1.0)

    def test_one_that_watches_may_stay(self, pipe, tmp_path):
        seen: list[int] = []
        with self.hooked(pipe.unet.conv_in, lambda _module, _args, out: seen.append(len(out))):
            found = table(pipe, tmp_path / "rows.jsonl")
        assert seen == [1]
        pd.testing.assert_frame_equal(table(pipe, tmp_path / "rows.jsonl"), found)

    def test_a_replaced_forward_is_refused_by_its_name(self, tmp_path):
        pipe = tiny.sd1()
        own = pipe.unet.conv_in.forward
        pipe.unet.conv_in.forward = lambda values: 2 * own(values)
        with pytest.raises(InvalidInput, match="the forward of unet.conv_in was replaced by a function, whose content has no stable"):
            table(pipe, tmp_path / "rows.jsonl")


class TestBatches:
    """What a ledger holds is not made again, and what is made keeps the batches that it would have had."""

    @pytest.mark.parametrize("cut", [1, 3, 4, 6, 8])
    def test_a_table_that_was_cut_anywhere_comes_back(self, graph, tmp_path, cut):
        path = tmp_path / "rows.jsonl"
        options = FAST | {"batch_size": 3, "output": path, "controls": False}
        run = partial(evaluate, graph, {"none": None, "mask": tiny.mask(graph)}, [STIPPLE[0][0], STIPPLE[1][0]], [0, 1], [Brightness()])
        with tiny.counted(graph.denoiser) as calls:
            whole = run(**options)
            lines, every = path.read_text().splitlines(keepends=True), sum(calls)
            path.write_text("".join(lines[:cut]))
            calls.clear()
            again = run(**options)
        assert sum(calls) / every == (len(lines) - cut) / len(lines)
        pd.testing.assert_frame_equal(again, whole, check_exact=cut % 3 == 0, rtol=1e-9)

    @pytest.mark.parametrize(("metric", "cut"), [*((LatentShare(), cut) for cut in (1, 3, 5, 9, 13)), (ImageShare(), 5)])
    def test_shares_that_were_cut_anywhere_come_back(self, graph, tmp_path, cut, metric):
        path = tmp_path / "rows.jsonl"
        options = FAST | {"batch_size": 3, "output": path, "pairs": 2, "seeds": [0], "keep_images": 0}
        run = partial(localize, graph, concept_of(STIPPLE), LocoGen(window=12), metric)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = run(**options).effects.values
            path.write_text("".join([line for line in path.read_text().splitlines(keepends=True) if '"scores"' in line][:cut]))
            again = run(**options).effects.values
        torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12, equal_nan=True)


class TestCosts:
    def test_a_run_in_parts_reports_all_rows_that_a_hook_counts(self, graph, tmp_path):
        options = FAST | {"batch_size": 4, "output": tmp_path / "rows.jsonl", "pairs": 2, "seeds": [0], "keep_images": 0}
        run = partial(localize, graph, concept_of(STIPPLE), LocoGen(window=10), Brightness())
        with tiny.counted(graph.denoiser) as calls, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stop in (1, 2):
                with pytest.raises(KeyboardInterrupt), tiny.stopping(graph.denoiser, calls=stop):
                    run(**options)
            found = run(**options).cost
            assert found.nfe == sum(calls) - 2 * 4  # a call that was stopped before it began
            again = run(**options).cost
        assert again == found
        parts = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines() if '"cost"' in line]
        assert len(parts) == 3
        assert found.seconds == pytest.approx(sum(part["cost"][1] for part in parts))
        assert found.peak_bytes == max(part["cost"][2] for part in parts)

    def test_another_run_on_the_ledger_has_its_own(self, graph, tmp_path):
        options = FAST | {"output": tmp_path / "rows.jsonl", "seeds": [0], "keep_images": 0, "batch_size": 4}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            costs = [localize(graph, concept_of(STIPPLE), LocoGen(window=15), Brightness(), pairs=n, **options).cost.nfe for n in (1, 2)]
        assert costs == [4, 4]

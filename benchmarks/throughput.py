"""What hooks cost a LOCOGEN sweep: batches of windows against batches of the bare pipeline, in pairs within one run.

python -m benchmarks.throughput    (the bundled model; a GPU: --model sd1-real or sdxl-real --device cuda --dtype bf16 --compile)
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.stats
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import neuroscope as ns
from benchmarks.models import stable_diffusion_v1
from benchmarks.topologies import SDXL
from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import counted
from neuroscope.generation.batches import LARGEST_BATCH, Row, Sweep

PRESENT, ABSENT = "a red circle in the style of stipple", "a red circle"
TARGET = 0.98


def main() -> None:
    asked = _asked()
    torch.manual_seed(0)
    pipe = REAL[asked.model]() if asked.model in REAL else ns.testbed.load(asked.model.removeprefix("testbed:"))
    pipe.to(asked.device, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}.get(asked.dtype, "float32")))
    pipe.set_progress_bar_config(disable=True)
    side = asked.latents and asked.latents * pipe.vae_scale_factor
    options = {"num_inference_steps": asked.steps, "guidance_scale": 7.5, "height": side, "width": side}
    bare = Bare(ns.HookGraph(pipe), options)
    size = asked.batch_size or best_batch_size(bare)
    hooked = bare.graph
    if asked.compile:
        hooked = ns.HookGraph(compiled(with_open_attention(sharing_weights(pipe)), asked.backend), eager=False)
        bare = Bare(ns.HookGraph(compiled(pipe, asked.backend)), options)
    batches = windows(hooked, options, size)
    bare(size), next(batches)()
    before = counters["stats"]["unique_graphs"]
    ratios = [ratio(lambda: bare(size), next(batches), pair) for pair in range(asked.pairs)]
    report(ratios, f"{hooked}\n{counted(size, 'row')} a batch, {vars(asked)}")
    if asked.compile:
        print(f"recompilations between windows: {counters['stats']['unique_graphs'] - before} (graphs compiled before: {before})")


class Bare:
    """The pipeline's own call on a number of rows, its texts encoded beforehand."""

    def __init__(self, graph: ns.HookGraph, options: dict[str, Any]) -> None:
        self.graph = graph
        self._options = options
        self._told, self._against = graph.text.conditions([PRESENT]), graph.text.negative()

    def __call__(self, rows: int) -> None:
        conditions = [Conditions.of([each] * rows) for each in (self._told, self._against)]
        noise = [torch.Generator().manual_seed(0) for _ in range(rows)]
        self.graph.pipe(**self.graph.text.arguments(*conditions), generator=noise, output_type="latent", **self._options)


def windows(graph: ns.HookGraph, options: dict[str, Any], size: int) -> Iterator[Callable[[], None]]:
    """Batches in which each row changes the next layer of the model, round and round."""
    sweep = Sweep(graph, [PRESENT, ABSENT], options, batch_size=size, space="latent")
    other = sweep.conditions(ABSENT)
    swaps = [ns.ContextSwap(graph.sites.where(layer=layer, text_only=True).paths, other.context) for layer in graph.sites.layers]
    turns = itertools.cycle(swaps)
    while True:
        yield functools.partial(_draw, sweep, [Row(PRESENT, 0, (swap,)) for swap in itertools.islice(turns, size)])


def _draw(sweep: Sweep, rows: list[Row]) -> None:
    made, _ = next(sweep.run(rows))
    if len(made) < len(rows):
        raise MemoryError(f"{counted(len(rows), 'window', ('does', 'do'))} not fit the memory; give --batch-size {len(made)}")


def ratio(bare: Callable[[], None], hooked: Callable[[], None], pair: int) -> float:
    """The hooked batch's throughput as a share of the bare one's, measured one after the other in changing order."""
    if pair % 2:
        below, above = seconds(hooked), seconds(bare)
    else:
        above, below = seconds(bare), seconds(hooked)
    return above / below


def seconds(draw: Callable[[], None]) -> float:
    start = time.perf_counter()
    draw()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_batch_size(bare: Bare) -> int:
    """The number of rows a batch at which the bare pipeline is fastest, of the powers of two that fit the memory."""
    speeds: dict[int, float] = {}
    for size in itertools.takewhile(lambda size: size <= LARGEST_BATCH, (2**power for power in itertools.count())):
        try:
            bare(size)
            speeds[size] = size / min(seconds(lambda size=size: bare(size)) for _ in range(2))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    print("bare rows a second by batch size:", ", ".join(f"{size}: {speed:.2f}" for size, speed in speeds.items()))
    return max(speeds, key=lambda size: speeds[size])


def compiled(pipe: Any, backend: str) -> Any:
    """The pipeline with its UNet compiled as one graph."""
    pipe.unet = torch.compile(pipe.unet, backend=backend, dynamic=False, fullgraph=True)
    return pipe


def with_open_attention(pipe: Any) -> Any:
    """The pipeline with cross-attentions as operators of their own: compiled around, never into, so that hooks in them come and go."""
    for path, module in pipe.unet.named_modules():
        if path.endswith("attn2"):
            ATTENTIONS.append(module.forward)
            module.forward = functools.partial(_attend, len(ATTENTIONS) - 1)
    return pipe


def _attend(number: int, hidden: Tensor, encoder_hidden_states: Tensor, **_masks: None) -> Tensor:
    return torch.ops.benchmarks.attend(number, hidden, encoder_hidden_states)


ATTENTIONS: list[Callable[[Tensor, Tensor], Tensor]] = []
OPERATOR = torch.library.custom_op(
    "benchmarks::attend",
    lambda number, hidden, context: ATTENTIONS[number](hidden, context),
    mutates_args=(),
    schema="(int number, Tensor hidden, Tensor context) -> Tensor",
)
OPERATOR.register_fake(lambda _number, hidden, _context: torch.empty_like(hidden))


def sharing_weights(pipe: Any) -> Any:
    """A second pipeline with modules of its own in its UNet, and the first one's weights."""
    twin = copy.copy(pipe)
    twin.unet = copy.deepcopy(pipe.unet, {id(each): each for each in [*pipe.unet.parameters(), *pipe.unet.buffers()]})
    return twin


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """SDXL with a UNet of its real width (2.6 billion weights), random, and small text encoders of the real output widths."""
    small = ns.testbed.load("sd1")
    return StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=_text_encoder(CLIPTextModel, small.tokenizer, 768),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, small.tokenizer, 1280),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=UNet2DConditionModel(**SDXL).eval(),
        scheduler=small.scheduler,
    )


def _text_encoder(kind: Any, tokenizer: Any, width: int) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width, "num_attention_heads": width // 64}
    config = CLIPTextConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes)
    config.max_position_embeddings = tokenizer.model_max_length
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return kind(config).eval()


REAL: dict[str, Callable[[], Any]] = {"sd1-real": stable_diffusion_v1, "sdxl-real": stable_diffusion_xl}


def report(ratios: list[float], what: str) -> None:
    middle = scipy.stats.bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
    print(what)
    print(
        f"windows' throughput over the bare pipeline's: median {np.median(ratios):.3f}, its 95 % interval {middle.low:.3f} to "
        f"{middle.high:.3f}, single pairs {min(ratios):.3f} to {max(ratios):.3f} (target at least {TARGET})"
    )


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="testbed:sd1", help=f"{', '.join(REAL)}, or a model of the testbed, such as testbed:sd1/layer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--compile", action="store_true", help="compile both: the bare UNet whole, the hooked one around its cross-attentions"
    )
    parser.add_argument("--backend", default="inductor", help="of --compile")
    parser.add_argument("--latents", type=int, help="the side of the latents; by default the model's")
    parser.add_argument("--batch-size", type=int, help="by default the bare pipeline's fastest, before compiling")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Stable Diffusion 3 and 3.5: blocks in which an image and its text attend to one another, and which rewrite both.

The text is the states of two CLIP encoders side by side, with those of T5 behind them; a pooled text of both CLIPs reaches every block
through its norms. The attention `attn2` of some blocks of version 3.5 reads the image alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions
from neuroscope.core.errors import InvalidInput
from neuroscope.pipeline.families._family import Family, Refusal, SitePattern, place_of
from neuroscope.pipeline.families.attentions import FirstText, JointAttention
from neuroscope.pipeline.families.encoding import Encoded, WithLength, default_of
from neuroscope.pipeline.families.transformers.pixart import block_name
from neuroscope.pipeline.families.unets.unet import CHUNKED, FUSED

POOLED = "time_text_embed.text_embedder.linear_1"
EMBEDDER = "context_embedder"
_TOKENS = 7  # images have four


class Parts:
    """Tokenizers whose tokens stand one behind the other, as a prompt's do in a context that several encoders make.

    Args:
        *parts: tokenizers of transformers, as the pipeline calls them; see `neuroscope.core.tokens`.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.model_max_length = sum(part.model_max_length for part in parts)


def _words(pipe: Any, tokenizer: Any) -> Any:
    if getattr(pipe, "tokenizer_3", None) is None:
        return tokenizer
    return Parts(tokenizer, WithLength(pipe.tokenizer_3, default_of(pipe, "max_sequence_length")))


def _inputs(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    config = denoiser.config
    height, width = size or (2 * config.patch_size,) * 2
    place = place_of(denoiser)
    return {
        "hidden_states": torch.zeros(1, config.in_channels, height, width, **place),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config.joint_attention_dim, **place),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim, **place),
        "timestep": torch.ones(1, device=place["device"]),
    }


def read_text(_denoiser: Any, module: str, conditions: Conditions) -> Tensor:
    """The tokens or the pooled text, which alone are read of prompts without a run."""
    if module == EMBEDDER:
        return conditions.context
    if module != POOLED:
        raise InvalidInput(f"{module} reads a text that the blocks before it have rewritten; record it in a run")
    if conditions.pooled is None:
        raise InvalidInput("this change holds no pooled text, which the pooled path reads; make it with graph.text.conditions")
    return conditions.pooled


def first_text(denoiser: Any, given: Mapping[str, Any], conditions: Conditions) -> Tensor:
    """What the first block's attention reads of prompts at the step of a call, or at its rows' own steps."""
    embed, first, dtype = denoiser.time_text_embed, denoiser.transformer_blocks[0], given["hidden_states"].dtype
    place = given["hidden_states"].device, dtype
    # two of these modules are sites, and their hooks are not for this prompt
    known = embed.text_embedder.linear_1.forward(read_text(denoiser, POOLED, conditions).to(*place))
    known = embed.text_embedder.linear_2(embed.text_embedder.act_1(known))
    for name, embedder in (("timestep", embed.timestep_embedder), ("guidance", getattr(embed, "guidance_embedder", None))):
        if embedder is not None:
            known = known + embedder(embed.time_proj(given[name]).to(dtype))
    found = first.norm1_context(denoiser.context_embedder.forward(conditions.context.to(*place)), emb=known)
    text: Tensor = found[0]
    return text


#: What other keys and values read beside the text of a prompt.
IMAGE_TOKENS = Refusal(
    "IP-Adapter",
    "image tokens of its IP-Adapter pass beside the hooked projections; call `pipe.unload_ip_adapter()` first",
    lambda denoiser: any("IPAdapter" in type(each).__name__ for each in denoiser.attn_processors.values()),
    silent=True,
)
POOLED_TEXT = SitePattern("pooled", re.escape(POOLED), text_only=True, reader=POOLED.replace("linear_1", "linear_2"), in_layer=False)
CONTEXT = SitePattern("context", EMBEDDER, text_only=True, in_layer=False)
BLOCK = r"transformer_blocks\.\d+"
#: The sites of blocks with weights of their own for the text.
OF_BLOCKS = (
    SitePattern("query", r"attn\.to_q", reader="attn.add_k_proj", reader_rows=True, within=BLOCK),
    SitePattern("key", r"attn\.add_k_proj", reader="attn.to_q", reader_rows=True, within=BLOCK, rewritten=True),
    SitePattern("value", r"attn\.add_v_proj", reader="attn.to_out.0", within=BLOCK, rewritten=True),
    SitePattern("heads", r"attn\.to_out\.0", before_module=True, reader="attn.to_out.0", within=BLOCK),
    SitePattern("output", r"attn\.to_out\.0", within=BLOCK),
    SitePattern("feedforward", r"ff\.net\.0", reader="ff.net.2", within=BLOCK),
)
#: The modules that make the text for the blocks that follow.
TEXT_MODULES = rf"context_embedder|{BLOCK}\.(attn\.(add_q_proj|to_add_out|norm_added_[qk])|ff_context(\..+)?|norm1_context(\..+)?)"
#: The components of the text, beside attentions.
OF_TEXT = {"ff_context": re.compile(rf"{BLOCK}\.ff_context"), "pooled": re.compile("time_text_embed")}

SD3 = Family(
    name="stable-diffusion-3",
    component="transformer",
    denoisers=("SD3Transformer2DModel",),
    matches=lambda _config: True,
    patterns=(POOLED_TEXT, CONTEXT, *OF_BLOCKS),
    refusals=(IMAGE_TOKENS, FUSED, CHUNKED),
    block_name=block_name,
    inputs=_inputs,
    components={
        "cross": re.compile(rf"{BLOCK}\.attn"),
        "self": re.compile(rf"{BLOCK}\.attn2"),
        "ff": re.compile(rf"{BLOCK}\.ff"),
        **OF_TEXT,
    },
    stages=re.compile(rf"{BLOCK}|norm_out"),
    encoded=(
        Encoded("prompt_embeds"),
        Encoded("negative_prompt_embeds", part="unconditional"),
        Encoded("pooled_prompt_embeds", "pooled"),
        Encoded("negative_pooled_prompt_embeds", "pooled", "unconditional"),
    ),
    read=read_text,
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    words=_words,
    arguments={
        "latents": "hidden_states",
        "timestep": "timestep",
        "context": "encoder_hidden_states",
        "pooled": "pooled_projections",
        "skipped": "skip_layers",
    },
    prepares_text=re.compile(TEXT_MODULES),
    joint=(JointAttention(re.compile(rf"{BLOCK}\.attn")),),
    first_text=FirstText("transformer_blocks.0.attn", first_text),
    skipped_block="transformer_blocks.{}",
)

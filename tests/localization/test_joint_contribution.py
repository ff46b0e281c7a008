"""What the image reads of a concept's tokens where image and text attend to one another, against attention written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neuroscope as ns
from neuroscope import AttentionContribution, Concept, InvalidInput, LatentShare, localize
from neuroscope.generation.teacher_forcing import StepInput, TeacherForcing, record_steps
from neuroscope.localization.screening.local_attention import LocalAttention, for_each_attention
from tests.families.test_joint import FAMILIES, UNGUIDED, _turned, built
from tests.families.tiny import OTHER, PROMPT

SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}
CONCEPT = Concept("plain", [PROMPT], [OTHER])


@pytest.fixture(scope="module", params=FAMILIES)
def recorded(request) -> tuple[ns.HookGraph, StepInput]:
    graph = built(request.param)
    with torch.no_grad(), record_steps(graph, [0], stop_after=True) as steps:
        graph.pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **SMALL, **UNGUIDED[request.param])
    return graph, steps[0][0]


def written_out(attention: LocalAttention, tokens: Tensor) -> Tensor:
    """What the image's stream gets of the values of some tokens, by softmax and products."""
    module: Any = attention.module
    image = attention.kwargs["hidden_states"] if "hidden_states" in attention.kwargs else attention.args[0]
    text = attention.kwargs.get("encoder_hidden_states")
    count = attention.graph.text.token_count
    rotary = attention.kwargs.get("image_rotary_emb")
    names = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
    if text is None:
        (query, key, value) = _heads(module, image, names)
        leads = True
    else:
        own, its = (
            _heads(module, image, names),
            _heads(module, text, ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")),
        )
        leads = rotary is not None
        query, key, value = (torch.cat(pair[::-1] if leads else pair, dim=1) for pair in zip(own, its, strict=True))
    if rotary is not None:
        query, key = (_turned(each, *rotary) for each in (query, key))
    places = torch.zeros(value.shape[1], dtype=torch.bool)
    (places[:count] if leads else places[-count:]).copy_(tokens)
    scores = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
    found = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(dim=-1), value * places[None, :, None, None]).flatten(2)
    mine = found[:, count:] if leads else found[:, :-count]
    if text is not None:
        return mine @ module.to_out[0].weight.T
    block = attention.graph.denoiser.single_transformer_blocks[int(_number(attention))]
    return mine @ block.proj_out.weight[:, : mine.shape[-1]].T


def _number(attention: LocalAttention) -> str:
    (site,) = attention.graph.sites.where(layer=attention.layer, role="value")
    return site.module.split(".")[1]


def _heads(module: Any, given: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    found = []
    for name, norm in zip(names[:3], (*names[3:], ""), strict=True):
        value = getattr(module, name)(given).unflatten(-1, (module.heads, -1))
        normed = getattr(module, norm, None) if norm else None
        found.append(value if normed is None else normed(value))
    return found


def test_the_contribution_of_tokens_is_attention_written_out_and_adds_up(recorded):
    graph, step = recorded
    chosen = torch.from_numpy(np.isin(graph.text.kinds_of_tokens([PROMPT], "plain")[0], ["last subject"]))
    every = torch.ones_like(chosen)

    def measure(attention: LocalAttention) -> tuple[Tensor, ...]:
        parts = [attention.from_tokens(tokens) for tokens in (chosen, ~chosen, every)]
        return (*parts, written_out(attention, chosen))

    found = for_each_attention(TeacherForcing(graph), step, measure)
    assert len(found) == len(graph.sites.layers)
    for mine, others, whole, expected in found:
        torch.testing.assert_close(mine + others, whole, atol=1e-6, rtol=0)
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)  # FLUX turns in float32
        assert mine.norm() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_shares_of_all_layers_norms(family):
    graph = built(family)
    scores = localize(
        graph, CONCEPT, AttentionContribution(fidelity=3, steps=1), LatentShare(), [0], quiet=True, **SMALL, **UNGUIDED[family]
    )
    assert sum(scores.scores) == pytest.approx(1, abs=1e-9)
    assert min(scores.scores) > 0
    assert scores.fidelity is not None


def test_methods_that_stay_refused_say_why():
    graph, given = built("sd3"), {"seeds": [0], "quiet": True} | SMALL
    for method, reason in {
        AttentionContribution(against="other"): "What a layer reads of the other prompt is known in a run of it alone",
        ns.AttributionPatching(): "Its line from source to target is one of keys and values that prompts give",
    }.items():
        with pytest.raises(InvalidInput, match=f"{type(method).__name__} is not known to be right for .* for neurons. {reason}"):
            localize(graph, CONCEPT, method, LatentShare(), **given)
    with pytest.raises(InvalidInput, match="IntegratedGradients is not known to be right .* It follows whole runs to a target that"):
        ns.rank(graph, CONCEPT, ns.IntegratedGradients(), **given)

"""FLUX's single blocks, which read text and image by one set of weights, made such that the text in them depends on prompts alone.

Text and image have channels of their own, and no block writes into the text's. Tokens of the text attend to the first of them alone, which
lies before a concept's words and does not hear them: of what blocks add to the text nothing depends on the image, the step or the concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroscope.core.concepts import Concept
from neuroscope.testbed.construction import modules
from neuroscope.testbed.construction.pipelines import denoiser_of

#: The mark of the text in two channels of its own, with opposite signs, so that channels have a mean of 0.
_MARK = 4.0
#: Of queries and keys, the channel of each head that its rotary embedding does not turn, and its size; scores differ by over 100.
_UNTURNED, _SCALE, _QUERY, _KEY = 0, 10.0, 10.0, 5.0
_RIDGE = 0.03


class SingleText(NamedTuple):
    """The text of single blocks.

    Attributes:
        differences: what tells each pair of prompts apart, but for its size.
        free: directions of the text in which the first token, which all others take up, is 0: a concept may be louder there.
    """

    differences: Float[Tensor, "pair token channel"]
    free: Float[Tensor, "channel embedded"]


@torch.no_grad()
def part_text(pipe: Any, concept: Concept, generation: Any, rng: np.random.Generator) -> SingleText:
    """Makes single blocks' text depend on prompts alone.

    Args:
        pipe: a FLUX pipeline of random weights, in whose joint blocks the text is held.
        concept: pairs of prompts, all of which begin with the same word.
        generation: the options of a short run.
        rng: draws how the text lies in its channels.
    """
    lies = _part_channels(denoiser_of(pipe), rng)
    present, absent = (_states(pipe, prompts, generation) for prompts in (concept.present, concept.absent))
    first, differences = present[0, 0], present - absent
    away = modules.basis(differences.flatten(0, -2))
    others = torch.cat([present[:, 1:], absent[:, 1:]]).flatten(0, -2)
    found = _mark_of_first(first, others, away)
    mark = lies @ found
    mark[lies.shape[1] + 1 : lies.shape[1] + 3] = torch.tensor([-1.0, 1.0]) * float((others @ found).max()) / (2 * _MARK)
    for block in denoiser_of(pipe).single_transformer_blocks:
        weight = block.proj_mlp.weight.data
        weight -= (weight.double() @ lies @ away.T @ away @ lies.T).float()
        _attend_to_first(block.attn, mark, lies.shape[1] + 1)
    return SingleText(differences @ lies.T, lies - lies @ torch.outer(first, first) / (first @ first))


def _states(pipe: Any, prompts: Sequence[str], generation: Any) -> Float[Tensor, "prompt token embedded"]:
    """What the text encoder says of prompts."""
    with modules.watched(denoiser_of(pipe), ["context_embedder"]) as seen:
        modules.final(pipe, prompts, generation)
    return seen["context_embedder"][0].double()


def _part_channels(denoiser: Any, rng: np.random.Generator) -> Float[Tensor, "channel embedded"]:
    """Gives the text channels of its own, in which all tokens are of one size; by which matrix its states lie in them."""
    width = denoiser.context_embedder.in_features
    text = width + 3
    turned, _ = np.linalg.qr(rng.standard_normal((width, width)))
    centred, _ = np.linalg.qr(np.eye(width + 1)[:, :width] - 1 / (width + 1))
    lies = torch.zeros(denoiser.inner_dim, width, dtype=torch.float64)
    lies[: width + 1] = torch.from_numpy(centred @ turned)
    writers = [denoiser.context_embedder, denoiser.x_embedder]
    writers += [each for block in denoiser.transformer_blocks for each in (block.attn.to_out[0], block.ff.net[2])]
    for block in denoiser.single_transformer_blocks:
        writers.append(block.proj_out)
        block.norm.linear.weight.data.zero_()
        block.norm.linear.bias.data.view(3, -1)[:2, :text] = 0.0
    for writer in writers:
        writer.weight.data[:text] = 0.0
        writer.bias.data[:text] = 0.0
    embedder = denoiser.context_embedder
    embedder.weight.data.copy_(lies)
    embedder.bias.data[width + 1 :] = torch.tensor([_MARK, -_MARK] + [0.0] * (len(embedder.bias) - text))
    return lies


def _mark_of_first(
    first: Float[Tensor, " channel"], others: Float[Tensor, "token channel"], away: Float[Tensor, "direction channel"]
) -> Float[Tensor, " channel"]:
    """What is 1 of the first token and small of all others, and hears nothing of what tells prompts apart."""
    kept = torch.eye(len(first), dtype=torch.float64) - away.T @ away
    heard = torch.cat([others, _RIDGE * len(others) ** 0.5 * torch.eye(len(first), dtype=torch.float64)]) @ kept
    found = torch.linalg.pinv(heard.T @ heard, hermitian=True) @ kept @ first
    result: Float[Tensor, " channel"] = found / (found @ first)
    return result


def _attend_to_first(attention: Any, mark: Float[Tensor, " channel"], marked: int) -> None:
    """Lets tokens of the text attend to the first alone; what the image attends to stays."""
    rows = [head * attention.head_dim + _UNTURNED for head in range(attention.heads)]
    for projection in (attention.to_q, attention.to_k):
        projection.weight.data[rows] = 0.0
        projection.bias.data[rows] = 0.0
    attention.to_q.weight.data[rows, marked] = _QUERY
    attention.to_q.weight.data[rows, marked + 1] = -_QUERY
    attention.to_k.weight.data[rows] = (_KEY * mark).float()
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.data[_UNTURNED] = _SCALE

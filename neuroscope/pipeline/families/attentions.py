"""What hooks have to know of a family's attentions: how they are given a prompt's mask, and how they read a text that blocks rewrite."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuroscope.core.conditions import Conditions


@dataclass(frozen=True)
class AttentionMask:
    """How the attention of a layer, the module that holds its keys and values, is given the prompt's mask.

    Attributes:
        argument: the name under which it takes a bias of its scores, or what it makes one of.
        bias: the bias of a mask [prompt, token]: 0 where a token is seen, far below 0 elsewhere.
        as_bias: the bias [row, 1, token] in what it is given, for so many tokens and in a number format.
        as_given: what it is given for a bias, and in place of what.
    """

    argument: str
    bias: Callable[[Tensor], Tensor]
    as_bias: Callable[[Tensor, int, torch.dtype], Tensor] = lambda given, _tokens, _dtype: given
    as_given: Callable[[Tensor, Tensor], Tensor] = lambda bias, _given: bias


@dataclass(frozen=True)
class JointAttention:
    """Attentions in which an image reads a text that their blocks rewrite.

    Attributes:
        path: a regular expression over their paths.
        argument: the name under which they are given the text.
        leads: the text's tokens stand in front of the image's in that argument and in the output; otherwise the output is a pair, the
            image's and the text's.
        per_row: the names of arguments that have one entry a row.
    """

    path: re.Pattern[str]
    argument: str = "encoder_hidden_states"
    leads: bool = False
    per_row: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "attention_mask", "encoder_hidden_states_mask")


@dataclass(frozen=True)
class FirstText:
    """The first attention that reads a text which blocks rewrite: what it reads depends on prompt and step alone.

    Attributes:
        attention: its path in the denoiser.
        of: from the denoiser, the arguments of its call by name, and conditions of prompts, what the attention reads of these,
            [prompt, token, channel].
    """

    attention: str
    of: Callable[[Any, Mapping[str, Any], Conditions], Tensor]

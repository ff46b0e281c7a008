"""Random text encoders of the real classes, with tokenizers that hold the world's words."""

from __future__ import annotations

from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    T5EncoderModel,
    T5TokenizerFast,
)

from neuroscope.testbed import captions, world
from neuroscope.testbed.construction.builders.words import (
    build_bert_tokenizer,
    build_gemma_tokenizer,
    build_qwen_tokenizer,
    build_t5_tokenizer,
)
from neuroscope.testbed.vocabulary import build_tokenizer


def clip_tokenizer(padding: str | None = None) -> CLIPTokenizer:
    """A CLIP tokenizer of the world's captions, which pads with the end-of-text token unless told otherwise."""
    tokenizer = build_tokenizer(captions.corpus(world.scenes(held_out=False)))
    if padding is not None:
        tokenizer.pad_token = padding
    return tokenizer


def clip(tokenizer: CLIPTokenizer, width: int, kind: Any = CLIPTextModel, **config: Any) -> Any:
    """A random CLIP text encoder of three layers."""
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    length = tokenizer.model_max_length
    return kind(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=length, **shape, **special, **config))


def t5(width: int) -> tuple[T5TokenizerFast, T5EncoderModel]:
    """A T5 tokenizer of the world's captions and a random encoder of three layers."""
    tokenizer = t5_tokenizer()
    return tokenizer, t5_encoder(tokenizer, width)


def t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of the world's captions."""
    return build_t5_tokenizer(captions.corpus(world.scenes(held_out=False)))


def t5_encoder(tokenizer: T5TokenizerFast, width: int, kind: Any = T5EncoderModel, layers: int = 3, heads: int = 4) -> Any:
    """A random T5 (or UMT5) encoder."""
    shape = {"d_model": width, "d_kv": 16, "d_ff": 2 * width, "num_layers": layers, "num_heads": heads, "feed_forward_proj": "gated-gelu"}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return kind(kind.config_class(vocab_size=len(tokenizer), **shape, **special))


def bert(width: int) -> tuple[BertTokenizer, BertModel]:
    """A BERT tokenizer of the world's captions and a random encoder of two layers."""
    tokenizer = build_bert_tokenizer(captions.corpus(world.scenes(held_out=False)))
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    return tokenizer, BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **shape))


def gemma(width: int, instruction: str) -> tuple[GemmaTokenizer, Gemma2Model]:
    """A Gemma tokenizer of the world's captions and an instruction's words, and a random decoder of two layers."""
    tokenizer = build_gemma_tokenizer([*captions.corpus(world.scenes(held_out=False)), instruction])
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return tokenizer, Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **shape, **heads, **special))


def qwen(width: int, template: str) -> tuple[Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration]:
    """A Qwen tokenizer of the world's captions and a template's words, and a random Qwen2.5-VL of two layers."""
    tokenizer = build_qwen_tokenizer([*captions.corpus(world.scenes(held_out=False)), template])
    return tokenizer, _qwen(Qwen2_5_VLForConditionalGeneration, tokenizer, width)


def qwen3(width: int, template: str) -> tuple[Qwen3VLProcessor, Qwen3VLForConditionalGeneration]:
    """A processor with a Qwen tokenizer of the world's captions and a template's words, and a random Qwen3-VL of two layers."""
    tokenizer = build_qwen_tokenizer([*captions.corpus(world.scenes(held_out=False)), template])
    tokenizer.add_tokens([f"<|{name}|>" for name in ("image_pad", "video_pad", "vision_start", "vision_end")], special_tokens=True)
    processor = _PROCESSOR(Qwen2VLImageProcessorPil(patch_size=16), tokenizer, None, chat_template=_CHAT)
    encoder = _qwen(Qwen3VLForConditionalGeneration, tokenizer, width, head_dim=width // 4)
    encoder.config.image_token_id = processor.image_token_id
    return processor, encoder


_CHAT = "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content[0].text }}<|im_end|>\n{% endfor %}"
#: The processor without one for videos, which needs torchvision.
_PROCESSOR: Any = type(
    "Qwen3VLProcessor", (Qwen3VLProcessor,), {"check_argument_for_proper_class": lambda _self, _name, argument: type(argument)}
)


def _qwen(kind: Any, tokenizer: Qwen2Tokenizer, width: int, **shape: int) -> Any:
    shape |= {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sections = [width // 32, 3 * width // 64, 3 * width // 64]
    turned = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}}
    images: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width}
    images |= {"deepstack_visual_indexes": [0]} if kind is Qwen3VLForConditionalGeneration else {}
    text = {"vocab_size": len(tokenizer), **shape, **heads, **special, **turned}
    return kind(kind.config_class(text_config=text, vision_config=images))

"""Random pipelines that make sounds: real classes, small in width."""

from __future__ import annotations

import warnings

from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    AutoencoderOobleck,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from neuroscope.testbed.construction.builders.encoders import t5_encoder, t5_tokenizer

_MELS = 16
_LENGTH = 24
_WIDTH, _WRITTEN = 64, 36  # of T5's states and of GPT-2's: four pairs of prompts leave some room in either


def audioldm2() -> AudioLDM2Pipeline:
    """AudioLDM 2: 16 layers that read GPT-2, 16 that read T5 and 16 transformers without text, spectrograms and a vocoder.

    Its GPT-2 knows no positions, so that it writes the same of a prompt in every batch; see the docs' page on sounds.
    """
    words = t5_tokenizer()
    words.model_max_length = _LENGTH
    letters = build_letters()
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=[32] * 4,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=[[None, _WRITTEN, _WIDTH]] * 4,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )
    tiny = {"vocab_size": 4, "bos_token_id": 0, "eos_token_id": 0}
    writer = GPT2LMHeadModel(GPT2Config(n_positions=128, n_embd=_WRITTEN, n_layer=2, n_head=4, max_new_tokens=8, **tiny))
    writer.transformer.wpe.weight.data.zero_()
    return AudioLDM2Pipeline(
        vae=_spectrograms(),
        text_encoder=build_clap(letters),
        text_encoder_2=t5_encoder(words, _WIDTH),
        projection_model=AudioLDM2ProjectionModel(32, _WIDTH, _WRITTEN),
        language_model=writer,
        tokenizer=letters,
        tokenizer_2=words,
        feature_extractor=ClapFeatureExtractor(feature_size=16, sampling_rate=16000, max_length_s=1, frequency_max=8000),
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        vocoder=_vocoder(),
    )


def stable_audio() -> StableAudioPipeline:
    """Stable Audio, shallow: 12 blocks whose keys and values are shared by two heads of queries each, T5, and tokens of durations."""
    words = t5_tokenizer()
    words.model_max_length = _LENGTH
    small = {"encoder_hidden_size": 8, "decoder_channels": 8, "channel_multiples": [1, 2], "downsampling_ratios": [2, 4]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, for how diffusers normalises weights
        vae = AutoencoderOobleck(decoder_input_channels=4, audio_channels=2, sampling_rate=16000, **small)
    return StableAudioPipeline(
        vae=vae,
        text_encoder=t5_encoder(words, _WIDTH),
        projection_model=StableAudioProjectionModel(_WIDTH, _WIDTH, 0, 512),
        tokenizer=words,
        transformer=StableAudioDiTModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=12,
            attention_head_dim=16,
            num_attention_heads=6,
            num_key_value_attention_heads=3,
            cross_attention_dim=96,
            cross_attention_input_dim=_WIDTH,
            global_states_input_dim=2 * _WIDTH,
            time_proj_dim=32,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=50.0, solver_order=2),
    )


def build_letters() -> RobertaTokenizer:
    """A RoBERTa tokenizer that spells."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*special, *alphabet])}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=96)


def build_clap(tokenizer: RobertaTokenizer) -> ClapModel:
    """An untrained CLAP, 32 channels wide, of sounds of up to a second."""
    shared = {"hidden_size": 32, "projection_dim": 32}
    text = ClapTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        **shared,
    )
    audio = ClapAudioConfig(
        num_mel_bins=16,
        spec_size=64,
        window_size=4,
        depths=[1, 1],
        num_attention_heads=[2, 4],
        patch_embeds_hidden_size=16,
        num_hidden_layers=2,
        **shared,
    )
    return ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=32))


def _spectrograms() -> AutoencoderKL:
    """An untrained autoencoder of spectrograms with a fourfold downsampling."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 32],
        norm_num_groups=16,
    )


def _vocoder() -> SpeechT5HifiGan:
    """An untrained vocoder with 16 samples a frame."""
    small = {"upsample_rates": (4, 4), "upsample_kernel_sizes": (8, 8), "resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1,),)}
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=_MELS, upsample_initial_channel=16, sampling_rate=16000, **small))

"""Tiny stand-ins of released files: weights under the public keys, their YAML, autoencoders and encoders of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from video.text import HiddenStates

TEXT_LENGTH, TEXT_CHANNELS = 12, 16

T2I = f"""
arguments:
- img_size: 32
- txt_size: {TEXT_LENGTH}
- channel_size: 4
- patch_size: 1
- channels: 64
- blocks: 3
- layers_per_block: 1 1 2
- noise_std: 0.3
- nvp: 1
- rope: 1
- adaln: 0
- sos: 1
- seq_order: L2R
- use_softplus: 1
- cond_top_only: 1
- use_final_norm: 1
- vae: stabilityai/sd-vae-ft-ema
- text: google/flan-t5-xl
- cfg: 2.5
- soft_clip: 4
"""
T2V = f"""
arguments:
- img_size: 64
- txt_size: {TEXT_LENGTH}
- vid_size: '9:16'
- fps_cond: 1
- channel_size: 6
- patch_size: 1
- channels: 64
- top_block_channels: 128
- blocks: 3
- layers_per_block: 1 1 2
- noise_std: 0.5
- nvp: 1
- rope: 1
- sos: 1
- seq_order: L2R
- pt_seq_len: 4
- mix_aspect: 1
- use_softplus: 1
- cond_top_only: 1
- use_final_norm: 1
- learnable_self_denoiser: 1
- conditional_denoiser: 1
- denoiser_window: 2
- cond_noise_level: 1
- temporal_causal: 2
- shallow_block_local: 1
- vae: Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6
- finetuned_vae: none
- text: google/flan-t5-xl
- cfg: 2.5
- soft_clip: 4
"""


def layer(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"attention.norm": (), "mlp.norm": ()}
    shapes |= {"attention.qkv": (3 * channels,), "attention.proj": (channels,)}
    shapes |= {"mlp.main.0": (4 * channels,), "mlp.main.2": (channels,)}
    inputs = {"mlp.main.2": 4 * channels}
    found = {}
    for name, shape in shapes.items():
        found[f"{prefix}{name}.weight"] = (*shape, inputs.get(name, channels)) if shape else (channels,)
        found[f"{prefix}{name}.bias"] = shape or (channels,)
    return found


def block(prefix: str, channels: int, depth: int, token: int, outputs: int, text: int = 0) -> dict[str, Any]:
    shapes = {f"{prefix}proj_in.weight": (channels, token), f"{prefix}proj_in.bias": (channels,)}
    shapes |= {f"{prefix}proj_out.weight": (outputs, channels), f"{prefix}proj_out.bias": (outputs,)}
    for index in range(depth):
        shapes |= layer(f"{prefix}attn_blocks.{index}.", channels)
    if text:
        shapes |= {f"{prefix}proj_txt.weight": (channels, text), f"{prefix}proj_txt.bias": (channels,)}
    return shapes


def starflow_shapes(*, is_video: bool, channels: int = 64, top: int = 64, denoiser_layers: int = 8) -> dict[str, Any]:
    token, shapes = (6 if is_video else 4), {}
    for index, (depth, width) in enumerate([(1, channels), (1, channels), (2, top)]):
        prefix = f"blocks.{index}."
        shapes |= block(prefix, width, depth, token, 2 * token, TEXT_CHANNELS if index == 2 else 0)
        shapes |= {f"{prefix}sos_embed": (1, 1, token), f"{prefix}final_norm.weight": (width,)}
    if is_video:
        prefix = "learnable_self_denoiser."
        shapes |= block(prefix, channels, denoiser_layers, token, token, TEXT_CHANNELS)
        shapes |= {f"{prefix}final_norm.weight": (channels,)}
    return shapes


def tarflow_shapes(classes: int = 3, channels: int = 64) -> dict[str, Any]:
    """Images of 3 × 8 × 8 in patches of 2 × 2."""
    shapes: dict[str, Any] = {"var": (16, 12)}
    for index in range(2):
        prefix = f"blocks.{index}."
        shapes |= block(prefix, channels, 1, 12, 24)
        shapes |= {f"{prefix}pos_embed": (16, channels)}
        if classes:
            shapes |= {f"{prefix}class_embed": (classes, 1, channels)}
    return shapes


def weights(shapes: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random, with a mask and a variance as public files have them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_norm, scale = name.endswith("norm.weight"), 0.1 if ".proj_out." in name else 1.0
        state[name] = 1 + 0.1 * noise if is_norm else scale * noise / (shape[-1] ** 0.5 if len(shape) > 1 else 10)
    state["blocks.0.attn_mask"] = torch.ones(4, 4).tril()
    state["var"] = 0.5 + torch.rand(shapes["var"], generator=generator) if "var" in shapes else torch.ones(16, 4)
    return state


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "in", "snow", "video", "with", "fps", "image", "16"]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def save_t5(folder: Path, channels: int = TEXT_CHANNELS) -> Path:
    torch.manual_seed(0)
    config = T5Config(vocab_size=13, d_model=channels, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    HiddenStates(T5EncoderModel(config), tokenizer()).save(folder)
    return folder


def save_gemma(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=13,
        hidden_size=TEXT_CHANNELS,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    Gemma2Model(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_kl(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.18215,
    ).save_pretrained(folder)
    return folder


def wan22() -> AutoencoderKLWan:
    """Of the layout of Wan 2.2: patches of pixels, 16 times in space and 4 in time."""
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=6,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0, 0.2, -0.1],
        latents_std=[0.9, 1.1, 1.2, 0.8, 1.0, 1.3],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
    ).eval()


def save_wan(folder: Path) -> Path:
    wan22().save_pretrained(folder)
    return folder

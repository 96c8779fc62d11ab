"""Released weights: the public state-dict layouts, key for key, onto our flows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nflib.distributions import StandardNormal
from nflib.dtypes import widened
from nflib.flows import TARFlow
from nflib.networks import CausalTransformer
from nflib.transforms import TransformerAffineAutoregressive
from video.conversion.layouts import DENOISER
from video.conversion.released_config import Config, read_released_config, starflow_settings
from video.conversion.state_dicts import Conversion, Part, fill
from video.conversion.weights import read_released_weights, unwrapped
from video.flows.images import ScaledNormal, ScaledTARFlow
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV


def load_tarflow(checkpoint: str | os.PathLike[str], patch_size: int, *, head_dim: int = 64) -> TARFlow:
    """Released TARFlow weights (apple/ml-tarflow) as a `TARFlow` of square images, in evaluation mode.

    Args:
        checkpoint: a `.pth` or `.safetensors` file with the public state dict.
        patch_size: that the model was trained with; all other sizes but the head's are read off the weights.
        head_dim: width of an attention head.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, a missing or unknown key, or a patch size that does not fit.
    """
    return tarflow_from_state_dict(read_released_weights(checkpoint), patch_size, head_dim=head_dim)


def is_tarflow(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the layout of a TARFlow, whose blocks have learned positions."""
    return "blocks.0.pos_embed" in unwrapped(state)


def tarflow_from_state_dict(
    state: Mapping[str, Tensor], patch_size: int, *, head_dim: int = 64, keep_dtype: bool = False
) -> TARFlow:
    """`load_tarflow` for a state dict in memory, whose tensors the flow keeps as its weights.

    Args:
        state: the public state dict, by its own keys.
        patch_size: as of `load_tarflow`.
        head_dim: as of `load_tarflow`.
        keep_dtype: leave half precision as it is; else weights are widened to single precision.

    Raises:
        ValueError: a missing or unknown key, or a patch size that does not fit.
    """
    state = unwrapped(state)
    depths: list[int] = []
    while f"blocks.{len(depths)}.proj_in.weight" in state:
        prefix = f"blocks.{len(depths)}.attn_blocks."
        depths.append(len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}))
    if not depths or "blocks.0.pos_embed" not in state:
        raise ValueError("the state dict has no blocks with a pos_embed, so it is no TARFlow's; check the file.")
    channels, token_size = state["blocks.0.proj_in.weight"].shape
    num_tokens = len(state["blocks.0.pos_embed"])
    side = math.isqrt(num_tokens)
    if patch_size < 1 or token_size % patch_size**2 or side**2 != num_tokens:
        raise ValueError(
            f"the weights are for {num_tokens} tokens of {token_size} numbers, which are no square image in patches of "
            f"{patch_size} × {patch_size}; pass the patch size that the model was trained with."
        )
    if len(state.get("blocks.0.proj_out.weight", ())) == token_size:
        raise ValueError(
            "the TARFlow is volume-preserving (nvp off): its blocks shift and do not scale, which ours always do; take "
            "a checkpoint of one that scales."
        )
    classes = state.get("blocks.0.class_embed")
    variance = _variance(state, (num_tokens, token_size))
    with torch.device("meta"):  # the state dict brings the weights
        flow = (TARFlow if variance is None else ScaledTARFlow)(
            (token_size // patch_size**2, side * patch_size, side * patch_size),
            patch_size=patch_size,
            channels=channels,
            num_blocks=len(depths),
            layers_per_block=depths,
            num_classes=0 if classes is None else len(classes),
            head_dim=head_dim,
            final_norm=False,
        )
    flow._distribution = (StandardNormal if variance is None else ScaledNormal)((num_tokens, token_size))
    if variance is not None:
        flow._distribution.deviation.copy_(variance.sqrt())
    fill(
        (Part(f"blocks.{i}.", network, _of_tarflow(i % 2 == 1)) for i, network in enumerate(_networks(flow))),
        state,
        keep_dtype,
    )
    return flow.eval()


def _variance(state: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | None:
    """Of what z is drawn from, where it is not 1; raises ValueError for a buffer `var` that is no variance."""
    variance = state.get("var")
    if variance is None or variance.device.type == "meta":
        return None
    if tuple(variance.shape) != shape or not ((variance > 0) & variance.isfinite()).all():
        raise ValueError(
            f"the state dict is damaged or no TARFlow's: its 'var' of shape {tuple(variance.shape)} holds no variances "
            f"of {shape[0]} tokens of {shape[1]} numbers."
        )
    return None if bool((variance == 1).all()) else widened(variance)


def _of_tarflow(is_reversed: bool) -> Conversion:
    def convert(key: str, value: Tensor) -> Tensor:
        if key == "positions.weight":
            # Theirs belong to places in the image, ours to the order of visit; the token visited last is never read.
            return (value.flip(0) if is_reversed else value)[:-1]
        return value.squeeze(1) if key == "embedding.weight" else value

    return convert


def load_starflow(config: Config, checkpoint: str | os.PathLike[str], *, num_frames: int | None = None) -> STARFlowV:
    """Released STARFlow or STARFlow-V weights (apple/ml-starflow) as a `STARFlow` or `STARFlowV`, in evaluation mode.

    Other heights and widths than the configuration's square come from the flow's `resized`.

    Args:
        config: its YAML file (or JSON, or a mapping of the same arguments).
        checkpoint: a `.pth` or `.safetensors` file with the public state dict.
        num_frames: frames of latents that a STARFlow-V is made for (default: as it was trained).

    Raises:
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: the configuration is YAML, and PyYAML is not installed.
        ValueError: damaged files, weights of another configuration, or settings that are not supported.
    """
    arguments = read_released_config(config)  # which is quicker to find a mistake in
    return starflow_from_state_dict(arguments, read_released_weights(checkpoint), num_frames=num_frames)


def starflow_from_state_dict(
    config: Config,
    state: Mapping[str, Tensor],
    *,
    num_frames: int | None = None,
    factors: tuple[int, int] | None = None,
    keep_dtype: bool = False,
) -> STARFlowV:
    """`load_starflow` for a state dict in memory, whose tensors the flow keeps as its weights.

    Args:
        config: as of `load_starflow`.
        state: the public state dict, by its own keys.
        num_frames: as of `load_starflow`.
        factors: by how much the autoencoder reduces a picture's sides, and the number of frames (default: by its name).
        keep_dtype: leave half precision as it is; else weights are widened to single precision.

    Raises:
        ValueError: weights of another configuration, or settings that are not supported.
    """
    arguments, state = read_released_config(config), unwrapped(state)
    projections = [key for key in state if key.startswith("blocks.") and key.endswith("proj_txt.weight")]
    text_channels = arguments.get("txt_dim") or (state[projections[0]].shape[1] if projections else 0)
    settings, has_halves, top_has_halves = starflow_settings(arguments, text_channels, num_frames, factors)
    with torch.device("meta"):  # the state dict brings the weights
        flow: STARFlowV = (STARFlowV if len(settings["event_shape"]) == 4 else STARFlow)(**settings)
    networks = _networks(flow)
    patch_size = settings["patch_size"]
    parts = [
        Part(f"blocks.{index}.", network, _of_starflow(network, patch_size, has_halves))
        for index, network in enumerate(networks[:-1])
    ]
    parts.append(Part(f"blocks.{len(parts)}.", networks[-1], _of_starflow(networks[-1], patch_size, top_has_halves)))
    if flow.denoiser is not None:
        parts.append(Part(DENOISER, flow.denoiser, _of_starflow(flow.denoiser, patch_size, has_halves)))
    fill(parts, state, keep_dtype)
    return flow.eval()


def _of_starflow(network: Any, patch_size: int, has_halves: bool) -> Conversion:
    """How tensors of a STARFlow's block, or denoiser, become ours.

    Their tokens run over the places of a patch before its channels, ours after them. has_halves: their rotary pairs
    are the halves of a head, ours are neighbours.
    """
    attention = network.layers[0].attention
    rotated = [attention.num_heads * attention.head_dim, attention.num_key_value_heads * attention.head_dim]

    def convert(key: str, value: Tensor) -> Tensor:
        if key == "start_token":
            return _channels_first(value.flatten(), patch_size)
        if key.startswith("proj_out"):
            # Scale and shift, or in a denoiser one output.
            chunks = value.chunk(len(value) // network.proj_in.in_features)
            return torch.cat([_channels_first(chunk, patch_size) for chunk in chunks])
        if key == "proj_in.weight":
            return _channels_first(value.T, patch_size).T
        if has_halves and ".attention.qkv." in key:
            query, rest, unrotated = value.split([*rotated, len(value) - sum(rotated)])
            return torch.cat([_neighbours(part, attention.head_dim) for part in (query, rest)] + [unrotated])
        if has_halves and key.endswith(("query_norm.norm.weight", "key_norm.norm.weight")):
            return _neighbours(value, attention.head_dim)
        return value

    return convert


def _channels_first(rows: Tensor, patch_size: int) -> Tensor:
    """Rows in the order (place, channel), rearranged to (channel, place)."""
    return rows.unflatten(0, (patch_size**2, -1)).transpose(0, 1).flatten(0, 1)


def _neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of heads whose pairs are (i, i + head_dim / 2), rearranged so that they are (2 i, 2 i + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _networks(flow: TARFlow | STARFlowV) -> list[CausalTransformer]:
    """The networks of a flow's blocks, in the order in which data passes through them."""
    return [block.network for block in flow.modules() if isinstance(block, TransformerAffineAutoregressive)]

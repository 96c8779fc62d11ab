"""The denoiser that is learned beside a video flow: it predicts the noise in a clip's latents, frame by frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nflib.networks import CausalSelfAttention, Step, TransformerLayer
from nflib.networks.step import WHOLE_SEQUENCE
from video.flows.blocks import LayerSettings, TextPrefix
from video.flows.positions import axial_coordinates, axial_rotary

# The standard deviation of noise with which predictions are in units of it, in released models at any noise.
UNIT = 0.3
# What a flow's own settings leave open.
SETTINGS = ("num_layers", "past", "future", "use_text")


class FrameWindowAttention(CausalSelfAttention):
    """Self-attention of each frame to the text, itself, `past` frames before it and `future` frames after it.

    The tokens are words, then frames. Words see all words and the first ``1 + future`` frames. It goes frame by frame,
    so that no mask is made.

    Args:
        channels: width.
        text_length: how many words.
        frame_length: tokens of a frame.
        past: frames before it that a frame sees (None: all).
        future: frames after it that a frame sees.
        attention: further arguments of `CausalSelfAttention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        text_length: int,
        frame_length: int,
        past: int | None,
        future: int,
        **attention: Any,
    ):
        super().__init__(channels, **attention)
        self.text_length = text_length
        self.frame_length = frame_length
        self.past = past
        self.future = future

    def forward(self, x: Tensor, step: Step = WHOLE_SEQUENCE, layer: int = 0) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query, key, value = heads.split([self.num_heads, *2 * [self.num_key_value_heads]], dim=2)
        query, key = self._turned(query, self.query_norm), self._turned(key, self.key_norm)
        value = value.transpose(1, 2)
        is_grouped = self.num_heads != self.num_key_value_heads
        attended = [
            scaled_dot_product_attention(query[..., rows, :], seen_key, seen_value, enable_gqa=is_grouped)
            for rows, seen_key, seen_value in self._windows(key, value)
        ]
        return self.proj(torch.cat(attended, dim=-2).transpose(1, 2).flatten(2))

    def _turned(self, heads: Tensor, norm: nn.Module | None) -> Tensor:
        """Queries or keys ``(B, L, heads, head_dim)`` as attention takes them, ``(B, heads, L, head_dim)``."""
        if norm is not None:
            heads = norm(heads.flatten(2)).unflatten(-1, (-1, self.head_dim))
        heads = heads.transpose(1, 2)
        return heads if self.rotary is None else self.rotary(heads, 0)

    def _windows(self, key: Tensor, value: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
        """Rows of queries, each with the keys and values that they see."""
        words, length = self.text_length, self.frame_length
        text, frames = slice(0, words), (key.shape[-2] - words) // length
        windows = []
        if words:
            rows = slice(0, words + (1 + self.future) * length)
            windows.append((text, key[..., rows, :], value[..., rows, :]))
        for frame in range(frames):
            first = 0 if self.past is None else max(frame - self.past, 0)
            seen = slice(words + first * length, words + (frame + self.future + 1) * length)
            windows.append(
                (
                    slice(words + frame * length, words + (frame + 1) * length),
                    torch.cat([key[..., text, :], key[..., seen, :]], dim=-2),
                    torch.cat([value[..., text, :], value[..., seen, :]], dim=-2),
                )
            )
        return windows


class Denoiser(nn.Module):
    """The learned denoiser of STARFlow-V (arXiv 2511.20462): predicts what is noise in noisy latents.

    Its target is ``-σ² d log p(x) / dx`` (Tweedie), by the score of the flow beside it on latents with noise of
    standard deviation σ, in units of `UNIT`. `forward(clips, context)` takes clips ``(B, T, C, H, W)`` of up to
    max_frames frames and, with use_text, the flow's text ``(B, text_length, text_channels)``; the prediction has the
    clips' shape. Longer clips are denoised in chunks, each of which begins with the last `chunk_overlap` frames before
    it (None: all that there are positions for but one), as released models do it.

    Args:
        patches: turns clips into tokens and back, as in the flow.
        grid: height and width of a frame, in patches.
        max_frames: frames that there are positions for.
        layer: settings of the layers.
        span: of the rotary positions, as of `STARFlowV`.
        text_length: tokens of the flow's text; 0 for none.
        text_channels: width of the text's tokens.
        num_layers: of the transformer.
        past: frames before it that a frame sees (None: all).
        future: frames after it that a frame sees.
        use_text: whether frames see the text.

    Raises:
        ValueError: settings that do not fit; in use, a missing or misshapen context, or other frames.
    """

    def __init__(
        self,
        patches: Any,
        grid: tuple[int, int],
        max_frames: int,
        layer: LayerSettings,
        *,
        span: float,
        text_length: int = 0,
        text_channels: int = 0,
        num_layers: int = 8,
        past: int | None = None,
        future: int = 1,
        use_text: bool = True,
    ):
        super().__init__()
        if num_layers < 1 or future < 0 or (past is not None and past < 0):
            raise ValueError(f"a denoiser cannot have {num_layers} layers with past {past} and future {future} frames.")
        self.chunk_overlap = None if past is None else past + future
        frame_length, token_size = patches.token_shape
        words = text_length if use_text else 0
        rotary = axial_rotary(axial_coordinates(words, max_frames, *grid, span), layer.head_dim)
        self.patches = patches
        self.max_frames = max_frames
        self.frame_length = frame_length
        self.proj_in = nn.Linear(token_size, layer.channels)
        self.prefix = TextPrefix(words, text_channels, layer.channels) if words else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                FrameWindowAttention(
                    layer.channels,
                    text_length=words,
                    frame_length=frame_length,
                    past=past,
                    future=future,
                    rotary=rotary,
                    **layer.attention(),
                ),
                layer.make_mlp(),
                layer.make_norm,
                layer.make_post_norm,
                layer.dropout,
            )
            for _ in range(num_layers)
        )
        self.final_norm = layer.make_final_norm()
        self.proj_out = nn.Linear(layer.channels, token_size)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, clips: Tensor, context: Tensor | None = None) -> Tensor:
        tokens, _ = self.patches(clips)
        if tokens.shape[1] > self.max_frames * self.frame_length:
            raise ValueError(
                f"{tokens.shape[1] // self.frame_length} frames are more than the {self.max_frames} that this denoiser "
                "has positions for."
            )
        x = self.proj_in(tokens.to(self.proj_in.weight.dtype))
        if self.prefix is not None:
            x = torch.cat([self.prefix(context).to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x, WHOLE_SEQUENCE)
        x = self.proj_out(self.final_norm(x[:, x.shape[1] - tokens.shape[1] :]))
        return self.patches.inverse(x.to(clips.dtype))[0]

    def denoise(self, clips: Tensor, context: Tensor | None = None) -> Tensor:
        """Clips without the noise that is predicted in them; by a perfect denoiser, their posterior mean.

        Args:
            clips: with noise, ``(B, T, C, H, W)``.
            context: the flow's text ``(B, text_length, text_channels)``, with use_text.
        """
        return clips - UNIT * self(clips, context)

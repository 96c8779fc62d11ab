"""Causal transformers and the parts they are built from."""

from nflib.networks.attention import CausalSelfAttention, HeadwiseNorm
from nflib.networks.backends import use_attention_backend
from nflib.networks.cache import KeyValueCache
from nflib.networks.conditioning import ClassEmbedding, ImagePrefix, TokenPrefix, VectorEmbedding
from nflib.networks.layers import (
    MLP,
    GatedMLP,
    SoftClip,
    TransformerLayer,
    checkpoint_activations,
    transformer_layers,
)
from nflib.networks.norms import AdaptiveLayerNorm, RMSNorm
from nflib.networks.positions import LearnedPositions, Rotary, SinusoidalPositions, grid_coordinates
from nflib.networks.step import Step
from nflib.networks.transformer import CausalTransformer, EncodedContext

__all__ = [
    "MLP",
    "AdaptiveLayerNorm",
    "CausalSelfAttention",
    "CausalTransformer",
    "ClassEmbedding",
    "EncodedContext",
    "GatedMLP",
    "HeadwiseNorm",
    "ImagePrefix",
    "KeyValueCache",
    "LearnedPositions",
    "RMSNorm",
    "Rotary",
    "SinusoidalPositions",
    "SoftClip",
    "Step",
    "TokenPrefix",
    "TransformerLayer",
    "VectorEmbedding",
    "checkpoint_activations",
    "grid_coordinates",
    "transformer_layers",
    "use_attention_backend",
]

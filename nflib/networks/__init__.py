"""Causal transformers and the parts they are built from."""

from nflib.networks.attention import CausalSelfAttention
from nflib.networks.cache import KeyValueCache
from nflib.networks.conditioning import ClassEmbedding
from nflib.networks.norms import AdaptiveLayerNorm, RMSNorm
from nflib.networks.positions import LearnedPositions, Rotary, SinusoidalPositions, grid_coordinates
from nflib.networks.transformer import MLP, CausalTransformer, GatedMLP, SoftClip, TransformerLayer

__all__ = [
    "MLP",
    "AdaptiveLayerNorm",
    "CausalSelfAttention",
    "CausalTransformer",
    "ClassEmbedding",
    "GatedMLP",
    "KeyValueCache",
    "LearnedPositions",
    "RMSNorm",
    "Rotary",
    "SinusoidalPositions",
    "SoftClip",
    "TransformerLayer",
    "grid_coordinates",
]

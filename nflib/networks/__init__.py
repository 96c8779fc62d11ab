"""Causal transformers and the parts they are built from."""

from nflib.networks.attention import CausalSelfAttention, HeadwiseNorm
from nflib.networks.backends import attention_backend
from nflib.networks.cache import KeyValueCache
from nflib.networks.conditioning import ClassEmbedding
from nflib.networks.norms import AdaptiveLayerNorm, RMSNorm
from nflib.networks.positions import LearnedPositions, Rotary, SinusoidalPositions, grid_coordinates
from nflib.networks.step import Step
from nflib.networks.transformer import MLP, CausalTransformer, Embedded, GatedMLP, SoftClip, TransformerLayer

__all__ = [
    "MLP",
    "AdaptiveLayerNorm",
    "CausalSelfAttention",
    "CausalTransformer",
    "ClassEmbedding",
    "Embedded",
    "GatedMLP",
    "HeadwiseNorm",
    "KeyValueCache",
    "LearnedPositions",
    "RMSNorm",
    "Rotary",
    "SinusoidalPositions",
    "SoftClip",
    "Step",
    "TransformerLayer",
    "attention_backend",
    "grid_coordinates",
]

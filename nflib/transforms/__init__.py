"""Invertible maps, each an `nflows.transforms.Transform` with an exact log-determinant."""

from nflib.transforms.autoregressive import AutoregressiveTransform
from nflib.transforms.marginal import GaussianizeMarginals, Standardize
from nflib.transforms.ordering import Permute, Reverse
from nflib.transforms.patches import ImagePatches, VectorPatches
from nflib.transforms.scales import Exponential, Softplus

__all__ = [
    "AutoregressiveTransform",
    "Exponential",
    "GaussianizeMarginals",
    "ImagePatches",
    "Permute",
    "Reverse",
    "Softplus",
    "Standardize",
    "VectorPatches",
]

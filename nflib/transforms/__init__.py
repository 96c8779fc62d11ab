"""Invertible maps, each an `nflows.transforms.Transform` with an exact log-determinant."""

from nflib.transforms.autoregressive import AffineAutoregressive, AutoregressiveTransform
from nflib.transforms.framewise import Framewise
from nflib.transforms.guided import Guidance, Guided, LinearGuidance, PairedContext, ProductGuidance
from nflib.transforms.marginal import GaussianizeMarginals, Standardize
from nflib.transforms.ordering import Permute, PermuteByContext, Reverse
from nflib.transforms.patches import ImagePatches, VectorPatches
from nflib.transforms.scales import Exponential, Softplus

__all__ = [
    "AffineAutoregressive",
    "AutoregressiveTransform",
    "Exponential",
    "Framewise",
    "GaussianizeMarginals",
    "Guidance",
    "Guided",
    "ImagePatches",
    "LinearGuidance",
    "PairedContext",
    "Permute",
    "PermuteByContext",
    "ProductGuidance",
    "Reverse",
    "Softplus",
    "Standardize",
    "VectorPatches",
]

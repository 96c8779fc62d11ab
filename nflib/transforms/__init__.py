"""Invertible maps, each an `nflows.transforms.Transform` with an exact log-determinant."""

from nflib.transforms.autoregressive import TokenwiseAutoregressive, TransformerAffineAutoregressive
from nflib.transforms.averaged import AveragedAutoregressive
from nflib.transforms.binned import BinnedNormal, BinnedUniform
from nflib.transforms.causal_map import AffineAutoregressive, Autoregressive
from nflib.transforms.circular import CircularRationalQuadraticSpline
from nflib.transforms.circular_marginals import UniformizeCircles
from nflib.transforms.framewise import Framewise
from nflib.transforms.guided import Guidance, GuidedAutoregressive, LinearGuidance, PairedContext, ProductGuidance
from nflib.transforms.inversion import ClosedForm, invert
from nflib.transforms.marginal import GaussianizeMarginals, Standardize
from nflib.transforms.marginal_by_kind import GaussianizeByKind
from nflib.transforms.mixture import NormalMixture
from nflib.transforms.ordering import Permute, PermuteByContext, Reverse
from nflib.transforms.parts import ByParts
from nflib.transforms.patches import ImagePatches, VectorPatches
from nflib.transforms.scales import ExponentialScale, SoftplusScale
from nflib.transforms.token_maps import AutoregressiveTokenMap, IndependentTokenMap, TokenMap
from nflib.transforms.univariate import PerNumber, QuadraticSpline, RationalQuadraticSpline
from nflib.transforms.whiten import Whiten

__all__ = [
    "AffineAutoregressive",
    "Autoregressive",
    "AutoregressiveTokenMap",
    "AveragedAutoregressive",
    "BinnedNormal",
    "BinnedUniform",
    "ByParts",
    "CircularRationalQuadraticSpline",
    "ClosedForm",
    "ExponentialScale",
    "Framewise",
    "GaussianizeByKind",
    "GaussianizeMarginals",
    "Guidance",
    "GuidedAutoregressive",
    "ImagePatches",
    "IndependentTokenMap",
    "LinearGuidance",
    "NormalMixture",
    "PairedContext",
    "PerNumber",
    "Permute",
    "PermuteByContext",
    "ProductGuidance",
    "QuadraticSpline",
    "RationalQuadraticSpline",
    "Reverse",
    "SoftplusScale",
    "Standardize",
    "TokenMap",
    "TokenwiseAutoregressive",
    "TransformerAffineAutoregressive",
    "UniformizeCircles",
    "VectorPatches",
    "Whiten",
    "invert",
]

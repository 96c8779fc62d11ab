"""How good an ensemble of conformations is: distances to a reference ensemble, and validity, with bootstrap errors."""

from molecular.analysis.compare import evaluate
from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.table import Evaluation
from nflib.metrics import Estimate

__all__ = ["Estimate", "Evaluation", "WeightedConformations", "evaluate"]

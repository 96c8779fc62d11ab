"""How good an ensemble of conformations is: distances to a reference ensemble, and validity, with bootstrap errors."""

from molecular.evaluation.compare import evaluate
from molecular.evaluation.ensembles import WeightedConformations
from molecular.evaluation.table import Estimate, Evaluation

__all__ = ["Estimate", "Evaluation", "WeightedConformations", "evaluate"]

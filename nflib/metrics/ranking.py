"""How well a score tells two kinds of samples apart."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor

from nflib.metrics.samples import double


def auroc(right: Tensor, wrong: Tensor) -> float:
    """The area under the receiver operating characteristic: how often a right one scores above a wrong one.

    Ties count half, and a score that is NaN counts lowest.

    Args:
        right: scores of the right ones, ``(n,)``.
        wrong: scores of the wrong ones, ``(m,)``.

    Returns:
        From 0 to 1; 0.5 where the scores tell nothing.

    Raises:
        ValueError: no score on one side.

    >>> import torch
    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))
    0.75
    """
    if not (len(right) and len(wrong)):
        raise ValueError(f"auroc takes scores of both kinds, got {len(right)} and {len(wrong)}.")
    scores = torch.cat([double(right).cpu(), double(wrong).cpu()])
    ranks = rankdata(scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).numpy())
    above = ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2
    return float(above / (len(right) * len(wrong)))

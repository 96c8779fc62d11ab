"""What conditions a transformer: embeddings of a context, added to its tokens."""

import torch
from torch import Tensor, nn


class ClassEmbedding(nn.Module):
    """A learned vector for each class, added to every token; a label of -1, or none, means their mean.

    context: integer labels ``(B,)``; returns ``(B, 1, channels)``. Raises ValueError for a label outside
    ``-1 … num_classes - 1``.
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, channels) * 1e-2)

    def forward(self, context: Tensor | None) -> Tensor:
        unconditional = self.weight.mean(dim=0)
        if context is None:
            return unconditional.view(1, 1, -1)
        labels = context.reshape(-1).long()
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.weight):
            raise ValueError(
                f"class labels must lie in 0 … {len(self.weight) - 1}, or be -1 for none, but run from "
                f"{int(labels.min())} to {int(labels.max())}."
            )
        embedded = self.weight[labels.clamp_min(0)]
        return torch.where((labels < 0).unsqueeze(-1), unconditional, embedded).unsqueeze(1)

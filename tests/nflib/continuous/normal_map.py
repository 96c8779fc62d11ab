"""A normal density, and the flow map to it in closed form."""

import torch
from torch import nn

MEAN, STD = 1.0, 0.5


def normal_data(count, seed=0):
    return MEAN + STD * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


class NormalMap(nn.Module):
    """The exact average velocity of the linear path from a standard normal to a normal with this mean and std."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def width(self, t):
        return ((1 - t) ** 2 + (t * self.std) ** 2).sqrt()[:, None]

    def forward(self, x, r, t):
        # X_{r -> t}(x) = m t + (x - m r) s(t) / s(r), divided by t - r in a form that holds at t = r.
        slope = ((t + r) * (1 + self.std**2) - 2)[:, None] / (self.width(r) + self.width(t)) / self.width(r)
        return self.mean + (x - self.mean * r[:, None]) * slope

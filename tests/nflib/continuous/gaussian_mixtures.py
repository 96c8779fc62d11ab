"""Mixtures of normals, and the exact fields of interpolants between two of them, independently drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from nflib.continuous import Path


class Mixture:
    """Of weights (K,), means (K, D), covariances (K, D, D)."""

    def __init__(self, weights, means, covariances) -> None:
        self.weights, self.means, self.covariances = (
            torch.as_tensor(part, dtype=torch.float64) for part in (weights, means, covariances)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        normals = torch.distributions.MultivariateNormal(self.means, self.covariances)
        return torch.logsumexp(self.weights.log() + normals.log_prob(x[:, None]), dim=1)

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, number, True, generator=generator)
        noise = torch.randn(number, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        return self.means[chosen] + (torch.linalg.cholesky(self.covariances)[chosen] @ noise)[..., 0]


STANDARD = Mixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
THREE = Mixture(
    [0.5, 0.3, 0.2],
    [[1.5, 0.0], [-1.0, 1.5], [-1.0, -1.5]],
    [[[0.20, 0.10], [0.10, 0.30]], [[0.40, -0.15], [-0.15, 0.15]], [[0.10, 0.0], [0.0, 0.50]]],
)
TWO = Mixture([0.6, 0.4], [[-1.0, 0.5], [1.0, 0.0]], [[[0.5, 0.2], [0.2, 0.6]], [[0.3, 0.0], [0.0, 0.2]]])


class Exact:
    """Velocity, score, denoiser and noise of the path from one mixture to another, in closed form."""

    def __init__(self, path: Path, noise: Mixture = STANDARD, data: Mixture = THREE) -> None:
        self.path, self.noise, self.data = path, noise, data

    def _parts(self, x: Tensor, t: Tensor):
        t = t[:1] if (t == t[0]).all() else t  # one row for all
        c = self.path.coefficients(t.to(torch.float64))
        alpha, beta, gamma = (part[:, None, None] for part in (c.alpha, c.beta, c.gamma))
        pairs = torch.cartesian_prod(torch.arange(len(self.noise.weights)), torch.arange(len(self.data.weights)))
        i, j = pairs[:, 0], pairs[:, 1]
        means0, means1 = self.noise.means[i], self.data.means[j]
        covariances0, covariances1 = self.noise.covariances[i], self.data.covariances[j]
        means = alpha * means0 + beta * means1
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        covariances = (
            alpha[..., None] ** 2 * covariances0 + beta[..., None] ** 2 * covariances1 + gamma[..., None] ** 2 * eye
        )
        normals = torch.distributions.MultivariateNormal(means, covariances)
        log_weights = (self.noise.weights[i] * self.data.weights[j]).log() + normals.log_prob(x[:, None].double())
        solved = torch.linalg.solve(covariances, (x[:, None].double() - means)[..., None])
        return c, log_weights, solved, (means0, covariances0), (means1, covariances1), eye

    def _mean(self, log_weights: Tensor, values: Tensor, like: Tensor) -> Tensor:
        return (log_weights.softmax(1)[..., None] * values).sum(1).to(like.dtype)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.logsumexp(self._parts(x, t)[1], dim=1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        c, log_weights, solved, (means0, covariances0), (means1, covariances1), eye = self._parts(x, t)
        alpha_dot, beta_dot = c.alpha_dot[:, None, None], c.beta_dot[:, None, None]
        along = (
            (c.alpha * c.alpha_dot)[:, None, None, None] * covariances0
            + (c.beta * c.beta_dot)[:, None, None, None] * covariances1
            + c.gamma_gamma_dot[:, None, None, None] * eye
        )
        return self._mean(log_weights, alpha_dot * means0 + beta_dot * means1 + (along @ solved)[..., 0], x)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        _, log_weights, solved, *_ = self._parts(x, t)
        return self._mean(log_weights, -solved[..., 0], x)

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        c, log_weights, solved, _, (means1, covariances1), _ = self._parts(x, t)
        return self._mean(log_weights, means1 + c.beta[:, None, None] * (covariances1 @ solved)[..., 0], x)

    def noise_given(self, x: Tensor, t: Tensor) -> Tensor:
        c, log_weights, solved, (means0, covariances0), *_ = self._parts(x, t)
        return self._mean(log_weights, means0 + c.alpha[:, None, None] * (covariances0 @ solved)[..., 0], x)

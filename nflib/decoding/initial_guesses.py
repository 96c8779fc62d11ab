"""The initial guess of every token, from which the sweeps of a decoder start."""

from __future__ import annotations

import torch
from torch import Tensor


class Latent:
    """Every token's initial guess is its own latent z; what the others fall back on."""

    def guess(self, noise: Tensor) -> Tensor:
        """A guess of all tokens ``(B, T, C)``, in memory of its own."""
        return noise.clone()

    def extend(self, u: Tensor, first: int, stop: int) -> None:
        """Improve the guesses of tokens ``first … stop`` in u, as they enter the window."""


class Zeros(Latent):
    """Every token's initial guess is zero."""

    def guess(self, noise: Tensor) -> Tensor:
        return torch.zeros_like(noise)


class Given(Latent):
    """The initial guess is a tensor that broadcasts to the noise; the latent where it is not finite."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def guess(self, noise: Tensor) -> Tensor:
        tensor = self.tensor.to(noise)
        try:
            tensor = tensor.expand_as(noise)
        except RuntimeError as error:
            raise ValueError(
                f"an initial guess of shape {tuple(tensor.shape)} does not broadcast to tokens {tuple(noise.shape)}."
            ) from error
        return torch.where(tensor.isfinite(), tensor, noise)


class PreviousFrame(Latent):
    """Initial guess for video: each token is guessed as the same token one frame earlier, as decoded by then.

    Neighbouring frames of a video are alike, so that a frame converges in fewer sweeps (STARFlow-V, arXiv 2511.20462).
    In the first frame the guess is the latent.

    Args:
        frame_length: tokens of a frame.

    Raises:
        ValueError: frame_length is below 1.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(12,), channels=32, num_blocks=2, head_dim=16)
    >>> x = flow.sample(5, seed=0, decoding=decoding.Jacobi(initial_guess=PreviousFrame(4)))
    """

    def __init__(self, frame_length: int):
        if frame_length < 1:
            raise ValueError(f"frame_length must be a positive number of tokens, got {frame_length!r}.")
        self.frame_length = frame_length

    def extend(self, u: Tensor, first: int, stop: int) -> None:
        first = max(first, self.frame_length)
        while first < stop:
            last = min(first + self.frame_length, stop)
            u[:, first:last] = u[:, first - self.frame_length : last - self.frame_length]
            first = last


class AffineGuess(Latent):
    """Initial guess by an affine function of all of z: ``u = z matrix + bias``, with z and u flattened; see `fit`.

    It takes in what a map does on average, and saves the first sweep or two.

    Args:
        matrix: ``(T C, T C)``, for T tokens of C numbers.
        bias: ``(T C,)``.
    """

    def __init__(self, matrix: Tensor, bias: Tensor):
        self.matrix = matrix
        self.bias = bias

    @classmethod
    def fit(cls, noise: Tensor, u: Tensor, ridge: float = 1e-2) -> AffineGuess:
        """Ridge regression of solutions on their noise, over the samples that are finite.

        Args:
            noise: z, ``(N, T, C)``.
            u: the solutions, ``(N, T, C)``.
            ridge: weight of the penalty, which draws the guess towards z itself.
        """
        finite = u.isfinite().flatten(1).all(-1) & noise.isfinite().flatten(1).all(-1)
        inputs, targets = (part[finite].flatten(1).double() for part in (noise, u))
        number = max(len(inputs), 1)
        shift, mean = inputs.sum(0) / number, targets.sum(0) / number
        inputs, targets = inputs - shift, targets - mean
        penalty = ridge * number * torch.eye(inputs.shape[1]).to(inputs)
        # Away from the data, and for a lack of it, the guess stays z itself.
        matrix = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets + penalty)
        return cls(matrix.to(u.dtype), (mean - shift @ matrix).to(u.dtype))

    def guess(self, noise: Tensor) -> Tensor:
        if noise[0].numel() != len(self.bias):
            return noise.clone()  # fitted for another number of tokens
        guess = torch.addmm(self.bias.to(noise), noise.flatten(1), self.matrix.to(noise)).view_as(noise)
        return torch.where(guess.isfinite(), guess, noise)


InitialGuess = str | Tensor | Latent

NAMED = {"latent": Latent, "zeros": Zeros}


def as_initial_guess(guess: InitialGuess) -> Latent:
    """What a name or a tensor stands for; raises ValueError for another name."""
    if isinstance(guess, str):
        if guess not in NAMED:
            raise ValueError(f"initial_guess must be 'latent', 'zeros', a tensor or a PreviousFrame, got {guess!r}.")
        return NAMED[guess]()
    return Given(guess) if isinstance(guess, Tensor) else guess

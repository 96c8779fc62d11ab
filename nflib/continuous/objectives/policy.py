"""Policy gradients on the paths of the stochastic differential equation: a flow is bent towards a reward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nflib.continuous.diffusion import velocity_and_score
from nflib.continuous.ode import ODEFlow
from nflib.events import flattened
from nflib.random import normal_like

__all__ = ["PathPolicyGradient", "Rollouts"]


@dataclass(frozen=True)
class PathPolicyGradient:
    """An objective that fits an `ODEFlow` to a reward of its samples, by PPO on the steps of its paths.

    The policy is a step of ``dx = (v + epsilon s) dt + sqrt(2 epsilon) dW``, s the score that belongs to the velocity,
    whose paths end in the flow's own density; of each step the loss has

        max(-A r, -A clip(r, 1 - clip, 1 + clip)),

    r the ratio of its density to that at which it was drawn, A the path's reward less the mean, over the standard
    deviation (DanceGRPO, Xue et al. 2025, arXiv:2505.07818, whose log-ratios are means over an event's numbers; ours
    are sums, so that at r = 1 the gradient is that of the mean reward). The loss is summed over steps and averaged over
    paths.

    Args:
        epsilon: half the squared noise per unit of time; positive.
        clip: r is clipped to 1 - clip … 1 + clip.

    Raises:
        ValueError: numbers that are not positive.
    """

    epsilon: float = 0.1
    clip: float = 0.2

    keys: ClassVar[tuple[str, ...]] = ("inputs", "log_prob", "advantage")
    needs_flow: ClassVar[dict[str, str]] = {"span": "an ODEFlow"}

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and self.clip > 0):
            raise ValueError(f"epsilon and clip must be positive, got {self}.")

    def __call__(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        change = self.log_prob(flow, batch["inputs"]) - batch["log_prob"]
        ratio, advantage = change.exp(), batch["advantage"].to(change)[:, None]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped).sum(1).mean()
        return loss, {"policy": loss.detach(), "clipped": (ratio != clipped).to(loss.dtype).mean()}

    def log_prob(self, flow: ODEFlow, paths: Tensor) -> Tensor:
        """Log-densities of the steps of paths, each given where it began.

        Args:
            flow: whose velocity drives the steps.
            paths: ``(N, K + 1, *event_shape)``, from noise to data in K equal steps of time.

        Returns:
            ``(N, K)``, in nats.
        """
        num_steps = paths.shape[1] - 1
        times = self._times(flow, num_steps).to(paths)[:-1]
        mean, width = self._step(flow, paths[:, :-1].flatten(0, 1), times.repeat(len(paths)), num_steps)
        density = torch.distributions.Normal(mean, width).log_prob(paths[:, 1:].flatten(0, 1))
        return flattened(density).sum(1).view(len(paths), num_steps)

    @torch.no_grad()
    def draw(self, flow: ODEFlow, num_paths: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Draw paths from noise to data.

        Args:
            flow: whose velocity drives the steps.
            num_paths: how many.
            num_steps: equal steps of time.
            generator: of the random numbers.

        Returns:
            ``(num_paths, num_steps + 1, *event_shape)``.
        """
        x, _ = flow.noise_and_log_prob(num_paths, generator=generator)
        path = [x]
        for t in self._times(flow, num_steps).to(x)[:-1]:
            mean, width = self._step(flow, x, t.expand(num_paths), num_steps)
            x = mean + width * normal_like(x, generator)
            path.append(x)
        return torch.stack(path, dim=1)

    def _times(self, flow: ODEFlow, num_steps: int) -> Tensor:
        return torch.linspace(*flow.span, num_steps + 1, dtype=torch.float64)

    def _step(self, flow: ODEFlow, x: Tensor, t: Tensor, num_steps: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of where a step from x leads."""
        start, stop = flow.span
        length = (stop - start) / num_steps
        velocity, score = velocity_and_score(flow, x, t)
        return x + length * (velocity + self.epsilon * score), math.sqrt(2 * self.epsilon * length)


class Rollouts:
    """Paths of a flow and their advantages as data for `fit`, drawn anew where its `refresh_interval` says so.

    Args:
        flow: the flow that is trained, without a context; the first paths are drawn from it as it is. Later ones are
            from averaged weights: set ``ema_decay=0`` to have them from the present ones.
        reward: from samples ``(N, *event_shape)`` to their rewards ``(N,)``, a tensor or array of any numbers or bools.
        policy: the objective of the training.
        num_paths: paths of each draw, two or more.
        num_steps: steps of each path.
        seed: of the first draw.

    Raises:
        ValueError: fewer than two paths, or no step; rewards of another shape, or that are not finite.

    >>> import tempfile
    >>> from nflib.continuous import MLPVelocity
    >>> from nflib.training import TrainingConfig, fit
    >>> flow, policy = ODEFlow(MLPVelocity(2, channels=16), (2,)), PathPolicyGradient()
    >>> rollouts = Rollouts(flow, lambda x: x[:, 0], policy, num_paths=64, num_steps=5)
    >>> config = TrainingConfig(
    ...     batch_size=32, max_steps=4, refresh_interval=2, ema_decay=0, progress_bar=False, tensorboard=False
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, rollouts, config=config, objective=policy, output=folder).steps
    4
    """

    def __init__(
        self,
        flow: ODEFlow,
        reward: Callable[[Tensor], Tensor],
        policy: PathPolicyGradient,
        *,
        num_paths: int = 1024,
        num_steps: int = 16,
        seed: int = 0,
    ):
        if num_paths < 2 or num_steps < 1:
            raise ValueError(f"Rollouts needs 2 paths or more ({num_paths}) of at least one step ({num_steps}).")
        self.reward, self.policy, self.num_paths, self.num_steps = reward, policy, num_paths, num_steps
        self.refresh(flow, 0, torch.Generator().manual_seed(seed))

    def refresh(self, flow: ODEFlow, step: int, generator: torch.Generator) -> None:
        """Draw new paths, as `fit` does every `refresh_interval` steps.

        Args:
            flow: from which, as it is now.
            step: of the training; not read.
            generator: of the random numbers.
        """
        paths = self.policy.draw(flow, self.num_paths, self.num_steps, generator)
        with torch.no_grad():
            rewards = torch.as_tensor(self.reward(paths[:, -1]), device=paths.device)
            rewards = rewards.to(torch.promote_types(rewards.dtype, paths.dtype))
            if rewards.shape != (self.num_paths,) or not bool(rewards.isfinite().all()):
                raise ValueError(f"the reward must give a finite number for each of {self.num_paths} samples.")
            log_prob = self.policy.log_prob(flow, paths)
        self.mean_reward = float(rewards.mean())
        # Less one of them first: of equal rewards the rounding of their mean would be all the advantage.
        rewards = rewards - rewards[0]
        deviation = rewards.std().clamp(min=torch.finfo(rewards.dtype).tiny)
        self.rows = {"inputs": paths, "log_prob": log_prob, "advantage": (rewards - rewards.mean()) / deviation}

    def __len__(self) -> int:
        return self.num_paths

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Paths ``(B, num_steps + 1, *event_shape)``, the log-densities of their steps, and their advantages."""
        return {name: rows[indices.to(rows.device)] for name, rows in self.rows.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The paths, for an exact resumption."""
        return self.rows

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with the paths of `state_dict`."""
        self.rows = state

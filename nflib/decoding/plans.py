"""Which decoder inverts which map fastest, on the device at hand: measured, kept, printed and saved."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nflib.decoding.initial_guesses import AffineGuess
from nflib.interfaces import CausalMap
from nflib.io.atomic import complete_file

PLAN_NAME = "decoding_plan.safetensors"


@dataclass(frozen=True)
class Measured:
    """The fastest way to invert one map.

    Attributes:
        window: tokens of a sweep.
        warmup: whether early sweeps are in bfloat16.
        seconds: what an inversion of the measured batch took.
        sequential_seconds: what it took token by token.
    """

    window: int
    warmup: bool
    seconds: float
    sequential_seconds: float


@dataclass(frozen=True)
class Setting:
    """What a measurement is valid for.

    Attributes:
        fingerprint: identifies the map.
        num_tokens: tokens to find.
        batch_size: rounded up to a power of two.
        device: name of the device, with its number of threads for a processor.
    """

    fingerprint: str
    num_tokens: int
    batch_size: int
    device: str

    @classmethod
    def of(cls, map: CausalMap, noise: Tensor, prefix: Tensor | None = None) -> Setting:
        """The setting of a call; batch sizes are rounded up to powers of two."""
        num_tokens = noise.shape[1] - (0 if prefix is None else prefix.shape[1])
        batch_size = 1 << (len(noise) - 1).bit_length()
        return cls(fingerprint(map), num_tokens, batch_size, device_name(noise.device))


@dataclass
class DecodingPlan:
    """What `Auto` decodes by: the fastest window of each map, and initial guesses. `print` shows it as a table.

    `nflib.decoding.plan` makes one; `save` and `load` keep it with a model.

    Attributes:
        measured: the fastest decoding for each map, number of tokens, batch size and device.
        initial_guesses: the fitted guess of each map, by the map's fingerprint.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16)
    >>> plan = decoding.plan(flow, batch_sizes=[4], num_samples=8)
    >>> x = flow.sample(4, seed=0, decoding=decoding.Auto(plan))
    """

    measured: dict[Setting, Measured] = field(default_factory=dict)
    initial_guesses: dict[str, AffineGuess] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = ["map       tokens  batch  window  warm-up  guess   sequential ms  chosen ms  ratio  device"]
        for setting, best in self.measured.items():
            guess = "affine" if setting.fingerprint in self.initial_guesses else "latent"
            lines.append(
                f"{setting.fingerprint[:8]}  {setting.num_tokens:6d}  {setting.batch_size:5d}  {best.window:6d}  "
                f"{'bf16' if best.warmup else '–':>7}  {guess}  "
                f"{1e3 * best.sequential_seconds:13.1f}  {1e3 * best.seconds:9.1f}  "
                f"{best.sequential_seconds / best.seconds:5.2f}  {setting.device}"
            )
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the plan into `folder`, whole or not at all; returns the file's path."""
        folder = Path(folder)
        tensors = {}
        for name, guess in self.initial_guesses.items():
            tensors[f"{name}.matrix"] = guess.matrix.cpu().contiguous()
            tensors[f"{name}.bias"] = guess.bias.cpu().contiguous()
        rows = [asdict(setting) | asdict(best) for setting, best in self.measured.items()]
        with complete_file(folder / PLAN_NAME) as temporary:
            save_file(tensors, temporary, metadata={"measured": json.dumps(rows)})
        return folder / PLAN_NAME

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> DecodingPlan:
        """Read the plan in `folder`. Raises FileNotFoundError without one, ValueError for a damaged one."""
        path = Path(folder) / PLAN_NAME
        if not path.is_file():
            raise FileNotFoundError(f"there is no {PLAN_NAME} in {Path(folder)}; make one with nflib.decoding.plan.")
        plan = cls()
        try:
            with safe_open(path, "pt") as file:
                for row in json.loads(file.metadata()["measured"]):
                    setting = Setting(*(row[name] for name in Setting.__dataclass_fields__))
                    plan.measured[setting] = Measured(*(row[name] for name in Measured.__dataclass_fields__))
                for name in {key.rpartition(".")[0] for key in file.keys()}:  # noqa: SIM118
                    plan.initial_guesses[name] = AffineGuess(
                        file.get_tensor(f"{name}.matrix"), file.get_tensor(f"{name}.bias")
                    )
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is damaged or no plan ({error}); make it again with nflib.decoding.plan."
            ) from error
        return plan


# Of a map: the parameters read, how often they had been changed by then, and the fingerprint.
_known: WeakKeyDictionary[nn.Module, tuple[list[nn.Parameter], list[int], str]] = WeakKeyDictionary()


def fingerprint(map: CausalMap) -> str:
    """Names a map by its kind and weights: the same in every process, another after training.

    The first and last parameters alone are read, and only when they have changed, so that it costs next to nothing.
    """
    module = cast(nn.Module, map)
    known = _known.get(module)
    if known is not None and _versions(known[0]) == known[1]:
        return known[2]
    parameters = list(module.parameters())
    described = (type(map).__name__, *(tuple(parameter.shape) for parameter in parameters))
    digest = hashlib.sha1(str(described).encode(), usedforsecurity=False)
    read = [*parameters[:3], *parameters[-3:]]
    for parameter in read:
        digest.update(parameter.detach().flatten()[:4096].float().cpu().numpy().tobytes())
    _known[module] = (read, _versions(read), digest.hexdigest())
    return digest.hexdigest()


def _versions(parameters: list[nn.Parameter]) -> list[int]:
    """How often each has been changed, of which tensors made in inference mode keep no count."""
    return [0 if parameter.is_inference() else parameter._version for parameter in parameters]


def device_name(device: torch.device) -> str:
    """The device as far as it decides speed: a GPU's name, or the processor's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type

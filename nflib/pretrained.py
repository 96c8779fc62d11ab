"""Models as folders: model.safetensors beside config.json, as on the Hugging Face Hub. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class Pretrained(nn.Module):
    """Adds `save_pretrained` and `from_pretrained` to a module that keeps its constructor's arguments in `config`.

    A subclass names itself in config.json as its `architecture`; `load_pretrained` on an instance reads only weights,
    and serves flows that a user composed by hand.
    """

    config: dict[str, Any] | None
    _architectures: ClassVar[dict[str, type[Pretrained]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Pretrained._architectures[cls.__name__] = cls

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model into `folder`, each file whole or not at all; returns the folder.

        Raises OSError where the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Cloned, because safetensors refuses tensors that share memory.
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _distinct_state(self).items()}
        document = {"architecture": type(self).__name__, "config": self.config}
        config = folder / f".{CONFIG_NAME}.tmp"
        config.write_text(json.dumps(document, indent=2) + "\n")
        weights = folder / f".{WEIGHTS_NAME}.tmp"
        save_file(state, weights)
        shutil.copymode(config, weights)  # safetensors makes files that their owner alone may read
        os.replace(weights, folder / WEIGHTS_NAME)
        os.replace(config, folder / CONFIG_NAME)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """The model saved in `folder`, in evaluation mode, on `device`.

        Raises FileNotFoundError without its two files, ValueError where they are damaged or hold another model.
        """
        document = read_config(folder)
        architecture = cls._architectures.get(document.get("architecture", ""))
        if architecture is None or not issubclass(architecture, cls):
            raise ValueError(
                f"{Path(folder) / CONFIG_NAME} describes a {document.get('architecture')!r}, not a {cls.__name__}: "
                "load it with the class that saved it."
            )
        if not isinstance(document.get("config"), dict):
            raise ValueError(
                f"{Path(folder) / CONFIG_NAME} holds no configuration: build the flow as it was built before, and call "
                "its load_pretrained."
            )
        try:
            model = architecture(**document["config"])
        except TypeError as error:
            raise ValueError(f"{Path(folder) / CONFIG_NAME} does not fit {architecture.__name__}: {error}.") from error
        return model.load_pretrained(folder).to(device).eval()

    def load_pretrained(self, folder: str | os.PathLike[str]) -> Self:
        """Read the weights in `folder` into this model; returns the model. Raises as `from_pretrained` does."""
        path = Path(folder) / WEIGHTS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"there is no {WEIGHTS_NAME} in {Path(folder)}; name the folder of a saved model.")
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); fetch or save it again.") from error
        own = _distinct_state(self)
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        reshaped = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if missing or unexpected or reshaped:
            example = (missing + unexpected + sorted(reshaped))[0]
            raise ValueError(
                f"{path} belongs to another model: {len(missing)} tensors are missing, {len(unexpected)} unknown and "
                f"{len(reshaped)} of another shape, for example {example!r}."
            )
        first = next((name for name, _ in self.named_parameters()), None)
        if first is not None:
            self.to(state[first].dtype)  # a model saved in float64 comes back in float64
        self.load_state_dict(state, strict=False)  # but for the other names of shared tensors, nothing is missing
        return self


def _distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor once, under its first name: a part that several modules share is one part."""
    state = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The document in a saved model's config.json; raises FileNotFoundError or ValueError as its readers do."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no {CONFIG_NAME} in {Path(folder)}; name the folder of a saved model.")
    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch or save it again.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object; fetch or save it again.")
    return document

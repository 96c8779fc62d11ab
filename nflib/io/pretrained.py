"""Models as folders: model.safetensors beside config.json, as on the Hugging Face Hub. Nothing is unpickled."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nflib.devices import usable_device
from nflib.dtypes import dtype_name
from nflib.errors import first_line
from nflib.io.arguments import keep_arguments, kept_arguments
from nflib.io.atomic import complete_folder
from nflib.io.bounded import at_most, registering
from nflib.io.descriptions import TENSOR, CannotDescribe, describe, find_class, name_of, rebuild
from nflib.io.documents import read_json
from nflib.io.hub import local_folder, upload
from nflib.io.state_dicts import not_finite
from nflib.io.tensors import read_tensors, write_tensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
# More than any number of channels, tokens or layers that fits into memory; weights may set the bound higher.
LARGEST_SIZE = 2**24
# What constructors raise when they are given what does not fit them.
MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
logger = logging.getLogger(__name__)


class Pretrained(nn.Module):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module.

    The arguments of a subclass's constructor are kept automatically, and saved beside the weights. `load_pretrained` on
    an instance reads only weights, for flows with parts that cannot be described (a lambda, say).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_arguments(cls)

    @classmethod
    def current_arguments(cls, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """The constructor's arguments that a version has saved, by their names in this one: for a subclass to say."""
        return saved

    @property
    def config(self) -> dict[str, Any] | None:
        """The constructor's arguments as JSON (`nflib.io.descriptions`); None where one of them has no such form."""
        try:
            return describe(kept_arguments(self))[0]
        except CannotDescribe:
            return None

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write the model into `folder`, whole or not at all.

        A configuration that cannot be described, or does not build this model again, is saved as null, which is logged
        with the reason; the weights can then be read by `load_pretrained`. They are written one tensor at a time.

        Args:
            folder: made unless it is there.
            dtype: in which floating-point parameters are written (default: their own). Buffers, such as tables that
                were fitted to data, are written so as well, but in float32 at least.

        Returns:
            The folder.

        Raises:
            OSError: the folder cannot be written, or the disk is full; what was there stays.
            ValueError: a dtype of other numbers, or a tensor of numbers that safetensors files do not hold, such as
                complex128.
        """
        folder = Path(folder)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"weights are written in a floating-point dtype such as torch.bfloat16, got {dtype!r}.")
        config: dict[str, Any] | None
        tensors: dict[str, Tensor]
        try:
            config, tensors = self._description()
        except CannotDescribe as reason:
            config, tensors = None, {}
            logger.warning(
                "only the weights of this %s are saved, for load_pretrained: %s", type(self).__name__, reason
            )
        module, name = name_of(type(self))
        document = {"architecture": name, "module": module, "config": config}
        state = _distinct_state(self)
        floating = {} if dtype is None else {k: v for k, v in state.items() if v.is_floating_point()}
        dtypes = {name: _dtypes(tensor, dtype)[-1] for name, tensor in floating.items()}  # type: ignore[arg-type]
        with complete_folder(folder) as temporary:
            write_tensors(temporary / WEIGHTS_NAME, state | tensors, dtypes)
            (temporary / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], device: str | torch.device = "cpu", *, revision: str | None = None
    ) -> Self:
        """Load a model from a folder, or by its name from the Hugging Face Hub; it is in evaluation mode.

        Args:
            model: a folder, or a name such as ``"user/name"`` (which needs huggingface_hub). A folder goes first.
            device: where the model is put.
            revision: branch, tag or commit, on the hub.

        Raises:
            FileNotFoundError: the model, or one of its two files, is not there.
            ValueError: the files are damaged, hold another model, or a class whose module must be imported first, or
                there is no such device.
        """
        device = usable_device(device)
        folder = local_folder(model, [CONFIG_NAME, WEIGHTS_NAME], revision)
        path = folder / CONFIG_NAME
        document = read_config(folder)
        architecture = cls._architecture(path, document)
        if not isinstance(document.get("config"), dict):
            raise ValueError(
                f"{path} holds no configuration: build the flow as it was built before, and call its load_pretrained "
                "(a part of your own has one if its class is decorated by nflib.io.keep_arguments)."
            )
        state = _read(folder / WEIGHTS_NAME)
        numbers = sum(tensor.numel() for tensor in state.values())

        def build() -> Any:
            with torch.random.fork_rng(devices=[]), at_most(len(state), numbers):
                return rebuild(architecture, document["config"], state, max(LARGEST_SIZE, numbers))

        try:
            built = _without_weights(build)
        except MISFITS as error:
            raise ValueError(f"{path} does not fit {architecture.__name__}: {first_line(error)}.") from error
        built._load(folder / WEIGHTS_NAME, state)
        return built.to(device).eval()

    def load_pretrained(self, folder: str | os.PathLike[str]) -> Self:
        """Read the weights in `folder` into this model; returns the model. Raises as `from_pretrained` does."""
        path = Path(folder) / WEIGHTS_NAME
        self._load(path, _read(path))
        return self

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str = "Upload model",
        token: str | bool | None = None,
    ) -> str:
        """Save the model on the Hugging Face Hub.

        Args:
            repo_id: ``"user/name"``, of a repository that is made unless it is there.
            private: whether a new repository is private (default: as the account has it).
            commit_message: of the commit.
            token: of the account (default: the one that is stored on this machine).

        Returns:
            The address of the repository.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed. What the hub refuses raises its own errors.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private=private, message=commit_message, token=token)

    def _load(self, path: Path, state: dict[str, Tensor]) -> None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(TENSOR)}
        own = _distinct_state(self)
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
        if missing or unexpected or reshaped:
            example = (missing + unexpected + reshaped)[0]
            raise ValueError(
                f"{path} belongs to another model: {len(missing)} tensors are missing, {len(unexpected)} unknown and "
                f"{len(reshaped)} of another shape, for example {example!r}."
            )
        spoilt = not_finite(state, self)
        if spoilt is not None:
            raise ValueError(f"{path} is damaged: its tensor {spoilt!r} is not finite; fetch or save it again.")
        if any(own[name].dtype != tensor.dtype for name, tensor in state.items()):
            # A model saved in float64 comes back in float64, but it is one dtype for all parameters, and buffers.
            floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
            first = next((name for name, _ in self.named_parameters()), next(iter(floating), None))
            common = None if first is None else state[first].dtype
            for name, tensor in own.items():
                wanted: tuple[torch.dtype, ...] = (tensor.dtype,)
                if common and common.is_floating_point and tensor.is_floating_point():
                    wanted = _dtypes(tensor, common)
                if state[name].dtype not in wanted:
                    raise ValueError(
                        f"{path} is damaged: its tensor {name!r} is of {dtype_name(state[name].dtype)}, where "
                        f"{dtype_name(wanted[-1])} belongs; fetch or save it again."
                    )
            self.to(common)
            own = _distinct_state(self)
        _assign(self, {id(own[name]): tensor for name, tensor in state.items() if own[name].is_meta})
        # But for the other names of shared tensors, nothing is missing.
        self.load_state_dict({name: state[name] for name, tensor in own.items() if not tensor.is_meta}, strict=False)

    @classmethod
    def _architecture(cls, path: Path, document: dict[str, Any]) -> type[Pretrained]:
        """The class that a config.json names; raises ValueError unless it is this one, or one that derives from it."""
        name, module = document.get("architecture"), document.get("module")
        # Folders that were written before modules were named are read by the class itself.
        if name == cls.__qualname__ and module in (cls.__module__, None):
            return cls
        found: Any = None
        if isinstance(name, str) and isinstance(module, str):
            try:
                found = find_class(f"{module}:{name}")
            except ValueError as error:
                raise ValueError(f"{path} describes a {name!r}, but {error}") from error
        if found is None or not issubclass(found, cls):
            raise ValueError(
                f"{path} describes a {name!r}, not a {cls.__name__}: load it with the class that saved it."
            )
        return found

    def _description(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The arguments, and the tensors among them.

        Raises CannotDescribe where there are no words for them, or they do not build this model again: parts may have
        been exchanged or added since, and constructors of others may refuse a list for a tuple.
        """
        config, tensors = describe(kept_arguments(self))
        try:
            with torch.random.fork_rng(devices=[]):
                again = _without_weights(lambda: rebuild(type(self), config, tensors))
        except MISFITS as error:
            raise CannotDescribe(f"its arguments do not build it again ({first_line(error)}).") from error
        own, other = _structure(self), _structure(again)
        changed = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        if changed:
            raise CannotDescribe(f"its arguments build another model, for example in {changed[0]!r}.")
        return config, tensors


def _without_weights(build: Callable[[], Any]) -> Any:
    """What a function builds, if that goes, with parameters on the meta device, which take no memory; else with all."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    try:
        with registering(emptied):
            built = build()
        if not any(buffer.is_meta for buffer in built.buffers()):
            return built
    except MISFITS:
        pass  # some constructors compute with their parameters
    return build()


def _assign(module: nn.Module, tensors: Mapping[int, Tensor]) -> None:
    """Put tensors in the place of parameters, which have these ids; one in several places stays one."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in tensors and id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(tensors[id(parameter)], parameter.requires_grad)
            setattr(part, name, made.get(id(parameter), parameter))


def _dtypes(tensor: Tensor, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """In which dtypes a floating-point tensor may stand in a file of this one, the last of them that of new files."""
    # Buffers in half precision are of files that were written before these were kept from it, or of nflows' modules.
    return (dtype,) if isinstance(tensor, nn.Parameter) else (dtype, torch.promote_types(dtype, torch.float32))


def _distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor once, under its first name: a part that several modules share is one part."""
    state = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}


def _structure(module: nn.Module) -> dict[str, Any]:
    """The kind of each part, and the shape of each tensor."""
    # By their names, for torch's parametrizations give each module a class of its own.
    kinds: dict[str, Any] = {name: name_of(type(part)) for name, part in module.named_modules()}
    return kinds | {name: tensor.shape for name, tensor in _distinct_state(module).items()}


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS_NAME} in {path.parent}; name the folder of a saved model.")
    try:
        return read_tensors(path)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated or damaged ({error}); fetch or save it again.")


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the config.json of a saved model.

    Returns:
        A dict of "architecture" (the class), "module" (where it is defined) and "config" (its arguments, or None).

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no {CONFIG_NAME} in {Path(folder)}; name the folder of a saved model.")
    return read_json(path, "fetch or save it again")

"""Released weights: the public state-dict layouts, key for key, onto our flows."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nflib.flows import TARFlow
from nflib.transforms import AutoregressiveTransform

# The names of a TARFlow block's parts, theirs to ours; of a layer's parts, below `attn_blocks.N.` and `layers.N.`.
TARFLOW_LAYER = {
    "attention.norm": "attention_norm",
    "attention.qkv": "attention.qkv",
    "attention.proj": "attention.proj",
    "mlp.norm": "mlp_norm",
    "mlp.main.0": "mlp.up",
    "mlp.main.2": "mlp.down",
}
# Buffers of the released files that are no parameters: masks, and a variance of the latents that sampling may use.
TARFLOW_BUFFERS = ("var", "attn_mask")


def load_tarflow(checkpoint: str | os.PathLike[str], patch_size: int, *, head_dim: int = 64) -> TARFlow:
    """A released TARFlow (apple/ml-tarflow): a `.pth` or `.safetensors` state dict as a `TARFlow`, in evaluation mode.

    Every size but the patch and the head is read off the weights; images are square. Raises FileNotFoundError, or
    ValueError for a damaged file, a missing or unknown key, or a patch size that does not fit.
    """
    return tarflow_from_state_dict(read_state_dict(checkpoint), patch_size, head_dim=head_dim)


def tarflow_from_state_dict(state: Mapping[str, Tensor], patch_size: int, *, head_dim: int = 64) -> TARFlow:
    """`load_tarflow` for a state dict in memory."""
    depths: list[int] = []
    while f"blocks.{len(depths)}.proj_in.weight" in state:
        prefix = f"blocks.{len(depths)}.attn_blocks."
        depths.append(len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}))
    if not depths:
        raise ValueError("the state dict has no blocks.0.proj_in.weight, so it is no TARFlow's; check the file.")
    channels, token_size = state["blocks.0.proj_in.weight"].shape
    num_tokens = len(state["blocks.0.pos_embed"])
    side = math.isqrt(num_tokens)
    if token_size % patch_size**2 or side**2 != num_tokens:
        raise ValueError(
            f"the weights are for {num_tokens} tokens of {token_size} numbers, which are no square image in patches of "
            f"{patch_size} × {patch_size}; pass the patch size that the model was trained with."
        )
    classes = state.get("blocks.0.class_embed")
    flow = TARFlow(
        (token_size // patch_size**2, side * patch_size, side * patch_size),
        patch_size,
        channels,
        len(depths),
        depths,
        num_classes=0 if classes is None else len(classes),
        head_dim=head_dim,
        final_norm=False,
    )
    blocks = [block for block in flow.modules() if isinstance(block, AutoregressiveTransform)]
    for index, (block, depth) in enumerate(zip(blocks, depths, strict=True)):
        block.network.load_state_dict(_tarflow_block(state, index, depth))
    return flow.eval()


def _tarflow_block(state: Mapping[str, Tensor], index: int, depth: int) -> dict[str, Tensor]:
    """The state dict of one of our blocks; raises ValueError where theirs lacks a key or has an unknown one."""
    prefix = f"blocks.{index}."
    theirs = {
        key[len(prefix) :]: value
        for key, value in state.items()
        if key.startswith(prefix) and not key.endswith(TARFLOW_BUFFERS)
    }
    names = {f"{part}.{kind}": f"{part}.{kind}" for part in ("proj_in", "proj_out") for kind in ("weight", "bias")}
    names |= {
        f"attn_blocks.{layer}.{part}.{kind}": f"layers.{layer}.{ours}.{kind}"
        for layer in range(depth)
        for part, ours in TARFLOW_LAYER.items()
        for kind in ("weight", "bias")
    }
    positions = theirs.pop("pos_embed", None)
    classes = theirs.pop("class_embed", None)
    wrong = sorted(names.keys() ^ theirs.keys())
    if wrong or positions is None:
        raise ValueError(f"block {index} of the state dict lacks or should not have {(wrong or ['pos_embed'])[0]!r}.")
    ours = {names[key]: value for key, value in theirs.items()}
    # Theirs belong to places in the image, ours to the order of visit; the token visited last is never read.
    ours["positions.weight"] = (positions.flip(0) if index % 2 else positions)[:-1]
    if classes is not None:
        ours["embedding.weight"] = classes.squeeze(1)
    return ours


def read_state_dict(checkpoint: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, on the CPU; nothing but tensors is ever unpickled.

    Raises FileNotFoundError, or ValueError for a file that is damaged or holds something else.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give the path of a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no state dict of tensors; fetch it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors; fetch it again.")
    return state

"""The released weights of Prose: the public state-dict layout, key for key, onto our flow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from molecular.flows.prose import Prose
from molecular.flows.prose_context import AtomEmbedding
from molecular.molecule.orderings import PROSE_ORDERINGS
from nflib.io.state_dicts import load_renamed, read_state_dict
from nflib.transforms import TransformerAffineAutoregressive

# The names of parts, ours to theirs: of the shared embedding, below `cond_embed.`; of a block, below `blocks.N.`; of a
# layer, below `layers.N.` and `attn_blocks.N.`.
EMBEDDING = {
    "atom_type": "atom_embed",
    "residue_type": "residue_embed",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}
BLOCK = {
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    "positions.scale": "pos_embed_scale",
    "conditioner.lookahead.mlp.0": "proj_cond.0",
    "conditioner.lookahead.mlp.2": "proj_cond.2",
}
LAYER = {
    "layer_norm.condition_norm": "mha.adaln.norm_cond",
    "layer_norm.gain": "mha.adaln.to_gamma.0",
    "layer_norm.bias": "mha.adaln.to_beta",
    "layer.attention_norm": "mha.mha.attention.norm",
    "layer.attention.qkv": "mha.mha.attention.qkv",
    "layer.attention.query_norm": "mha.mha.attention.q_layer_norm",
    "layer.attention.key_norm": "mha.mha.attention.k_layer_norm",
    "layer.attention.proj": "mha.mha.attention.proj",
    "layer.mlp_norm": "mha.mha.mlp.norm",
    "layer.mlp.up": "mha.mha.mlp.main.0",
    "layer.mlp.down": "mha.mha.mlp.main.2",
    "layer_gate.gate": "mha.scale_output.to_adaln_zero_gamma.0",
    "transition_norm.condition_norm": "transition.adaln.norm_cond",
    "transition_norm.gain": "transition.adaln.to_gamma.0",
    "transition_norm.bias": "transition.adaln.to_beta",
    "transition.up": "transition.transition.swish_linear.0",
    "transition.down": "transition.transition.linear_out",
    "transition_gate.gate": "transition.scale_output.to_adaln_zero_gamma.0",
}
# A buffer of each block, which only says for how many atoms the model was made.
MASK = "attn_mask"
# The weights may have been saved as part of a training module, which calls them its net.
PREFIX = "net."


def load_prose(
    checkpoint: str | os.PathLike[str],
    *,
    head_dim: int = 64,
    orderings: Sequence[str] = PROSE_ORDERINGS,
    scale: float = 1.0,
) -> Prose:
    """Released Prose weights (arXiv 2508.18175) as a `Prose` flow in evaluation mode.

    Sizes are read off the weights, except for the width of an attention head.

    Args:
        checkpoint: a `.pth` or `.safetensors` file with the public state dict.
        head_dim: width of an attention head.
        orderings: in which each block visits the atoms, in the order of the blocks.
        scale: length by which positions are divided before the flow. At 1 the flow is one of the standardised positions
            that its weights were trained on; pass 0.35 for positions in nm of the released model of up to 8 residues.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, a missing or unknown key, or sizes that do not fit.
    """
    return prose_from_state_dict(read_state_dict(checkpoint), head_dim=head_dim, orderings=orderings, scale=scale)


def prose_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    head_dim: int = 64,
    orderings: Sequence[str] = PROSE_ORDERINGS,
    scale: float = 1.0,
) -> Prose:
    """`load_prose` for a state dict in memory; the flow is made on its tensors' device.

    Args:
        state: the public state dict, by its own keys.
        head_dim: as of `load_prose`.
        orderings: as of `load_prose`.
        scale: as of `load_prose`.

    Raises:
        ValueError: a missing or unknown key, or sizes that do not fit.
    """
    if any(key.startswith(PREFIX) for key in state):
        state = {key.removeprefix(PREFIX): value for key, value in state.items()}
    num_blocks = _count(state, "blocks.")
    num_layers = _count(state, "blocks.0.attn_blocks.")
    first = "blocks.0.attn_blocks.0.mha.mha.mlp.main.0.weight"
    types = ("cond_embed.atom_embed.weight", "cond_embed.residue_embed.weight")
    lacking = [key for key in ("blocks.0.proj_in.weight", first, *types) if key not in state]
    if lacking:
        raise ValueError(f"the state dict has no {lacking[0]!r}, so it is no Prose's, or is damaged; check the file.")
    hidden, channels = state[first].shape
    settings = {"max_atoms": len(state[f"blocks.0.{MASK}"])} if f"blocks.0.{MASK}" in state else {}
    with torch.device(state[first].device):
        flow = Prose(
            channels,
            num_blocks,
            num_layers,
            head_dim,
            orderings,
            hidden / channels,
            scale=scale,
            num_atom_types=len(state[types[0]]),
            num_residue_types=len(state[types[1]]),
            **settings,
        )
    masks = {f"blocks.{index}.{MASK}" for index in range(num_blocks)}
    weights = {key: value for key, value in state.items() if key not in masks}
    load_renamed(flow, weights, _names(flow, num_layers))
    return flow.eval()


def _names(flow: Prose, num_layers: int) -> dict[str, str]:
    """Our names of the flow's parts to theirs."""
    modules = list(flow.named_modules())  # each once: the shared embedding has the name under which it comes first
    (embedding,) = (name for name, module in modules if isinstance(module, AtomEmbedding))
    names = {f"{embedding}.{ours}": f"cond_embed.{theirs}" for ours, theirs in EMBEDDING.items()}
    blocks = [name for name, module in modules if isinstance(module, TransformerAffineAutoregressive)]
    for index, block in enumerate(blocks):
        parts = BLOCK | {
            f"layers.{layer}.{ours}": f"attn_blocks.{layer}.{theirs}"
            for layer in range(num_layers)
            for ours, theirs in LAYER.items()
        }
        names |= {f"{block}.network.{ours}": f"blocks.{index}.{theirs}" for ours, theirs in parts.items()}
    return names


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many parts are numbered behind this prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})

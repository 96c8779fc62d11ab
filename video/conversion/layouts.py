"""Public state-dict layouts and configurations as data: the names of our parts, and theirs for them."""

from typing import Any

# Of a block (or denoiser), ours to theirs; below `layers.N.`, which is their `attn_blocks.N.`, of a layer.
BLOCK = {
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    "positions.weight": "pos_embed",
    "embedding.weight": "class_embed",
    "start_token": "sos_embed",
    "prefix.projection": "proj_txt",
    "final_norm": "final_norm",
}
LAYER = {
    "attention_norm": "attention.norm",
    "attention.qkv": "attention.qkv",
    "attention.proj": "attention.proj",
    "attention.query_norm.norm": "attention.query_norm",
    "attention.key_norm.norm": "attention.key_norm",
    "attention_post_norm": "attention.post_norm",
    "mlp_norm": "mlp.norm",
    "mlp_post_norm": "mlp.post_norm",
}
# The two kinds of MLP use `up` and `down` of ours under different names.
GELU_MLP = {"mlp.up": "mlp.main.0", "mlp.down": "mlp.main.2"}
GATED_MLP = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}

# What ends the names of buffers that are no parameters: masks, unused tables, a variance of latents.
BUFFERS = ("var", "attn_mask", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
DENOISER = "learnable_self_denoiser."

# Of STARFlow's YAML files, the names that differ from those of its constructor, which the other files use.
YAML_NAMES = {"channel_size": "in_channels", "blocks": "num_blocks"}
# What a released STARFlow has, and what it means where one has not.
REQUIRED = {"rope": "rotary positions", "sos": "a learned start token"}
# By how much autoencoders reduce a picture's sides, and the number of frames; by a part of their names.
DOWNSAMPLING = {"Wan2.1": (8, 4), "Wan2.2": (16, 4), "sd-vae": (8, 1), "sdxl-vae": (8, 1)}

# Settings of all layers, theirs to ours.
LAYER_SETTINGS = {
    "head_dim": "head_dim",
    "expansion": "expansion",
    "num_heads": "num_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_type": "norm",
    "use_qk_norm": "query_key_norm",
    "use_post_norm": "post_norm",
    "use_bias": "bias",
}
# Top blocks that have the shape of a language model, and how many layers they have.
_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "norm": "rms_norm",
    "mlp": "gated",
    "post_norm": True,
    "final_norm": True,
    "bias": False,
    "positions": "line",
}
LANGUAGE_MODELS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "gemma3_4b": (
        34,
        False,
        {**_GEMMA, "channels": 2560, "num_heads": 8, "num_key_value_heads": 4, "query_key_norm": True},
    ),
    "gemma3_1b": (
        26,
        False,
        {
            **_GEMMA,
            "channels": 1152,
            "num_heads": 4,
            "num_key_value_heads": 1,
            "query_key_norm": True,
            "expansion": 6,
        },
    ),
    "gemma2_2b": (
        26,
        True,
        {**_GEMMA, "channels": 2304, "num_heads": 8, "num_key_value_heads": 4, "query_key_norm": False},
    ),
}

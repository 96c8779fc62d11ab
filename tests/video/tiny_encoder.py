"""A tiny vision encoder of transformers with random weights, in a folder."""

from __future__ import annotations

from pathlib import Path

import torch


def save_tiny_encoder(folder: Path) -> Path:
    """A ViT of 16 × 16 pixels with 12 features."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(5)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        pooler_output_size=12,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder

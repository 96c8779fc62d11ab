"""Vision encoders of transformers, and the features that they have of the patches of frames."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nflib.errors import first_line
from nflib.io import write_json
from nflib.optional import require

PREPROCESSING = "preprocessor_config.json"


class PatchFeatures(nn.Module):
    """A pretrained vision encoder: frames ``(B, C, H, W)`` in -1 … 1 to features ``(B, D, h, w)`` of their patches.

    Its weights stay as they are. Features are the last hidden states; class and register tokens, which stand before the
    patches, are left out. Grey frames are shown to encoders of colours as colours.

    Args:
        tower: a vision model of transformers, with square patches.
        preprocessing: of its image processor, whose image_mean and image_std are taken (default: 0.5 both).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: Any, preprocessing: dict[str, Any]):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        is_normalised = preprocessing.get("do_normalize", True)
        for name in ("mean", "std"):
            value = preprocessing.get(f"image_{name}", 0.5) if is_normalised else float(name == "std")
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).view(-1, 1, 1))
        takes = inspect.signature(tower.forward).parameters
        self._options = {name: True for name in ("interpolate_pos_encoding",) if name in takes}

    @property
    def in_channels(self) -> int:
        return int(getattr(self.tower.config, "num_channels", 3))

    @property
    def channels(self) -> int:
        return int(self.tower.config.hidden_size)

    @property
    def num_heads(self) -> int:
        return int(self.tower.config.num_attention_heads)

    @property
    def patch_size(self) -> int:
        """Pixels along the side of a patch; raises ValueError for patches that are not square."""
        size = self.tower.config.patch_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise ValueError(f"a vision encoder must have square patches, and this one has patches of {size} pixels.")
        return int(sides.pop())

    @torch.no_grad()
    def forward(self, frames: Tensor, height: int, width: int) -> Tensor:
        """Features ``(B, D, height, width)`` of patches.

        Args:
            frames: ``(B, C, H, W)`` in -1 … 1, which are resized to fill the patches.
            height: rows of patches.
            width: columns of patches.

        Raises:
            ValueError: an encoder without a token for each patch.
        """
        size = (height * self.patch_size, width * self.patch_size)
        images = frames.expand(-1, self.in_channels, -1, -1) / 2 + 0.5
        if images.shape[-2:] != size:
            images = nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        images = ((images - self.mean) / self.std).to(self.tower.dtype)
        tokens: Tensor = self.tower(pixel_values=images, **self._options).last_hidden_state
        if tokens.dim() != 3 or tokens.shape[1] < height * width:
            raise ValueError(f"a {type(self.tower).__name__} has no token for each patch")
        return tokens[:, -height * width :].mT.unflatten(2, (height, width)).to(frames.dtype)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the encoder as transformers does, and what its image processor says."""
        self.tower.save_pretrained(folder)
        write_json(Path(folder) / PREPROCESSING, self.preprocessing)


def load_vision_tower(source: str | os.PathLike[str]) -> tuple[Any, set[str]]:
    """Load the vision encoder in a folder of transformers, or under a name on the hub, and say what its file lacks.

    Of models with a tower of text as well (CLIP, SigLIP), the vision tower is taken. transformers makes up, at random,
    what a file lacks: often the pooling layer of encoders trained without one, which alone may be missing.

    Raises:
        FileNotFoundError: no model can be read.
        ValueError: it takes no pictures, or its weights are not all there.
    """
    transformers = require("transformers", "vision encoders need", extra="video")
    try:
        model, found = transformers.AutoModel.from_pretrained(str(source), output_loading_info=True)
    except Exception as error:  # of damaged files each of several libraries raises its own
        raise FileNotFoundError(
            f"no vision encoder can be read from {str(source)!r} ({first_line(error)}); give a folder that "
            "save_pretrained of transformers wrote, or a name on the hub while it can be reached."
        ) from error
    prefix = "vision_model." if hasattr(model, "vision_model") else ""
    tower = model.vision_model if prefix else model
    if getattr(tower, "main_input_name", None) != "pixel_values":
        raise ValueError(f"{source} holds a {type(tower).__name__}, which takes no pictures; name a vision encoder.")
    missing = set(found["missing_keys"])
    lacking = sorted(name for name in missing if name.startswith(prefix) and "pooler" not in name)
    if lacking:
        raise ValueError(f"{source} lacks weights of its encoder, such as {lacking[0]}; fetch or save it again.")
    return tower.eval(), missing


def load_patch_features(source: str | os.PathLike[str]) -> PatchFeatures:
    """Load a vision encoder, such as DINOv2, SigLIP or ViT, with the normalisation of its image processor.

    Raises:
        FileNotFoundError, ValueError: as `load_vision_tower`; or the encoder has no features of patches.
    """
    tower, _ = load_vision_tower(source)
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        preprocessing, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    except OSError:  # it has none
        preprocessing = {}
    try:
        features = PatchFeatures(tower, preprocessing)
        features(torch.zeros(1, features.in_channels, 8, 8), 2, 3)
    except Exception as error:  # networks of other kinds fail each in its own way
        raise ValueError(
            f"{source} holds a {type(tower).__name__}, which gives no features of patches ({first_line(error)}); name "
            "a vision transformer, such as DINOv2, SigLIP or ViT."
        ) from error
    return features

"""Tensors in safetensors files, one at a time: neither writing nor reading holds them twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The header's size comes first, in so many bytes; its end is a multiple of them.
SIZE = 8


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of the numbers in tensors, by which weights or data are told from others."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
) -> None:
    """Write a safetensors file, copying one tensor at a time, whatever memory tensors share.

    dtypes: in which tensors are written, by name (default: their own). Raises ValueError for numbers of another kind
    than torch's usual ones.
    """
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()} | dict(dtypes or {})
    strange = next((name for name, dtype in dtypes.items() if dtype not in NAMES), None)
    if strange is not None:
        raise ValueError(f"the tensor {strange!r} is of {dtypes[strange]}, which safetensors files do not hold here.")
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % SIZE)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(SIZE, "little") + text)
        for name, tensor in tensors.items():
            value = tensor.detach().to(device="cpu", dtype=dtypes[name]).contiguous().resolve_conj().resolve_neg()
            if value.numel():
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in memory of its own, which no change of the file can reach.

    Raises:
        safetensors.SafetensorError: for a file that is truncated or damaged.
        ValueError: for numbers of another kind than torch's usual ones.
    """
    with safe_open(path, framework="pt"):
        pass  # which checks the header against the size of the file
    found = {}
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(SIZE), "little")))
        first = file.tell()
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"its tensor {name!r} holds numbers of the kind {entry['dtype']}")
            tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            if tensor.numel():
                file.seek(first + entry["data_offsets"][0])
                file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
            found[name] = tensor
    return found

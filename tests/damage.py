"""Damage to files, by seed: what a failing disk, an interrupted copy, a mix-up or a careless editor does to them."""

from __future__ import annotations

import copy
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

Generator = np.random.Generator
VALUES = (10**30, 10**12, 10**9, -1, 0, 1, 1e12, float("nan"), float("inf"), None, "3", "", True, [], [1], {}, [[2.5]])
MISTYPED = (-1, float("nan"), None, "3", "", [], [1], {}, [[2.5]])
WORDS = (b"nan", b"inf", b"-1", b"1e999", b"x", b"", b"99999999", b"null")
HEADER = 200
RUN = 64


def damaged(name: str, content: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """A file's content after one kind of damage: to its bytes or, where its format is known, to what it holds."""
    kinds: list[Callable[[bytes, Generator], bytes]] = [*BYTES, *OF_FORMAT.get(name.rpartition(".")[2], ())]
    choice = int(generator.integers(len(kinds) + 1))
    if choice == len(kinds):
        return others[generator.integers(len(others))] if others else b"text"
    return kinds[choice](content, generator)


# --- of bytes


def truncated(content: bytes, generator: Generator) -> bytes:
    return content[: generator.integers(len(content))]


def emptied(content: bytes, generator: Generator) -> bytes:
    return b""


def with_flipped_bits(content: bytes, generator: Generator) -> bytes:
    changed = bytearray(content)
    for place in generator.integers(len(content), size=generator.integers(1, 9)):
        changed[place] ^= 1 << generator.integers(8)
    return bytes(changed)


def with_zeros(content: bytes, generator: Generator) -> bytes:
    start = int(generator.integers(len(content)))
    return content[:start] + bytes(len(content[start : start + RUN])) + content[start + RUN :]


def with_another_header(content: bytes, generator: Generator) -> bytes:
    start = int(generator.integers(min(len(content), HEADER)))
    return content[:start] + generator.bytes(8) + content[start + 8 :]


def with_a_part_lost(content: bytes, generator: Generator) -> bytes:
    start, end = sorted(generator.integers(len(content), size=2))
    return content[:start] + content[end:]


BYTES = (truncated, emptied, with_flipped_bits, with_zeros, with_another_header, with_a_part_lost)


# --- of text


def with_another_number(content: bytes, generator: Generator) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return content
    number = numbers[generator.integers(len(numbers))]
    return content[: number.start()] + WORDS[generator.integers(len(WORDS))] + content[number.end() :]


def with_nan_everywhere(content: bytes, generator: Generator) -> bytes:
    return re.sub(rb"-?\d+\.\d+", b"NaN", content)


def with_lines_shuffled(content: bytes, generator: Generator) -> bytes:
    lines = content.split(b"\n")
    generator.shuffle(lines)
    return b"\n".join(lines)


TEXT = (with_another_number, with_nan_everywhere, with_lines_shuffled)


# --- of documents and arrays


def places(document: Any, path: tuple[Any, ...] = (), most: int = 6) -> Iterator[tuple[Any, ...]]:
    """Every value in a document, but the later ones of long lists, by the keys and numbers that lead to it."""
    keys: Any = document if isinstance(document, dict) else ()
    if isinstance(document, (list, tuple)):
        keys = range(min(len(document), most))
    for key in keys:
        yield (*path, key)
        yield from places(document[key], (*path, key), most)


def with_another_value(document: Any, generator: Generator, values: Sequence[Any] = VALUES) -> Any:
    """A copy in which one value, however deep, is another or lacks; tensors become other tensors."""
    document = copy.deepcopy(document)
    found = list(places(document))
    if not found:
        return values[generator.integers(len(values))]
    path = found[generator.integers(len(found))]
    part = document
    for key in path[:-1]:
        part = part[key]
    if isinstance(part, tuple):
        return values[generator.integers(len(values))]
    if generator.integers(4) == 0:
        del part[path[-1]]
    elif isinstance(part[path[-1]], torch.Tensor) and generator.integers(3):
        part[path[-1]] = torch.from_numpy(another_array(part[path[-1]].numpy(), generator, words=False).copy())
    else:
        part[path[-1]] = values[generator.integers(len(values))]
    return document


def another_array(array: np.ndarray, generator: Generator, words: bool = True) -> np.ndarray:
    """Mistyped, filled with or spoilt by what is not finite, huge or negative, emptied, or of another shape."""
    if array.dtype.kind == "U":
        is_json = str(array).startswith("{")
        # The archive's checksums tell of all damage; that another number is wrong nobody could know.
        return np.array(json.dumps(with_another_value(json.loads(str(array)), generator, MISTYPED)) if is_json else "x")
    match int(generator.integers(10)):
        case 0:
            kinds = ("float64", "float32", "float16", "complex64", "int64", "int8", "bool", *("U8", "S3") * words)
            with np.errstate(all="ignore"):
                return array.astype(kinds[generator.integers(len(kinds))])
        case 1:
            return np.full(array.shape, np.nan, array.dtype if array.dtype.kind == "f" else "float32")
        case 2 | 3 if array.size:
            spoilt = array.copy()
            value = (np.nan, np.inf, -np.inf, 1e30)[generator.integers(4)]
            spoilt.flat[generator.integers(array.size)] = value if array.dtype.kind in "fc" else -1
            return spoilt
        case 4:
            return array[:0] if array.ndim else array[None]
        case 5:
            return array[:-1] if array.ndim else array[None, None]
        case 6:
            return array[..., :-1] if array.ndim else array[None]
        case 7:
            return array.ravel()
        case 8:
            return array[None]
        case _:
            return np.array(VALUES[generator.integers(2, 9)])


def document(content: bytes, generator: Generator) -> bytes:
    return json.dumps(with_another_value(json.loads(content), generator)).encode()


def archive(content: bytes, generator: Generator) -> bytes:
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    names = sorted(arrays)
    name, other = (names[index] for index in generator.integers(len(names), size=2))
    match int(generator.integers(6)):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = arrays[other]
        case _:
            arrays[name] = another_array(arrays[name], generator)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def promising_archive(content: bytes, generator: Generator) -> bytes:
    """An array whose header tells of far more than there is, or of objects; or packed in a way that is not known."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w") as after:
        chosen = generator.integers(len(before.namelist()))
        for number, name in enumerate(before.namelist()):
            data = before.read(name)
            if number == chosen:
                kind, shape = [("<f4", (10**12, 3)), ("<f8", (10**6, 10**6)), ("|O", (3,)), ("<f4", (-1,))][
                    generator.integers(4)
                ]
                header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
                data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data[-100:]
            after.writestr(name, data)
    return file.getvalue()


def one_array(content: bytes, generator: Generator) -> bytes:
    """A .npy file in the place of an .npz."""
    file = io.BytesIO()
    np.save(file, generator.normal(size=(4, 3)))
    return file.getvalue()


def tensors(content: bytes, generator: Generator) -> bytes:
    state = load(content)
    names = sorted(state)
    name = names[generator.integers(len(names))]
    if generator.integers(6) == 0:
        del state[name]
    else:
        spoilt = another_array(state[name].numpy(), generator, words=False)
        state[name] = torch.from_numpy(np.ascontiguousarray(spoilt))
    return save(state)


def record(content: bytes, generator: Generator) -> bytes:
    """A file of `torch.save` with another value somewhere."""
    file = io.BytesIO()
    torch.save(with_another_value(torch.load(io.BytesIO(content), weights_only=True), generator), file)
    return file.getvalue()


STRUCTURED = ("pdb", "cif", "xml", "prmtop", "inpcrd", "top", "gro", "txt")
OF_FORMAT: dict[str, tuple[Callable[[bytes, Generator], bytes], ...]] = {
    **dict.fromkeys(STRUCTURED, TEXT),
    "json": (*TEXT, document, document, document),
    "npz": (archive, archive, archive, archive, promising_archive, one_array),
    "safetensors": (tensors, tensors, tensors),
    "pt": (record, record, record, record),
}

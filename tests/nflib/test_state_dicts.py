"""Foreign state dicts: what is read, how it is renamed, and what is refused."""

import random
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nflib.io.state_dicts import load_renamed, read_state_dict


class Shared(nn.Module):
    """A part under two names, a parameter of its own, and a linear map."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Linear(3, 2)
        self.second = self.first


NAMES = {"scale": "theirs_scale", "first": "block.proj.0"}


def state():
    return {
        "theirs_scale": torch.full((1,), 2.0),
        "block.proj.0.weight": torch.randn(2, 3, dtype=torch.float64),
        "block.proj.0.bias": torch.randn(2),
    }


def test_every_parameter_is_copied_in_our_dtype():
    module, theirs = Shared(), state()
    load_renamed(module, theirs, NAMES)
    assert module.scale == 2.0
    assert torch.equal(module.second.weight, theirs["block.proj.0.weight"].float())
    assert torch.equal(module.first.bias, theirs["block.proj.0.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block.proj.0.bias": None}, "lacks 'block.proj.0.bias'; 1 keys are missing and 0 unknown"),
        (
            {"block.proj.1.bias": torch.zeros(2)},
            "should not have 'block.proj.1.bias'; 0 keys are missing and 1 unknown",
        ),
        ({"block.proj.0.weight": torch.zeros(2, 3, dtype=torch.int64)}, "'block.proj.0.weight' holds int64 numbers"),
        ({"block.proj.0.weight": torch.zeros(3, 2)}, r"'block.proj.0.weight' .* shape \(3, 2\), .* \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_copied(change, message):
    module = Shared()
    theirs = {name: value for name, value in (state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_renamed(module, theirs, NAMES)
    assert module.scale == 1.0


def test_files(tmp_path):
    tensors = {"a": torch.arange(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(read_state_dict(tmp_path / name)["a"], tensors["a"])
    torch.save({"step": 3, "state_dict": tensors}, tmp_path / "trainer.pth")
    assert read_state_dict(tmp_path / "trainer.pth").keys() == {"a"}
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_state_dict(tmp_path / "b.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match="damaged"):
            read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({3: torch.zeros(2)}, tmp_path / "numbered.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "numbered.pth")


def damaged(good: bytes) -> Iterator[bytes]:
    """What stands under a checkpoint's name when a download went wrong, or a disk."""
    yield from (b"", b"hello world\n" * 20, b"a,b,c\n1,2,3\n", b"<!DOCTYPE html><html>", b"[]", "ünï".encode(), b"1\n")
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield from (good[:size] for size in range(0, len(good) - 1, len(good) // 20))
    generator = random.Random(0)
    for _ in range(100):
        changed = bytearray(good)
        for _ in range(3):
            changed[generator.randrange(min(len(good), 700))] = generator.choice([0, 255, generator.randrange(256)])
        yield bytes(changed)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_one_sentence_whatever_the_damage(form, tmp_path):
    path = tmp_path / ("state.safetensors" if form == "safetensors" else "state.pth")
    tensors = {"a": torch.randn(30, 3), "b": torch.zeros(2, dtype=torch.float64)}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            read_state_dict(path)  # a changed number is a number
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and str(error).endswith("fetch it again.") and "\n" not in str(error)
    assert refused > 30

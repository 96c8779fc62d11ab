"""`video train` under torchrun: two processes, of which one encodes what both read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tests.quiet import QUIET_OPTIONS
from tests.video.files import write_image
from tests.video.tiny import tiny_latents
from video.data.cache_folder import read_tensors
from video.pipeline import Pipeline


def save_text(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "bright": 2, "dark": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    T5EncoderModel(T5Config(vocab_size=4, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder)


@pytest.mark.slow
def test_two_processes_encode_once(tmp_path):
    """Both wait for the caches, whoever fills them, and the run ends with one pipeline, that goes on by itself."""
    rng = np.random.default_rng(0)
    for number in range(12):
        label, level = (("bright", 200), ("dark", 40))[number % 2]
        pixels = (level + rng.integers(-30, 30, (32, 32))).astype(np.uint8)
        write_image(tmp_path / "data" / label / f"{number}.png", pixels)
    tiny_latents().save(tmp_path / "autoencoder")
    save_text(tmp_path / "text")
    run = tmp_path / "run"
    arguments = ["train", "--data", tmp_path / "data", "--output", run, "--autoencoder", tmp_path / "autoencoder"]
    arguments += ["--text", tmp_path / "text", "--text_length", "4", "--size", "32", "--grey", "true"]
    arguments += ["--channels", "20", "--head_dim", "20", "--layers_per_block", "[1, 1]", "--samples", "2"]
    arguments += ["--training.max_steps", "3", "--training.batch_size", "4", *QUIET_OPTIONS]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "video"]
    ended = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    files = sorted((run / "latents/training").glob("*.safetensors"))
    samples = torch.cat([read_tensors(path)[0]["samples"] for path in files])
    result = json.loads((run / "result.json").read_text())
    assert len(samples) == len(samples.unique()) == result["training"]["clips"]
    prompts = [
        prompt for path in (run / "prompts").glob("*.safetensors") for prompt in read_tensors(path)[1]["prompts"]
    ]
    assert sorted(prompts) == ["", "bright", "dark"]
    assert result["steps"] == 3 and Pipeline.load(run / "pipeline").generate(["dark"]).isfinite().all()
    subprocess.run([sys.executable, "-m", "video", *map(str, arguments)], timeout=300, check=True)

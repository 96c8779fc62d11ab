"""A user's own folder, from files to samples by command line: images in classes, clips with captions, stopped runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from nflib.flows import TARFlow
from tests.perturb import perturb
from tests.quiet import QUIET_OPTIONS
from tests.video.files import gradient, write_image
from tests.video.tiny import tiny_model
from video.commands import main
from video.data import Bucket, ClipFolder, read_folder
from video.flows import STARFlowV
from video.latents import load_latents
from video.media import read_clip
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text import Phrasing, Words
from video.training import BitsPerDimension, NoisyLikelihood
from video.training.grids import write_grid
from video.training.starts import SavedFlow

TINY = ["--channels", "20", "--head_dim", "20", "--layers_per_block", "[1, 1]", "--samples", "4"]


def steps(count, batch_size=4, interval=None):
    wanted = {"max_steps": count, "batch_size": batch_size, "validation_interval": interval or count}
    return [*QUIET_OPTIONS, *(word for name, value in wanted.items() for word in (f"--training.{name}", str(value)))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 images in two classes, bright and dark; some of odd size, some grey or transparent, one damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for number in range(40):
        label, level = (("bright", 200), ("dark", 40))[number % 2]
        size = ((16, 16), (16, 16), (19, 33), (40, 17))[number % 4]
        pixels = (level + noise.integers(-30, 30, (*size, 3))).astype(np.uint8)
        if number % 5 == 1:
            pixels = pixels[..., 0]
        elif number % 5 == 2:
            pixels = np.dstack([pixels, np.full(size, 255, np.uint8)])
        write_image(folder / label / f"{number:02}.png", pixels)
    (folder / "dark/07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """8 clips of several sizes, lengths and rates, with captions."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(8):
        what = ("red", "blue")[number % 2]
        size, rate = ((32, 32), (48, 32), (32, 64), (36, 36))[number % 4], (8, 16, 24, 12)[number % 4]
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(rate))
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for frame in range(rate):
                pixels = np.zeros((*size, 3), np.uint8)
                pixels[:, : size[1] * (frame + 1) // rate, 0 if what == "red" else 2] = 200
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        (folder / f"{number}.txt").write_text(f"A {what} bar grows.")
    return folder


@pytest.fixture(scope="module")
def autoencoder(films, tmp_path_factory):
    """Trained on the frames of the clips: 16 × 16 to 4 × 4."""
    output = tmp_path_factory.mktemp("autoencoder")
    sizes = ["--size", "16", "--latent_channels", "2", "--channels", "[4, 4, 4]"]
    main(["train_autoencoder", "--data", str(films), "--output", str(output), *sizes, *steps(2)])
    assert Image.open(output / "samples/step-000000002.png").size == (8 * 18 - 2, 4 * 18 - 2)
    return output


def test_images_in_classes(pictures, tmp_path, caplog):
    """By two commands: to a grid, bits per dimension, a sample of a class, whatever the files are like."""
    caplog.set_level("INFO")
    run, out = tmp_path / "run", tmp_path / "sample.png"
    data = ["--data", str(pictures), "--size", "16", "--validation", "0.2"]
    main(["train", "--model", "tarflow", *data, "--output", str(run), *TINY, *steps(20, 16, 10)])
    main(["generate", "--model", str(run / "pipeline"), "--prompt", "bright", "--guidance", "1", "--out", str(out)])
    assert read_clip(out).shape[1] == 3
    assert [path.name for path in sorted((run / "samples").iterdir())] == ["step-000000010.png", "step-000000020.png"]
    assert Image.open(run / "samples/step-000000020.png").size == (34, 34)
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["bits_per_dimension"] < 12 and "8-bit pixels with noise of deviation 0.05" in result["of"]
    assert sum(result[part]["clips"] for part in ("training", "validation")) == 39
    assert "dark/07.png" in {**result["training"]["skipped"], **result["validation"]["skipped"]}
    assert "1 file (dark/07.png)" in caplog.text and "bits per dimension of 8-bit pixels" in caplog.text
    assert (run / "logs").is_dir()
    pipeline = Pipeline.load(run / "pipeline")
    assert pipeline.text.names == ["bright", "dark"]


def test_bits_are_those_of_8_bit_pixels(pictures, tmp_path):
    """Of a validation image, by the definition: a bound on -log2 P(levels) / D, which log q of the pixels gives."""
    run = tmp_path / "run"
    data = ["--data", str(pictures), "--size", "8", "--condition", "none", "--noise", "0"]
    main(["train", "--model", "tarflow", *data, "--output", str(run), *TINY, *steps(2)])
    result = json.loads((run / "result.json").read_text())
    assert result["of"] == "8-bit pixels, uniformly dequantised"
    pipeline = Pipeline.load(run / "pipeline")
    assert pipeline.settings.noise == 0 and pipeline.settings.denoise == "none"
    _, validation = read_folder(pictures).split(0.1)
    clips = ClipFolder(validation, [Bucket(1, 8, 8)])
    images = clips.clips(torch.arange(len(clips))).frames
    generator = torch.Generator().manual_seed(1)
    bits = []
    for _ in range(20):
        uniform = images + (torch.rand(images.shape, generator=generator) - 0.5) / 127.5
        bits.append(-pipeline.flow.log_prob(uniform).detach() / (192 * np.log(2)) + np.log2(127.5))
    assert float(torch.stack(bits).mean()) == pytest.approx(result["bits_per_dimension"], abs=1e-3)


def test_clips_with_captions(films, autoencoder, tmp_path):
    """To a generated, a continued and an edited clip."""
    run = tmp_path / "run"
    data = ["--data", str(films), "--size", "16", "--frames", "4", "--autoencoder", str(autoencoder)]
    main(["train", "--model", "starflow-v", *data, "--output", str(run), *TINY, *steps(3)])
    model, clip = ["--model", str(run / "pipeline")], tmp_path / "clip.mp4"
    prompt = ["--prompt", "a red bar grows"]
    main(["generate", *model, *prompt, "--out", str(clip), "--guidance", "1"])
    assert read_clip(clip, (3, 16, 16)).shape == (4, 3, 16, 16)
    main(["generate", *model, *prompt, "--continue", str(clip), "--frames", "7", "--out", str(tmp_path / "long.gif")])
    assert read_clip(tmp_path / "long.gif", (3, 16, 16)).shape == (7, 3, 16, 16)
    edited = tmp_path / "edited.gif"
    main(["edit", str(clip), *model, "--source-prompt", "a red bar", "--prompt", "a blue bar", "--out", str(edited)])
    assert read_clip(edited, (3, 16, 16)).shape == (4, 3, 16, 16)
    result = json.loads((run / "result.json").read_text())
    assert result["of"] == "latents with noise of deviation 0.3" and np.isfinite(result["bits_per_dimension"])
    assert Image.open(next((run / "samples").iterdir())).size == (4 * 18 - 2, 4 * 18 - 2)


def test_buckets_and_lengths_and_a_text_encoder(films, autoencoder, tmp_path):
    """Clips of several aspect ratios and lengths by one flow; prompts by an encoder of transformers."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "red": 2, "blue": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "text")
    shape = {"vocab_size": 4, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**shape)).save_pretrained(tmp_path / "text")
    run = tmp_path / "run"
    data = ["--data", str(films), "--size", "16", "--frames", "[1, 4]", "--autoencoder", str(autoencoder)]
    wide = ["--largest_aspect", "4", "--text", str(tmp_path / "text"), "--text_length", "4"]
    main(["train", "--model", "starflow-v", *data, *wide, "--output", str(run), *TINY, *steps(6, 2)])
    assert len(list((run / "latents/training").glob("*.safetensors"))) > 1
    assert Pipeline.load(run / "pipeline").text.length == 4


def test_images_of_several_shapes(pictures, autoencoder, tmp_path):
    """A STARFlow on latents, of which labels are words."""
    run = tmp_path / "run"
    data = ["--data", str(pictures), "--size", "16", "--autoencoder", str(autoencoder), "--largest_aspect", "2"]
    main(["train", *data, "--output", str(run), *TINY, *steps(4)])
    pipeline = Pipeline.load(run / "pipeline")
    assert pipeline.text.words == ["bright", "dark"]
    assert pipeline.generate(["dark"]).shape == (1, 1, 3, 16, 16)


def test_a_killed_run_goes_on(pictures, tmp_path, capsys):
    """To the very weights that it would have had."""
    data = ["train", "--model", "tarflow", "--data", str(pictures), "--size", "16", *TINY, *steps(40)]
    data += ["--training.checkpoint_interval", "2"]
    main([*data, "--output", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "video", *data, "--output", str(killed)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/step-*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "pipeline").exists()
    main([*data, "--output", str(killed)])
    flows = [Pipeline.load(tmp_path / name / "pipeline").flow.state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(value, flows[1][name]) for name, value in flows[0].items())
    with pytest.raises(SystemExit) as error:
        main([*data, "--output", str(killed), "--noise", "0.1"])
    assert "was made with another noise" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gan"], "model must be one of tarflow, starflow, starflow-v, got 'gan'"),
        ([], "name the folder of an autoencoder by --autoencoder"),
        (["--autoencoder", "/nowhere"], "no autoencoder can be read"),
        (["--model", "tarflow", "--autoencoder", "/nowhere"], "leave autoencoder out"),
        (["--model", "tarflow", "--size", "wide"], "size must be a number of pixels"),
        (["--model", "tarflow", "--size", "18"], "multiples of 4"),
        (["--model", "tarflow", "--frames", "4"], "learns images"),
        (["--model", "tarflow", "--text", "t5"], "not conditioned on text"),
        (["--model", "tarflow", "--condition", "caption"], "nothing in .* has a caption"),
        (["--model", "tarflow", "--prompt_dropout", "2"], "dropout"),
        (["--model", "tarflow", "--noise", "-1"], "noise must lie in"),
        (["--model", "tarflow", "--training.accelerator", "abacus"], "there is no device 'abacus'"),
        (["--model", "tarflow", "--patch_size", "0"], "patch_size must be a positive number"),
        (["--layers_per_block", "2"], "layers_per_block of starflow is a list"),
        (["--model", "tarflow", "--validation", "1"], "must lie between 0 and 1"),
        (["--model", "tarflow", "--data", "/nowhere"], "there is no folder /nowhere"),
        (["--model", "tarflow", "--samples", "-1"], "samples, how many are shown"),
        (["--model", "tarflow", "--text_length", "8"], "text_length is of an encoder of text"),
        (["--model", "tarflow", "--frame_rate", "0"], "frame_rate must be positive"),
        (["--autoencoder", "{autoencoder}", "--levels", "17"], "leave levels out"),
    ],
)
def test_mistakes_end_in_one_sentence(pictures, autoencoder, tmp_path, arguments, message):
    arguments = [argument.format(autoencoder=autoencoder) for argument in arguments]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        main(
            ["train", "--data", str(pictures), "--output", str(tmp_path), "--size", "16", *TINY, *steps(1), *arguments]
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "-1"], "samples, how many are shown"),
        (["--latent_channels", "0"], "latent_channels must be a positive number"),
        (["--features", "x", "--patch_pixels", "0"], "patch_pixels must be a positive number"),
        (["--levels", "17"], "leave levels out"),
        (["--initial", "{autoencoder}/autoencoder", "--grey", "true"], "not grey ones"),
    ],
)
def test_mistakes_of_autoencoders(pictures, autoencoder, tmp_path, arguments, message):
    arguments = [argument.format(autoencoder=autoencoder) for argument in arguments]
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(
            ["train_autoencoder", "--data", str(pictures), "--output", str(tmp_path), "--size", "16", *steps(1)]
            + arguments
        )


def test_a_run_that_failed_before_its_first_checkpoint_locks_no_folder(pictures, tmp_path, monkeypatch):
    small = ["--latent_channels", "2", "--channels", "[4, 4, 4]", "--samples", "0", *steps(1)]
    data = ["train_autoencoder", "--data", str(pictures), "--output", str(tmp_path), *small]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="in vain"):
        patch.setattr("video.latents.Pixels.encode", lambda self, frames: (_ for _ in ()).throw(ValueError("in vain")))
        main([*data, "--size", "64"])
    main([*data, "--size", "16"])
    assert not (tmp_path / "samples").exists()
    with pytest.raises(SystemExit, match=r"made with another size; remove the folder, or choose another\."):
        main([*data, "--size", "64"])


def test_what_a_run_begins_with_is_told_by_its_weights(pictures, autoencoder, tmp_path):
    """The same at another path is no other, another at the same path is; earlier versions kept the path."""
    small = ["--data", str(pictures), "--output", str(tmp_path / "run"), "--size", "16", "--samples", "0"]

    def train(initial, count):
        main(["train_autoencoder", *small, "--initial", str(initial), *steps(count)])

    initial = shutil.copytree(autoencoder / "autoencoder", tmp_path / "initial")
    train(initial, 1)
    train(initial.rename(tmp_path / "moved"), 2)
    shutil.copytree(tmp_path / "run" / "autoencoder", initial)
    with pytest.raises(SystemExit, match="was made with another initial; remove the folder"):
        train(initial, 3)
    path = tmp_path / "run" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"initial": json.dumps(str(initial))}))
    train(initial, 3)
    saved, other = tiny_model().save(tmp_path / "saved"), tiny_model()
    copied = shutil.copytree(saved, tmp_path / "copied")
    with torch.no_grad():
        next(other.flow.parameters()).add_(1)
    other = other.save(tmp_path / "other")
    one, same, another = (SavedFlow(str(path), {}, False, "cpu").fixed() for path in (saved, copied, other))
    assert one == same != another and list(one) == ["initial"]


def test_a_run_without_a_finite_validation_leaves_no_pipeline(pictures, tmp_path):
    wild = ["--training.learning_rate", "1e9", "--training.warmup_fraction", "0"]
    data = ["train", "--model", "tarflow", "--data", str(pictures), "--size", "16", "--output", str(tmp_path), *TINY]
    with pytest.raises(SystemExit, match=r"error: no validation was finite in 4 steps, .* in another output\."):
        main([*data, "--samples", "0", *steps(4), *wild])
    assert not any((tmp_path / name).exists() for name in ("pipeline", "result.json"))


def test_one_shape_is_said(pictures, tmp_path, caplog):
    data = ["--data", str(pictures), "--size", "16", "--largest_aspect", "2", "--output", str(tmp_path)]
    main(["train", "--model", "tarflow", *data, *TINY, *steps(1)])
    assert "tarflow has a single size: all images are cropped to 16" in caplog.text


def test_captions_need_words(films, tmp_path):
    with pytest.raises(SystemExit, match="conditioned on labels, and .* has captions"):
        main(
            ["train", "--model", "tarflow", "--data", str(films), "--output", str(tmp_path), "--size", "16", *steps(1)]
        )


def test_grids_show_what_is_in_them(tmp_path):
    images = torch.tensor(gradient(4, 4)).permute(2, 0, 1).float().div(127.5).sub(1).expand(5, 1, 3, 4, 4).clone()
    images[3] = 1.0
    pixels = np.asarray(Image.open(write_grid(images, tmp_path / "grid.png")))
    assert pixels.shape == (2 * 6 - 2, 3 * 6 - 2, 3)
    assert (pixels[:4, 6:10] == gradient(4, 4)).all() and (pixels[6:, :4] == 255).all()
    assert (pixels[4:6] == 128).all() and (pixels[6:, 12:] == 128).all()


def test_clips_of_another_shape():
    """Their bits are those of the flow of that shape, on the same weights; of shorter clips, of their own frames."""
    flow = perturb(STARFlowV((4, 2, 4, 4), 2, 20, [1, 1], layer={"head_dim": 20}))
    objective = BitsPerDimension(NoisyLikelihood(0.0, 0.0, None, learn_denoiser=False))
    for shape in ((4, 2, 4, 4), (2, 2, 4, 4), (4, 2, 2, 8), (3, 2, 6, 4)):
        clips = torch.randn(3, *shape)
        bits, _ = objective(flow, {"inputs": clips}, torch.Generator().manual_seed(0))
        expected = flow.resized((4, *shape[1:])).bits_per_dim(clips).mean()
        torch.testing.assert_close(bits, expected)
        bits.backward()
        assert all(parameter.grad is not None for parameter in flow.parameters())


def test_labels_are_dropped_in_training():
    flow = perturb(TARFlow((3, 4, 4), 2, 16, 2, 1, num_classes=3, head_dim=16))
    images, labels = torch.rand(6, 1, 3, 4, 4).mul(255).round().div(127.5).sub(1), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = BitsPerDimension(NoisyLikelihood(0.1, 1.0, torch.tensor([-1, -1]), learn_denoiser=False), 256)

    def bits(flow, **context):
        return objective(flow, {"inputs": images, **context}, torch.Generator().manual_seed(0))[0]

    torch.testing.assert_close(bits(flow.train(), context=labels), bits(flow, context=labels - labels - 1))
    assert not torch.isclose(bits(flow.eval(), context=labels), bits(flow, context=labels - labels - 1))


def test_a_run_keeps_its_labels(tmp_path):
    """Numbers of classes would mean others, were labels changed between a run and what goes on from it."""
    data = tmp_path / "data"
    for name in "abcd":
        write_image(data / f"{name}.png", gradient(8, 8))

    def train(labels):
        rows = [json.dumps({"file_name": f"{name}.png", "label": label}) for name, label in labels.items()]
        (data / "metadata.jsonl").write_text("\n".join(rows))
        folders = ["--data", str(data), "--output", str(tmp_path / "run"), "--size", "8", "--validation", "0.5"]
        main(["train", "--model", "tarflow", *folders, *TINY, *steps(1)])

    train({"a": "cat", "b": "dog", "c": "cat", "d": "dog"})
    with pytest.raises(SystemExit, match="was made with another set of words or labels"):
        train({"a": "cat", "b": "ape", "c": "cat", "d": "ape"})


def test_fine_tuning(pictures, tmp_path):
    """From a saved model, with all that a run may have at once; what does not fit is said."""
    first, second = tmp_path / "first", tmp_path / "second"
    data = ["--data", str(pictures), "--validation", "0.2"]
    main(
        [
            "train",
            "--model",
            "tarflow",
            *data,
            "--size",
            "16",
            "--noise",
            "0.2",
            "--output",
            str(first),
            *TINY,
            *steps(3),
        ]
    )
    more = ["--training.precision", "bf16-mixed", "--training.accumulation", "2", "--training.ema_decay", "0.9"]
    more += ["--training.checkpoint_activations", "true", "--training.learning_rate", "1e-6"]
    begun = ["train", *data, "--initial", str(first), "--samples", "2"]
    main([*begun, "--output", str(second), *more, *steps(4)])
    one, two = (Pipeline.load(folder / "pipeline") for folder in (first, second))
    assert two.settings == one.settings and two.text.names == one.text.names
    before, after = one.flow.state_dict(), two.flow.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    for wrong, message in (
        (["--channels", "8"], "the initial model has its own channels: leave channels out"),
        (["--autoencoder", "x"], "its own autoencoder"),
        (["--size", "32"], "makes images of 16 × 16 alone"),
        (["--frames", "2"], "learns images"),
        (["--grey", "true"], "not grey"),
        (["--initial", str(tmp_path)], "name the folder of a trained video model"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*begun, "--output", str(tmp_path / "third"), *wrong, *steps(1)])
    other = tmp_path / "other"
    for name in ("cat", "dog"):
        write_image(other / name / "0.png", gradient(16, 16))
    with pytest.raises(SystemExit, match="does not fit .*names no class of this model"):
        main([*begun, "--data", str(other), "--output", str(tmp_path / "third"), *steps(1)])


def test_fine_tuning_of_clips(films, autoencoder, tmp_path):
    """At another size and length, with a denoiser beside the flow, prompts phrased as it knows them."""
    text = Words(["a", "red", "blue", "bar", "grows", "8", "fps", "video", "with", "noise", "level", "300"], 16)
    flow = STARFlowV(
        (4, 2, 4, 4),
        1,
        20,
        [1, 1],
        text_length=16,
        text_channels=text.channels,
        layer={"head_dim": 20},
        denoiser={"num_layers": 1},
    )
    settings = PipelineSettings((4, 3, 16, 16), 0.3, phrasing=Phrasing(frame_rate=True, noise=True), denoise="learned")
    model = Pipeline(flow, load_latents(autoencoder / "autoencoder"), text, settings)
    model.save(tmp_path / "model")
    run = tmp_path / "run"
    data = ["--data", str(films), "--size", "16x24", "--frames", "6", "--initial", str(tmp_path / "model")]
    main(["train", *data, "--output", str(run), "--samples", "2", *steps(2)])
    tuned = Pipeline.load(run / "pipeline")
    assert tuned.settings.clip_shape == (6, 3, 16, 24) and tuned.window == 6
    assert tuned.settings.denoise == "score" and tuned.settings.phrasing == settings.phrasing
    assert torch.equal(tuned.flow.denoiser.proj_in.weight, flow.denoiser.proj_in.weight)
    assert tuned.generate(["a red bar grows"]).isfinite().all()

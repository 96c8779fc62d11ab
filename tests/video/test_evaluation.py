"""Judging a model: features, densities, distances and classes against plain computations; the command and its page."""

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.moving_digits.data import MovingDigits
from nflib.flows import TARFlow
from nflib.metrics import frechet_distance, kernel_distance, precision_recall
from tests.browser import browse, needs_chromium
from tests.video.tiny import SEVEN
from tests.video.tiny_encoder import save_tiny_encoder
from video.commands import main
from video.evaluation import PooledPixels, load_features, score, score_held_out, scored_quantity
from video.evaluation.judgement import judge
from video.latents import Pixels
from video.media import as_bytes, grid, read_image, write_clip
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.labels import Labels


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def clips():
    return MovingDigits("held_out", 24, 4, cuts=0.0, seed=3).clips().frames


def batches(clips, prompts, size=5):
    return [(clips[k : k + size], prompts[k : k + size]) for k in range(0, len(clips), size)]


def test_features_are_those_of_the_encoder(encoder, clips):
    from transformers import AutoImageProcessor, AutoModel

    features = load_features(encoder)
    assert "pooled output" in features.description
    model, processor = AutoModel.from_pretrained(encoder).eval(), AutoImageProcessor.from_pretrained(encoder)
    frames = list(as_bytes(clips[:3].flatten(0, 1)))
    with torch.no_grad():
        output = model(**processor(images=frames, return_tensors="pt"))
    expected = output.pooler_output.view(3, 4, 12).mean(1).double()
    torch.testing.assert_close(features(clips[:3]), expected, atol=1e-6, rtol=0)
    # Saved without a pooling layer: transformers would make one up.
    weights = {name: value for name, value in load_file(encoder / "model.safetensors").items() if "pooler" not in name}
    bare = encoder.with_name(encoder.name + "-bare")
    bare.mkdir()
    for path in encoder.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    save_file(weights, bare / "model.safetensors", {"format": "pt"})
    features = load_features(bare)
    assert "mean of the tokens" in features.description
    expected = output.last_hidden_state.mean(1).view(3, 4, 12).mean(1).double()
    torch.testing.assert_close(features(clips[:3]), expected, atol=1e-6, rtol=0)
    lacking = next(name for name in weights if "attention" in name)
    save_file({name: value for name, value in weights.items() if name != lacking}, bare / "model.safetensors")
    with pytest.raises(ValueError, match="lacks weights of its encoder"):
        load_features(bare)


def test_a_tower_of_text_is_left_out(tmp_path, clips):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = CLIPConfig(
        text_config=tiny | {"vocab_size": 9, "max_position_embeddings": 5},
        vision_config=tiny | {"image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    features = load_features(tmp_path)
    assert "Vision" in features.description
    assert features(clips[:2]).shape == (2, 8)


def test_no_encoder(tmp_path, clips):
    with pytest.raises(FileNotFoundError, match="no vision encoder with its image processor"):
        load_features(tmp_path)
    pooled = load_features(None)(clips[:2])
    assert isinstance(load_features(None), PooledPixels)
    expected = torch.nn.functional.avg_pool2d(clips[:2].mean(1), 4).flatten(1).double()
    torch.testing.assert_close(pooled, expected)


def test_distances_beside_scikit_learn(encoder, clips):
    """On the features of one encoder: the cubic kernel and the neighbours are scikit-learn's."""
    from sklearn.metrics.pairwise import polynomial_kernel
    from sklearn.neighbors import NearestNeighbors

    features = load_features(encoder)
    x, y = features(clips), features(-0.7 * clips + 0.1)
    xx, yy, xy = (polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((x, x), (y, y), (x, y)))
    n = len(x)
    expected = ((xx.sum() - xx.trace()) + (yy.sum() - yy.trace())) / (n * (n - 1)) - 2 * xy.mean()
    assert kernel_distance(x, y) == pytest.approx(expected, abs=1e-10)
    radii = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(x)[0][:, -1]
    inside = (np.linalg.norm(y[:, None] - x[None], axis=-1) <= radii + 1e-12).any(1)
    assert precision_recall(x, y, 3).precision == pytest.approx(inside.mean())


def test_one_pass(model, clips):
    """Densities, samples and reconstructions are the pipeline's own; each batch has a seed of its own."""
    prompts = [SEVEN, "a two moving left, slowly"] * 6
    passed = score_held_out(
        model, batches(clips[:12], prompts), PooledPixels(), classes=prompts[:2], with_unconditional=True, num_shown=7
    )
    second = slice(5, 10)
    expected = model.nats_per_dim(clips[second], prompts[second], seed=5) / math.log(2)
    torch.testing.assert_close(passed.held_out.bits_of_frames[second], expected.double().cpu())
    log_prob = model.log_prob(clips[second], prompts[second], seed=5).double()
    dimensions = math.prod(model.flow.event_shape)
    torch.testing.assert_close(passed.held_out.bits[second], -log_prob / dimensions / math.log(2), atol=1e-5, rtol=0)
    made = model.generate(prompts[second], 4, seed=5)
    torch.testing.assert_close(passed.samples.features[second], PooledPixels()(made))
    torch.testing.assert_close(passed.samples.shown[:2], model.generate(prompts[:5], 4, seed=0)[:2])
    again = model.latents.decode(model.latents.encode(clips[second]))
    torch.testing.assert_close(passed.reconstructions.features[second], PooledPixels()(again))
    torch.testing.assert_close(passed.held_out.shown, clips[:7])
    unconditional = score(model, batches(clips[:12], prompts), conditional=False)
    torch.testing.assert_close(passed.unconditional, unconditional.bits)
    under = [score(model, batches(clips[:12], [name] * 12)).bits for name in prompts[:2]]
    assert torch.equal(passed.most_likely, torch.stack(under).argmin(0))

    found = judge(model, passed, {"the same": unconditional}, prompts[:2])
    assert found.bits_per_dim["held-out"].value == pytest.approx(float(passed.held_out.bits.mean()))
    spread = float(passed.held_out.bits.std()) / math.sqrt(12)
    assert found.bits_per_dim["held-out"].error == pytest.approx(spread, rel=0.25)
    x, y = passed.held_out.features, passed.samples.features
    assert found.distances["samples"]["frechet_distance"].value == pytest.approx(frechet_distance(x, y))
    assert found.auroc["the same"]["log-density"].value == 0.5
    own = torch.tensor([number % 2 == 0 for number in range(12)])
    first = found.classes[SEVEN]
    assert first["bits_per_dim"].value == pytest.approx(float(passed.held_out.bits[own].mean()))
    assert first["accuracy"].value == pytest.approx(float((passed.most_likely[own] == 0).double().mean()))
    assert found.class_sizes == {SEVEN: 6, prompts[1]: 6} and "kernel_distance" not in first


def test_errors_count_files_and_a_perfect_autoencoder_is_at_no_distance(model, clips):
    """Windows of one file resemble each other: ten copies of each clip tell no more than one."""
    prompts = [SEVEN] * 4
    copies = [(clips[:4], prompts, range(4))] * 10
    once, again, as_files = (
        judge(model, score_held_out(model, some, PooledPixels()), {})
        for some in ([(clips[:4], prompts)], copies, [(clips[:4], prompts)] * 10)
    )
    error = once.bits_per_dim["held-out"].error
    assert again.bits_per_dim["held-out"].error == pytest.approx(error, rel=0.3)
    assert as_files.bits_per_dim["held-out"].error < 0.5 * error
    assert any("40 held-out clips are cut from 4 files" in note for note in again.notes)
    assert not any("are cut from" in note for note in once.notes)

    passed = score_held_out(model, batches(clips[:12], prompts * 3), PooledPixels())
    passed.reconstructions = passed.held_out
    assert judge(model, passed, {}).distances["reconstructions"]["kernel_distance"].value == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="others cannot be named 'samples'"):
        judge(model, passed, {"samples": passed.samples})


def test_no_clips(model):
    with pytest.raises(ValueError, match="no held-out clips"):
        score_held_out(model, [], PooledPixels())
    with pytest.raises(ValueError, match="no clips to score"):
        score(model, [])


def test_what_is_scored(model):
    words = scored_quantity(model)
    assert "4 × 2 × 4 × 4 a clip" in words and "deviation 0.1 added" in words and "not a density of pixels" in words
    assert "without noise" in scored_quantity(model.with_settings(noise=0.0))


def test_pixels_that_are_not_dequantised_have_no_bits_of_levels():
    """As of TARFlows of uniformly dequantised pixels that were converted before their levels were known."""
    flow = TARFlow((1, 4, 4), patch_size=4, channels=16, num_blocks=1, layers_per_block=1, head_dim=16)
    noisy = Pipeline(flow, Pixels(1), Labels(), PipelineSettings((1, 1, 4, 4), 0.1))
    assert "6.994 bits" in scored_quantity(noisy) and "bounds no code" not in scored_quantity(noisy)
    plain = noisy.with_settings(noise=0.0)
    assert "bounds no code" in scored_quantity(plain) and "6.994" not in scored_quantity(plain)


def test_grid():
    clips = torch.arange(1.0, 4.0).view(3, 1, 1, 1, 1).expand(3, 2, 1, 2, 2)
    rows = ["1 1 0 2 2", "1 1 0 2 2", "0 0 0 0 0", "3 3 0 0 0", "3 3 0 0 0"]
    expected = torch.tensor([[float(value) for value in row.split()] for row in rows])
    assert torch.equal(grid(clips, 2, gap=1), expected.expand(2, 1, 5, 5))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, model, encoder, clips):
    """24 clips of two classes beside 6 of noise, and what the command makes of them."""
    folder = tmp_path_factory.mktemp("evaluated")
    for number, clip in enumerate(clips):
        name = ("seven", "two")[number % 2]
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        write_clip(clip, folder / "data" / name / f"{number}.gif", model.settings.frame_rate)
    (folder / "data" / "two" / "damaged.gif").write_bytes(b"GIF89a")
    (folder / "noise").mkdir()
    for number, clip in enumerate(torch.randn(6, 4, 1, 32, 32, generator=torch.Generator().manual_seed(1))):
        write_clip(clip, folder / "noise" / f"{number}.gif", model.settings.frame_rate)
    saved = model.save(folder / "model")
    paths = ["--data", folder / "data", "--output", folder / "page", "--model", saved, "--features", encoder]
    main(["evaluate", *map(str, paths), "--others", str(folder / "noise"), "--classify", "true", "--batch_size", "8"])
    return folder


def test_command(evaluated, model):
    summary = json.loads((evaluated / "page" / "summary.json").read_text())
    assert summary["num_clips"] == 24 and summary["class_sizes"] == {"seven": 12, "two": 12}
    assert set(summary["bits_per_dim"]) == {"held-out", "samples", "noise"}
    assert set(summary["distances"]["samples"]) == {"frechet_distance", "kernel_distance", "precision", "recall"}
    assert all(summary["distances"]["samples"][name]["error"] >= 0 for name in ("frechet_distance", "recall"))
    assert 0 <= summary["classes"]["two"]["accuracy"]["value"] <= 1
    assert set(summary["auroc"]["noise"]) == {"log-density", "typicality"}
    assert "ViTModel" in summary["settings"]["features"]
    assert any("damaged.gif" in note for note in summary["notes"])
    for name in ("held-out", "samples", "reconstructions"):
        assert read_image(evaluated / "page" / f"{name}.gif").shape[0] == 1


def test_page_is_self_contained(evaluated):
    text = (evaluated / "page" / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    for heading in ("Likelihood", "Samples", "Distances", "Classes", "Told from other clips", "Notes"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("data:image/gif;base64,") == 3 and text.count("<svg") == 2


@needs_chromium
def test_page_in_a_browser(evaluated, tmp_path):
    document = browse(evaluated / "page" / "index.html", tmp_path, "--dump-dom")
    assert "bits per dimension" in document


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--data", "none"], "there is no folder none"),
        (["--data", "data", "--num_shown", "0"], "num_shown must be a positive number"),
        (["--data", "noise", "--classify", "true"], "have no classes to tell apart"),
        (["--data", "data", "--others", "noise", "--others", "page/../noise"], "two folders of others have one name"),
        (["--data", "data", "--others", "page/../samples"], "others cannot be named 'samples'"),
        (["--data", "data", "--num_clips", "0"], "must be positive, got 50 and 0"),
        (["--data", "data", "--features", "noise"], "no vision encoder"),
        (["--data", "data", "--denoise", "magic"], "denoise must be one of"),
        (["--data", "data", "--output", "page/index.html"], "page/index.html is a file"),
    ],
)
def test_mistakes(evaluated, monkeypatch, arguments, answer):
    monkeypatch.chdir(evaluated)
    with pytest.raises(SystemExit, match=answer):
        main(["evaluate", "--output", "other", "--model", "model", *arguments])
    assert not (evaluated / "other").exists()

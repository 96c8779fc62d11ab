"""Pixels of levels: bits per dimension of what a file can hold, and flows that know each pixel's own values."""

import json
import math

import numpy as np
import pytest
import torch

from nflib.flows import Flow, TARFlow
from tests.quiet import QUIET_OPTIONS
from tests.video.files import write_image
from video.commands import main
from video.flows import GaussianizedTARFlow
from video.latents import Pixels
from video.latents.levels import dequantised, log_step, snapped, step
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.labels import Labels


def pipeline(levels, flow=None):
    settings = PipelineSettings((1, 1, 4, 4), 0.0, denoise="none", levels=levels)
    return Pipeline(flow or TARFlow((1, 4, 4), 2, 8, 1, 1), Pixels(1), Labels(), settings)


def test_levels_are_even_and_their_noise_fills_a_step():
    pixels = torch.linspace(-1.2, 1.2, 1001)
    assert torch.allclose(snapped(pixels, 5).unique(), torch.linspace(-1, 1, 5))
    noisy = dequantised(torch.zeros(10_000), 5, torch.Generator().manual_seed(0))
    assert -0.25 <= float(noisy.min()) < -0.249 and 0.249 < float(noisy.max()) <= 0.25
    assert step(5) == 0.5 and log_step(5) == math.log(0.5) and log_step(None) == 0


def test_log_prob_is_of_the_levels():
    """A new flow is the identity, its density normal: the mean over a step is known, of log p and of p."""
    own = pipeline(17)
    picture = own.decode(torch.rand(1, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    low, high = (picture.double() + side * step(17) / 2 for side in (-1, 1))
    mean_log_density = -0.5 * math.log(2 * math.pi) - (low**2 + low * high + high**2) / 6
    expected = float((mean_log_density + math.log(step(17))).sum())
    values = torch.stack([own.log_prob(picture, [""], seed=seed)[0] for seed in range(400)]).double()
    error = float(values.std()) / 20
    assert float(values.mean()) == pytest.approx(expected, abs=4 * error)
    mass = torch.distributions.Normal(0.0, 1.0).cdf
    assert float(values.exp().mean()) == pytest.approx(float((mass(high) - mass(low)).log().sum().exp()), rel=0.05)
    of_frames = own.log_prob_of_frames(picture, [""], seed=3)
    assert torch.allclose(of_frames.sum(1), own.log_prob(picture, [""], seed=3))


def test_samples_have_levels():
    made = pipeline(3).generate([""] * 8, seed=0)
    assert made.unique().tolist() == [-1, 0, 1]
    assert len(pipeline(None).generate([""] * 8, seed=0).unique()) > 50


@pytest.mark.parametrize("levels", [1, 2.0, 0])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="levels"):
        PipelineSettings((1, 1, 4, 4), 0.0, levels=levels)


def test_levels_are_of_pixels_without_noise():
    with pytest.raises(ValueError, match="without noise"):
        PipelineSettings((1, 1, 4, 4), 0.1, levels=256)


def test_levels_of_latents_are_refused(tmp_path):
    folder = Pipeline.load().save(tmp_path / "model")
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(document | {"noise": 0.0, "levels": 256}))
    with pytest.raises(ValueError, match="flow is one of latents"):
        Pipeline.load(folder)


def test_normal_marginals_are_no_angles():
    for conditional in ("circular", ["spline", "circular"]):
        with pytest.raises(
            ValueError, match="conditional must be one of affine, spline, quadratic, binned, mixture, got"
        ):
            GaussianizedTARFlow((1, 2, 2), patch_size=[1, 2], conditional=conditional)


def test_marginals_become_normal_and_the_density_stays_one(tmp_path):
    """Of a new flow: the log-determinant by autograd, the inverse, the total probability, and a folder."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.rand(2000, 1, 2, 2, generator=generator) ** torch.tensor([[1.0, 3.0], [9.0, 0.2]])
    data = dequantised(2 * levels - 1, 9, generator)
    flow = GaussianizedTARFlow((1, 2, 2), patch_size=1, channels=8, num_blocks=1, layers_per_block=1)
    flow.fit_marginals(data, (-1.125, 1.125))
    noise, logabsdet = (values.detach() for values in flow._transform(data))
    assert noise.mean(0).abs().max() < 0.1 and (noise.std(0) - 1).abs().max() < 0.1
    one = data[:1].double()
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.double()._transform(x)[0], one).view(4, 4)
    assert float(logabsdet[0]) == pytest.approx(float(jacobian.slogdet().logabsdet), abs=1e-4)
    assert torch.allclose(flow._transform.inverse(flow._transform(one)[0])[0], one, atol=1e-6)
    uniform = (torch.rand(20_000, 1, 2, 2, generator=generator, dtype=torch.float64) * 2 - 1) * 1.125
    total = flow.log_prob(uniform).detach().exp() * 2.25**4
    assert float(total.mean()) == pytest.approx(1, abs=4 * float(total.std()) / math.sqrt(len(total)))
    flow.float().save_pretrained(tmp_path)
    assert torch.equal(Flow.from_pretrained(tmp_path).log_prob(data), flow.log_prob(data))


@pytest.fixture
def pictures(tmp_path):
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 3, (4, 4)).astype(np.uint8) * 127
        write_image(tmp_path / "pictures" / ("one", "two")[number % 2] / f"{number:02}.png", pixels)
    return tmp_path / "pictures"


TINY = ["--channels", "8", "--layers_per_block", "[1]", "--patch_size", "[1, 4]", "--samples", "2", "--size", "4"]


def test_trained_by_command(pictures, tmp_path):
    """Bits in training are those of the pipeline that is written, and no worse than those of uniform levels."""
    run = tmp_path / "run"
    wanted = ["--model", "tarflow", "--levels", "3", "--noise", "0", "--grey", "true"]
    wanted += ["--conditional", "spline", "--gaussianize", "true"]
    steps = ["--training.max_steps", "2", "--training.batch_size", "8", "--training.learning_rate", "1e-6"]
    steps += QUIET_OPTIONS
    main(["train", "--data", str(pictures), "--output", str(run), *TINY, *wanted, *steps])
    result = json.loads((run / "result.json").read_text())
    assert result["of"] == "pixels of 3 levels, uniformly dequantised"
    assert result["bits_per_dimension"] == pytest.approx(math.log2(3), abs=0.15)
    pipeline = Pipeline.load(run / "pipeline")
    assert pipeline.settings.levels == 3
    marginals = pipeline.flow.images.coordinate_transform
    assert marginals(torch.tensor([-1.5, 1.5]).repeat(8).view(1, 1, 4, 4))[1].isfinite().all()
    with pytest.raises(ValueError, match="outside its interval"):  # no density is wasted beyond half a step
        marginals(torch.full((1, 1, 4, 4), 1.51))
    on = ["train", "--initial", str(run), "--data", str(pictures), "--grey", "true", "--output", str(tmp_path / "on")]
    for wrong in (["--noise", "0.05"], ["--levels", "2"]):
        with pytest.raises(SystemExit, match="3 levels between bounds.* leave noise and levels out"):
            main([*on, *wrong, *steps])
    assert not (tmp_path / "on").exists()
    main(["evaluate", "--model", str(run / "pipeline"), "--data", str(pictures), "--output", str(tmp_path / "page")])
    summary = json.loads((tmp_path / "page/summary.json").read_text())
    assert "3 levels" in summary["quantity"]
    assert summary["bits_per_dim"]["held-out"]["value"] == pytest.approx(math.log2(3), abs=0.15)


def test_levels_are_kept_by_models_with_noise(pictures, tmp_path, caplog):
    """What goes on from a model counts bits in the units of its files, with noise or without."""
    caplog.set_level("INFO")
    begin = ["train", "--data", str(pictures), "--training.max_steps", "1", "--training.batch_size", "8"]
    begin += QUIET_OPTIONS
    new = ["--model", "tarflow", "--levels", "3", "--grey", "true", *TINY]
    main([*begin, *new, "--noise", "0.1", "--output", str(tmp_path / "first")])
    settings = Pipeline.load(tmp_path / "first/pipeline").settings
    assert (settings.levels, settings.file_levels) == (None, 3)
    on = ["--initial", str(tmp_path / "first"), "--grey", "true", "--samples", "0"]
    for noise, levels in (("0.1", None), ("0", 3)):
        main([*begin, *on, "--noise", noise, "--output", str(tmp_path / noise)])
        assert "pixels of 3 levels" in json.loads((tmp_path / noise / "result.json").read_text())["of"]
        settings = Pipeline.load(tmp_path / noise / "pipeline").settings
        assert (settings.levels, settings.file_levels) == (levels, 3)
    document = json.loads((tmp_path / "0/pipeline/model.json").read_text())
    del document["file_levels"]  # as models had it that were saved earlier
    (tmp_path / "0/pipeline/model.json").write_text(json.dumps(document))
    main([*begin, "--initial", str(tmp_path / "0"), "--grey", "true", "--output", str(tmp_path / "third")])
    assert Pipeline.load(tmp_path / "third/pipeline").settings.levels == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "tarflow", "--levels", "1"], "levels"),
        (["--model", "tarflow", "--patch_size", "[1, 2, 4]"], "patch_size"),
        (["--model", "tarflow", "--patch_size", "0"], "patch_size"),
        (["--model", "starflow", "--patch_size", "[1, 2]", "--autoencoder", "none"], "square"),
        (["--model", "starflow", "--gaussianize", "true", "--autoencoder", "none"], "gaussianize"),
    ],
)
def test_mistakes(pictures, tmp_path, options, message):
    steps = ["--training.max_steps", "1"]
    with pytest.raises(SystemExit, match=message):
        main(["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *options, *steps, *QUIET_OPTIONS])

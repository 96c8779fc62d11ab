"""A model with all its parts: clips from prompts, images and clips; exact densities frame by frame; saving."""

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.moving_digits.data import WORDS, MovingDigits
from examples.moving_digits.train import TEXT_LENGTH
from nflib.decoding import Jacobi
from nflib.flows import TARFlow
from nflib.transforms import ProductGuidance
from tests.perturb import perturb
from tests.video.tiny import SEVEN, tiny_latents, tiny_model, tiny_wan
from video import STARFlow, STARFlowV, rollout
from video.commands import main
from video.densities import noise_generator
from video.latents import WanLatents
from video.latents.latents import Pixels
from video.media import read_clip, write_clip
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text import Words
from video.text.labels import Labels

PIXELS = PipelineSettings((1, 1, 8, 8), 0.1)


@pytest.fixture(scope="module")
def clips():
    return MovingDigits("validation", 2, 6, cuts=0.0).clips()


def test_generate(model):
    prompts = [SEVEN, "a two moving left, slowly"]
    clip = model.generate(prompts, seed=3)
    assert clip.shape == (2, 4, 1, 32, 32)
    assert clip.min() >= -1 and clip.max() <= 1
    assert torch.equal(clip, model.generate(prompts, seed=3))
    assert not torch.equal(clip, model.generate(prompts, seed=4))
    others = [{"guidance": 2.0}, {"denoise": "none"}, {"denoise": "learned"}]
    for settings in others:
        assert not torch.equal(clip, model.generate(prompts, seed=3, **settings))
    torch.testing.assert_close(
        model.generate(prompts, seed=3, decoding=Jacobi(tolerance=1e-6)), clip, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["generate", "stream", "edit", "draw"])
def test_an_unknown_argument_is_told_by_the_name_of_the_function(model, name):
    function = getattr(model, name)
    assert "guidance" in inspect.signature(function).parameters
    with pytest.raises(TypeError, match=rf"\.{name}\(\) got an unexpected keyword argument 'guidence'"):
        list(function(torch.zeros(1, 4, 1, 32, 32), [SEVEN], [SEVEN], guidence=1.0))


def test_no_clips_have_no_densities(model):
    assert model.nats_per_dim(torch.zeros(0, 4, 1, 32, 32), []).shape == (0, 4)


def test_a_folder_that_is_no_model_hides_no_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Pipeline.load("digits").settings.clip_shape == (1, 1, 8, 8)


def test_the_candidate_that_tells_most_of_its_prompt_is_kept(model, monkeypatch):
    prompts = [SEVEN, "a two moving left, slowly"]
    drawn = model.draw(prompts, 6, candidates=3, seed=5)
    assert [(window.latents.shape[:2], window.num_known) for window in drawn.windows] == [((2, 4), 0), ((2, 4), 2)]
    # All candidates of the first window, drawn as they were.
    generator = torch.Generator().manual_seed(5)
    context = model.condition(prompts).repeat_interleave(3, 0)
    every = rollout.generate(model.flow, 4, context, generator=generator, decoding=model.decoding).unflatten(0, (2, 3))
    evidence = model.prompt_evidence(every, prompts)
    with torch.no_grad():
        conditional, unconditional = (
            model.flow.log_prob(every[1, 2].unsqueeze(1), model.condition([text]).expand(4, -1, -1))
            for text in ("a two moving on, slowly", "")
        )
    torch.testing.assert_close(evidence[1, 2], (conditional - unconditional).mean(), atol=1e-4, rtol=0)
    kept = every[torch.arange(2), evidence.argmax(1)]
    torch.testing.assert_close(drawn.windows[0].latents, kept, atol=1e-4, rtol=0)
    # A density of no prompt that overflowed tells nothing of a prompt.
    overflown = torch.tensor([[0.0, 1.0, math.inf], [math.nan, -math.inf, -5.0]])
    monkeypatch.setattr(model, "prompt_evidence", lambda *_, **__: overflown)
    kept = every[torch.arange(2), torch.tensor([1, 2])]
    first = model.draw(prompts, 4, candidates=3, seed=5).windows[0].latents
    torch.testing.assert_close(first, kept, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="candidates must be a positive number"):
        model.generate(prompts, candidates=0)
    with pytest.raises(ValueError, match="what they show of their prompt"):
        model.generate([""], candidates=2)


def test_denoising_is_tweedies_step(model):
    """Decoded latents without it, a step along the score on, are the clip with it."""
    plain = tiny_model(noise=0.0)
    noise = 0.3
    context = model.condition([SEVEN])
    z = model.flow.sample(1, context, seed=0)[0]
    moved = z + noise**2 * model.flow.score(z, context)
    torch.testing.assert_close(model.with_settings(noise=noise).denoise(z, context, "score"), moved)
    torch.testing.assert_close(plain.denoise(z, context, "score"), z)


def test_given_frames_come_back(model, clips):
    image = clips.frames[:1, :1]
    made = model.generate([SEVEN, SEVEN], given=image)
    assert torch.equal(made[:, :1], image.expand(2, -1, -1, -1, -1))
    assert not torch.equal(made[0], made[1])
    longer = model.generate([SEVEN], 9, clips.frames[:1])
    assert longer.shape == (1, 9, 1, 32, 32)
    assert torch.equal(longer[:, :6], clips.frames[:1])


def test_later_windows_have_the_later_prompt(model):
    assert model.settings.later_prompt(SEVEN) == "a seven moving on, fast"
    settings = {"seed": 1, "overlap": 2, "denoise": "none"}
    up, down = (model.generate([f"a seven moving {way}, fast"], 4, seed=1, denoise="none") for way in ("up", "down"))
    assert not torch.equal(up, down)
    given = up[:, :2]
    same = [model.generate([f"a seven moving {way}, fast"], 7, given, **settings) for way in ("up", "down")]
    assert torch.equal(*same)
    # A single image begins a clip, and tells nothing of where things go.
    moved = [model.generate([f"a seven moving {way}, fast"], 4, up[:, :1], **settings) for way in ("up", "down")]
    assert not torch.equal(*moved)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (SEVEN, "a seven moving on and on, fast"),
        ("an eight moving on, slowly", "an eight moving on and on, slowly"),
        ("a seven", "a seven moving on and on"),
        ("seven, fast", "seven moving on and on, fast"),
        ("a two moving on and on", "a two moving on and on"),
        ("", " moving on and on"),
    ],
)
def test_anchored_prompts(prompt, expected):
    model = tiny_model(is_anchored=True)
    assert model.settings.anchored_prompt(prompt) == expected
    model.condition([expected])


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_anchored_windows_have_the_first_frame(guidance):
    model = tiny_model(is_anchored=True)
    drawn = model.draw([SEVEN], 8, guidance=guidance, overlap=2, seed=3)
    assert [window.is_anchored for window in drawn.windows] == [False, True, True]
    start, *later = drawn.windows
    frames = start.latents
    for window in later:
        torch.testing.assert_close(window.latents[:, :2], frames[:, [0, -1]])
        torch.testing.assert_close(window.context, model.condition(["a seven moving on and on, fast"]))
        frames = torch.cat([frames, window.latents[:, 2:]], dim=1)
    # Each is what the flow, guided by its own unprompted windows, makes of its first frames.
    flow = model.flow
    if guidance:
        flow = flow.guided(ProductGuidance(guidance), model.condition(["moving on and on"])[0])
    noise = flow.transform_to_noise(later[0].latents, later[0].context)
    again = rollout.decode(flow, noise, later[0].context, later[0].latents[:, :2])
    torch.testing.assert_close(again, later[0].latents, atol=1e-3, rtol=0)
    # What is known of a single frame is where things are.
    assert not model.draw([SEVEN], 6, overlap=1).windows[1].is_anchored


def test_densities_of_frames_add_up(model, clips):
    prompts = clips.prompts
    whole = model.log_prob(clips.frames[:, :4], prompts, seed=2)
    frames = model.log_prob_of_frames(clips.frames[:, :4], prompts, seed=2)
    torch.testing.assert_close(frames.sum(1), whole, atol=1e-3, rtol=1e-5)
    assert model.log_prob_of_frames(clips.frames, prompts).shape == (2, 6)


@pytest.mark.parametrize("is_anchored", [False, True])
def test_densities_of_later_frames_are_those_that_they_are_drawn_from(clips, is_anchored):
    model = tiny_model(is_anchored=is_anchored)
    last = model.log_prob_of_frames(clips.frames, [SEVEN, SEVEN], seed=2)[:, -1]
    latents = model.encode(clips.frames, noise_generator(2))
    first = latents[:, :1] if is_anchored else latents[:, 2:3]
    way = "on and on" if is_anchored else "on"
    window, context = torch.cat([first, latents[:, 3:]], dim=1), model.condition([f"a seven moving {way}, fast"] * 2)
    expected = model.flow.log_prob(window, context) - model.flow.log_prob(window[:, :-1], context)
    torch.testing.assert_close(last, expected, atol=1e-3, rtol=1e-5)


def test_density_is_the_flows(model, clips):
    z = model.encode(clips.frames[:, :4], noise_generator(5))
    clean = model.latents.encode(clips.frames[:, :4])
    assert float((z - clean).std()) == pytest.approx(model.settings.noise, rel=0.1)
    expected = model.flow.log_prob(z, model.condition(clips.prompts))
    torch.testing.assert_close(model.log_prob(clips.frames[:, :4], clips.prompts, seed=5), expected)


def test_noise_on_what_was_drawn_is_new():
    """By the same seed, too: of normal numbers that are cut off at 1, with noise, the mean density is known."""
    flow = TARFlow((1, 8, 8), patch_size=1, channels=16, num_blocks=1, layers_per_block=1, head_dim=16)  # the identity
    model = Pipeline(flow, Pixels(1), Labels(), PipelineSettings((1, 1, 8, 8), 0.5, denoise="none"))
    pictures, prompts = model.generate([""] * 200, seed=3), [""] * 200
    variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) + 0.5**2
    for seed in (3, 4, -1):
        nats = float(model.nats_per_dim(pictures, prompts, seed=seed).mean())
        assert nats == pytest.approx((variance + math.log(2 * math.pi)) / 2, abs=0.03)
    for density in (model.log_prob, model.log_prob_of_frames):
        assert len(density(pictures[:0], [])) == 0


def test_saving(model, tmp_path):
    model.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.settings == model.settings
    anchored = replace(model.settings, anchored=("on", "off"))
    Pipeline(model.flow, model.latents, model.text, anchored).save(tmp_path / "anchored")
    assert Pipeline.load(tmp_path / "anchored").settings == anchored
    torch.testing.assert_close(loaded.generate([SEVEN], seed=1), model.generate([SEVEN], seed=1), atol=1e-4, rtol=0)
    document = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**document, "clip_shape": [4, 1, 64, 64]}))
    with pytest.raises(ValueError, match="is inconsistent"):
        Pipeline.load(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        Pipeline.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        Pipeline.load(tmp_path / "none")


def test_a_folder_of_another_kind_of_model_stays(model, tmp_path):
    model.save(tmp_path)
    pixels = Pipeline(STARFlow((1, 8, 8), 4, 20, [1, 1], layer={"head_dim": 20}), Pixels(1), Labels(), PIXELS)
    with pytest.raises(FileExistsError, match="choose another folder"):
        pixels.save(tmp_path)
    (tmp_path / "text" / "labels.json").touch()  # as of another that has labels
    with pytest.raises(FileExistsError, match="holds an autoencoder, which this model has none of; choose another"):
        pixels.save(tmp_path)
    assert Pipeline.load(tmp_path).settings == model.settings
    pixels.text = Labels(["a", "b"])
    with pytest.raises(ValueError, match="its text is of 2 classes, its flow takes 0 classes"):
        pixels.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_output_of_a_run_is_a_model(model, tmp_path):
    model.save(tmp_path / "pipeline")
    assert Pipeline.load(tmp_path).settings == model.settings


def test_settings_of_any_sequence():
    rule = ["on", "off"]
    settings = PipelineSettings([np.int64(1), 1, 8, 8], 0.1, later=rule, anchored=rule)
    assert settings == replace(PIXELS, later=("on", "off"), anchored=("on", "off"))
    assert settings.clip_shape == (1, 1, 8, 8) and type(settings.clip_shape[0]) is int
    with pytest.raises(ValueError, match="four positive integers"):
        PipelineSettings((1, 1, 8, 8.0), 0.1)


def test_decoding_is_kept(image_model):
    model = image_model.with_settings(guidance=0.5)
    wide = model.at_aspect("2:1")
    assert wide.decoding.frame_length == wide.flow.frame_length != model.decoding.frame_length
    model.decoding = decoder = Jacobi()
    assert model.with_settings(guidance=1.0).decoding is decoder and model.at_aspect("2:1").decoding is decoder
    assert image_model.decoding is not decoder and image_model.settings.guidance == 0


def test_clips_of_other_numbers(model, clips):
    frames, prompts = clips.frames[:, :4], clips.prompts
    torch.testing.assert_close(model.log_prob(frames.numpy(), prompts), model.log_prob(frames, prompts))
    given = frames[:1, :1]
    continued = model.generate([SEVEN], given=given, seed=10**30)
    assert torch.equal(model.generate([SEVEN], given=given.numpy(), seed=10**30 % 2**64), continued)
    levels = ((frames + 1) * 127.5).byte()
    for other in (levels, levels.float(), torch.full_like(frames, torch.nan)):
        with pytest.raises(ValueError, match="in -1 … 1, got .*; of levels 0 … 255, divide by 127.5"):
            model.log_prob(other, prompts)
        with pytest.raises(ValueError, match="in -1 … 1, got"):
            model.generate([SEVEN], given=other[:1, :1])
        with pytest.raises(ValueError, match="in -1 … 1, got"):
            model.edit(other[:1], [SEVEN], [SEVEN])


def test_mistakes(model, clips):
    with pytest.raises(ValueError, match="unknown word 'horse'"):
        model.generate(["a horse"])
    with pytest.raises(ValueError, match="denoise must be one of"):
        model.generate([SEVEN], denoise="some")
    with pytest.raises(ValueError, match="9 frames are more than the 4 of one window"):
        model.generate([SEVEN], 9, overlap=0)
    with pytest.raises(ValueError, match="overlap must lie in 0 … 3"):
        model.generate([SEVEN], overlap=4)
    with pytest.raises(ValueError, match="6 frames are given"):
        model.generate([SEVEN], 6, clips.frames[:1])
    with pytest.raises(ValueError, match="there is no prompt"):
        model.generate([])
    with pytest.raises(ValueError, match="given frames must have shape"):
        model.generate([SEVEN], given=clips.frames[:1, :1, :, :16])
    model = tiny_model()
    model.flow.denoiser = None
    with pytest.raises(ValueError, match="no learned denoiser"):
        model.generate([SEVEN], denoise="learned")


# --- images: clips of one frame ---


@pytest.fixture(scope="module", params=[STARFlow, STARFlowV])
def image_model(request):
    text = Words(WORDS, TEXT_LENGTH)
    shape = (2, 4, 4) if request.param is STARFlow else (1, 2, 4, 4)
    words = {"text_length": text.length, "text_channels": text.channels}
    flow = perturb(request.param(shape, 2, 20, [1, 1], layer={"head_dim": 20}, **words))
    return Pipeline(flow, tiny_latents(), text, PipelineSettings((1, 1, 32, 32), 0.1))


def test_images(image_model, tmp_path):
    prompts = ["a seven", "a two"]
    images = image_model.generate(prompts, seed=1, guidance=1.5)
    assert images.shape == (2, 1, 1, 32, 32)
    assert torch.equal(image_model.generate(prompts, seed=1, guidance=1.5), images)
    nats = image_model.nats_per_dim(images, prompts)
    torch.testing.assert_close(-nats[:, 0] * 32, image_model.log_prob(images, prompts))
    plain = image_model.with_settings(noise=0.0)
    same = plain.edit(images, prompts, prompts)
    torch.testing.assert_close(same, plain.latents.decode(plain.latents.encode(images)), atol=1e-3, rtol=0)
    again = Pipeline.load(image_model.save(tmp_path))
    torch.testing.assert_close(again.log_prob(images, prompts), image_model.log_prob(images, prompts))
    for frames in (0, 2):
        with pytest.raises(ValueError, match=f"{frames} frames"):
            image_model.generate(prompts, frames)
    for frames in (None, 3):
        with pytest.raises(ValueError, match="this model makes images, of one frame each, and continues nothing"):
            image_model.generate(prompts, frames, given=images)
    with pytest.raises(ValueError, match="this model makes images"):
        image_model.draw(prompts, 2, images)


def test_images_from_the_command_line(image_model, tmp_path):
    folder = image_model.save(tmp_path / "model")
    main(["generate", "--model", str(folder), "--prompt", "a seven", "--num-clips", "2", "--out", f"{tmp_path}/a.png"])
    assert read_clip(tmp_path / "a.png").shape == (1, 3, 128, 128 + 2 * 4 + 128)  # one grid of both
    main(["generate", "--model", str(folder), "--prompt", "a seven", "--out", f"{tmp_path}/b.PNG"])
    main(["likelihood", f"{tmp_path}/b.PNG", "--model", str(folder)])


# --- latents that hold several frames ---


@pytest.fixture(scope="module")
def wan_model():
    """Two frames a latent frame, after the first; three latent frames a window."""
    text = Words(WORDS, TEXT_LENGTH)
    words = {"text_length": text.length, "text_channels": text.channels}
    flow = perturb(STARFlowV((3, 2, 4, 4), 2, 20, [1, 1], layer={"head_dim": 20}, **words))
    return Pipeline(flow, WanLatents(tiny_wan().eval(), later_scale=0.6), text, PipelineSettings((5, 3, 16, 16), 0.1))


@pytest.mark.parametrize("num_given", [1, 2, 5, 6, 8])
def test_clips_of_any_length_are_continued(wan_model, num_given):
    torch.manual_seed(0)
    given = torch.rand(1, num_given, 3, 16, 16) * 2 - 1
    length = 5 if num_given == 1 else 5 + num_given
    made = wan_model.generate(["a seven"], given=given, overlap=1)
    assert made.shape == (1, length, 3, 16, 16)
    torch.testing.assert_close(made[:, :num_given], given)
    assert wan_model.generate(["a seven"], 9, given, overlap=1).shape[1] == 9
    with pytest.raises(ValueError, match=f"{num_given} frames are given: ask for more than that, got {num_given}"):
        wan_model.generate(["a seven"], num_given, given)
    # What is continued is its end: frames that were not read change nothing.
    unread = (num_given - 1) % 2
    other = torch.cat([-given[:, :unread], given[:, unread:]], dim=1)
    torch.testing.assert_close(
        wan_model.generate(["a seven"], given=other, overlap=1)[:, num_given:], made[:, num_given:]
    )


def test_any_number_of_frames_is_generated(wan_model):
    five = wan_model.generate(["a seven"], seed=2)
    assert five.shape[1] == 5
    torch.testing.assert_close(wan_model.generate(["a seven"], 4, seed=2), five[:, :4])


def test_a_clip_is_continued_from_the_command_line(wan_model, tmp_path, capsys):
    folder = wan_model.save(tmp_path / "model")
    assert Pipeline.load(folder).latents.later_scale == 1.0  # what the settings say
    given = write_clip(torch.rand(6, 3, 16, 16) * 2 - 1, tmp_path / "given.gif")
    main(["generate", "--model", str(folder), "--continue", str(given), "--overlap", "1", "--out", f"{tmp_path}/a.gif"])
    assert len(read_clip(tmp_path / "a.gif")) == 11
    # The last of an even number of frames fills no latent one, and has no density.
    again = ["generate", "--model", str(folder), "--frames", "4", "--overlap", "1"]
    main([*again, "--out", f"{tmp_path}/b.gif", "--gallery", f"{tmp_path}/b.html"])
    assert "4 frames" in (tmp_path / "b.html").read_text()
    capsys.readouterr()
    main(["likelihood", f"{tmp_path}/b.gif", "--model", str(folder)])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2

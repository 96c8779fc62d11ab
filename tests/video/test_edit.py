"""Edits by re-encoding: the noise of a clip under one prompt, decoded under another."""

import pytest
import torch

from examples.moving_digits.data import MovingDigits
from tests.video.tiny import SEVEN, tiny_model
from video.commands import main
from video.media import read_clip, write_clip

TWO = "a two moving left, slowly"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "anchored"])
def model(request):
    return tiny_model(noise=0.0, is_anchored=request.param)


@pytest.fixture(scope="module")
def clips():
    return MovingDigits("validation", 2, 9, cuts=0.0).clips().frames


@pytest.mark.parametrize("length", [4, 9])  # one window and several
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"keep_frames": 2}])
def test_the_same_prompt_gives_the_clip_back(model, clips, length, settings):
    """Nothing is lost but what the autoencoder loses; another prompt, or new noise, gives another clip."""
    given = clips[:, :length]
    expected = model.latents.decode(model.latents.encode(given))
    kept = settings.get("keep_frames", 0)
    expected[:, :kept] = given[:, :kept]
    same = model.edit(given, [SEVEN, TWO], [SEVEN, TWO], **settings)
    torch.testing.assert_close(same, expected, atol=1e-3, rtol=0)
    for other in (
        model.edit(given, [SEVEN, TWO], [TWO, TWO], **settings)[:1],
        model.edit(given, [SEVEN, TWO], [SEVEN, TWO], strength=0.3, **settings)[:1],
    ):
        torch.testing.assert_close(other[:, :kept], given[:1, :kept])
        assert float((other - expected[:1]).abs().max()) > 1e-2


def test_an_edit_is_forward_and_inverse(model, clips):
    given = clips[:1, :4]
    z = model.flow.transform_to_noise(model.latents.encode(given), model.condition([SEVEN]))
    expected = model.latents.decode(model.flow.decode(z, model.condition([TWO])))
    torch.testing.assert_close(model.edit(given, [SEVEN], [TWO], denoise="none"), expected, atol=1e-3, rtol=0)


def test_new_noise_is_a_new_clip(model, clips):
    """With none of its own noise left, nothing of the clip is."""
    made = [model.edit(given[None, :4], [SEVEN], [TWO], strength=1.0, seed=3) for given in clips]
    torch.testing.assert_close(*made)


def test_command(tmp_path, clips):
    model = tiny_model()
    folder = str(model.save(tmp_path / "model"))
    source = write_clip(clips[0, :4], tmp_path / "source.gif")
    arguments = ["edit", str(source), "--model", folder, "--source-prompt", SEVEN, "--prompt", SEVEN, "--prompt", TWO]
    main([*arguments, "--keep-frames", "1", "--out", str(tmp_path / "new.gif"), "--gallery", str(tmp_path / "a.html")])
    first, second = (read_clip(tmp_path / f"new-{number}.gif", (1, 32, 32)) for number in (1, 2))
    assert first.shape == second.shape == (4, 1, 32, 32)
    torch.testing.assert_close(first[:1], clips[0, :1], atol=0.05, rtol=0)
    assert (tmp_path / "a.html").read_text().count("<figure>") == 3


def test_mistakes(model, clips, tmp_path):
    given = clips[:1, :4]
    with pytest.raises(ValueError, match="a source prompt for each prompt, got 1"):
        model.edit(given, [SEVEN], [SEVEN, TWO])
    with pytest.raises(ValueError, match="strength, the share of new noise"):
        model.edit(given, [SEVEN], [TWO], strength=1.5)
    with pytest.raises(ValueError, match=r"keep_frames must lie in 0 … 3"):
        model.edit(given, [SEVEN], [TWO], keep_frames=4)
    with pytest.raises(ValueError, match="9 frames are more than the 4 of one window"):
        model.edit(clips[:1], [SEVEN], [TWO], overlap=0)
    with pytest.raises(ValueError, match="given frames must have shape"):
        model.edit(given[..., :16], [SEVEN], [TWO])
    with pytest.raises(SystemExit, match="nothing is to be written"):
        main(["edit", str(write_clip(given[0], tmp_path / "a.gif")), "--prompt", TWO])

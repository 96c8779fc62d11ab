"""Generation from given frames and over rolling windows, against the flow's own decoding and densities."""

import pytest
import torch

from nflib.decoding import Auto, Jacobi, PreviousFrame
from nflib.flows import TARFlow
from nflib.transforms import ProductGuidance
from tests.video.released_flows import DECODERS
from tests.video.tiny import small_image_flow, small_video_flow
from video import rollout

LENGTH = 8
every_decoder = pytest.mark.parametrize("decoder", [*DECODERS.values(), Auto(tolerance=1e-6)], ids=[*DECODERS, "auto"])


@pytest.fixture(scope="module")
def flow():
    return small_video_flow()


@pytest.fixture
def text():
    return torch.randn(2, 3, 10)


def test_without_given_frames_it_is_the_flow(flow, text):
    noise = torch.randn(2, 3 * LENGTH, 2)
    torch.testing.assert_close(rollout.decode(flow, noise, text), flow.decode(noise, text), atol=1e-5, rtol=0)
    expected = flow.sample(1, text, seed=3).squeeze(1)
    torch.testing.assert_close(rollout.generate(flow, 3, text, seed=3), expected, atol=1e-5, rtol=0)


@every_decoder
@pytest.mark.parametrize("is_guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("num_given", [1, 2, 3])
@torch.no_grad()
def test_given_frames_are_kept_and_the_others_have_their_noise(flow, text, decoder, is_guided, num_given):
    flow = flow.guided(ProductGuidance(1.0), torch.zeros(3, 10)) if is_guided else flow
    given, noise = torch.randn(2, num_given, 2, 2, 4), torch.randn(2, 3 * LENGTH, 2)
    clips = rollout.decode(flow, noise, text, given, decoding=decoder)
    assert torch.equal(clips[:, :num_given], given)
    z, _ = flow._transform(clips, flow._embedding_net(text))
    new = slice(num_given * LENGTH, None)
    torch.testing.assert_close(z[:, new], noise[:, new], atol=1e-4, rtol=0)


@every_decoder
@pytest.mark.parametrize(("num_given", "window", "overlap"), [(0, 3, 2), (1, 3, 1), (2, 2, 0), (5, 3, 2), (0, 1, 0)])
@torch.no_grad()
def test_every_window_is_a_clip_of_its_own(flow, text, decoder, num_given, window, overlap):
    given = torch.randn(2, num_given, 2, 2, 4) if num_given else None
    noise = torch.randn(2, 7 * LENGTH, 2)
    clips = rollout.decode(flow, noise, text, given, window=window, overlap=overlap, decoding=decoder)
    assert clips.shape == (2, 7, 2, 2, 4)
    done, kept = num_given, num_given if num_given < window else overlap
    while done < 7:
        first, stop = done - kept, min(done - kept + window, 7)
        z, _ = flow._transform(clips[:, first:stop], text)
        expected = noise[:, done * LENGTH : stop * LENGTH]
        torch.testing.assert_close(z[:, kept * LENGTH :], expected, atol=1e-4, rtol=0)
        done, kept = stop, overlap


def test_generate(flow, text):
    image = torch.randn(1, 1, 2, 2, 4)
    settings = {"overlap": 2, "decoding": Jacobi(initial_guess=PreviousFrame(LENGTH))}
    clips = rollout.generate(flow, 5, text, image, seed=1, **settings)
    assert clips.shape == (2, 5, 2, 2, 4)
    assert torch.equal(clips[:, :1], image.expand(2, -1, -1, -1, -1))
    assert torch.equal(clips, rollout.generate(flow, 5, text, image, seed=1, **settings))
    same = rollout.generate(flow, 5, text, image, generator=torch.Generator().manual_seed(1), **settings)
    assert torch.equal(clips, same)
    assert not torch.equal(clips, rollout.generate(flow, 5, text, image, seed=2, **settings))
    assert rollout.generate(small_video_flow(text_length=0), 5, seed=1).shape == (1, 5, 2, 2, 4)


def test_given_frames_of_another_dtype(flow, text):
    given = torch.randn(2, 1, 2, 2, 4)
    for other in (given.half(), given.byte()):
        clips = rollout.generate(flow, 3, text, other, seed=1)
        assert torch.equal(clips, rollout.generate(flow, 3, text, other.float(), seed=1))
    double = small_video_flow().double()
    clips = rollout.generate(double, 3, text.double(), given, seed=1)
    assert clips.dtype == torch.double and torch.equal(clips[:, :1], given.double())
    for name, arguments in (
        ("given frames", (torch.zeros(2, 24, 2), text, given.double())),
        ("noise", (torch.zeros(2, 24, 2).double(), text)),
    ):
        with pytest.raises(ValueError, match=f"{name} are float64 and the flow is float32"):
            rollout.decode(flow, *arguments)


def test_mistakes(flow, text):
    noise = torch.zeros(2, 4 * LENGTH, 2)
    with pytest.raises(ValueError, match="window must lie in 1 … 3"):
        rollout.decode(flow, noise, text, window=4)
    with pytest.raises(ValueError, match="overlap must lie in 0 … 2"):
        rollout.decode(flow, noise, text, overlap=3)
    with pytest.raises(ValueError, match="does not fill frames"):
        rollout.decode(flow, noise[:, 1:], text)
    with pytest.raises(ValueError, match="5 frames are given"):
        rollout.decode(flow, noise, text, torch.zeros(2, 5, 2, 2, 4))
    with pytest.raises(ValueError, match="given frames must have shape"):
        rollout.decode(flow, noise, text, torch.zeros(3, 1, 2, 2, 4))
    with pytest.raises(ValueError, match="expected clips of shape"):
        rollout.decode(flow, noise, text, torch.zeros(2, 1, 2, 2, 5))
    with pytest.raises(ValueError, match="context of as many rows"):
        rollout.decode(flow, noise, text[:1])
    with pytest.raises(ValueError, match="not both"):
        rollout.generate(flow, 3, text, seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="positive number"):
        rollout.generate(flow, 0, text)
    with pytest.raises(ValueError, match="takes a STARFlowV"):
        rollout.generate(TARFlow((4,), channels=16, num_blocks=1, head_dim=16), 3)
    image = small_image_flow()
    with pytest.raises(ValueError, match=r"takes a STARFlowV, such as a STARFlow's as_clips\(\)"):
        rollout.generate(image, 1, text, seed=0)
    assert rollout.generate(image.as_clips(), 1, text, seed=0).shape == (2, 1, 2, 4, 4)

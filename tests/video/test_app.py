"""The demo page: its numbers by gradio's client; the page itself, driven in a browser, which asks nobody else."""

import math
import re
import socket
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch

from examples.moving_digits.data import MovingDigits
from tests.browser import needs_chromium
from tests.devtools import Tab
from tests.video.tiny import SEVEN, tiny_model
from video.app.page import draw_clip
from video.gallery import clip_figure
from video.media import write_clip
from video.pipeline import Pipeline
from video.threads import threads_for

gradio = pytest.importorskip("gradio")


@pytest.fixture(scope="module", autouse=True)
def looked_up():
    """Hosts that page or client ask for, whose documented settings say that they report to nobody."""
    hosts, look_up = set(), socket.getaddrinfo

    def noted(host, *arguments, **keywords):
        hosts.add(host)
        return look_up(host, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", noted)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # as the environment would
        yield hosts


@pytest.fixture(scope="module")
def address(model):
    from video.app import build_page, serve

    page = build_page(model, SEVEN)
    yield serve(page)
    page.close()


def test_a_clip_and_its_likelihood(model, tmp_path):
    entry = draw_clip(model, f" {SEVEN} ", seed=3, guidance=1.0, candidates=2)
    clips = model.generate([SEVEN], seed=3, guidance=1.0, candidates=2)
    torch.testing.assert_close(entry.clip, clips[0])
    torch.testing.assert_close(entry.nats, model.nats_per_dim(clips, [SEVEN], seed=3)[0])
    frame = MovingDigits("validation", 1, 1).clips().frames[0]
    image = write_clip(frame, tmp_path / "frame.png", enlarge=2)
    begun = draw_clip(model, "", str(image), seed=1)
    torch.testing.assert_close(begun.clip[:1], frame, atol=0.01, rtol=0)
    for seed in (0.5, 2.0**64, math.nan, math.inf):
        with pytest.raises(ValueError, match="whole number"):
            draw_clip(model, SEVEN, seed=seed)


def test_numbers_through_the_client(address, model, looked_up):
    """Neither the page nor its client looks up any other host."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False, analytics_enabled=False)
    made = client.predict(SEVEN, None, 3, 1.0, 2, api_name="/generate")
    assert made == clip_figure(draw_clip(model, SEVEN, None, 3, 1.0, 2), model.settings.frame_rate, enlarge=10)
    with pytest.raises(AppError, match="unknown word 'horse'"):
        client.predict("a horse", None, 0, 0.0, 1, api_name="/generate")
    assert looked_up <= {"127.0.0.1", "localhost", None}


def test_guidance_begins_at_the_models_own():
    from video.app import build_page

    guided = tiny_model().with_settings(guidance=9.0)
    for pipeline, is_guided, value in ((guided, True, 9.0), (Pipeline.load("digits"), False, 0.0)):
        props = [one["props"] for one in build_page(pipeline).config["components"]]
        guidance, frame = (
            next(one for one in props if one.get("elem_id") == name) for name in ("guidance", "first_frame")
        )
        assert frame["visible"] == (pipeline.window > 1)  # an image has no first frame that it could go on from
        assert (guidance["visible"], guidance["value"]) == (is_guided, value) and guidance["maximum"] >= value
    assert draw_clip(Pipeline.load("digits"), "seven", guidance=0.0).clip.shape == (1, 1, 8, 8)


@needs_chromium
def test_in_a_browser(address, tmp_path):
    """A prompt becomes a clip with its curve; a mistake becomes a message; nothing else is asked for."""
    with Tab(tmp_path) as tab:
        tab.open(address)
        tab.wait("document.querySelectorAll('#generate, #prompt textarea').length == 2")
        tab.type("#prompt textarea", "a two moving left, slowly")
        tab.click("#generate")
        size = tab.wait("(i => i && i.naturalWidth)(document.querySelector('#clip img'))")
        assert size == 320
        assert tab.run("document.querySelector('#clip img').alt") == "a two moving left, slowly"
        assert len(tab.run("document.querySelector('#clip polyline').getAttribute('points')").split()) == 4
        tab.screenshot(tmp_path / "clip.png")
        tab.type("#prompt textarea", "a horse")
        tab.click("#generate")
        tab.wait("document.body.innerText.includes(\"unknown word 'horse'\")")
        tab.screenshot(tmp_path / "mistake.png")
    hosts = {urlsplit(one).hostname for one in tab.requested if re.match("(http|ws)s?:", one)}
    assert hosts == {"127.0.0.1"}


def test_little_work_has_one_thread(model):
    """Many threads would wait for each other; torch has as many as before when it is done."""
    torch.set_num_threads(2)
    try:
        with threads_for(model, 1):
            assert torch.get_num_threads() == 1
        with threads_for(model, 1_000_000):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)

"""What the public sampler does around the flow: phrases, sizes, scales of latents, chunks of the denoiser."""

import pytest

from tests.recorded import document, recorded
from video.conversion.released import starflow_from_state_dict
from video.flows.denoiser import UNIT
from video.pipeline_settings import aspect_size
from video.rollout import spans
from video.text import Phrasing

SAMPLING = document("released_sampling")


@pytest.mark.parametrize("case", SAMPLING["phrases"], ids=lambda case: repr(case["phrase"]))
def test_phrases(case):
    said = case["arguments"]
    phrasing = Phrasing(
        frame_rate="fps" in said,
        noise="noise_std" in said,
        aspect="aspect_ratio" in said,
        chat=case["language_model_template"],
    )
    values = {"frame_rate": said.get("fps", 16), "noise": said.get("noise_std", 0.7)}
    assert phrasing(case["text"], **values, aspect_ratio=said.get("aspect_ratio")) == case["phrase"]


@pytest.mark.parametrize(("name", "side", "multiple"), [("3B", 256, 8), ("7B", 640, 16)])
def test_sizes(name, side, multiple):
    (sizes,) = (table for title, table in SAMPLING["sizes"].items() if title.startswith(name))
    assert len(sizes) == 9
    assert {ratio: list(aspect_size(side, ratio, multiple)) for ratio in sizes} == sizes


@pytest.mark.parametrize("ratio", ["16", "a:b", "16:0", "-1:1", "1:1:1", "nan:1", "1:100000", ""])
def test_no_aspect_ratio(ratio):
    with pytest.raises(ValueError, match="such as 16:9"):
        aspect_size(256, ratio, 8)


@pytest.mark.parametrize("case", SAMPLING["denoising"]["chunks"], ids=lambda case: str(case["latent_frames"]))
def test_denoising_chunks(case):
    assert SAMPLING["denoising"]["constant"] == UNIT
    window = case["window"] or case["latent_frames"]
    overlap = window - 1 if case["denoiser_window"] is None else case["denoiser_window"]
    ours = [
        ([span.first, span.stop], [span.done, span.stop]) for span in spans(case["latent_frames"], 0, window, overlap)
    ]
    chunks = [(chunk["frames_read"], chunk["frames_written"]) for chunk in case["chunks"]]
    assert ours == [chunk for chunk in chunks if chunk[1][0] < chunk[1][1]]  # it also reads chunks that write nothing


@pytest.mark.parametrize("window", [None, 2])
def test_the_overlap_of_chunks_is_the_denoisers_window(window):
    golden = recorded("starflow_v")
    config = {**golden.document["config"], "denoiser_window": window}
    assert starflow_from_state_dict(config, golden.weights, num_frames=3).denoiser.chunk_overlap == window

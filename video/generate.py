"""Clips and likelihoods by a trained model, from and to files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nflib.decoding import Decoder, Sequential
from video.flows.decoding import FramesAtOnce
from video.gallery import Entry, write_gallery
from video.media import check_suffix, read_clip, read_image, write_clip
from video.pipeline import Pipeline
from video.pipeline_settings import SETTINGS

SHIPPED = Path(__file__).parent / "shipped" / "moving-digits"
# Side of a picture in pixels that is easy to see.
VISIBLE = 128

log = logging.getLogger(__name__)


def load_model(folder: str | Path | None = None, device: str = "cpu") -> Pipeline:
    """The model in `folder`, or the shipped one of moving digits."""
    if folder is None and not (SHIPPED / SETTINGS).is_file():
        raise FileNotFoundError(f"no model is shipped in {SHIPPED}; name the folder of one with --model, or train one.")
    return Pipeline.load(SHIPPED if folder is None else folder, device)


def generate_to_files(
    prompts: Sequence[str],
    out: str | Path | None = None,
    *,
    gallery: str | Path | None = None,
    model: str | Path | None = None,
    first_frame: str | Path | None = None,
    continue_clip: str | Path | None = None,
    frames: int | None = None,
    guidance: float = 0.0,
    denoise: str = "score",
    overlap: int | None = None,
    candidates: int = 1,
    decoding: str = "auto",
    seed: int = 0,
    device: str = "cpu",
) -> list[Path]:
    """Generate a clip for each prompt and write it; the arguments are those of the command line.

    out: .mp4 (and the like), .gif, or .png for a strip; of several clips, each gets its number. gallery: a page of HTML
    with all clips, prompts and likelihoods. Returns the files. Raises ValueError or FileNotFoundError for settings or
    files that do not fit.
    """
    _check_outputs(out, gallery)
    if first_frame is not None and continue_clip is not None:
        raise ValueError("a clip begins with --first-frame or continues --continue, not both.")
    pipeline = load_model(model, device)
    shape = pipeline.settings.clip_shape[1:]
    given = None
    if first_frame is not None:
        given = read_image(first_frame, shape)
    elif continue_clip is not None:
        given = read_clip(continue_clip, shape)
    length = _length(pipeline, frames, given)
    clips = pipeline.generate(
        prompts,
        pipeline.latents.latent_shape((length, *shape))[0],
        None if given is None else given.unsqueeze(0),
        guidance=guidance,
        denoise=denoise,
        overlap=overlap,
        candidates=candidates,
        seed=seed,
        decoding=decoder(decoding, pipeline),
    )
    heading = {"seed": seed, "guidance": guidance, "denoising": denoise, "model": str(model or "shipped")}
    return write_files(pipeline, clips, prompts, out, gallery, seed=seed, heading=heading)


def edit_to_files(
    clip: str | Path,
    prompts: Sequence[str],
    source_prompt: str = "",
    out: str | Path | None = None,
    *,
    gallery: str | Path | None = None,
    model: str | Path | None = None,
    keep_frames: int = 0,
    fresh: float = 0.0,
    guidance: float = 0.0,
    denoise: str = "score",
    overlap: int | None = None,
    decoding: str = "auto",
    seed: int = 0,
    device: str = "cpu",
) -> list[Path]:
    """`Pipeline.edit` of the clip in a file, once for each prompt; a gallery shows the clip itself first.

    All else as for `generate_to_files`, which raises the same.
    """
    _check_outputs(out, gallery)
    pipeline = load_model(model, device)
    given = read_clip(clip, pipeline.settings.clip_shape[1:]).unsqueeze(0)
    clips = pipeline.edit(
        given,
        [source_prompt] * len(prompts),
        prompts,
        keep_frames=keep_frames,
        fresh=fresh,
        guidance=guidance,
        denoise=denoise,
        overlap=overlap,
        seed=seed,
        decoding=decoder(decoding, pipeline),
    )
    heading = {"clip": str(clip), "source prompt": repr(source_prompt), "kept frames": keep_frames, "new noise": fresh}
    heading |= {"seed": seed, "guidance": guidance, "denoising": denoise, "model": str(model or "shipped")}
    return write_files(
        pipeline, clips, prompts, out, gallery, seed=seed, heading=heading, source=(given, source_prompt)
    )


def write_files(
    pipeline: Pipeline,
    clips: Tensor,
    prompts: Sequence[str],
    out: str | Path | None,
    gallery: str | Path | None,
    *,
    seed: int,
    heading: Mapping[str, object],
    source: tuple[Tensor, str] | None = None,
) -> list[Path]:
    """Write the clips, numbered if there are several, and a gallery; source: a clip to show first, and its prompt."""
    enlarge = max(VISIBLE // clips.shape[-1], 1)
    rate, written = pipeline.settings.frame_rate, []
    if out is not None:
        out = Path(out)
        for number, clip in enumerate(clips, 1):
            path = out if len(clips) == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
            written.append(write_clip(clip, path, rate, enlarge=enlarge))
            log.info("Written %s: %r.", path, prompts[number - 1])
    if gallery is not None:
        if source is not None:
            clips, prompts = torch.cat([source[0].to(clips), clips]), [source[1], *prompts]
        nats = nats_per_dim(pipeline, clips, prompts, seed=seed)
        entries = [Entry(prompt, clip, values) for prompt, clip, values in zip(prompts, clips, nats, strict=True)]
        written.append(write_gallery(entries, gallery, rate, heading, enlarge=enlarge))
        log.info("Written %s: %d clips.", gallery, len(clips))
    return written


def decoder(name: str, model: Pipeline) -> Decoder:
    """How the flow is inverted: "auto" is the model's own way, the faster of the other two.

    "sequential": token by token; "jacobi": a few frames at once, from the one before (`FramesAtOnce`). Raises
    ValueError for another name.
    """
    decoders: dict[str, Decoder] = {
        "auto": model.decoding,
        "sequential": Sequential(),
        "jacobi": FramesAtOnce(model.flow._transform.frame_length, largest_batch=sys.maxsize),
    }
    if name not in decoders:
        raise ValueError(f"decoding must be one of {', '.join(decoders)}, got {name!r}.")
    return decoders[name]


def nats_per_dim(model: Pipeline, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
    """Negative log-density a dimension of each latent frame given those before it, ``(B, latent frames)``, in nats."""
    size = torch.Size((model.flow.config or {})["event_shape"][1:]).numel()
    return -model.log_prob_of_frames(clips, prompts, seed=seed) / size


def likelihood_of_file(
    clip: str | Path, prompt: str = "", *, model: str | Path | None = None, seed: int = 0, device: str = "cpu"
) -> Tensor:
    """`nats_per_dim` of the clip in a file, ``(latent frames,)``."""
    pipeline = load_model(model, device)
    frames = read_clip(clip, pipeline.settings.clip_shape[1:])
    return nats_per_dim(pipeline, frames.unsqueeze(0), [prompt], seed=seed)[0]


def _check_outputs(out: str | Path | None, gallery: str | Path | None) -> None:
    """Mistakes that would otherwise be found after all the work."""
    if out is None and gallery is None:
        raise ValueError("nothing is to be written; name a file by --out, or a page by --gallery.")
    if out is not None:
        check_suffix(out)
    for path in (out, gallery):
        if path is not None and not Path(path).parent.is_dir():
            raise FileNotFoundError(f"there is no folder {Path(path).parent} for {Path(path).name}; make it first.")


def _length(pipeline: Pipeline, frames: int | None, given: Tensor | None) -> int:
    """How many frames are wanted: as in training, and as many more as were given to be continued."""
    if frames is not None:
        return frames
    own = pipeline.settings.clip_shape[0]
    return own if given is None or len(given) == 1 else own + len(given)

"""A page of clips with their prompts and likelihoods: one file of HTML that needs no other."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nflib.io import complete_file
from nflib.page import Section, definitions, grid, write_page
from video.media import write_clip

# Of a clip's figure, on any page; the colours are those of `nflib.page` where it is one of its pages.
FIGURE_STYLE = """
figure { margin: 0; padding: .8rem; color: var(--ink, #222); background: var(--card, #fff);
         border: 1px solid var(--rule, #ddd); border-radius: 6px }
figure img { display: block; margin: 0 auto .6rem; image-rendering: pixelated }
figcaption { color: inherit }
figcaption small { color: var(--quiet, #666) }
.curve { display: flex; gap: .4rem; margin-top: .4rem; color: var(--quiet, #666); font-size: .7rem }
.curve div { display: flex; flex-direction: column; justify-content: space-between; line-height: 1 }
.curve svg { width: 100%; height: 3rem; display: block; border: solid var(--rule, #ddd); border-width: 0 0 1px 1px }
.curve polyline { fill: none; stroke: var(--line, #0072b2); stroke-width: 1.5; vector-effect: non-scaling-stroke }
"""
STYLE = FIGURE_STYLE + ".grid { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }\n"


@dataclass(frozen=True)
class Entry:
    """A clip on a page.

    Args:
        prompt: of the clip.
        clip: ``(T, C, H, W)`` in -1 … 1.
        nats: per dimension, of each of its latent frames (`Pipeline.nats_per_dim`).
    """

    prompt: str
    clip: Tensor
    nats: Tensor


def write_gallery(
    entries: Sequence[Entry],
    path: str | Path,
    frame_rate: float,
    heading: Mapping[str, object] | None = None,
    *,
    enlarge: int = 1,
) -> Path:
    """Write a page of clips with their prompts and likelihoods, one file that needs no other; returns its path.

    Args:
        entries: the clips.
        path: of the HTML file.
        frame_rate: frames a second.
        heading: settings that the page shows, by name.
        enlarge: each pixel becomes so many squared.

    Raises:
        ValueError: no clips.
    """
    if not entries:
        raise ValueError("a gallery needs at least one clip.")
    # One scale for all: heights can be compared between clips.
    scale = min(float(entry.nats.min()) for entry in entries), max(float(entry.nats.max()) for entry in entries)
    summary = (
        "Each clip with its negative log-density in nats per dimension of the noisy latents, given its prompt: the "
        "mean over its frames, and frame by frame, on one scale for all clips."
    )
    sections = [
        Section("Clips", grid(clip_figure(entry, frame_rate, scale, enlarge) for entry in entries)),
        Section("Settings", definitions(heading or {})),
    ]
    with complete_file(path) as temporary:
        write_page(temporary, "Clips from prompts", summary, sections, style=STYLE)
    return Path(path)


def clip_figure(entry: Entry, frame_rate: float, scale: tuple[float, float] | None = None, enlarge: int = 1) -> str:
    """An entry as HTML: the clip, its prompt, and its nats per dimension as a curve.

    Args:
        entry: the clip.
        frame_rate: frames a second.
        scale: the curve's lower and upper end (default: those of the entry).
        enlarge: each pixel becomes so many squared.
    """
    low, high = (float(entry.nats.min()), float(entry.nats.max())) if scale is None else scale
    with tempfile.TemporaryDirectory() as folder:
        picture = write_clip(entry.clip, Path(folder) / "clip.gif", frame_rate, enlarge=enlarge).read_bytes()
    source = "data:image/gif;base64," + base64.b64encode(picture).decode()
    prompt = html.escape(entry.prompt or "no prompt", quote=True)
    return (
        f'<figure><img alt="{prompt}" src="{source}"><figcaption>{prompt}<br>'
        f"<small>{float(entry.nats.mean()):.3f} nats per dimension, {len(entry.clip)} frames</small></figcaption>"
        f"{_curve([float(value) for value in entry.nats], low, high)}</figure>"
    )


def _curve(values: Sequence[float], low: float, high: float) -> str:
    """Values as a line, on a scale from low to high."""
    width, height, margin = 200.0, 40.0, 2.0
    step = width / max(len(values) - 1, 1)
    points = " ".join(
        f"{index * step:.1f},{height - margin - (value - low) / ((high - low) or 1) * (height - 2 * margin):.1f}"
        for index, value in enumerate(values)
    )
    label = f"nats per dimension of frames 1 to {len(values)}, from {min(values):.2f} to {max(values):.2f}"
    return (
        f'<div class="curve"><div><span>{high:.2f}</span><span>{low:.2f}</span></div>'
        f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<title>{label}</title><polyline points="{points}"/></svg></div>'
    )

"""A judgement as a folder: one page of HTML that needs no other, summary.json, and the pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nflib.io import complete_folder, write_json
from nflib.metrics import Estimate
from nflib.page import (
    COLORS,
    REFERENCE_COLOR,
    Section,
    bullets,
    definitions,
    drawing,
    drawing_style,
    paragraph,
    picture,
    table,
    write_page,
)
from video.evaluation.judgement import NEIGHBOURS, Judgement
from video.evaluation.scores import HeldOutScores, Scores
from video.media import grid, write_clip

PAGE = "index.html"
SUMMARY = "summary.json"
HISTOGRAM_BINS = 40
WIDEST = 1056  # pixels of the page that a grid may take
VISIBLE = 64  # pixels of the page that a clip in a grid takes at least, where there is room
NAMES = {
    "bits_per_dim": "bits per dimension",
    "samples_bits_per_dim": "bits per dimension of samples",
    "accuracy": "share likeliest under own class",
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
}


def write_judgement(
    folder: str | os.PathLike[str],
    found: Judgement,
    evaluated: HeldOutScores,
    others: Mapping[str, Scores],
    settings: Mapping[str, object],
    frame_rate: float,
) -> Path:
    """Write a judgement into a folder: index.html, summary.json and the grids, all or none; returns the page's path.

    Args:
        folder: for all of them.
        found: by `judge`.
        evaluated: by `score_held_out`.
        others: clips of other kinds, by name.
        settings: to show, by name.
        frame_rate: of clips, frames a second.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    with complete_folder(folder) as temporary:
        write_json(temporary / SUMMARY, {"settings": {k: _plain(v) for k, v in settings.items()}} | found.summary())
        grids = [
            _grid(temporary, name, scores.shown, frame_rate)
            for name, scores in (
                ("held-out", evaluated.held_out),
                ("samples", evaluated.samples),
                ("reconstructions", evaluated.reconstructions),
            )
        ]
        sections = [
            Section("Settings", definitions(settings)),
            Section("Likelihood", _likelihood(found, evaluated, others)),
            Section(
                "Samples", paragraph("Each sample has the prompt of the held-out clip in its place.") + "".join(grids)
            ),
            Section("Distances", _distances(found, settings)),
        ]
        if found.classes:
            sections.append(Section("Classes", _classes(found)))
        if found.auroc:
            sections.append(Section("Told from other clips", _auroc(found)))
        sections.append(Section("Notes", bullets(found.notes)))
        summary = f"{found.num_clips} held-out clips, and as many samples."
        write_page(temporary / PAGE, "A model judged", summary, sections)
    return folder / PAGE


def _grid(folder: Path, name: str, clips: Tensor, frame_rate: float) -> str:
    columns = math.ceil(math.sqrt(len(clips) * 2))
    whole = grid(clips, columns, gap=1)
    path = write_clip(whole, folder / f"{name}.{'gif' if clips.shape[1] > 1 else 'png'}", frame_rate)
    scale = max(1, min(WIDEST // whole.shape[-1], math.ceil(VISIBLE / clips.shape[-1])))
    return picture(path, f"{len(clips)} {name}", name, width=min(scale * whole.shape[-1], WIDEST))


def _likelihood(found: Judgement, evaluated: HeldOutScores, others: Mapping[str, Scores]) -> str:
    scored = {"held-out": evaluated.held_out, "samples": evaluated.samples, **others}
    rows = [[name, str(len(scored[name])), str(value)] for name, value in found.bits_per_dim.items()]
    details = ["under their prompts"] * 2 + ["without a prompt"] * len(others)
    bits = {name: scores.bits.numpy() for name, scores in scored.items()}
    figures = [_histogram(bits)]
    if evaluated.held_out.bits_of_frames.shape[1] > 1 and _is_one_length(evaluated):
        figures.append(_by_frame({name: one.bits_of_frames for name, one in list(scored.items())[:2]}))
    caption = "Bits per dimension of single clips, each set of clips as a density of its own"
    caption += "; and the mean of each latent frame given those before it." if len(figures) > 1 else "."
    return (
        paragraph(f"Negative log-densities in bits per dimension, lower is likelier: {found.quantity}.")
        + table(["", "clips", "bits per dimension"], rows, details)
        + drawing(figures, "histograms of bits per dimension", caption)
    )


def _is_one_length(evaluated: HeldOutScores) -> bool:
    return evaluated.held_out.bits_of_frames.shape[1] == evaluated.samples.bits_of_frames.shape[1]


def _distances(found: Judgement, settings: Mapping[str, object]) -> str:
    columns = ("frechet_distance", "kernel_distance", "precision", "recall")
    rows = [[name, *(_cell(row, column) for column in columns)] for name, row in found.distances.items()]
    explained = (
        f"Of features: {settings['features']}. Precision: share of the set that lies among held-out clips, within the "
        f"distance of one of them to its {NEIGHBOURS}rd nearest; recall: share of held-out clips among the set. "
        "Reconstructions tell what the autoencoder alone does; the halves, each of half as many clips, how far clips "
        "of one kind are apart."
    )
    return paragraph(explained) + table(["", *(NAMES[column] for column in columns)], rows)


def _classes(found: Judgement) -> str:
    columns = [name for name in NAMES if any(name in row for row in found.classes.values())]
    rows = [
        [name, str(found.class_sizes[name]), *(_cell(row, column) for column in columns)]
        for name, row in found.classes.items()
    ]
    return table(["class", "clips", *(NAMES[column] for column in columns)], rows)


def _auroc(found: Judgement) -> str:
    columns = ("log-density", "typicality")
    rows = [[name, *(_cell(row, column) for column in columns)] for name, row in found.auroc.items()]
    explained = (
        "Area under the receiver operating characteristic: how often a held-out clip scores above another one, 0.5 by "
        "chance, all without a prompt. Log-densities alone may rank simple clips of any kind highest; typicality is "
        "how near the bits per dimension are to the mean of held-out clips."
    )
    return paragraph(explained) + table(["other clips", *columns], rows)


def _cell(row: Mapping[str, Estimate], name: str) -> str:
    return str(row[name]) if name in row else "–"


@drawing_style()
def _histogram(bits: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes()
    finite = {name: values[np.isfinite(values)] for name, values in bits.items()}
    # A few clips far out would make a line of all others.
    ends = [np.quantile(values, [0.005, 0.995]) for values in finite.values() if len(values)]
    low, high = (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else (0.0, 1.0)
    margin = 0.05 * max(high - low, 1e-3)
    edges = np.linspace(low - margin, high + margin, HISTOGRAM_BINS + 1)
    for number, (name, values) in enumerate(finite.items()):
        heights = np.histogram(values, edges)[0] / max(len(bits[name]), 1) / np.diff(edges)
        if number == 0:
            axes.stairs(heights, edges, fill=True, color=REFERENCE_COLOR, alpha=0.45, label=name)
        else:
            axes.stairs(heights, edges, color=COLORS[number % len(COLORS)], linewidth=1.5, label=name)
    axes.set(xlabel="bits per dimension", ylabel="density", xlim=(edges[0], edges[-1]))
    axes.legend(frameon=False, fontsize="small")
    return figure


@drawing_style()
def _by_frame(bits: Mapping[str, Tensor]) -> Figure:
    figure, axes = _axes()
    for number, (name, values) in enumerate(bits.items()):
        frames = np.arange(1, values.shape[1] + 1)
        color = REFERENCE_COLOR if number == 0 else COLORS[number]
        axes.plot(frames, values.mean(0).numpy(), color=color, marker=".", label=name)
    axes.set(xlabel="latent frame", ylabel="bits per dimension")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize="small")
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)

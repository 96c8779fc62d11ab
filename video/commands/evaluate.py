"""How good a model is on a folder of held-out images or clips."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from nflib.io import check_writable
from video.commands.options import DrawingOptions, ModelOptions
from video.evaluation import FolderBatches, Judgement, judge, load_features, score, score_held_out, write_judgement
from video.evaluation.judgement import check_names

log = logging.getLogger(__name__)


def evaluate(
    data: Path,
    output: Path,
    model: ModelOptions,
    drawing: DrawingOptions,
    features: Path | None = None,
    others: list[Path] | None = None,
    condition: str = "auto",
    num_clips: int | None = None,
    classify: bool = False,
    num_shown: int = 32,
    batch_size: int = 50,
) -> Judgement:
    """Judge a model by held-out images or clips: densities, distances of samples, a page of HTML.

    Args:
        data: a folder of clips that the model was not trained on: subfolders of classes, captions, or tar shards.
        output: a folder for index.html, summary.json and grids.
        model: which one.
        drawing: how samples are drawn; its seed is that of all random numbers.
        features: folder of a vision encoder of transformers; default: pixels averaged down.
        others: folders of clips of other kinds, which the model should find less likely.
        condition: what clips are told by: caption, label, none, or auto: the first of these that there is.
        num_clips: so many held-out clips, and others, are drawn from their folders; default: all.
        classify: also score all clips under each of their classes, and tell how often their own is the likeliest.
        num_shown: clips in a grid.
        batch_size: clips at once.

    Returns:
        All figures.

    Raises:
        FileNotFoundError: folders or files are missing.
        OSError: the page cannot be written.
        ValueError: folders, prompts or settings that do not fit.
    """
    if num_shown < 1:
        raise ValueError(f"num_shown must be a positive number, got {num_shown}.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, and the page takes a folder: choose another output.")
    check_writable(output)
    pipeline = model.load()
    encoder = load_features(features, model.device)
    settings, seed = pipeline.settings, drawing.seed

    def read(folder: Path, condition: str) -> FolderBatches:
        return FolderBatches(
            folder, settings, num_clips=num_clips, batch_size=batch_size, condition=condition, seed=seed
        )

    held_out = read(data, condition)
    names = [path.resolve().name for path in others or ()]
    if len(set(names)) < len(names):
        raise ValueError("two folders of others have one name; rename one of them.")
    check_names(names)
    other_folders = {name: read(path, "none") for name, path in zip(names, others or (), strict=True)}
    if classify and not held_out.classes:
        raise ValueError(f"clips in {data} have no classes to tell apart; leave --classify out.")
    evaluated = score_held_out(
        pipeline,
        held_out,
        encoder,
        classes=held_out.classes if classify else (),
        with_unconditional=bool(others),
        num_shown=num_shown,
        **drawing.settings(pipeline),
    )
    scored = {name: score(pipeline, one, seed=seed, conditional=False) for name, one in other_folders.items()}
    found = judge(pipeline, evaluated, scored, held_out.classes, seed)
    found.notes += [report for one in (held_out, *other_folders.values()) if (report := one.report())]
    shown = {
        "model": model.model or "shipped",
        "held-out clips": data,
        "features": encoder.description,
        "clip": " × ".join(map(str, settings.clip_shape)),
        **drawing.heading(pipeline),
        "decoding": drawing.decoding,
        "seed": seed,
    }
    page = write_judgement(output, found, evaluated, scored, shown, settings.frame_rate)
    lines = [f"{name:>16}  {value} bits per dimension" for name, value in found.bits_per_dim.items()]
    lines += [f"{name:>16}  {value}" for name, value in found.distances["samples"].items()]
    sys.stdout.write("\n".join([*lines, f"Written {page}."]) + "\n")
    return found

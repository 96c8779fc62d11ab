"""One file of HTML that needs no other, and no network: the page and its parts, each of which escapes what it shows."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOTS_PER_INCH = 150
INK = "#222222"
REFERENCE_COLOR = "#8c8c8c"
# Okabe and Ito's, which colour-blind readers tell apart.
COLORS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
STYLE = Path(__file__).with_name("page.css")
# Nothing may be fetched from anywhere.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
# plotly compiles its shaders' loops with Function, hence unsafe-eval.
SCRIPT_POLICY = "; script-src 'unsafe-inline' 'unsafe-eval'; font-src data:; worker-src blob:"
# Colours of drawings that are other ones in the dark: see page.css.
_THEMED = {INK: "var(--ink)", COLORS[1]: "var(--line)"}


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it as HTML."""

    heading: str
    content: str


@contextmanager
def drawing_style() -> Iterator[None]:
    """How all figures are drawn, for as long as the block lasts."""
    with matplotlib.rc_context(
        {
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            # Names of molecules, classes and folders may hold a dollar sign, which begins no formula.
            "text.parse_math": False,
        }
    ):
        yield


def write_page(
    path: str | Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    scripts: Sequence[str] = (),
    style: str = "",
) -> Path:
    """Write a page of HTML that needs no other file.

    Args:
        path: of the file.
        title: of the page.
        summary: a paragraph below the title.
        sections: of the page, in order.
        scripts: whole script elements, which stand at its end.
        style: CSS beside that of all pages.

    Returns:
        The path.
    """
    body = [f"<section><h2>{html.escape(one.heading)}</h2>\n{one.content}</section>" for one in sections]
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}{SCRIPT_POLICY if scripts else ""}">\n'
        f'<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}{style}</style></head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n<p>{html.escape(summary)}</p>\n"
        f"{chr(10).join([*body, *scripts])}\n</body>\n</html>\n"
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>\n"


def bullets(lines: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>\n"


def definitions(items: Mapping[str, object]) -> str:
    """Names, and what they stand for."""
    pairs = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in items.items())
    return f"<dl>{''.join(pairs)}</dl>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], details: Sequence[str] = ()) -> str:
    """A table of text.

    Args:
        head: names of the columns.
        rows: cells of each row, the first its name.
        details: of each row, below its name in small letters (default: none).
    """
    lines = []
    for (name, *cells), detail in zip(rows, details or [""] * len(rows), strict=True):
        small = f"<small>{html.escape(detail)}</small>" if detail else ""
        columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{html.escape(name)}{small}</th>{columns}</tr>\n")
    columns = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table><thead><tr>{columns}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>\n'
    )


def picture(path: Path, name: str, caption: str, width: int | None = None) -> str:
    """A PNG or GIF file, put into the page.

    Args:
        path: of the file.
        name: text for readers who do not see it.
        caption: below it.
        width: in pixels of the page (default, for a PNG: such that its letters are as large as in other drawings).
    """
    pixels = path.read_bytes()
    source = f"data:image/{path.suffix[1:]};base64," + base64.b64encode(pixels).decode()
    # Pixels are smaller than the page's: bytes 16 to 19 of a PNG are the width.
    width = round(int.from_bytes(pixels[16:20], "big") * 96 / DOTS_PER_INCH) if width is None else width
    return _figure(f'<img alt="{html.escape(name)}" src="{source}" style="width: {width}px">', caption)


def drawing(figures: Sequence[Figure], name: str, caption: str) -> str:
    """Figures side by side, or below each other on a narrow screen, in the page's colours, light or dark.

    Args:
        figures: of matplotlib.
        name: text for readers who do not see them.
        caption: below them.
    """
    return _figure(f'<div class="panels">{"".join(_svg(figure, name) for figure in figures)}</div>', caption)


def grid(parts: Iterable[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="grid">{"".join(parts)}</div>\n'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    # Letters are those of the page; names of parts do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nflib"}):
        figure.savefig(file, format="svg", transparent=True, dpi=DOTS_PER_INCH, metadata={"Date": None})
    text = file.getvalue()
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    # The names of groups, which nothing refers to, are the same in all figures.
    text = re.sub(r'<g id="\w+">', "<g>", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)

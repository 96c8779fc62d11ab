"""A corpus in whichever layout its folder has."""

from collections.abc import Callable
from pathlib import Path

from molecular.data.corpus.folder import DESCRIPTION, Corpus
from molecular.data.corpus.layout import CorpusLayout
from molecular.data.corpus.many_peptides import FRAMES, ManyPeptides

# By the file or folder that marks it.
LAYOUTS: dict[str, Callable[[Path], CorpusLayout]] = {DESCRIPTION: Corpus, FRAMES: ManyPeptides}


def is_corpus(folder: str | Path) -> bool:
    """Whether a folder has the mark of any layout."""
    return any((Path(folder) / mark).exists() for mark in LAYOUTS)


def open_corpus(folder: str | Path) -> CorpusLayout:
    """Open a corpus, a `Corpus` or `ManyPeptides`, whichever the folder holds; raises FileNotFoundError for neither."""
    folder = Path(folder)
    for mark, layout in LAYOUTS.items():
        if (folder / mark).exists():
            return layout(folder)
    raise FileNotFoundError(f"{folder} is no corpus: it has neither {' nor '.join(LAYOUTS)}.")

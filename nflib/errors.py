"""An error for users, and words for errors of other libraries."""

from __future__ import annotations

LONGEST_LINE = 300  # characters


class ComputationError(RuntimeError):
    """A computation came to no result, for a reason that its one sentence tells the user; no mistake of the program."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the name of an error that has none.

    >>> first_line(ValueError("no such file.\\nTry again."))
    'no such file'
    """
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."

"""A folder of what takes long to make: what it was made of decides whether it can be used again."""

from __future__ import annotations

import json
from pathlib import Path

from nflib.io import write_json
from video.errors import first_line


def begin_cache(folder: Path, name: str, wanted: dict[str, str], files: str, renew: bool) -> None:
    """Write into a cache what it is made of, or see that it is made of that already.

    Args:
        name: of the description; files: the pattern of what it describes; wanted: the description.
        renew: remove what was made of something else.

    Raises:
        ValueError: the folder holds a cache that was made of something else, or its description is damaged.
    """
    path = folder / name
    if path.is_file():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            if not renew:
                reason = f"{path} is damaged ({first_line(error)})"
                raise ValueError(f"{reason}; renew it, or choose another folder.") from error
            found = {}
        others = [part for part in wanted if found.get(part) != wanted[part]]
        if not others:
            return
        if not renew:
            raise ValueError(
                f"what is kept in {folder} was made with another {' and another '.join(others)}; renew it, or choose "
                "another folder."
            )
        path.unlink()
    # A run that is killed between these leaves no description, and what it left is removed by the next.
    for old in folder.glob(files):
        old.unlink()
    write_json(path, wanted)

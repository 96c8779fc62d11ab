"""Models by their names on the Hugging Face Hub; huggingface_hub is imported only where a name is not a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nflib.errors import first_line
from nflib.optional import require

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def local_folder(model: str | os.PathLike[str], files: list[str], revision: str | None = None) -> Path:
    """`model` itself where it is a folder or no name of the form user/name, else a download of `files` of that model.

    Raises:
        FileNotFoundError: it is neither a folder, nor to be had from the hub.
    """
    if not isinstance(model, str) or Path(model).exists() or not _NAME.fullmatch(model):
        return Path(model)
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no folder {model}; to look for that name on the Hugging Face Hub, install nflib[hub]."
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:  # all errors of the hub, its client and the network are either
        raise FileNotFoundError(
            f"there is no folder {model}, and no such model could be had from the Hugging Face Hub "
            f"({first_line(error)})."
        ) from error


def upload(folder: Path, repo_id: str, *, private: bool | None, message: str, **options: Any) -> str:
    """Put the files of a folder into a model's repository, made unless it is there; returns its address."""
    huggingface_hub = require("huggingface_hub", "push_to_hub needs", extra="hub")
    address = huggingface_hub.create_repo(repo_id, private=private, exist_ok=True, **options)
    huggingface_hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, **options)
    return str(address)

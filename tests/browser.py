"""Pages in headless Chromium, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def browse(page: Path, folder: Path, *options: str) -> str:
    """Standard output of headless Chromium without a network."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=20000"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *quiet.split(), profile, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

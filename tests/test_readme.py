"""What the README shows, runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    assert BLOCKS
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)


@pytest.mark.parametrize("target", re.findall(r"`(benchmarks/\w+\.py)`", (ROOT / "README.md").read_text()) or [None])
def test_named_files_exist(target):
    assert target is None or (ROOT / target).is_file()

"""What is said where the packages of an extra are not installed."""

import subprocess
import sys

import pytest

HIDDEN = "import runpy, sys; sys.modules[{hidden!r}] = None; "


@pytest.mark.parametrize(
    ("package", "hidden"), [("molecular", "openmm"), ("molecular", "jsonargparse"), ("video", "yaml")]
)
def test_commands_name_the_extra(package, hidden):
    code = HIDDEN.format(hidden=hidden) + f"runpy.run_module({package!r}, run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == f'error: {hidden} is not installed: pip install "nflib[{package}]".\n'


def test_molecules_name_the_extra():
    code = HIDDEN.format(hidden="openmm") + "import molecular; molecular.Peptide"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.endswith('Peptide needs openmm: pip install "nflib[molecular]".\n')

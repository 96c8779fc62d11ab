"""What the README and the pages of docs/ show, runs: Python whole, commands up to the work itself."""

import functools
import importlib
import re
import sys
import types

import pytest
import yaml

import molecular.commands
import video.commands
from tests.pages import PAGES, ROOT, blocks, commands

PACKAGES = {"molecular": molecular.commands, "video": video.commands}
MAKEFILE = (ROOT / "Makefile").read_text()
SETUP = (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")  # where classes of the page are found by their names
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), vars(module))


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_understood(page, monkeypatch):
    """Every option of `python -m molecular` and `video` is one, of its type; so are targets and extras."""
    called = []
    for package in PACKAGES.values():
        for name, function in package.COMMANDS.items():
            stub = functools.wraps(function)(lambda name=name, **options: called.append((name, options)))
            monkeypatch.setitem(package.COMMANDS, name, stub)
    for words in commands(page):
        if words[:2] == ["python", "-m"] and words[2] in PACKAGES:
            PACKAGES[words[2]].main(words[3:])
            assert called.pop()[0] == words[3] and not called
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE)
        elif words[:2] == ["pip", "install"]:
            assert all(f'"{extra}": ' in SETUP for extra in re.findall(r"\w+", words[-1]))
        else:  # the rest is run by other tests, or is of the shell
            assert words[0] in ("python", "cp", "sh")


@pytest.mark.parametrize(
    ("package", "command"), [(package, command) for package in PACKAGES for command in PACKAGES[package].COMMANDS]
)
def test_every_option_is_explained(package, command, capsys, monkeypatch):
    """Where one line of a docstring is of two arguments, neither has it."""
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        PACKAGES[package].main([command, "--help"])
    unexplained = r"^  (\S+)[^\n]*?(?:\n {20,}| {2,})\((?:required, )?(?:type|default):"
    assert not re.findall(unexplained, capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:benchmarks|tests|molecular/recipes)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name
    for link in re.findall(r"\]\(([\w./-]+\.md)", text):
        assert (ROOT / page).parent.joinpath(link).is_file(), link


def test_every_page_is_in_the_contents():
    # The options of the site hold no tags of Python's, so that a safe reader does.
    contents = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert {page.removeprefix("docs/") for page in PAGES[1:]} == set(re.findall(r"[\w/]+\.md", contents))


def test_every_extra_is_named():
    extras = set(re.findall(r'^        "(\w+)": ', SETUP.partition("extras_require")[2], re.MULTILINE))
    named = re.search(r"Extras: (.*?)\.\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert extras <= set(re.findall(r"`(\w+)`", named))


REFERENCE = "\n".join((ROOT / page).read_text() for page in PAGES if "/api/" in page)


@pytest.mark.parametrize("name", re.findall(r"^::: ([\w.]+)$", REFERENCE, re.MULTILINE))
def test_what_the_reference_names_is_there(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__

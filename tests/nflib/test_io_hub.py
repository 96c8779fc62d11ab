"""Names on the Hugging Face Hub, with a stand-in for its client: no network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nflib import Flow
from nflib.flows import TARFlow
from nflib.io.pretrained import CONFIG_NAME, WEIGHTS_NAME
from tests.nflib.cases import SMALL
from tests.perturb import perturb


class Hub(SimpleNamespace):
    """Repositories as folders; the three functions of huggingface_hub that are used."""

    def create_repo(self, repo_id, *, private=None, exist_ok=False, token=None):
        folder = self.root / repo_id
        self.calls.append(("create", repo_id, private, exist_ok, token))
        folder.mkdir(parents=True, exist_ok=exist_ok)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message, token=None):
        self.calls.append(("upload", repo_id, commit_message, token))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        self.calls.append(("download", repo_id, revision, sorted(allow_patterns)))
        if not (self.root / repo_id).is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for url: https://huggingface.co/{repo_id}")
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    hub = Hub(root=tmp_path / "hub", calls=[])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def flow() -> TARFlow:
    return perturb(TARFlow((8,), 2, **SMALL)).eval()


def test_there_and_back(hub, flow):
    address = flow.push_to_hub("me/flow", private=True, commit_message="First", token="t")
    assert address == "https://huggingface.co/me/flow"
    assert hub.calls == [("create", "me/flow", True, True, "t"), ("upload", "me/flow", "First", "t")]
    loaded = Flow.from_pretrained("me/flow", revision="v1")
    assert hub.calls[-1] == ("download", "me/flow", "v1", [CONFIG_NAME, WEIGHTS_NAME])
    assert type(loaded) is TARFlow and not loaded.training
    x = torch.randn(3, 8)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


def test_a_folder_goes_first(hub, flow):
    flow.push_to_hub("me/flow")
    TARFlow((4,), 2, **SMALL).save_pretrained("me/flow")
    assert Flow.from_pretrained("me/flow").config["event_shape"] == [4]
    assert hub.calls[-1][0] != "download"


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a/b", "../b", "/a", "me/fl ow", Path("me/flow")])
def test_what_is_no_name_is_not_asked_for(name, hub, flow):
    flow.push_to_hub("me/flow")
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        Flow.from_pretrained(name)
    assert hub.calls[-1][0] == "upload"


def test_a_name_that_is_not_there(hub):
    with pytest.raises(FileNotFoundError, match=r"no folder me/nothing, and no such model .*404 Client Error\)\.$"):
        Flow.from_pretrained("me/nothing")


def test_without_the_client(flow, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder me/flow; .* install nflib\[hub\]\.$"):
        Flow.from_pretrained("me/flow")
    with pytest.raises(ModuleNotFoundError, match=r'huggingface_hub: pip install "nflib\[hub\]"\.$'):
        flow.push_to_hub("me/flow")
    flow.save_pretrained("me/flow")
    Flow.from_pretrained("me/flow")


def test_the_real_client_has_these_functions():
    import inspect

    import huggingface_hub

    expected = {
        "create_repo": ("repo_id", "private", "exist_ok", "token"),
        "upload_folder": ("repo_id", "folder_path", "commit_message", "token"),
        "snapshot_download": ("repo_id", "revision", "allow_patterns"),
    }
    for name, arguments in expected.items():
        assert set(arguments) <= set(inspect.signature(getattr(huggingface_hub, name)).parameters)

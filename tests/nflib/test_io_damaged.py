"""Model folders that are damaged: one sentence, whatever the damage, and no memory taken for it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import nflows.transforms
import pytest
import torch
from nflows.transforms import CompositeTransform
from safetensors.torch import load_file, save_file

from nflib import Flow
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.io.bounded import at_most
from nflib.io.pretrained import CONFIG_NAME, WEIGHTS_NAME
from nflib.transforms import Permute, Standardize, VectorPatches
from tests.nflib.cases import SMALL, blocks

resource = pytest.importorskip("resource")


def composed() -> Flow:
    fixed = [Standardize(torch.zeros(8), torch.ones(8)), VectorPatches((8,), 2), Permute(torch.randperm(4))]
    transforms = [nflows.transforms.LULinear(8), *fixed, *blocks(4, 2)]
    return Flow(CompositeTransform(transforms), StandardNormal((4, 2)))


BUILD = {
    "tarflow": lambda: TARFlow((8,), 2, **SMALL),
    "rotary": lambda: TARFlow((1, 8, 8), 2, positions="rotary", conditional="spline", start_token=True, **SMALL),
    "composed": composed,
}
VALUES = (10**30, 10**12, 10**9, 10**7, -1, 0, 1e12, math.nan, None, "3", [], [1], {}, {"tensor": "q"}, [[10**12]])


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value in a document, by the keys and numbers that lead to it."""
    keys = (
        document if isinstance(document, dict) else range(min(len(document), 6)) if isinstance(document, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(document[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return document


def check_sentence(error: Exception, folder: Any) -> None:
    message = str(error)
    assert str(folder) in message and message.endswith(".") and "\n" not in message, message


@pytest.mark.parametrize("name", BUILD)
def test_any_value_in_the_configuration_may_be_wrong(name, tmp_path):
    """What still builds a model that fits the weights is loaded; all else is a ValueError, in little memory."""
    folder = BUILD[name]().save_pretrained(tmp_path)
    document = json.loads((folder / CONFIG_NAME).read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for index, path in enumerate(places(document)):
        # All values in all places take minutes: each place gets three of them, another three than the one before.
        for value in [VALUES[(3 * index + shift) % len(VALUES)] for shift in range(3)]:
            (folder / CONFIG_NAME).write_text(json.dumps(changed(document, path, value)))
            try:
                Flow.from_pretrained(folder)
            except ValueError as error:
                refused += 1
                check_sentence(error, folder)
    assert refused > 30
    unit = 2**10 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**32 else 1  # kB, on a Mac bytes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**30
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    Flow.from_pretrained(folder)


@pytest.mark.parametrize("size", ["channels", "num_blocks", "layers_per_block", "patch_size", "expansion"])
@pytest.mark.parametrize("value", [10**12, 10**7, -3, "2", 1e12])
def test_sizes_of_a_tarflow(size, value, tmp_path):
    folder = TARFlow((8,), 2, **SMALL).save_pretrained(tmp_path)
    document = json.loads((folder / CONFIG_NAME).read_text())
    document["config"][size] = value
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError) as error:
        Flow.from_pretrained(folder)
    check_sentence(error.value, folder)


DOCUMENTS = ["[]", "3", "null", '"x"', "{}", "{", "[" * 100_000, "\ufeff{}", "9" * 10_000]
DOCUMENTS += [
    '{"architecture": ["TARFlow"], "config": {}}',
    '{"architecture": {}, "module": [], "config": {}}',
    '{"architecture": "TARFlow", "config": []}',
    '{"architecture": "TARFlow", "config": {"event_shape": [8], "a": {"b": 1}}}',
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_that_are_none(document, tmp_path):
    folder = TARFlow((8,), 2, **SMALL).save_pretrained(tmp_path)
    (folder / CONFIG_NAME).write_text(document, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        Flow.from_pretrained(folder)
    check_sentence(error.value, folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16, torch.bool])
@pytest.mark.parametrize("which", [0, -1])
def test_one_tensor_of_another_dtype(dtype, which, tmp_path):
    flow = TARFlow((8,), 2, **SMALL)
    folder = flow.save_pretrained(tmp_path)
    state = load_file(folder / WEIGHTS_NAME)
    name = [name for name, _ in flow.named_parameters()][which]
    save_file(state | {name: state[name].to(dtype)}, folder / WEIGHTS_NAME)
    for load in (TARFlow.from_pretrained, flow.load_pretrained):
        with pytest.raises(ValueError, match="is damaged: its tensor .* is of .* where .* belongs") as error:
            load(folder)
        check_sentence(error.value, folder)
    assert {parameter.dtype for parameter in flow.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_all_tensors_integers(dtype, tmp_path):
    folder = TARFlow((8,), 2, **SMALL).save_pretrained(tmp_path)
    state = load_file(folder / WEIGHTS_NAME)
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="where float32 belongs"):
        Flow.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision_comes_back_in_it(dtype, tmp_path):
    loaded = Flow.from_pretrained(composed().to(dtype).save_pretrained(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.state_dict()["_transform._transforms.3.permutation"].dtype == torch.int64


def test_loading_leaves_the_random_state_alone(tmp_path):
    folder = composed().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    Flow.from_pretrained(folder)
    composed_flow = Flow.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    composed_flow.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_too_large_is_refused_before_it_is_made():
    with at_most(10, 1000):
        torch.zeros(100, 100) @ torch.ones(100, 100)
        torch.nn.Linear(1000, 1000)
        for make in (
            lambda: torch.zeros(10**6, 10**6),
            lambda: torch.arange(10**12),
            lambda: torch.arange(10**5).unsqueeze(-1) * torch.arange(10**5),
            lambda: torch.ones(1).expand(10**12).clone(),
            lambda: torch.nn.Linear(10**6, 10**6),
        ):
            with pytest.raises(ValueError, match="larger than all of its weights"):
                make()
        assert torch.ones(1).expand(10**12).shape == (10**12,)  # a view takes no memory
        with pytest.raises(ValueError, match="far more parameters"):
            torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(10**9))
    torch.nn.Linear(1, 1)

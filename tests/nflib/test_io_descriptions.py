"""Flows composed by hand, guided ones and users' own: described by their constructors' arguments, and built again."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import subprocess
import sys
from importlib import import_module

import nflows.distributions
import nflows.transforms
import numpy as np
import pytest
import torch
from nflows.transforms import CompositeTransform, InverseTransform, Transform
from safetensors.torch import load_file
from torch import nn

from nflib import Flow, flows
from nflib.continuous import LinearPath, MLPVelocity, ODEFlow
from nflib.distributions import StandardNormal
from nflib.flows.flow import GuidedFlow
from nflib.io import keep_arguments, read_config
from nflib.io.arguments import call_with, kept_arguments
from nflib.io.descriptions import RENAMED, CannotDescribe, changes, describe, description_of, find_class, rebuild
from nflib.io.pretrained import CONFIG_NAME, WEIGHTS_NAME
from nflib.transforms import LinearGuidance, Permute, ProductGuidance, Reverse, VectorPatches
from tests.nflib.cases import (
    COMPOSED_FLOWS,
    NUM_CLASSES,
    SMALL,
    TRANSFORMS,
    autoregressive,
    blocks,
    labels,
    spline_coupling,
    spline_on_top,
)
from tests.perturb import perturb


def round_trip(flow, folder):
    loaded = Flow.from_pretrained(flow.save_pretrained(folder))
    assert type(loaded) is type(flow) and not loaded.training
    return loaded


def same(flow, other, x, context=None) -> bool:
    return torch.equal(flow.log_prob(x, context), other.log_prob(x, context)) and torch.equal(
        flow.sample(2, context, seed=3), other.sample(2, context, seed=3)
    )


# --- flows composed by hand ---


@pytest.mark.parametrize("case", [case for case in COMPOSED_FLOWS if case.name != "spline-on-top"], ids=str)
def test_a_composed_flow_comes_back_from_its_folder_alone(case, tmp_path):
    flow = perturb(case.build()).eval()
    torch.manual_seed(1234)  # what is drawn when it is built again does not matter
    loaded = round_trip(flow, tmp_path)
    assert loaded.config == flow.config == json.loads(json.dumps(flow.config))
    for context in case.contexts(3):
        assert same(flow, loaded, case.inputs(3), context)


# Those cannot be described whose functions or classes stand in the tests, which are no package of nflib's.
UNKNOWN = ("query-key-norm", "padding", "padding-start-learned", "everything")


@pytest.mark.parametrize("case", [case for case in TRANSFORMS if case.name not in UNKNOWN], ids=str)
def test_every_part_of_nflib_is_described(case):
    transform = perturb(case.build()).eval()
    description, tensors = describe({"transforms": [transform]})
    (again,) = rebuild(CompositeTransform, json.loads(json.dumps(description)), tensors)._transforms
    again.load_state_dict(transform.state_dict())
    x = case.inputs(3)
    for context in case.contexts(3):
        for ours, theirs in zip(transform(x, context), again.eval()(x, context), strict=True):
            assert torch.equal(ours, theirs)


NFLOWS = {
    "lu": lambda: nflows.transforms.LULinear(8),
    "svd": lambda: nflows.transforms.SVDLinear(8, 2),
    "permutation": lambda: nflows.transforms.RandomPermutation(8),
    "norm": lambda: nflows.transforms.ActNorm(8),
    "spline": lambda: nflows.transforms.PiecewiseRationalQuadraticCDF([8], 5, tails="linear", tail_bound=4.0),
    "made": lambda: nflows.transforms.MaskedAffineAutoregressiveTransform(8, 16),
    "leaky": lambda: InverseTransform(nflows.transforms.LeakyReLU(0.5)),
    "affine": lambda: nflows.transforms.PointwiseAffineTransform(torch.ones(8), 2.0),
}


@pytest.mark.parametrize("name", NFLOWS)
def test_parts_of_nflows(name, tmp_path):
    transform = CompositeTransform([NFLOWS[name](), VectorPatches((8,), 2), *blocks(4, 2)])
    flow = Flow(transform, nflows.distributions.StandardNormal([4, 2]))
    x = torch.randn(5, 8)
    flow.log_prob(x)  # which initialises an ActNorm
    flow = perturb(flow).eval()
    assert torch.equal(round_trip(flow, tmp_path).log_prob(x), flow.log_prob(x))


def test_a_part_in_two_places_is_one_part_again(tmp_path):
    shared, order = autoregressive(), Reverse()
    flow = perturb(Flow(CompositeTransform([shared, order, shared, order]), StandardNormal((6, 2)))).eval()
    loaded = round_trip(flow, tmp_path)
    first, order, second, back = loaded._transform._transforms
    assert first is second and order is back
    assert same(flow, loaded, torch.randn(3, 6, 2))


def test_tensors_among_the_arguments_stand_with_the_weights(tmp_path):
    permutation = torch.randperm(6)
    flow = perturb(Flow(CompositeTransform([Permute(permutation), autoregressive()]), StandardNormal((6, 2)))).eval()
    folder = flow.save_pretrained(tmp_path)
    extra = load_file(folder / WEIGHTS_NAME).keys() - flow.state_dict().keys()
    assert [torch.equal(load_file(folder / WEIGHTS_NAME)[name], permutation) for name in extra] == [True]
    assert same(flow, Flow.from_pretrained(folder), torch.randn(3, 6, 2))
    assert same(flow, copy.deepcopy(flow).load_pretrained(folder), torch.randn(3, 6, 2))


@pytest.mark.parametrize(
    "build",
    [
        spline_on_top,  # a coupling whose network a lambda makes
        lambda: Flow(Lonely(2), StandardNormal((6, 2))),
        lambda: Flow(CompositeTransform([Lonely(2), autoregressive()]), StandardNormal((6, 2))),
    ],
)
def test_what_cannot_be_described_keeps_its_weights(build, tmp_path, caplog):
    flow = perturb(build()).eval()
    folder = flow.save_pretrained(tmp_path)
    assert ("a lambda has no name to find it by" if build is spline_on_top else "Lonely does not keep") in caplog.text
    assert flow.config is None and read_config(folder)["config"] is None
    with pytest.raises(ValueError, match=r"holds no configuration: build the flow as it was built before.*\.$"):
        Flow.from_pretrained(folder)
    other = perturb(build(), seed=9).load_pretrained(folder).eval()
    for name, tensor in flow.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


class Lonely(Transform):
    """Of a user's own, without `keep_arguments`."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, inputs, context=None):
        return inputs * self.factor, self.factor.log().expand(len(inputs)) * inputs[0].numel()

    def inverse(self, inputs, context=None):
        return inputs / self.factor, -self.factor.log().expand(len(inputs)) * inputs[0].numel()


@keep_arguments
class Kept(Lonely):
    def __init__(self, factor: float, *, offset: float = 0.0):
        super().__init__(factor + offset)


def test_a_users_own_part_that_keeps_its_arguments(tmp_path):
    flow = Flow(CompositeTransform([Kept(2.0, offset=1.0), autoregressive()]), StandardNormal((6, 2))).eval()
    loaded = round_trip(flow, tmp_path)
    assert kept_arguments(loaded._transform._transforms[0]) == {"factor": 2.0, "offset": 1.0}
    assert same(flow, loaded, torch.randn(3, 6, 2))


@keep_arguments
class Rotated(Lonely):
    def __init__(self, size: int):
        super().__init__(2.0)
        self.rotation = nn.utils.parametrizations.orthogonal(nn.Linear(size, size, bias=False))


def test_a_part_with_parametrized_weights(tmp_path):
    """torch makes a class of its own for each of them."""
    flow = Flow(Rotated(3), StandardNormal((6, 2))).eval()
    loaded = round_trip(flow, tmp_path)
    assert torch.equal(flow._transform.rotation.weight, loaded._transform.rotation.weight)
    assert same(flow, loaded, torch.randn(3, 6, 2))


def test_parts_exchanged_after_they_were_made_are_not_described_as_they_were(tmp_path):
    flow = Flow(CompositeTransform([autoregressive(), Reverse()]), StandardNormal((6, 2)))
    flow._transform._transforms[0] = autoregressive(channels=32)
    folder = flow.save_pretrained(tmp_path)
    assert read_config(folder)["config"] is None
    flow.load_pretrained(folder)


# --- guided flows ---


@pytest.mark.parametrize(
    "guidance", [LinearGuidance(1.5, "b", ramp=3), ProductGuidance(0.7)], ids=["linear", "product"]
)
def test_a_guided_flow_comes_back_with_its_weights_once(guidance, tmp_path):
    flow = perturb(flows.TARFlow((1, 4, 4), 2, num_classes=NUM_CLASSES, **SMALL)).eval()
    guided = flow.guided(guidance, torch.tensor(-1)).eval()
    assert type(guided) is GuidedFlow
    x, context = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    loaded = round_trip(guided, tmp_path)
    assert same(guided, loaded, x, context)
    assert not torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    saved = load_file(tmp_path / WEIGHTS_NAME)
    numbers = sum(tensor.numel() for tensor in saved.values())
    assert numbers == sum(tensor.numel() for tensor in flow.state_dict().values()) + 1  # the unconditional label


def test_a_guided_composed_flow(tmp_path):
    flow = perturb(Flow(autoregressive(num_classes=NUM_CLASSES), StandardNormal((6, 2)))).eval()
    guided = flow.guided(LinearGuidance(2.0), torch.tensor(-1)).eval()
    assert same(guided, round_trip(guided, tmp_path), torch.randn(4, 6, 2), labels(4))


# --- arguments ---


class Own(flows.TARFlow):
    """The common pattern: further settings, and the rest handed on."""

    def __init__(self, *args, power: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = power


def test_a_subclass_that_hands_arguments_on(tmp_path):
    flow = perturb(Own((8,), 2, power=3.0, **SMALL)).eval()
    loaded = round_trip(flow, tmp_path)
    assert loaded.power == 3.0 and loaded.config == flow.config
    assert same(flow, loaded, torch.randn(3, 8))


def test_arguments_are_plain_and_as_they_were(tmp_path):
    depths = [2, 1]
    flow = flows.TARFlow(torch.Size([8]), np.int64(2), 16, 2, depths, head_dim=8, expansion=np.float32(1.5))
    depths.append(7)
    config = flow.config
    assert config["event_shape"] == [8] and config["layers_per_block"] == [2, 1]
    assert type(config["patch_size"]) is int and type(config["expansion"]) is float
    assert config["positions"] == "learned"  # a default
    assert json.loads(json.dumps(config)) == config
    assert {**flows.TARFlow(**config).config} == config


class Typed(Flow):
    def __init__(self, dtype: torch.dtype, scales: dict, array: np.ndarray):
        super().__init__(autoregressive().to(dtype), StandardNormal((6, 2)))
        self.dtype, self.scales, self.array = dtype, scales, array


def test_dtypes_by_name_and_arrays_as_lists(tmp_path):
    flow = Typed(torch.float64, {"a": (1, 2.5)}, np.arange(3))
    assert flow.config == {"dtype": {"dtype": "float64"}, "scales": {"a": [1, 2.5]}, "array": [0, 1, 2]}
    loaded = round_trip(flow, tmp_path)
    assert loaded.dtype is torch.float64 and next(loaded.parameters()).dtype is torch.float64


def test_flows_can_still_be_copied_and_pickled():
    for build in (spline_on_top, lambda: flows.TARFlow((8,), 2, **SMALL)):
        flow = perturb(build()).eval()
        x = torch.randn(3, 8)
        assert torch.equal(copy.deepcopy(flow).log_prob(x), flow.log_prob(x))
    assert torch.equal(pickle.loads(pickle.dumps(flow)).log_prob(x), flow.log_prob(x))


def test_a_call_with_too_few_arguments_says_so_as_always():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'event_shape'"):
        flows.TARFlow()
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        flows.TARFlow((8,), colour=1)


def test_signatures_of_every_kind():
    @keep_arguments
    class Odd:
        def __init__(self, first, /, second=2, *rest, only, **others):
            self.got = (first, second, rest, only, others)

    for made in (Odd(1, only=3), Odd(1, 5, 6, 7, only=(1, 2), extra=[8])):
        assert call_with(Odd, kept_arguments(made)).got[:3] == made.got[:3]
        assert kept_arguments(call_with(Odd, kept_arguments(made))) == kept_arguments(made)


# --- what a file may name ---


def test_a_users_class_of_the_same_name_does_not_replace_ours(tmp_path):
    flow = perturb(flows.TARFlow((8,), 2, **SMALL)).eval()
    folder = flow.save_pretrained(tmp_path)

    class TARFlow(flows.TARFlow):
        pass

    assert type(Flow.from_pretrained(folder)) is flows.TARFlow


SCRIPT = """
import sys
from importlib import import_module
import nflib
assert not any(name.startswith(("molecular", "video")) for name in sys.modules)
flow = nflib.Flow.from_pretrained(sys.argv[1])
print(type(flow).__module__, type(flow).__name__)
"""


@pytest.mark.parametrize(
    ("shipped", "module"),
    [("molecular/shipped/peptides", "molecular"), ("video/shipped/moving-digits/flow", "video")],
)
def test_no_import_order(shipped, module):
    """nflib itself imports neither."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, shipped], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith(module), run.stderr


def test_a_module_that_was_not_imported_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "my_flows.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = flows.TARFlow((8,), 2, **SMALL).save_pretrained(tmp_path / "model")
    document = read_config(folder) | {"architecture": "Mine", "module": "my_flows"}
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"'Mine'.*import my_flows.*\.$"):
        Flow.from_pretrained(folder)
    assert "my_flows" not in sys.modules


@pytest.mark.parametrize(
    "description",
    [
        {"class": "os:system", "arguments": {"command": "true"}},
        {"class": "subprocess:Popen", "arguments": {"args": "true"}},
        {"class": "nflib.io.atomic:os.system", "arguments": {}},
        {"class": "nflib.io.pretrained:tempfile.TemporaryDirectory", "arguments": {}},
        {"class": "nflib.decoding.plans:DecodingPlan", "arguments": {}},  # ours, but no part of a flow
        {"class": "torch.nn:modules.module.torch.load", "arguments": {}},
        {"class": "molecular.__main__:x", "arguments": {}},
        {"class": "nowhere", "arguments": {}},
        {"class": 3, "arguments": {}},
        {"reference": "os:system"},
        {"reference": "nflib.io.atomic:shutil.rmtree"},
        {"reference": "builtins:exec"},
        {"partial": {"reference": "posix:system"}, "arguments": ["true"], "keywords": {}},
        {"partial": "x", "arguments": [], "keywords": {}},
        {"same": 5},
        {"tensor": "nothing"},
        {"dtype": "nn"},
    ],
)
def test_nothing_but_parts_of_flows_is_built(description, tmp_path, monkeypatch):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("run"))
    folder = Flow(autoregressive(), StandardNormal((6, 2))).save_pretrained(tmp_path)
    document = read_config(folder)
    document["config"]["transform"] = description
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError) as error:
        Flow.from_pretrained(folder)
    assert str(folder / CONFIG_NAME) in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("name", ["channels", "num_blocks", "expansion", "num_classes"])
def test_true_is_no_number(name, tmp_path):
    flow = flows.TARFlow((4,), channels=32, num_blocks=1, layers_per_block=1, head_dim=16, num_classes=1)
    folder = flow.save_pretrained(tmp_path)
    document = read_config(folder)
    document["config"][name] = True
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"{name} is True, where a number belongs"):
        flows.TARFlow.from_pretrained(folder)


def test_names_are_the_shortest_public_ones():
    description, _ = describe({"part": Reverse(), "kind": nn.Linear, "made": functools.partial(nn.Linear, 3)})
    assert description["part"]["class"] == "nflib.transforms:Reverse"
    assert description["kind"] == {"reference": "torch.nn:Linear"}
    assert find_class("nflib.transforms:Reverse") is find_class("nflib.transforms.ordering:Reverse") is Reverse
    for thing in (lambda x: x, spline_coupling, object(), {1: 2}, {"same": 1}, nn.Parameter(torch.ones(1))):
        with pytest.raises(CannotDescribe):
            describe({"thing": thing})


class AnyNames(nn.Module):
    def __init__(self, dtype=None, tensor=None, reference=None):
        super().__init__()
        self.arguments = (dtype, tensor, reference)


@pytest.mark.parametrize("name", ["dtype", "tensor", "reference"])
def test_an_argument_may_have_a_name_that_objects_are_told_by(name):
    description, tensors = describe({name: torch.float64})
    built = rebuild(AnyNames, description, tensors)
    assert built.arguments == AnyNames(**{name: torch.float64}).arguments
    description, tensors = describe({"tensor": functools.partial(nn.Linear, **{name: 3})})
    made = rebuild(AnyNames, json.loads(json.dumps(description)), tensors).arguments[1]
    assert made.func is nn.Linear and made.keywords == {name: 3}


def test_where_two_descriptions_differ():
    def differences(before: object, now: object) -> list:
        return list(changes(description_of(before), description_of(now)))

    flow = functools.partial(ODEFlow, MLPVelocity(2, channels=8), (2,))
    assert differences(flow(path=LinearPath(0.1)), flow(path=LinearPath(0.1 + 1e-9))) == []
    assert differences(flow(path=LinearPath(0.1)), flow(path=LinearPath(0.2))) == [("sigma_min", 0.1, 0.2)]
    linear = functools.partial(functools.partial, nn.Linear)
    assert list(changes({"low": math.nan, "mean": 0.0}, {"low": math.nan, "mean": 1e-18})) == []
    assert differences(linear(reference=3), linear(reference=4)) == [("reference", 3, 4)]
    assert differences(linear(tensor=torch.ones(1)), linear(tensor=torch.zeros(1))) == []
    assert differences(linear(bias=nn.ReLU()), linear(bias=None)) == [("bias", "torch.nn:ReLU", None)]
    assert differences(linear(shape=4, depth=2), linear(shape=(4,), depth=[2, 2])) == []
    assert differences(linear(depth=2), linear(depth=[2, 3])) == [("depth", 2, [2, 3])]
    [(_, before, now)] = differences(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh()))
    assert (before, now) == ("torch.nn:ReLU", "torch.nn:Tanh")
    assert description_of(AnyNames()) is None and description_of(linear(bias=lambda x: x)) is None


def test_a_former_name_leads_to_the_class_of_today() -> None:
    for module, names in RENAMED.items():
        for former, today in names.items():
            assert find_class(f"{module}:{former}") is getattr(import_module(module), today)


def test_a_flow_saved_by_former_names_loads(tmp_path) -> None:
    flow = ODEFlow(MLPVelocity(2, channels=8), (2,), path=LinearPath(0.1))
    flow.save_pretrained(tmp_path)
    config = tmp_path / CONFIG_NAME
    document = config.read_text()
    assert "nflib.continuous:LinearPath" in document
    config.write_text(document.replace("LinearPath", "Linear"))
    again = ODEFlow.from_pretrained(tmp_path)
    assert again.path == flow.path and torch.equal(again.decode(torch.ones(3, 2)), flow.decode(torch.ones(3, 2)))

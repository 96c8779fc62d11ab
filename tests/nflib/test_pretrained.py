"""Models as folders: what is written, what comes back, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
import torch
from nflows.transforms import ActNorm, CompositeTransform, LULinear
from safetensors.torch import load_file, save_file

from nflib import Flow
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.io.pretrained import CONFIG_NAME, WEIGHTS_NAME, Pretrained, _without_weights, read_config
from nflib.io.tensors import write_tensors
from nflib.networks import CausalTransformer
from nflib.transforms import GaussianizeMarginals, Standardize, VectorPatches, Whiten
from tests.nflib.cases import NUM_CLASSES, SMALL, autoregressive, blocks, spline_on_top
from tests.perturb import perturb


@pytest.fixture
def flow() -> TARFlow:
    return perturb(TARFlow((1, 4, 4), patch_size=2, num_classes=NUM_CLASSES, **SMALL))


@pytest.fixture
def folder(flow, tmp_path):
    return flow.save_pretrained(tmp_path / "deep" / "model")


def test_a_folder_holds_weights_and_configuration_and_nothing_else(flow, folder):
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    document = json.loads((folder / CONFIG_NAME).read_text())
    assert document == {"architecture": "TARFlow", "module": "nflib.flows", "config": flow.config}
    state = load_file(folder / WEIGHTS_NAME)
    assert state.keys() == flow.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in flow.state_dict().items())


def test_a_configuration_rebuilds_the_flow(flow):
    rebuilt = TARFlow(**flow.config)
    assert rebuilt.config == flow.config
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in flow.named_parameters()}


def test_settings_of_every_kind_come_back(tmp_path):
    flow = perturb(
        TARFlow(
            (2, 4, 4), 2, 24, 3, (1, 2, 1), 2, head_dim=12, expansion=1.5, scale="softplus", norm="rms_norm",
            positions="rotary", mlp="gated", start_token=True, soft_clip=2.5,
        )
    )  # fmt: skip
    loaded = TARFlow.from_pretrained(flow.save_pretrained(tmp_path))
    assert loaded.config == json.loads(json.dumps(flow.config))
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(loaded.log_prob(x, torch.tensor([0, 1, -1])), flow.log_prob(x, torch.tensor([0, 1, -1])))


def test_saving_again_replaces_the_model(flow, folder):
    perturb(flow, seed=5)
    flow.save_pretrained(folder)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(TARFlow.from_pretrained(str(folder)).log_prob(x), flow.log_prob(x))
    assert len(list(folder.iterdir())) == 2


def fitted(with_parameters: bool) -> Flow:
    """A flow on tables that bfloat16 does not hold: a mean of 100 deviations, and marginals."""
    x = 100 + torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    standardize = Standardize.fit(x)
    marginals = GaussianizeMarginals.fit(standardize(x)[0])
    parts = [standardize, marginals, Whiten.fit(marginals(standardize(x)[0])[0])]
    if with_parameters:
        return Flow(CompositeTransform([*parts, VectorPatches((4,), 2), *blocks(2, 2)]), StandardNormal((2, 2)))
    return Flow(CompositeTransform(parts), StandardNormal((4,)))


@pytest.mark.parametrize("with_parameters", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_only_parameters_are_saved_in_half_precision(with_parameters, dtype, tmp_path):
    flow = fitted(with_parameters).eval()
    x = 100 + torch.randn(5, 4)
    flow.save_pretrained(tmp_path / "asked", dtype)
    expected = flow.to(dtype)  # whose tables stay as they are
    flow.save_pretrained(tmp_path / "own")
    for name in ("asked", "own"):
        again = Flow.from_pretrained(tmp_path / name)
        assert all(parameter.dtype == dtype for parameter in again.parameters())
        x = x.to(torch.promote_types(dtype, torch.float32))
        assert torch.equal(again.log_prob(x), expected.log_prob(x))
        for tensor, other in zip(again.buffers(), fitted(with_parameters).buffers(), strict=True):
            assert torch.equal(tensor.to(other), other)


def test_files_whose_tables_were_rounded_are_read(tmp_path):
    flow = fitted(True)
    folder = flow.save_pretrained(tmp_path)
    state = load_file(folder / WEIGHTS_NAME)
    rounded = {n: t.bfloat16() if t.is_floating_point() and "config/" not in n else t for n, t in state.items()}
    save_file(rounded, folder / WEIGHTS_NAME)
    again = Flow.from_pretrained(folder)
    assert torch.equal(again._transform._transforms[0].mean, flow._transform._transforms[0].mean.bfloat16().float())


def test_scaled_noise_is_kept_in_single_precision():
    flow = TARFlow((4,), patch_size=2, **SMALL).with_scaled_noise(1.001, 3.0, weights=(0.97, 0.03)).bfloat16()
    assert flow._distribution.scales.tolist() == pytest.approx([1.001, 3.0], abs=1e-6)


def test_a_save_that_fails_leaves_the_old_model(flow, folder, monkeypatch):
    before = (folder / WEIGHTS_NAME).read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("nflib.io.pretrained.write_tensors", full_disk)
    with pytest.raises(OSError, match="no space"):
        flow.save_pretrained(folder)
    assert (folder / WEIGHTS_NAME).read_bytes() == before


def test_the_base_class_finds_the_class_that_saved(folder):
    assert type(Flow.from_pretrained(folder)) is TARFlow
    assert type(Pretrained.from_pretrained(folder)) is TARFlow


class TwoTokens(Flow):
    """A user's own: its configuration is the argument of its own constructor."""

    def __init__(self, width: int):
        inner = TARFlow((4,), 2, channels=width, num_blocks=1, head_dim=8)
        super().__init__(inner._transform, StandardNormal((2, 2)))


def test_a_subclass_of_a_users_own_comes_back(tmp_path):
    flow = perturb(TwoTokens(16))
    assert flow.config == {"width": 16}
    loaded = Flow.from_pretrained(flow.save_pretrained(tmp_path))
    assert type(loaded) is TwoTokens
    assert torch.equal(loaded.sample(3, seed=0), flow.sample(3, seed=0))


def test_a_folder_that_names_no_module_is_read_by_its_own_class(flow, folder):
    document = read_config(folder)
    del document["module"]
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    assert type(TARFlow.from_pretrained(folder)) is TARFlow
    with pytest.raises(ValueError, match="describes a 'TARFlow', not a Flow: load it with the class that saved it"):
        Flow.from_pretrained(folder)


def test_arguments_that_build_another_model_are_not_saved(flow, tmp_path, caplog):
    folder = flow.with_scaled_noise(1.0, 1.5).save_pretrained(tmp_path)
    assert read_config(folder)["config"] is None
    assert "only the weights of this TARFlow are saved, for load_pretrained: its arguments build another" in caplog.text
    assert "'_distribution'" in caplog.text
    again = TARFlow(**flow.config).with_scaled_noise(1.0, 1.5).load_pretrained(folder).eval()
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(again.log_prob(x), flow.with_scaled_noise(1.0, 1.5).log_prob(x))


def test_a_class_inside_a_function_is_loaded_by_itself(tmp_path):
    class Inner(TwoTokens):
        pass

    folder = perturb(Inner(16)).save_pretrained(tmp_path)
    assert type(Inner.from_pretrained(folder)) is Inner
    with pytest.raises(ValueError, match="Inner"):
        Flow.from_pretrained(folder)


def test_weights_alone_are_read_into_a_flow_that_cannot_be_described(tmp_path, caplog):
    flow = perturb(spline_on_top())
    assert flow.config is None
    folder = flow.save_pretrained(tmp_path)
    assert "only the weights of this Flow are saved" in caplog.text
    assert read_config(folder) == {"architecture": "Flow", "module": "nflib", "config": None}
    other = spline_on_top()
    assert other.load_pretrained(folder) is other
    x = torch.randn(3, 8)
    assert torch.equal(other.eval().log_prob(x), flow.log_prob(x))


class SharedParts(Flow):
    """Two blocks with one class embedding and one layer between them, or with parts of their own."""

    def __init__(self, shared: bool = True):
        first, second = autoregressive(num_classes=NUM_CLASSES), autoregressive(num_classes=NUM_CLASSES)
        if shared:
            second.network.embedding = first.network.embedding
            second.network.layers[1] = first.network.layers[0]
        super().__init__(CompositeTransform([first, second]), StandardNormal((6, 2)))

    @property
    def networks(self) -> list[CausalTransformer]:
        return [part.network for part in self._transform._transforms]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parts_that_are_shared_are_saved_once_and_stay_shared(dtype, tmp_path):
    flow = perturb(SharedParts()).to(dtype)
    folder = flow.save_pretrained(tmp_path)
    state = load_file(folder / WEIGHTS_NAME)
    distinct = {id(tensor): tensor for tensor in flow.state_dict(keep_vars=True).values()}
    assert len(state) == len(distinct) < len(flow.state_dict())
    assert sum(tensor.numel() for tensor in state.values()) == sum(tensor.numel() for tensor in distinct.values())
    x, context = torch.randn(3, 6, 2, dtype=dtype), torch.tensor([0, 2, -1])
    for loaded in (SharedParts.from_pretrained(folder), SharedParts().load_pretrained(folder).eval()):
        first, second = loaded.networks
        assert second.embedding is first.embedding and second.layers[1] is first.layers[0]
        assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
        assert loaded.state_dict().keys() == flow.state_dict().keys()
        for name, tensor in loaded.state_dict().items():
            assert tensor.dtype == dtype and torch.equal(tensor, flow.state_dict()[name])
        with torch.no_grad():
            first.embedding.weight.add_(1.0)
        assert torch.equal(second.embedding.weight, first.embedding.weight)


def test_shared_parts_do_not_fit_parts_apart(tmp_path):
    folder = perturb(SharedParts()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another model") as error:
        SharedParts(shared=False).load_pretrained(folder)
    assert " 0 unknown" in one_sentence(error)


def test_nothing_is_unpickled(flow, folder):
    """A pickle under the weights' name is refused, not run."""
    torch.save(flow.state_dict(), folder / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="truncated or damaged"):
        TARFlow.from_pretrained(folder)


# --- what is refused ---


def one_sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message, message
    return message


def test_missing_folder_or_file(flow, folder, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        TARFlow.from_pretrained(tmp_path / "nowhere")
    assert CONFIG_NAME in one_sentence(error) and "nowhere" in str(error.value)
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(FileNotFoundError) as error:
        TARFlow.from_pretrained(folder)
    assert WEIGHTS_NAME in one_sentence(error) and str(folder) in str(error.value)
    with pytest.raises(FileNotFoundError):
        flow.load_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.999])
def test_truncated_weights(folder, fraction):
    path = folder / WEIGHTS_NAME
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError) as error:
        TARFlow.from_pretrained(folder)
    assert str(path) in one_sentence(error) and "truncated" in str(error.value)


@pytest.mark.parametrize("content", [b"", b'{"architecture": "TARF', b"[]", b"\xff\xfe\x00"])
def test_damaged_configuration(folder, content):
    (folder / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError) as error:
        TARFlow.from_pretrained(folder)
    assert str(folder / CONFIG_NAME) in one_sentence(error)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", None, ""])
def test_another_architecture(folder, architecture):
    (folder / CONFIG_NAME).write_text(json.dumps({"architecture": architecture, "config": {}}))
    with pytest.raises(ValueError) as error:
        TARFlow.from_pretrained(folder)
    assert repr(architecture) in one_sentence(error) or architecture == ""
    assert "TARFlow" in str(error.value)


def test_another_class_than_the_one_asked_for(folder):
    class Unrelated(Flow):
        pass

    with pytest.raises(ValueError) as error:
        Unrelated.from_pretrained(folder)
    assert "'TARFlow', not a Unrelated" in one_sentence(error)


def test_a_flow_that_cannot_be_described_cannot_be_rebuilt_from_its_folder(tmp_path):
    folder = spline_on_top().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        Flow.from_pretrained(folder)
    assert "load_pretrained" in one_sentence(error)


def test_configuration_of_another_version(folder):
    document = read_config(folder)
    document["config"]["attention_flavour"] = "vanilla"
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError) as error:
        TARFlow.from_pretrained(folder)
    assert "attention_flavour" in one_sentence(error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_blocks": 3}, "missing"),
        ({"num_blocks": 1}, "unknown"),
        ({"channels": 32}, "of another shape"),
        ({"num_classes": 0}, "unknown"),
        ({"positions": "rotary"}, "unknown"),
    ],
    ids=str,
)
def test_weights_of_another_model(flow, folder, change, said):
    other = TARFlow(**(flow.config | change))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError) as error:
        other.load_pretrained(folder)
    message = one_sentence(error)
    assert "another model" in message and str(folder / WEIGHTS_NAME) in message
    counts = {"missing": message.split(": ")[1].split(" tensors")[0]}
    counts |= {word: message.split(f" {word}")[0].split()[-1] for word in ("unknown", "of another shape")}
    assert int(counts[said]) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_renamed_tensor_is_named(flow, folder):
    state = load_file(folder / WEIGHTS_NAME)
    name = sorted(state)[0]
    state["other." + name] = state.pop(name)
    save_file(state, folder / WEIGHTS_NAME)
    with pytest.raises(ValueError) as error:
        flow.load_pretrained(folder)
    assert repr(name) in one_sentence(error)


MEMORY = """
import resource, sys
from nflib.flows import TARFlow

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
if sys.argv[2] == "save":
    flow = TARFlow((64,), channels=1024, num_blocks=2, layers_per_block=4)
    before = peak()
    flow.save_pretrained(sys.argv[1])
else:
    flow = TARFlow.from_pretrained(sys.argv[1])
print(peak() - before, sum(p.numel() for p in flow.parameters()) / 2**18)
"""


def test_weights_are_held_once(tmp_path):
    """Peak memory above the start, in MiB: saving copies a tensor at a time, and loading has no second model."""

    def measured(what):
        run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path, what], check=True, capture_output=True, text=True)
        return [float(number) for number in run.stdout.split()]

    above, size = measured("save")
    assert above < 0.3 * size
    above, size = measured("load")
    assert above < 1.25 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_in_which_weights_are_written(flow, tmp_path, dtype):
    again = TARFlow.from_pretrained(flow.save_pretrained(tmp_path, dtype))
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in again.parameters())
    x = torch.randn(2, 1, 4, 4, dtype=torch.promote_types(dtype, torch.float32))
    expected = flow.log_prob(x.float()).to(x.dtype)
    torch.testing.assert_close(again.log_prob(x), expected, rtol=0, atol=1 if dtype == torch.bfloat16 else 1e-4)
    for wrong in (torch.int8, torch.complex64, "bfloat16"):
        with pytest.raises(ValueError, match="in a floating-point dtype"):
            flow.save_pretrained(tmp_path, wrong)
    assert TARFlow.from_pretrained(tmp_path).log_prob(x).equal(again.log_prob(x))


class Table(Pretrained):
    """A buffer of some kind of numbers."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("table", torch.arange(3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.complex64], ids=str)
def test_tables_of_other_numbers_come_back(dtype, tmp_path):
    loaded = Table.from_pretrained(Table(dtype).save_pretrained(tmp_path))
    assert loaded.table.dtype == dtype and loaded.table.tolist() == [0, 1, 2]
    assert load_file(tmp_path / WEIGHTS_NAME)["table"].dtype == dtype


def test_conjugates_that_torch_has_not_computed_yet(tmp_path):
    numbers = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    write_tensors(tmp_path / "a", {"conjugate": numbers, "negative": numbers.imag})
    found = load_file(tmp_path / "a")
    assert found["conjugate"].tolist() == [1 - 2j, 3 + 4j] and found["negative"].tolist() == [-2, 4]


def test_numbers_that_a_file_does_not_hold_are_named(tmp_path):
    with pytest.raises(ValueError, match="the tensor 'table' is of torch.complex128"):
        Table(torch.complex128).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_parts_of_nflows_do_not_compute_in_half_precision(tmp_path):
    flow = Flow(CompositeTransform([LULinear(6), ActNorm(6)]), StandardNormal((6,))).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    expected = flow.log_prob(x)
    narrow = Flow.from_pretrained(flow.save_pretrained(tmp_path / "narrow", dtype=torch.bfloat16))
    for call in (lambda: narrow.log_prob(x), lambda: narrow.sample(3), lambda: narrow.encode(x)):
        with pytest.raises(ValueError, match="LULinear of nflows does not compute with weights in torch.bfloat16"):
            call()
    torch.testing.assert_close(narrow.float().log_prob(x), expected, rtol=0.02, atol=0.02)
    scaled = Flow(CompositeTransform([ActNorm(6)]), StandardNormal((6,))).eval().bfloat16()
    assert scaled.log_prob(x).isfinite().all()  # which takes any


def test_other_threads_build_models_in_the_meantime():
    """Only the thread that saves or loads builds without memory for parameters."""
    inside, built = threading.Event(), threading.Event()

    def build():
        inside.set()
        assert built.wait(10)
        return TARFlow((4,), **SMALL)

    def elsewhere():
        assert inside.wait(10)
        made.append(TARFlow((4,), **SMALL))
        built.set()

    made = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert all(parameter.is_meta for parameter in _without_weights(build).parameters())
    thread.join()
    assert not any(parameter.is_meta for parameter in made[0].parameters())

"""The training loop, its objectives and its files."""

import copy
import importlib.util
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import PointwiseAffineTransform
from safetensors.torch import load_file
from torch import nn

from nflib.flows import TARFlow
from nflib.networks import ClassEmbedding, LearnedPositions
from nflib.training import (
    ExponentialMovingAverage,
    LogVariance,
    TrainingResult,
    TrainingState,
    checkpoints,
    fit,
    maximum_likelihood,
)
from nflib.training.data import EpochOrder
from nflib.training.feed import Augmentation
from nflib.training.loop import _Run
from nflib.training.optimizer import parameter_groups
from nflib.training.schedule import learning_rate
from tests.nflib import train_tiny_flow as tiny
from tests.nflib.training_cases import Gaussian, Record, configuration, generator, logged, normal

# --- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "got"),
    [
        (lambda flow, batch, _: flow.log_prob(batch["inputs"]).mean(), r"a tensor of shape \(\)"),
        (lambda flow, batch, _: (flow.log_prob(batch["inputs"]), {}), r"\(a tensor of shape \(10,\), dict\)"),
        (lambda flow, batch, _: (0.5, {}), r"\(float, dict\)"),
        (lambda flow, batch, _: None, "NoneType"),
    ],
)
def test_what_an_objective_must_return_is_told(tmp_path: Path, objective: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"the objective must return \(loss, scalars\), .*; got {got}\.$"):
        fit(Gaussian(), normal(20, 2), config=configuration(batch_size=10), objective=objective, output=tmp_path)  # type: ignore[arg-type]


def test_fit_finds_the_maximum_likelihood_estimate(tmp_path: Path) -> None:
    data = normal(256, 2) * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -1.0])
    flow = Gaussian()
    config = configuration(batch_size=256, max_steps=400, learning_rate=5e-2, ema_decay=0.9, log_interval=100)
    result = fit(flow, data, config=config, output=tmp_path)
    assert result.steps == 400 and result.skipped_steps == 0
    torch.testing.assert_close(flow.mean, data.mean(dim=0), atol=2e-3, rtol=0)
    torch.testing.assert_close(flow.log_scale.exp(), data.std(dim=0, correction=0), atol=2e-3, rtol=0)
    entropy = (data.std(dim=0, correction=0).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert result.loss == pytest.approx(float(entropy), abs=1e-4)


def test_flow_holds_the_saved_weights_afterwards(tmp_path: Path) -> None:
    flow = tiny.tiny_flow()
    result = fit(flow, normal(64, 3), config=configuration(), output=tmp_path)
    saved = load_file(result.model / "model.safetensors")
    assert saved.keys() == flow.state_dict().keys()
    for name, value in flow.state_dict().items():
        assert torch.equal(value, saved[name])
    assert not flow.training


def test_best_validation_is_kept_and_is_that_of_the_averaged_weights(tmp_path: Path) -> None:
    validation = normal(50, 3, seed=1)
    flow = tiny.tiny_flow()
    # The training data lie elsewhere, so that validation gets worse and the first one stays the best.
    config = configuration(max_steps=40, ema_decay=0.5)
    result = fit(flow, normal(64, 3) + 5, validation, config=config, output=tmp_path)
    losses = logged(tmp_path, "validation_loss")
    assert len(losses) == 10 and result.validation_loss == pytest.approx(losses[-1])
    assert result.best_step == 4 and result.best_validation_loss == pytest.approx(min(losses))
    with torch.no_grad():
        again = -flow.log_prob(validation).mean()
    assert float(again) == pytest.approx(result.best_validation_loss, rel=1e-6)
    last = tiny.tiny_flow()
    result = fit(last, normal(64, 3) + 5, validation, config=configuration(keep_best=False), output=tmp_path / "b")
    with torch.no_grad():
        assert float(-last.log_prob(validation).mean()) == pytest.approx(result.validation_loss, rel=1e-6)


def test_context_datasets_and_workers_give_the_same_losses(tmp_path: Path) -> None:
    inputs, context = normal(40, 2), normal(40, 1, seed=1)

    class Shifted(Gaussian):
        def log_prob(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            assert context is not None
            return super().log_prob(inputs - context)

    losses = []
    dataset = torch.utils.data.TensorDataset(inputs, context)
    for index, (data, workers) in enumerate([((inputs, context), 0), (dataset, 0), (dataset, 1)]):
        record = Record()
        config = configuration(num_workers=workers, max_steps=6)
        fit(Shifted(), data, config=config, output=tmp_path / str(index), callbacks=[record])
        losses.append(record.losses)
    assert losses[0] == losses[1] == losses[2]


def test_bfloat16_autocast_leaves_data_and_log_densities_in_float32(tmp_path: Path) -> None:
    seen = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def log_prob(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            hidden = self.layer(inputs)
            seen.append((inputs, hidden.dtype))
            return -(hidden**2).sum(dim=1)

    data = normal(16, 2)
    record = Record()
    config = configuration(precision="bf16-mixed", max_steps=2, batch_size=16)
    fit(Probe(), data, config=config, output=tmp_path, callbacks=[record])
    inputs, compute = seen[0]
    assert compute == torch.bfloat16 and inputs.dtype == torch.float32
    assert set(map(tuple, inputs.tolist())) == set(map(tuple, data.tolist()))

    def check(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> tuple:
        loss, scalars = maximum_likelihood(flow, batch, generator)
        assert loss.dtype == torch.float32
        return loss, scalars

    fit(Probe(), data, config=config, output=tmp_path / "b", objective=check)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    data = {"inputs": normal(64, 3), "weights": torch.rand(64, generator=generator(1))}
    losses, norms, flows = [], [], []
    for accumulation in (1, 4):
        record, flow, gradients = Record(), tiny.tiny_flow(), []
        config = configuration(accumulation=accumulation, gradient_clip=None)
        keep = lambda state, kept=gradients: kept.append(state.gradient_norm)  # noqa: E731
        fit(flow, data, config=config, output=tmp_path / str(accumulation), callbacks=[record, keep])
        losses.append(record.losses)
        norms.append(gradients)
        flows.append(flow.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and norms[1] == pytest.approx(norms[0], rel=1e-4)
    for name, value in flows[0].items():
        torch.testing.assert_close(flows[1][name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be shared evenly in 5 parts"):
        fit(Gaussian(3), data, config=configuration(accumulation=5), output=tmp_path / "a")
    with pytest.raises(ValueError, match="LogVariance takes whole batches; set accumulation=1"):
        energies = {"inputs": normal(64, 3), "energy": normal(64)}
        config = configuration(accumulation=2)
        fit(Gaussian(3), energies, config=config, objective=LogVariance(), output=tmp_path / "b")


def test_time_budget_ends_the_run_and_drives_the_schedule(tmp_path: Path) -> None:
    record = Record()
    config = configuration(max_steps=None, max_seconds=0.3, warmup_fraction=0.0)
    result = fit(Gaussian(), normal(64, 2), config=config, output=tmp_path, callbacks=[record])
    assert result.seconds >= 0.3 and result.steps == len(record.losses)
    assert record.rates[0] == pytest.approx(1e-2, rel=0.1) and sorted(record.rates, reverse=True) == record.rates
    again = fit(Gaussian(), normal(64, 2), config=config, output=tmp_path, callbacks=[record])
    assert again.steps == result.steps  # the budget counts the earlier run


def test_callback_stops_the_run(tmp_path: Path) -> None:
    def stop(state: TrainingState) -> None:
        with state.averaged() as flow:
            assert not flow.training
        assert state.flow.training
        state.stop = state.step == 3

    result = fit(Gaussian(), normal(64, 2), config=configuration(), output=tmp_path, callbacks=[stop])
    assert result.steps == 3 and (tmp_path / "checkpoints" / "step-000000003").is_dir()
    again = fit(Gaussian(), normal(64, 2), config=configuration(), output=tmp_path, callbacks=[stop])
    assert again.steps == configuration().max_steps  # it goes on, past the step that the callback waits for


def test_global_random_state_is_given_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(Gaussian(dropout=0.5), normal(64, 2), config=configuration(), output=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# --- resuming -------------------------------------------------------------------------------------


def jitter(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def dropout_flow() -> Gaussian:
    flow = Gaussian(3, dropout=0.3)
    with torch.no_grad():
        flow.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return flow


def test_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    data, validation = normal(50, 3) + 2, normal(20, 3, seed=1) + 2

    def run(output: Path, record: Record) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
        flow = dropout_flow()
        result = fit(flow, data, validation, config=configuration(), output=output, augment=jitter, callbacks=[record])
        return result, flow.state_dict()

    whole, first, second = Record(), Record(fail_at=8), Record()
    result, weights = run(tmp_path / "whole", whole)
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", first)
    resumed, resumed_weights = run(tmp_path / "parts", second)
    assert second.steps == list(range(6, 13))  # from the checkpoint after step 5
    assert first.losses == whole.losses[:8] and second.losses == whole.losses[5:]
    assert len(set(whole.losses)) == 12
    assert logged(tmp_path / "parts", "validation_loss", 1) == logged(tmp_path / "whole", "validation_loss")[1:]
    assert resumed.best_validation_loss == result.best_validation_loss and resumed.best_step == result.best_step
    for name in weights:
        assert torch.equal(weights[name], resumed_weights[name])
    third = Record()
    assert run(tmp_path / "parts", third)[0].steps == 12 and not third.losses  # a finished run stays as it is


class RandomItems(torch.utils.data.Dataset):
    """Items that draw from torch's global generator, as random crops do."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> torch.Tensor:
        return index / 50 + torch.randn(3)


@pytest.mark.parametrize(
    ("data", "settings", "augment"),
    [
        (RandomItems(), {}, None),
        (RandomItems(), {"num_workers": 2}, None),
        (normal(50, 3), {}, lambda inputs, generator: inputs + torch.randn_like(inputs)),
    ],
    ids=["items", "workers", "augmentation"],
)
def test_what_data_draw_from_the_global_generator_is_resumed_too(
    tmp_path: Path, data: object, settings: dict[str, object], augment: Augmentation | None
) -> None:
    config = configuration(max_steps=8, checkpoint_interval=3, **settings)
    losses: dict[str, list[float]] = {}
    for seed, (folder, fail_at) in enumerate([("whole", None), ("parts", 4), ("parts", None)]):
        torch.manual_seed(seed)
        record = Record(fail_at)
        with pytest.raises(InterruptedError) if fail_at else nullcontext():
            fit(Gaussian(3), data, config=config, output=tmp_path / folder, augment=augment, callbacks=[record])
        losses[f"{folder}-{fail_at}"] = record.losses
    assert losses["parts-4"] == losses["whole-None"][:4]
    assert losses["parts-None"] == losses["whole-None"][3:]


def test_validation_draws_the_same_numbers_every_time(tmp_path: Path) -> None:
    def noisy(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> object:
        return maximum_likelihood(flow, {"inputs": batch["inputs"] + torch.randn_like(batch["inputs"])}, generator)

    config = configuration(learning_rate=1e-12)
    fit(Gaussian(3), normal(50, 3), RandomItems(), config=config, objective=noisy, output=tmp_path)  # type: ignore[arg-type]
    values = logged(tmp_path, "validation_loss")
    assert len(values) == 3 and values == pytest.approx(values[:1] * 3, rel=1e-6)


@pytest.mark.parametrize("value", [3, 3.0, True, torch.tensor(3), torch.tensor(True), torch.tensor(3.0).double()])
def test_scalars_to_log_may_be_numbers_of_any_kind(tmp_path: Path, value: object) -> None:
    def objective(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> object:
        return maximum_likelihood(flow, batch, generator)[0], {"mine": value}

    config = configuration(max_steps=2, accumulation=2)
    fit(Gaussian(), normal(20, 2), config=config, objective=objective, output=tmp_path)  # type: ignore[arg-type]
    assert logged(tmp_path, "mine") == [float(value)] * 2  # type: ignore[arg-type]


class Growing:
    """A `BatchSource` that gets new rows from the flow; keeps its own state if asked to."""

    def __init__(self) -> None:
        self.rows = normal(30, 3) + 2
        self.refreshed: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"inputs": self.rows[indices]}

    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        self.refreshed.append(step)
        assert not flow.training
        new = flow.mean.detach() + torch.randn(5, 3, generator=generator)
        self.rows = torch.cat([self.rows, new])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.rows = state["rows"]


def test_refreshed_data_resume_exactly(tmp_path: Path) -> None:
    whole, second = Record(), Record()
    config = configuration(refresh_interval=3)
    source = Growing()
    fit(dropout_flow(), source, config=config, output=tmp_path / "whole", callbacks=[whole])
    assert source.refreshed == [3, 6, 9] and len(source) == 45
    with pytest.raises(InterruptedError):
        fit(dropout_flow(), Growing(), config=config, output=tmp_path / "parts", callbacks=[Record(fail_at=8)])
    source = Growing()
    fit(dropout_flow(), source, config=config, output=tmp_path / "parts", callbacks=[second])
    assert source.refreshed == [6, 9] and len(source) == 45
    assert second.losses == whole.losses[5:]


def test_refresh_needs_the_method(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TensorSource has no method refresh"):
        fit(Gaussian(), normal(8, 2), config=configuration(refresh_interval=3), output=tmp_path)


@pytest.mark.parametrize(
    ("model", "rows", "changes", "message"),
    [
        (8, 50, {"learning_rate": 2e-2}, r"learning_rate=0\.01, not 0\.02"),
        (16, 50, {}, "another model"),
        (8, 51, {}, "50 rows of training data, not 51"),
        (8, 50, {"resume": False}, "holds an earlier run"),
    ],
)
def test_resume_refuses_what_does_not_fit(
    tmp_path: Path, model: int, rows: int, changes: dict[str, object], message: str
) -> None:
    fit(tiny.tiny_flow(), normal(50, 3), config=configuration(), output=tmp_path)
    with pytest.raises(ValueError, match=message):
        config = configuration(**{"max_steps": 20} | changes)
        fit(tiny.tiny_flow(hidden=model), normal(rows, 3), config=config, output=tmp_path)


def test_resume_refuses_another_architecture_of_the_same_tensors(tmp_path: Path) -> None:
    def flow(head_dim: int) -> TARFlow:
        return TARFlow(4, channels=16, num_blocks=1, layers_per_block=1, head_dim=head_dim)

    fit(flow(8), normal(32, 4), config=configuration(max_steps=1), output=tmp_path)
    with pytest.raises(ValueError, match="made with head_dim=8, not 16; resume with the same"):
        fit(flow(16), normal(32, 4), config=configuration(max_steps=2), output=tmp_path)
    path = tmp_path / "checkpoints" / "step-000000001" / checkpoints.TRAINING
    torch.save({name: part for name, part in torch.load(path).items() if name != "flow"}, path)
    fit(flow(16), normal(32, 4), config=configuration(max_steps=2), output=tmp_path)  # earlier versions did not tell


def test_moments_are_not_taken_by_other_weights(tmp_path: Path) -> None:
    """States go by a weight's number among all groups: one that now decays no more would have another's moments."""
    fit(tiny.tiny_flow(), normal(50, 3), config=configuration(), output=tmp_path)
    flow = tiny.tiny_flow()
    next(module for module in flow.modules() if isinstance(module, nn.Linear)).decays = False
    with pytest.raises(ValueError, match="other weights decayed or trained than now"):
        fit(flow, normal(50, 3), config=configuration(max_steps=20), output=tmp_path)


def test_damaged_checkpoint_is_an_error_and_half_written_ones_are_ignored(tmp_path: Path) -> None:
    config = configuration(checkpoints_kept=1)
    fit(tiny.tiny_flow(), normal(50, 3), config=config, output=tmp_path)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-000000012"]
    (folder / ".step-000000099.tmp").mkdir()
    assert checkpoints.latest_checkpoint(folder) == folder / "step-000000012"
    weights = folder / "step-000000012" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-000000012 is damaged"):
        fit(tiny.tiny_flow(), normal(50, 3), config=config, output=tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    fit(tiny.tiny_flow(), normal(50, 3), config=configuration(), output=tmp_path)
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(marker),)

    torch.save({"config": Trap()}, tmp_path / "checkpoints" / "step-000000012" / "training.pt")
    with pytest.raises(ValueError, match="damaged"):
        fit(tiny.tiny_flow(), normal(50, 3), config=configuration(), output=tmp_path)
    assert not marker.exists()


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        tiny.__file__,
    ]
    command += [str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tiny.train(tmp_path / "one")
    for objective in ("likelihood", "log-variance"):
        for column in ("loss", "negative_log_likelihood", "validation_loss"):
            one = logged(tmp_path / "one" / objective, column)
            two = logged(tmp_path / "two" / objective, column)
            assert len(one) == (2 if column == "validation_loss" else 6)
            assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([0, 20], r"process 1 sees no checkpoint in \S+, process 0 step 1; give a folder that all processes share\."),
        ([1, 19], r"process 1 has 19 rows of training data, process 0 20; give all processes the same data\."),
    ],
)
def test_processes_that_begin_unlike_are_refused(tmp_path: Path, other: list[int], message: str) -> None:
    fit(Gaussian(), normal(20, 2), config=configuration(max_steps=1), output=tmp_path)
    run = _Run(Gaussian(), normal(20, 2), None, configuration(), maximum_likelihood, tmp_path, None, ())
    run.log.close()
    run.fabric = SimpleNamespace(world_size=2, all_reduce=lambda seen, reduce_op: seen + torch.tensor([[0, 0], other]))
    with pytest.raises(ValueError, match=message):
        run._check_alike(tmp_path)


def test_processes_draw_numbers_of_their_own(tmp_path: Path) -> None:
    """With equal noise on all of them a batch would hold fewer draws than rows."""
    drawn = []

    def noisy(flow, batch, generator):
        drawn.append(torch.rand(3, generator=generator).tolist())
        return maximum_likelihood(flow, batch, generator)

    for rank in (0, 1):
        run = _Run(Gaussian(3), normal(20, 3), None, configuration(), noisy, tmp_path / str(rank), None, ())
        run.rank = rank
        run._step(next(run.batches))
        run.log.close()
    assert drawn[0] != drawn[1]


# --- errors ---------------------------------------------------------------------------------------


def test_nan_in_data_is_named_by_row(tmp_path: Path) -> None:
    data = normal(30, 2)
    data[17, 1] = float("nan")
    with pytest.raises(ValueError, match="row 17 of the data's 'inputs'"):
        fit(Gaussian(), data, config=configuration(), output=tmp_path)
    dataset = torch.utils.data.TensorDataset(data)
    with pytest.raises(ValueError, match="row 17 of the data's 'inputs'"):
        fit(Gaussian(), dataset, config=configuration(), output=tmp_path)


def test_other_bad_data(tmp_path: Path) -> None:
    for data, message in [
        (torch.empty(0, 2), "empty"),
        ("data.pt", "not str"),
        ((normal(4, 2), normal(5, 2)), "equally many rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(Gaussian(), data, config=configuration(), output=tmp_path)
    fixed = Flow(PointwiseAffineTransform(1.0, 2.0), StandardNormal([2]))
    with pytest.raises(ValueError, match="no trainable parameters"):
        fit(fixed, normal(4, 2), config=configuration(), output=tmp_path)
    with pytest.raises(ValueError, match="accelerator='abacus'"):
        fit(Gaussian(), normal(4, 2), config=configuration(accelerator="abacus"), output=tmp_path)


def test_unwritable_output_is_reported_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = Record()
    with pytest.raises(OSError, match=r"cannot make .*run \(Not a directory\); choose another folder"):
        config = configuration()
        fit(Gaussian(), normal(8, 2), config=config, output=tmp_path / "file" / "run", callbacks=[record])
    assert not record.losses


def spoiled(bad_steps: set[int]):
    """Maximum likelihood whose loss is infinite in some calls."""
    calls = iter(range(1000))

    def objective(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> tuple:
        loss, scalars = maximum_likelihood(flow, batch, generator)
        return (loss * float("inf") if next(calls) in bad_steps else loss), scalars

    return objective


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    flow, kept = Gaussian(), []

    def keep(state: TrainingState) -> None:
        kept.append(flow.mean.detach().clone())

    result = fit(
        flow,
        normal(64, 2) + 1,
        config=configuration(max_skipped_steps=2),
        objective=spoiled({3, 4}),
        output=tmp_path,
        callbacks=[keep],
    )
    assert result.skipped_steps == 2 and result.steps == 12
    assert torch.equal(kept[2], kept[3]) and torch.equal(kept[2], kept[4]) and not torch.equal(kept[4], kept[5])
    assert all(torch.isfinite(mean).all() for mean in kept)


def test_too_many_skipped_steps_are_an_error_naming_the_step(tmp_path: Path) -> None:
    config = configuration(max_skipped_steps=2)
    with pytest.raises(RuntimeError, match="3 steps in a row, up to step 7"):
        fit(Gaussian(), normal(64, 2), config=config, objective=spoiled({4, 5, 6}), output=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "max_steps or max_seconds"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"precision": "16"}, "bf16-mixed"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"betas": ("high", 0.9)}, "betas must be two numbers"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup_fraction": 2.0}, "fraction"),
    ],
)
def test_configuration_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configuration(**changes)


# --- parts ----------------------------------------------------------------------------------------


def test_likelihood_matches_the_closed_form() -> None:
    flow, data = Gaussian(), normal(10, 2)
    loss, _ = maximum_likelihood(flow, {"inputs": data}, generator())
    assert float(loss.detach()) == pytest.approx(
        float((data**2).sum(dim=1).mean() / 2 + math.log(2 * math.pi)), rel=1e-6
    )


def test_log_variance_is_the_variance_and_vanishes_at_the_target() -> None:
    flow, data = Gaussian(), normal(100, 2)
    objective = LogVariance(likelihood_weight=0.0)
    energy = (data**2).sum(dim=1) / 2 - 7.0
    loss, _ = objective(flow, {"inputs": data, "energy": energy}, generator())
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-10)
    energy = (data**4).sum(dim=1)
    loss, _ = objective(flow, {"inputs": data, "energy": energy}, generator())
    difference = flow.log_prob(data) + energy
    torch.testing.assert_close(loss, difference.var(correction=0))
    # The centre is treated as a constant; at the minimum over it that changes no gradient.
    ours = torch.autograd.grad(loss, list(flow.parameters()))
    exact = torch.autograd.grad(difference.var(correction=0), list(flow.parameters()))
    torch.testing.assert_close(ours, exact)


def test_clipped_log_variance_bounds_outliers_and_ignores_infinite_energies() -> None:
    flow, data = Gaussian().double(), normal(200, 2).double()
    energy = (data**2).sum(dim=1) * 0.7
    batch = {"inputs": data, "energy": energy}
    plain, _ = LogVariance(clip=None)(flow, batch, generator())
    wide, _ = LogVariance(clip=1e6)(flow, batch, generator())
    torch.testing.assert_close(wide, plain)

    spoiled_energy = energy.clone()
    spoiled_energy[:3] = torch.tensor([float("inf"), float("nan"), -float("inf")], dtype=torch.float64)
    few = {"inputs": data, "energy": spoiled_energy}
    loss, scalars = LogVariance(likelihood_weight=0.0, clip=1.0)(flow, few, generator())
    rest = {"inputs": data[3:], "energy": energy[3:]}
    expected, _ = LogVariance(likelihood_weight=0.0, clip=1.0)(flow, rest, generator())
    torch.testing.assert_close(loss, expected)
    assert float(scalars["rejected_energies"]) == pytest.approx(3 / 200)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, list(flow.parameters())))

    far = energy.clone()
    far[0] += 1e9
    clip = LogVariance(likelihood_weight=0.0, clip=1.0)
    gradient = torch.autograd.grad(clip(flow, batch | {"energy": far}, generator())[0], flow.log_scale)[0]
    normal_gradient = torch.autograd.grad(clip(flow, batch, generator())[0], flow.log_scale)[0]
    assert float((gradient - normal_gradient).abs().max()) < 0.1


def test_log_variance_restricts_the_likelihood_to_data() -> None:
    flow, data = Gaussian(), normal(10, 2)
    batch = {"inputs": data, "energy": torch.zeros(10), "is_data": torch.arange(10) < 4}
    loss, _ = LogVariance(energy_weight=0.0)(flow, batch, generator())
    torch.testing.assert_close(loss, -flow.log_prob(data[:4]).mean())
    with pytest.raises(ValueError, match="energy"):
        LogVariance()(flow, {"inputs": data}, generator())
    with pytest.raises(ValueError, match="clip"):
        LogVariance(clip=0.0)


def test_clipped_log_variance_is_the_least_over_the_constant() -> None:
    flow, data = Gaussian().double(), normal(200, 2).double()
    energy = (data**4).sum(dim=1)
    loss, _ = LogVariance(likelihood_weight=0.0, clip=3.0)(flow, {"inputs": data, "energy": energy}, generator())
    constants = torch.linspace(-5, 5, 20001, dtype=torch.float64)
    residual = ((flow.log_prob(data) + energy).detach() - constants[:, None]).abs()
    penalty = torch.where(residual <= 3.0, residual**2, 2 * 3.0 * residual - 3.0**2)
    torch.testing.assert_close(loss.detach(), penalty.mean(dim=1).min(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_log_variance_of_no_data_or_no_energy_has_the_other_term_alone(clip) -> None:
    flow, data = Gaussian(), normal(10, 2)
    energy, objective = (data**4).sum(dim=1), LogVariance(clip=clip)
    loss, _ = objective(flow, {"inputs": data, "energy": energy, "is_data": torch.zeros(10)}, generator())
    variance, _ = LogVariance(likelihood_weight=0.0, clip=clip)(flow, {"inputs": data, "energy": energy}, generator())
    torch.testing.assert_close(loss, variance)
    loss, _ = objective(flow, {"inputs": data, "energy": torch.full((10,), torch.inf)}, generator())
    torch.testing.assert_close(loss, -flow.log_prob(data).mean())


def test_schedule_warms_up_and_ends_at_the_floor() -> None:
    config = configuration(max_steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step, 0.0) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1) and rates[9:] == sorted(rates[9:], reverse=True)
    timed = configuration(max_steps=None, max_seconds=100.0, warmup_fraction=0.1, learning_rate=1.0)
    assert learning_rate(timed, 3, 5.0) == pytest.approx(0.5)
    assert learning_rate(timed, 3, 55.0) == pytest.approx(0.01 + 0.99 * 0.5)
    assert learning_rate(timed, 0, 0.0) > 0


def test_every_epoch_visits_each_row_once() -> None:
    order = EpochOrder(10, 4, seed=3)
    rows = torch.cat([order.batch(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10)) == sorted(rows[10:].tolist())
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(EpochOrder(10, 4, seed=3).batch(3), order.batch(3))
    assert sorted(EpochOrder(3, 6, seed=0).batch(0).tolist()) == [0, 0, 1, 1, 2, 2]
    order.restart(5, 12)
    rows = torch.cat([order.batch(step) for step in range(5, 8)])
    assert sorted(rows.tolist()) == list(range(12))


def test_average_is_exact_in_float32_and_restores_the_weights() -> None:
    flow = Gaussian().bfloat16()
    average = ExponentialMovingAverage(flow, 0.999)
    expected = torch.zeros(2)
    for step in range(200):
        with torch.no_grad():
            flow.mean.fill_(0.01 * step)
        average.update(flow)
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flow.mean.detach().float()
    assert average.average["mean"].dtype == torch.float32
    torch.testing.assert_close(average.average["mean"], expected)
    before = flow.mean.detach().clone()
    with average.applied(flow):
        torch.testing.assert_close(flow.mean, expected.bfloat16())
    assert torch.equal(flow.mean, before)
    without = ExponentialMovingAverage(Gaussian(), 0.0)
    without.update(flow)
    torch.testing.assert_close(without.average["mean"], flow.mean.float())


def test_weight_decay_spares_vectors_norms_and_embeddings() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 4), "norm": nn.LayerNorm([2, 3]), "embedding": nn.Embedding(5, 3)})
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert len(spared["params"]) == 4


class PositionwiseLinear(nn.Linear):
    """Of a name that says nothing."""


class Table(nn.Module):
    decays = False

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(3, 4))


def test_weight_decay_does_not_go_by_names() -> None:
    model = nn.ModuleList([PositionwiseLinear(3, 4), Table(), ClassEmbedding(3, 4), LearnedPositions(3, 4)])
    decayed, spared = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)] and len(spared["params"]) == 4


def test_logs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = configuration(tensorboard=True, progress_bar=True)
    fit(Gaussian(), normal(64, 2), normal(8, 2), config=config, output=tmp_path)
    assert len(logged(tmp_path)) == 12 and len(logged(tmp_path, "validation_loss")) == 3
    assert "loss=" in capfd.readouterr().err
    if importlib.util.find_spec("tensorboard"):
        assert list((tmp_path / "logs" / "version_0").glob("events.out.tfevents.*"))


def test_training_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import lightning_fabric.loggers

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no tensorboard")

    monkeypatch.setattr(lightning_fabric.loggers, "TensorBoardLogger", missing)
    fit(Gaussian(), normal(64, 2), config=configuration(tensorboard=True, max_steps=1), output=tmp_path)
    assert "tensorboard is not installed" in caplog.text and len(logged(tmp_path)) == 1


def test_training_without_fabric_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ModuleNotFoundError, match=r'^fit needs lightning_fabric: pip install "nflib\[training\]"\.$'):
        fit(Gaussian(), normal(64, 2), config=configuration(max_steps=1), output=tmp_path)


def test_import_needs_no_fabric() -> None:
    code = "import sys, nflib.training; sys.exit('lightning_fabric' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0


def test_a_compiled_flow_is_trained_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    plain = TARFlow(2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8)
    compiled = torch.compile(copy.deepcopy(plain), backend=backend)
    config = configuration(max_steps=2, validation_interval=None)
    data = normal(32, 2)
    fit(plain, data, config=config, output=tmp_path / "plain")
    fit(compiled, data, config=config, output=tmp_path / "compiled")
    assert graphs
    written = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("plain", "compiled")]
    torch.testing.assert_close(*written)


def test_a_compiled_flow_of_another_library_is_trained(tmp_path: Path) -> None:
    flow = Flow(PointwiseAffineTransform(0.0, 1.0), StandardNormal([2]))
    flow.shift = nn.Parameter(torch.zeros(2))
    plain = flow.log_prob
    flow.log_prob = lambda inputs, context=None: plain(inputs - flow.shift, context)
    config = configuration(max_steps=2, validation_interval=None)
    assert fit(torch.compile(flow, backend="eager"), normal(32, 2), config=config, output=tmp_path).steps == 2

"""What `fit` takes as data: weights, keys, dtypes, arrays; and what it refuses, in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from nflib.contexts import map_context
from nflib.continuous import pairs_of
from nflib.flows import TARFlow
from nflib.metrics import sliced_wasserstein
from nflib.training import LogVariance, fit, maximum_likelihood
from nflib.training.data import Preparation, TensorSource, as_source
from nflib.transforms import Standardize
from tests.nflib.training_cases import Gaussian, Record, configuration, generator, logged, normal

LONG = {"batch_size": 64, "max_steps": 400, "learning_rate": 5e-2, "ema_decay": 0.9, "log_interval": 100}


class Table:
    """Like an array by `__array__` alone, as a table of pandas is: its `[...]` are columns, by their names."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        return np.asarray(self.array, *arguments, **keywords)

    def __getitem__(self, column: str) -> None:
        raise KeyError(column)

    def __len__(self) -> int:
        return len(self.array)


class Items(torch.utils.data.Dataset):
    """Rows of a dict of tensors as a torch Dataset."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data["inputs"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: map_context(itemgetter(index), values) for name, values in self.data.items()}


# --- weights --------------------------------------------------------------------------------------


def halves(weight_above: float, weight_below: float) -> dict[str, torch.Tensor]:
    """Rows about -3 and +3, and their weights."""
    inputs = torch.cat([normal(200, 2) - 3, normal(200, 2, seed=1) + 3])
    weights = torch.full((400,), weight_below)
    weights[200:] = weight_above
    return {"inputs": inputs, "weights": weights}


def test_weights_of_zero_take_rows_out(tmp_path: Path) -> None:
    flow, data = Gaussian(), halves(2.0, 0.0)
    result = fit(flow, data, data, config=configuration(**LONG), output=tmp_path)
    rest = data["inputs"][200:]
    torch.testing.assert_close(flow.mean, rest.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(flow.log_scale.exp(), rest.std(dim=0), atol=0.05, rtol=0)
    # Validation is the weighted mean too: what the rows that count have by themselves.
    assert result.best_validation_loss == pytest.approx(float(-flow.log_prob(rest).mean().detach()), rel=1e-5)


def test_full_batches_reach_the_weighted_maximum_likelihood_estimate(tmp_path: Path) -> None:
    data = {"inputs": normal(256, 2), "weights": normal(256, seed=1).exp()}
    flow = Gaussian()
    fit(flow, data, config=configuration(**(LONG | {"batch_size": 256})), output=tmp_path)
    weights = (data["weights"] / data["weights"].sum())[:, None]
    mean = (weights * data["inputs"]).sum(dim=0)
    torch.testing.assert_close(flow.mean, mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        flow.log_scale.exp() ** 2, (weights * (data["inputs"] - mean) ** 2).sum(dim=0), atol=4e-3, rtol=0
    )


@pytest.mark.parametrize("scale", [1.0, 1e-30])
@pytest.mark.parametrize("kind", [dict, Items])
def test_the_loss_of_batches_is_unbiased_whatever_the_scale(kind: Any, scale: float) -> None:
    # Self-normalised weights within a batch would be biased: here one row in 8 has nearly all the weight.
    flow = Gaussian().double()
    data = {"inputs": normal(32, 2).double(), "weights": scale * (1 + 100 * (torch.arange(32) % 8 == 0).double())}
    prepare = Preparation(as_source(kind(data)), flow, maximum_likelihood)
    losses = []
    for rows in torch.arange(32).split(4):
        loss, _ = maximum_likelihood(flow, prepare(prepare.source.batch(rows), rows), generator())
        losses.append(loss)
    weights = data["weights"] / data["weights"].sum()
    torch.testing.assert_close(torch.stack(losses).mean(), -(weights * flow.log_prob(data["inputs"])).sum())


def test_renewed_rows_have_weights_of_mean_one_again(tmp_path: Path) -> None:
    means = []

    class Renewed(TensorSource):
        def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
            self.tensors["weights"] = torch.full((16,), 10.0 * step)

    def objective(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> tuple:
        means.append(float(batch["weights"].mean()))
        return maximum_likelihood(flow, batch, generator)

    objective.keys = ("inputs", "weights")  # type: ignore[attr-defined]
    source = Renewed({"inputs": normal(16, 2), "weights": torch.arange(16)})
    fit(Gaussian(), source, config=configuration(refresh_interval=3), objective=objective, output=tmp_path)
    assert means == pytest.approx([1.0] * 12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1.0, -1.0, 1.0, 1.0]), "row 1 of the data's 'weights' is negative, NaN or infinite"),
        (torch.tensor([1.0, 1.0, 1.0, torch.nan]), "row 3 of the data's 'weights'"),
        (torch.tensor([1.0, 1.0, torch.inf, 1.0]), "row 2 of the data's 'weights'"),
        (torch.zeros(4), "all zero"),
        (torch.ones(4, 1), r"one number a row, not of shape \(1,\)"),
        (torch.ones(5), "equally many rows"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, weights: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Gaussian(), {"inputs": normal(4, 2), "weights": weights}, config=configuration(), output=tmp_path)


# --- contexts of several tensors ------------------------------------------------------------------


def told() -> TARFlow:
    torch.manual_seed(0)
    return TARFlow((4,), patch_size=2, channels=16, num_blocks=1, head_dim=8, context_shape=(None, 3))


@pytest.mark.parametrize("kind", [dict, Items, "pair"])
@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}])
def test_contexts_of_tokens_with_a_padding_mask(tmp_path: Path, kind: Any, changes: dict[str, int]) -> None:
    x, tokens, mask = normal(32, 4), normal(32, 5, 3), torch.arange(5) >= torch.arange(32)[:, None] % 5 + 1
    data = {"inputs": x, "context": (tokens.double(), mask)}
    flow, config = told().double(), configuration(batch_size=8, **changes)
    fit(
        flow,
        (x, (tokens.numpy(), mask)) if kind == "pair" else kind(data),
        data,
        config=config,
        augment=lambda inputs, generator: inputs + 1,
        output=tmp_path,
    )
    assert flow.log_prob(x.double() + 1, (tokens.double(), mask)).mean() > told().log_prob(x + 1, (tokens, mask)).mean()


def test_a_teachers_pairs_with_such_contexts_are_data(tmp_path: Path) -> None:
    tokens, mask = normal(3, 5, 3), torch.arange(5) >= torch.tensor([[2], [5], [3]])
    pairs = pairs_of(told().eval(), 4, (tokens, mask), seed=0)
    batch = as_source(pairs).batch(torch.tensor([5, 0]))
    assert torch.equal(batch["context"][0], tokens[[1, 0]]) and torch.equal(batch["context"][1], mask[[1, 0]])
    fit(told(), pairs, config=configuration(max_steps=2), objective=Paired(), output=tmp_path)


@dataclass(frozen=True)
class Paired:
    """Maximum likelihood of data that bring noise along."""

    keys: ClassVar[tuple[str, ...]] = ("inputs", "context", "noise")

    def __call__(self, flow: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> tuple:
        assert batch["noise"].shape == batch["inputs"].shape
        return maximum_likelihood(flow, batch, generator)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ((normal(8, 5, 3), torch.zeros(7, 5, dtype=torch.bool)), "as many rows"),
        ((normal(7, 5, 3), torch.zeros(7, 5, dtype=torch.bool)), "equally many rows"),
        ((normal(8, 5, 3) / 0, torch.zeros(8, 5, dtype=torch.bool)), "row 0 of the data's 'context'"),
        ((normal(8, 5, 3), "mask"), "training data must be"),
        ((), "training data must be"),
    ],
)
def test_such_contexts_that_are_refused(tmp_path: Path, context: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(told(), {"inputs": normal(8, 4), "context": context}, config=configuration(), output=tmp_path)


# --- keys -----------------------------------------------------------------------------------------


def test_keys_that_the_objective_does_not_read_are_refused(tmp_path: Path) -> None:
    data = {"inputs": normal(8, 2), "energy": torch.zeros(8)}
    known = "'energy', but the objective maximum_likelihood reads 'inputs', 'context', 'weights'"
    with pytest.raises(ValueError, match=known):
        fit(Gaussian(), data, config=configuration(), output=tmp_path)
    with pytest.raises(ValueError, match=known):  # in what a Dataset gives, and in validation
        fit(Gaussian(), normal(8, 2), Items(data), config=configuration(), output=tmp_path / "b")
    with pytest.raises(
        ValueError, match="'weights', but the objective LogVariance reads 'inputs', 'context', 'energy'"
    ):
        fit(
            Gaussian(),
            data | {"weights": torch.ones(8)},
            config=configuration(),
            objective=LogVariance(),
            output=tmp_path / "c",
        )


def test_objectives_without_keys_get_everything_but_weights(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def mine(flow: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> tuple:
        seen.append(set(batch))
        return -flow.log_prob(batch["inputs"]).mean(), {}

    data = {"inputs": normal(8, 2), "mass": torch.zeros(8)}
    fit(Gaussian(), data, config=configuration(max_steps=1), objective=mine, output=tmp_path)
    assert seen == [{"inputs", "mass"}]
    data["weights"] = torch.ones(8)
    with pytest.raises(ValueError, match="'weights', but the objective mine has no attribute 'keys'"):
        fit(Gaussian(), data, config=configuration(max_steps=1), objective=mine, output=tmp_path / "b")


# --- dtypes ---------------------------------------------------------------------------------------

VALUES = torch.arange(-8, 8).view(8, 2)


@pytest.mark.parametrize("flow_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float32]
)
def test_data_are_converted_to_the_flow_s_dtype(tmp_path: Path, dtype: torch.dtype, flow_dtype: torch.dtype) -> None:
    values = VALUES.abs().to(dtype)
    losses = []
    for name, data in (("given", values), ("converted", values.to(flow_dtype))):
        record = Record()
        fit(Gaussian().to(flow_dtype), data, data, config=configuration(), output=tmp_path / name, callbacks=[record])
        losses.append(record.losses + logged(tmp_path / name, "validation_loss"))
    assert losses[0] == losses[1]


def test_float64_data_of_a_float32_flow_are_refused(tmp_path: Path) -> None:
    for number, data in enumerate((VALUES.double(), VALUES.numpy().astype(float), Items({"inputs": VALUES.double()}))):
        with pytest.raises(
            ValueError, match=re.escape("'inputs' are float64 and the flow is float32: convert one of them")
        ):
            fit(Gaussian(), data, config=configuration(), output=tmp_path / str(number))
        fit(Gaussian().double(), data, config=configuration(), output=tmp_path / f"double-{number}")
    with pytest.raises(ValueError, match="'context' are float64"):
        fit(Gaussian(), (VALUES.float(), VALUES.double()), config=configuration(), output=tmp_path / "c")


def test_tables_that_make_an_array_are_taken_as_it() -> None:
    array = VALUES.float().numpy()
    table, mirrored = Table(array[:, ::-1]), VALUES.float().flip(1)
    flow = TARFlow(event_shape=(2,), channels=16, num_blocks=1, layers_per_block=1, head_dim=16)
    assert torch.equal(flow.log_prob(table), flow.log_prob(mirrored))
    assert torch.equal(flow.given().log_prob(table), flow.log_prob(mirrored))
    assert torch.equal(Standardize.fit(table).mean, Standardize.fit(mirrored).mean)
    distances = [sliced_wasserstein(x, y, seed=0).squared for x, y in ((table, Table(array)), (mirrored, array))]
    assert distances[0] == distances[1]
    advice = 'by .to(torch.float32) (of an array .astype("float32")) or flow.double()'
    with pytest.raises(ValueError, match=re.escape(advice)):
        flow.log_prob(Table(array.astype(float)))
    with pytest.raises(ValueError, match="inputs are an array of object; give numbers"):
        flow.log_prob(Table(np.array([["a", 1.0]], dtype=object)))


def test_half_precision_flows_get_float32_data() -> None:
    prepare = Preparation(as_source(VALUES), Gaussian().bfloat16(), maximum_likelihood)
    assert prepare(prepare.source.batch(torch.arange(3)), torch.arange(3))["inputs"].dtype == torch.float32


def test_integers_in_a_context_stay_labels() -> None:
    prepare = Preparation(as_source((VALUES, torch.arange(8))), Gaussian(), maximum_likelihood)
    batch = prepare(prepare.source.batch(torch.arange(3)), torch.arange(3))
    assert batch["context"].dtype == torch.int64 and batch["inputs"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16", "float32"])
def test_arrays_count_as_tensors(tmp_path: Path, dtype: str) -> None:
    array = np.abs(VALUES.numpy()).astype(dtype)
    array.flags.writeable = False
    kinds = [array, array[::-1], (array,), {"inputs": array, "weights": np.ones(8)}, Table(array), (Table(array),)]
    for number, data in enumerate(kinds):
        result = fit(Gaussian(), data, data, config=configuration(max_steps=2), output=tmp_path / str(number))
        assert result.steps == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a", "b"]), "'inputs' are an array of <U1"),
        (torch.tensor(1.0), "'inputs' are a single number"),
        (np.zeros((0, 2)), "empty"),
        ([[1.0, 2.0]], "not list"),
        ({"weights": np.ones(8)}, "with 'inputs'"),
        (None, "maximum_likelihood needs training data"),
    ],
)
def test_other_data_are_refused(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Gaussian(), data, config=configuration(), output=tmp_path)


def test_streams_are_refused(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from VALUES

    with pytest.raises(ValueError, match="Stream is a stream.* map-style Dataset"):
        fit(Gaussian(), Stream(), config=configuration(), output=tmp_path)


# --- settings -------------------------------------------------------------------------------------


def test_settings_may_be_numpy_numbers_and_a_run_of_them_is_resumed(tmp_path: Path) -> None:
    def settings(steps: int) -> dict[str, object]:
        sizes = {"batch_size": np.int64(16), "seed": np.int64(3), "max_steps": np.int32(steps), "warmup_steps": 2.0}
        return sizes | {
            "learning_rate": np.float32(1e-2),
            "betas": np.array([0.9, 0.99]),
            "progress_bar": np.bool_(False),
        }

    parts, whole = Record(), Record()
    fit(Gaussian(), normal(40, 2), config=configuration(**settings(6)), output=tmp_path / "a", callbacks=[parts])
    fit(Gaussian(), normal(40, 2), config=configuration(**settings(12)), output=tmp_path / "a", callbacks=[parts])
    plain = configuration(seed=3, warmup_steps=2, learning_rate=float(np.float32(1e-2)), betas=(0.9, 0.99))
    fit(Gaussian(), normal(40, 2), config=plain, output=tmp_path / "b", callbacks=[whole])
    assert parts.steps == whole.steps and parts.losses[0] == whole.losses[0]
    assert type(configuration(**settings(6)).seed) is int


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 16.5), ("seed", "3"), ("max_steps", True), ("seed", np.nan)]
)
def test_sizes_and_seeds_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number, not {value!r}"):
        configuration(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("learning_rate", "0.1"), ("batch_size", None), ("weight_decay", None)])
def test_settings_are_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a (whole )?number, not {value!r}"):
        configuration(**{name: value})


class Column(Gaussian):
    """Its densities are a column, `(B, 1)`."""

    def log_prob(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().log_prob(inputs)[:, None]


@pytest.mark.parametrize(
    ("flow", "data", "objective", "message"),
    [
        (Column(), {"weights": torch.ones(20)}, maximum_likelihood, "log_prob returned log-densities of shape (16, 1)"),
        (Gaussian(), {"energy": torch.ones(20, 1)}, LogVariance(), "the data's 'energy' must be one number a row"),
        (
            Gaussian(),
            {"energy": torch.ones(20), "is_data": torch.ones(20, 1)},
            LogVariance(),
            "the data's 'is_data' must be one number a row, not of shape (1,)",
        ),
    ],
)
def test_columns_that_would_be_broadcast_are_refused(
    tmp_path: Path, flow: nn.Module, data: dict[str, torch.Tensor], objective: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(flow, {"inputs": normal(20, 2)} | data, config=configuration(), objective=objective, output=tmp_path)

"""Standard errors against closed forms and against the spread over repeated draws; ranks."""

import math

import pytest
import torch

from nflib.metrics import Estimate, auroc, bootstrap, frechet_distance, grouped_jackknife, kernel_distance


def mean(x):
    return float(x.mean())


def test_errors_of_a_mean():
    """Of groups of equal size, the jackknife's error of a mean is the standard error of the groups' means."""
    x = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = (torch.arange(60) % 20)[torch.randperm(60, generator=torch.Generator().manual_seed(7))]
    groups = torch.stack([x[group == number].mean() for number in range(20)])
    found = grouped_jackknife(mean, x, num_groups=20, seed=7)
    assert found.value == mean(x)
    assert found.error == pytest.approx(float(groups.std()) / math.sqrt(20), rel=1e-12)
    assert bootstrap(mean, x, num_resamples=2000).error == pytest.approx(float(x.std()) / math.sqrt(60), rel=0.08)


def test_errors_of_two_samples_add():
    x, y = (torch.randn(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))

    def difference(x, y):
        return mean(x) - 3 * mean(y)

    both = grouped_jackknife(difference, x, y, num_groups=100).error
    expected = math.sqrt(float(x.var()) / 400 + 9 * float(y.var()) / 400)
    assert both == pytest.approx(expected, rel=0.2)
    assert bootstrap(difference, x, y, num_resamples=1000).error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_errors_of_distances_are_their_spread(distance):
    """Over repeated draws of both sets, the median error is the standard deviation of the distance."""
    generator = torch.Generator().manual_seed(3)
    values, errors = [], []
    for _ in range(60):
        x = torch.randn(100, 4, generator=generator, dtype=torch.float64)
        y = 1.3 * torch.randn(100, 4, generator=generator, dtype=torch.float64) + 0.7
        estimate = grouped_jackknife(distance, x, y)
        values.append(estimate.value)
        errors.append(estimate.error)
    spread = float(torch.tensor(values).std())
    assert float(torch.tensor(errors).median()) == pytest.approx(spread, rel=0.3)


def test_rows_of_one_family_count_as_one():
    """Each row ten times: errors are those of the rows once, of rows taken as independent far too small."""
    x = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    copies, family = x.repeat(10)[order], (torch.arange(60).repeat(10) + 7)[order]
    expected = float(x.std()) / math.sqrt(60)
    for estimate in (bootstrap, grouped_jackknife):
        assert estimate(mean, copies, families=[family]).error == pytest.approx(expected, rel=0.3)
        assert estimate(mean, copies).error < 0.5 * expected
    # Families of different sizes come whole.
    seen = set()
    bootstrap(
        lambda rows: seen.add(tuple(rows.tolist())) or 0.0, torch.arange(5), families=[torch.tensor([3, 1, 3, 3, 1])]
    )
    assert seen - {(0, 1, 2, 3, 4)} == {(1, 4, 1, 4), (1, 4, 0, 2, 3), (0, 2, 3, 1, 4), (0, 2, 3, 0, 2, 3)}
    assert math.isnan(bootstrap(mean, torch.randn(5), families=[torch.zeros(5)]).error)


def test_pairs_are_left_out_together():
    """The error of the mean difference of pairs that hardly differ; as of independent samples it is much larger."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def difference(x, y):
        return mean(x) - mean(y)

    found = grouped_jackknife(difference, x, x + change, num_groups=50, paired=True)
    assert found.error == pytest.approx(float(change.std()) / math.sqrt(200), rel=0.3)
    assert grouped_jackknife(difference, x, x + change, num_groups=50).error > 20 * found.error


def test_too_few_samples_have_no_error():
    assert math.isnan(bootstrap(mean, torch.ones(1)).error)
    assert math.isnan(grouped_jackknife(mean, torch.randn(19)).error)
    assert math.isfinite(bootstrap(mean, torch.randn(2)).error)
    assert math.isfinite(grouped_jackknife(mean, torch.randn(20)).error)


def test_numbers_of_resamples_and_groups():
    with pytest.raises(ValueError, match="num_groups must be an integer of 2 or more, got 0"):
        grouped_jackknife(mean, torch.randn(20), num_groups=0)
    with pytest.raises(ValueError, match="num_resamples must be an integer of 2 or more, got 1"):
        bootstrap(mean, torch.randn(20), num_resamples=1)


def test_an_error_is_written_to_two_digits():
    assert Estimate(0.5, math.inf).summary() == {"value": 0.5, "error": None}
    assert str(Estimate(0.5, math.inf)) == "0.5 ± ?" and str(Estimate(math.inf, math.inf)) == "inf"
    assert str(Estimate(0.5)) == "0.5" and str(Estimate(0.12345, 0.0056)) == "0.1235 ± 0.0056"
    assert str(Estimate(12345.6, 23.4)) == "12346 ± 23" and str(Estimate(12345.0, 234.0)) == "1.23e+04 ± 2.3e+02"
    assert str(Estimate(2e6, 1.5)) == "2e+06 ± 1.5" and str(Estimate(3.0, 1e-12)) == "3 ± 0"


def test_auroc():
    right, wrong = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    assert auroc(right, wrong) == pytest.approx(4.5 / 6)
    assert auroc(right.numpy(), [0.0, 2.0]) == auroc(right, wrong)
    assert auroc(right, right) == 0.5
    assert auroc(right, torch.tensor([math.nan, -math.inf])) == 1
    assert auroc(right.clone().requires_grad_(), wrong) == auroc(right, wrong)
    with pytest.raises(ValueError, match="got 3 and 0"):
        auroc(right, wrong[:0])


def test_auroc_of_normal_scores():
    """Of N(d, 1) against N(0, 1) it is Φ(d / √2)."""
    x, y = (torch.randn(20000, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    assert auroc(x + 1, y) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.01)

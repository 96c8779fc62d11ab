"""Free energies against closed forms: values, errors that cover, basins, reweighting, trajectories, files."""

import csv
import json
import math

import numpy as np
import openmm
import pytest
import torch
from scipy import stats
from scipy.signal import lfilter

from molecular import Peptide
from molecular.analysis import WeightedConformations, evaluate
from molecular.analysis.analyse import ELSEWHERE, analyse
from molecular.analysis.free_energy import (
    Basin,
    bin_edges,
    difference,
    free_energy,
    parse_intervals,
    population,
    within,
)
from molecular.analysis.observables import CollectiveVariable
from molecular.analysis.report import save_analysis
from molecular.analysis.reweighting import reweight, reweight_to
from molecular.analysis.shares import Shares, shares_of
from molecular.data.ensembles import Ensemble
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Residue, Topology
from molecular.molecule.torsions import named_backbone_torsions
from nflib.montecarlo import WeightedSamples
from nflib.montecarlo.diagnostics import effective_sample_size
from nflib.montecarlo.genealogy import Resamplings

KT = 2.5
GRID = np.linspace(-2.5, 2.5, 200_001)
EDGES = np.linspace(-2.0, 2.0, 41)
LINE = CollectiveVariable("x", lambda positions: positions[:, 0, 0], "nm")


def double_well(x, temperature=1.0):
    """In kT at temperature 1."""
    return (3.0 * (x**2 - 1.0) ** 2 + 0.6 * x) / temperature


class Exact:
    """The double well by quadrature: cumulative distribution on the grid."""

    def __init__(self, temperature=1.0):
        density = np.exp(-double_well(GRID, temperature))
        cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        self.cumulative = cumulative / cumulative[-1]

    def draw(self, count, rng):
        return np.interp(rng.random(count), self.cumulative, GRID)

    def share(self, low, high):
        return np.interp(high, GRID, self.cumulative) - np.interp(low, GRID, self.cumulative)

    def free_energies(self):
        """-kT ln of the mean density of each bin, kJ/mol."""
        return -KT * np.log(self.share(EDGES[:-1], EDGES[1:]) / np.diff(EDGES))


def equal(count):
    return torch.full((count,), 1.0 / count, dtype=torch.float64)


def proposed(count, rng, spread=0.9):
    """From two Gaussians of equal weight, with weights whose effective size is about 0.3 of the number; `spread`: of
    the logarithms of a factor that stands for all other coordinates."""
    x = rng.normal(np.where(rng.random(count) < 0.5, -1.0, 1.0), 0.5)
    proposal = np.exp(-2.0 * (x + 1.0) ** 2) + np.exp(-2.0 * (x - 1.0) ** 2)
    return x, -double_well(x) - np.log(proposal) + spread * rng.normal(size=count)


def profile(x, shares):
    return free_energy(shares, [LINE], [torch.as_tensor(x)], [EDGES], KT)


def hits(surface, truth):
    """Of the bins with an error: which lie within one of the truth, and within two."""
    known = np.isfinite(surface.errors)
    score = np.abs(surface.values + surface.lowest - truth)[known] / surface.errors[known]
    return score < 1.0, score < 2.0


def check_coverage(found):
    one, two = (np.concatenate(part) for part in zip(*found, strict=True))
    assert len(one) > 2000
    assert 0.60 <= one.mean() <= 0.76
    assert 0.91 <= two.mean() <= 0.98


def test_profile_of_exact_samples_is_the_truth():
    x = Exact().draw(200_000, np.random.default_rng(0))
    surface = profile(x, Shares(equal(len(x))))
    known = np.isfinite(surface.errors)
    # A bin that holds four times the five that an error needs has one.
    assert known[Exact().share(EDGES[:-1], EDGES[1:]) * len(x) > 20.0].all()
    scores = (surface.values + surface.lowest - Exact().free_energies())[known] / surface.errors[known]
    assert np.abs(scores).max() < 4.0
    assert 0.5 < np.mean(scores**2) < 1.6
    assert surface.values.min() == 0.0
    # Of n equal samples with k in the bin, the error of the log-share is sqrt((1 - p) / k), 1 + |skewness| / 4 times.
    share = surface.shares[10]
    skewness = (1 - 2 * share) / math.sqrt(len(x) * share * (1 - share))
    expected = KT * math.sqrt((1 - share) / (len(x) * share)) * (1 + skewness / 4)
    assert surface.errors[10] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [2000, 10_000])
def test_errors_of_exact_samples_cover(count):
    rng, exact = np.random.default_rng(count), Exact()
    truth = exact.free_energies()
    check_coverage([hits(profile(exact.draw(count, rng), Shares(equal(count))), truth) for _ in range(200)])


@pytest.mark.parametrize(("count", "repeats"), [(2000, 200), (10_000, 100)])
def test_errors_of_weighted_samples_cover(count, repeats):
    rng, truth = np.random.default_rng(count + 1), Exact().free_energies()
    found, fractions, scores = [], [], []
    for _ in range(repeats):
        x, log_weights = proposed(count, rng)
        fractions.append(effective_sample_size(torch.as_tensor(log_weights)) / count)
        shares = Shares(torch.as_tensor(log_weights).softmax(0))
        found.append(hits(profile(x, shares), truth))
        right = torch.as_tensor(x > 0)
        estimate = difference(shares, right, ~right, KT)
        scores.append((estimate.value + KT * math.log(Exact().share(0, 9) / Exact().share(-9, 0))) / estimate.error)
    assert 0.2 < np.mean(fractions) < 0.4
    check_coverage(found)
    inside = np.abs(scores) < 1.0
    assert abs(inside.mean() - 0.683) < 3 * math.sqrt(0.683 * 0.317 / repeats)
    assert abs(np.mean(scores)) < 4 / math.sqrt(repeats)


def test_errors_of_heavy_weights_cover():
    """Weights with a Pareto tail of shape 0.45 in all other coordinates."""
    rng, truth = np.random.default_rng(5), Exact().free_energies()
    found = []
    for _ in range(150):
        x, log_weights = proposed(4000, rng, spread=0.0)
        log_weights = log_weights - 0.45 * np.log(rng.random(4000))
        found.append(hits(profile(x, Shares(torch.as_tensor(log_weights).softmax(0))), truth))
    check_coverage(found)


def autoregressive(trajectories, length, memory, rng):
    noise = rng.normal(size=(trajectories, length)) * math.sqrt(1.0 - memory**2)
    noise[:, 0] = rng.normal(size=trajectories)
    return lfilter([1.0], [1.0, -memory], noise, axis=1)


@pytest.mark.parametrize(
    ("trajectories", "length", "memory", "families"),
    [(1, 5000, 0.8, (15, 120)), (4, 2500, 0.9, (20, 100)), (32, 400, 0.9, (32, 32))],
)
def test_errors_of_trajectories_cover(trajectories, length, memory, families):
    """Few trajectories are cut into blocks, many stay whole; independent frames would have a third of the error."""
    rng, edges = np.random.default_rng(trajectories), np.linspace(-2.5, 2.5, 26)
    truth = np.log(np.diff(stats.norm.cdf(edges)))
    size = trajectories * length
    groups = torch.arange(trajectories).repeat_interleave(length)
    time = torch.arange(length).repeat(trajectories).double()
    order = torch.as_tensor(rng.permutation(size))
    inside, sides, naive = [], [], []
    for _ in range(100):
        x = torch.as_tensor(autoregressive(trajectories, length, memory, rng)).reshape(-1)[order]
        conformations = WeightedConformations(torch.zeros(size, 1, 3), groups=groups[order], time=time[order])
        shares, refusal = shares_of(conformations, [math.pi * torch.as_tensor(stats.norm.cdf(x))])
        assert refusal is None
        assert families[0] <= shares.num_families <= families[1]
        cells = torch.as_tensor(np.digitize(x, edges) - 1)
        cells[cells == len(edges) - 1] = -1
        found = shares.of_cells(cells, len(edges) - 1)
        known = np.isfinite(found.errors)
        inside.extend(np.abs(np.log(found.shares[known]) - truth[known]) < found.errors[known])
        for one, scores in ((shares, sides), (Shares(equal(size)), naive)):
            value, error = one.log_ratio(x > 0, x <= 0)
            scores.append(abs(value) < error)
    assert 0.60 <= np.mean(inside) <= 0.76
    assert abs(np.mean(sides) - 0.683) < 3 * math.sqrt(0.683 * 0.317 / 100)
    # The sign has 7 and 15 times fewer independent values than there are frames.
    assert np.mean(naive) < 0.45


def trajectories_of(*series):
    """Conformations without atoms, of one trajectory for each of these series, and the series as one."""
    groups = torch.arange(len(series)).repeat_interleave(torch.tensor(list(map(len, series))))
    time = torch.cat([torch.arange(float(len(one))) for one in series])
    return WeightedConformations(torch.zeros(len(time), 1, 3), groups=groups, time=time), torch.cat(series)


def step(low, high):
    """An angle with noise that changes its place once."""
    return torch.cat([torch.zeros(low), torch.ones(high)]) + 0.1 * torch.randn(low + high)


def test_a_nearly_empty_trajectory_stays_whole_and_hides_nothing():
    torch.manual_seed(0)
    fast = torch.as_tensor(autoregressive(1, 5000, 0.8, np.random.default_rng(0)))[0]
    alone, _ = shares_of(*trajectories_of(fast)[:1], [fast])
    conformations, x = trajectories_of(fast, fast[:3])
    shares, refusal = shares_of(conformations, [x])
    assert refusal is None and shares.num_families == alone.num_families + 1
    conformations, x = trajectories_of(step(700, 300), step(3, 0))
    assert shares_of(conformations, [x])[0].num_families == 2


@pytest.mark.parametrize("shorter", [1000, 600, 500, 100])
def test_a_change_late_in_a_longer_trajectory_is_seen(shorter):
    """Of trajectories of unequal length the late part counts as well."""
    torch.manual_seed(0)
    conformations, x = trajectories_of(step(700, 300), step(shorter, 0))
    shares, refusal = shares_of(conformations, [x])
    assert shares.num_families == 2 and "simulate for longer" in refusal
    assert population(shares, x > 0.5).error == math.inf


def test_the_correlation_of_an_angle_in_degrees_is_that_of_the_angle(alanine):
    degrees = 30.0 * torch.as_tensor(autoregressive(1, 4000, 0.9, np.random.default_rng(0)))[0]
    positions = torch.zeros(4000, alanine.num_atoms, 3, dtype=torch.float64)
    positions[:, 0, 0] = degrees
    groups = torch.zeros(4000, dtype=torch.int64)
    conformations = WeightedConformations(positions, groups=groups, time=torch.arange(4000.0))
    variable = CollectiveVariable("angle", lambda x: x[:, 0, 0], "degrees", 360.0)
    expected = shares_of(conformations, [degrees.deg2rad()])[0].num_families
    assert analyse(conformations, alanine, [variable]).num_independent == expected
    assert expected < shares_of(conformations, [degrees])[0].num_families


def test_short_trajectories_state_no_error():
    x = torch.as_tensor(autoregressive(2, 60, 0.9, np.random.default_rng(0))).reshape(-1)
    groups = torch.arange(2).repeat_interleave(60)
    conformations = WeightedConformations(torch.zeros(120, 1, 3), groups=groups, time=torch.arange(60.0).repeat(2))
    shares, refusal = shares_of(conformations, [x])
    assert "simulate for longer" in refusal
    assert shares.log_ratio(x > 0, x <= 0)[1] == math.inf
    assert math.isinf(population(shares, x > 0).error)


def test_families_of_one_ancestor_are_not_independent():
    """Every draw copied five times: errors are those of the draws."""
    rng = np.random.default_rng(3)
    x = torch.as_tensor(Exact().draw(1000, rng))
    once = profile(x, Shares(equal(1000)))
    copies = profile(x.repeat(5), Shares(equal(5000), torch.arange(1000).repeat(5)))
    np.testing.assert_allclose(copies.errors, once.errors, rtol=1e-9)
    np.testing.assert_allclose(copies.effective_counts, once.effective_counts, rtol=1e-9)


def test_unequal_families_have_the_error_of_the_jackknife():
    """Leaving out a family at a time, in the share and in the logarithm of the ratio of two sides."""
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(12), [40, 20, *[8] * 10])
    inside = rng.random(len(families)) < rng.random(12)[families]
    shares = Shares(equal(len(families)), torch.as_tensor(families))
    left = [inside[families != family].mean() for family in range(12)]
    # Linear in each share, as the delta method is: the skewness is that of the jackknife's values.
    d = np.array(left) / inside.mean() - 1
    expected = np.sqrt(11 / 12 * (d**2).sum()) * (1 + abs((d**3).sum()) / (d**2).sum() ** 1.5 / 4)
    cells = torch.as_tensor(inside).long() - 1
    assert shares.of_cells(cells, 1).errors[0] == pytest.approx(expected, rel=1e-9)
    d /= 1 - inside.mean()
    expected = np.sqrt(11 / 12 * (d**2).sum()) * (1 + abs((d**3).sum()) / (d**2).sum() ** 1.5 / 4)
    error = shares.log_ratio(cells == 0, cells != 0)[1]
    assert error == pytest.approx(expected, rel=1e-9)


def test_few_conformations_state_no_error():
    x = torch.cat([torch.full((4,), 0.05), torch.full((5,), 0.25), torch.full((991,), 0.45)]).double()
    surface = free_energy(Shares(equal(1000)), [LINE], [x], [np.linspace(0.0, 0.8, 5)], KT)
    np.testing.assert_array_equal(np.isfinite(surface.errors), [False, True, True, False])
    assert surface.values[3] == math.inf
    assert surface.shares.tolist() == pytest.approx([0.004, 0.005, 0.991, 0.0])


def test_untrusted_weights_state_no_error():
    log_weights = torch.zeros(1000, dtype=torch.float64)
    log_weights[0] = 12.0
    conformations = WeightedConformations(torch.zeros(1000, 1, 3), log_weights)
    shares, refusal = shares_of(conformations, [])
    assert "independent draws" in refusal
    assert math.isinf(shares.log_ratio(torch.arange(1000) % 2 == 0, torch.arange(1000) % 2 == 1)[1])


def test_a_share_near_the_smallest_number_is_a_population():
    weights = torch.tensor([0.5, 0.5, 0.0, 1e-313], dtype=torch.float64)
    rare = torch.tensor([False, False, True, True])
    assert population(Shares(weights), rare).value < 1e-300
    assert difference(Shares(weights), rare, ~rare, 1.0, "kT").value == pytest.approx(-math.log(1e-313), rel=1e-3)


def test_what_weights_were_like_before_a_resampling_counts(alanine):
    """As `WeightedSamples.refusal` has it: equal weights of particles hide the tail that they were resampled from."""
    x = torch.as_tensor(alanine.positions).repeat(100, 1, 1)
    inside = {"half": lambda positions: torch.arange(len(positions)) % 2 == 0}
    for k, error in ((0.5, 0.05), (0.9, math.inf)):
        samples = WeightedSamples(x, torch.zeros(100), ancestors=torch.arange(100), resamplings=Resamplings(pareto_k=k))
        found = analyse(samples, alanine, [], basins=inside)
        assert found.populations["half"].error == pytest.approx(error, rel=0.02)
        assert (samples.refusal in found.notes) == (k > 0.7)
        warmer = analyse(samples, alanine, [], basins=inside, target=alanine.at(301.0), energies=torch.zeros(100))
        assert math.isinf(warmer.populations["half"].error) == (k > 0.7)


def test_energies_of_another_number_and_basins_that_are_none(alanine):
    """Energies are asked for in the unit that they are divided from, and may be NumPy's."""
    x = torch.as_tensor(alanine.positions).repeat(100, 1, 1)
    ensemble, weights = WeightedConformations(x), np.zeros(100)
    with pytest.raises(ValueError, match=r"energies have shape \(5,\) for 100 conformations; give \(100,\), in kJ/mol"):
        analyse(ensemble, alanine, [], target=alanine.at(330.0), energies=np.zeros(5))
    assert analyse((x, weights), alanine, ["rg"], target=alanine.at(330.0), energies=np.zeros(100)).profiles
    with pytest.raises(ValueError, match="has a limit that is not a number"):
        analyse(ensemble, alanine, [], basins={"b": {"phi 1": (math.nan, 100)}})


def test_another_force_field_sees_positions_as_they_were_stored(alanine, turned):
    """Energies of an ensemble are of positions before rounding: against its own force field all still weigh alike."""
    x = turned[0]
    x = (x[:50] * 1000).round() / 1000
    count = torch.zeros(50, dtype=torch.int64)
    exact = 30.0 * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = Ensemble(x, exact, count, torch.arange(50.0).double(), count)
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(alanine.system))
    same = Molecule(alanine.topology, system, alanine.positions, alanine.temperature)
    found = analyse(frames, alanine, ["rg"], target=same)
    assert found.effective_sample_size == pytest.approx(50, rel=1e-3)
    assert "another force field" not in " ".join(found.notes)  # another System of the same one


def test_ratio_of_overlapping_and_of_empty_basins():
    shares = Shares(equal(100))
    everything, half, nothing = torch.ones(100).bool(), torch.arange(100) < 50, torch.zeros(100).bool()
    assert shares.log_ratio(everything, everything) == (0.0, 0.0)
    assert shares.log_ratio(half, everything)[0] == pytest.approx(-math.log(2.0))
    assert shares.log_ratio(nothing, half) == (-math.inf, math.inf)
    assert shares.log_ratio(half, nothing) == (math.inf, math.inf)
    assert math.isnan(shares.log_ratio(nothing, nothing)[0])
    empty = population(shares, nothing)
    assert (empty.value, empty.error) == (0.0, math.inf)
    # A binomial share, with the factor for its skewness, which is none at one half.
    assert population(shares, half).error == pytest.approx(0.05 * math.sqrt(100 / 99))


# Variables ------------------------------------------------------------------------------------------------------------


def test_variables_by_name_and_by_atoms(alanine):
    positions = torch.as_tensor(alanine.positions)[None].repeat(3, 1, 1)
    phi = CollectiveVariable.of("phi 1", alanine)
    assert (phi.label, phi.period) == ("phi 1 / degrees", 360.0)
    for same in ("C:1 N:2 CA:2 C:2", "4  6 8 10", "C:1:A N:2:A CA:2 C:2"):
        torch.testing.assert_close(CollectiveVariable.of(same, alanine)(positions), phi(positions))
    a, b, c = (alanine.positions[index] for index in (4, 6, 8))
    distance = CollectiveVariable.of("4 6", alanine)
    assert distance(positions)[0].item() == pytest.approx(np.linalg.norm(a - b))
    assert distance.unit == "nm"
    cosine = (a - b) @ (c - b) / np.linalg.norm(a - b) / np.linalg.norm(c - b)
    assert CollectiveVariable.of("4 6 8", alanine)(positions)[0].item() == pytest.approx(np.degrees(np.arccos(cosine)))
    masses = alanine.masses
    centred = alanine.positions - masses @ alanine.positions / masses.sum()
    radius = math.sqrt(masses @ (centred**2).sum(1) / masses.sum())
    assert CollectiveVariable.of("rg", alanine)(positions)[0].item() == pytest.approx(radius)

    def height(x):
        return x[:, 0, 2]

    assert CollectiveVariable.of(height, alanine).name == "height"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("phi 2", "'phi 2' is no variable of Ace-A-Nme; .* or one of 'phi 1', 'psi 1'"),
        ("CA-CB of VAL 2", "or one of 'phi 1', 'psi 1'"),
        ("chi", "is no variable of Ace-A-Nme"),
        ("4 6 8 22", "no atom 22; the last of 22 is 21"),
        ("4 6 6 8", "names an atom twice"),
        ("CA:2 QQ:2", "no atom QQ:2"),
        ("C CA", "3 atoms are called C"),
        ("0 1 2 3 4", "two to four atoms"),
        ("-1 2", "no atom -1"),
    ],
)
def test_variables_that_are_not_there(alanine, description, message):
    with pytest.raises(ValueError, match=message):
        CollectiveVariable.of(description, alanine)


def test_torsions_of_one_number_are_of_one_residue():
    for sequence, expected in (
        ("AAA", ["phi 2", "phi 3", "psi 1", "psi 2"]),
        ("Ace-AG-Nme", ["phi 1", "phi 2", "psi 1", "psi 2"]),
        ("Ace-AG", ["phi 1", "phi 2", "psi 1"]),
        ("GP", ["phi 2", "psi 1"]),
    ):
        topology = Peptide(sequence, force_field=["amber99sbildn.xml"]).topology
        named = named_backbone_torsions(topology)
        assert list(named) == expected
        amino_acids = [own["CA"] for own in topology.atoms_by_name if "CA" in own]
        for name, atoms in named.items():
            kind, number = name.split()
            assert atoms[2 if kind == "phi" else 1] == amino_acids[int(number) - 1]
            first = "CNCA" if kind == "phi" else "NCAC"
            assert "".join(topology.atom_names[atom] for atom in atoms[:3]) == first
    tripeptide = Peptide("AAA")
    found = analyse(torch.as_tensor(tripeptide.positions).repeat(9, 1, 1), tripeptide)
    assert list(found.maps) == ["phi 2, psi 2"] and list(found.profiles) == ["phi 2", "phi 3", "psi 1", "psi 2"]
    with pytest.raises(ValueError, match="'phi 1' is no variable of AAA; .* 'phi 2', 'phi 3', 'psi 1', 'psi 2'"):
        Basin.of("left", "phi 1 > 0", tripeptide)


def test_functions_that_return_no_variable():
    positions = torch.zeros(5, 3, 3)
    with pytest.raises(ValueError, match=r"returned shape \(5, 3\)"):
        CollectiveVariable("wide", lambda x: x[:, 0])(positions)
    with pytest.raises(ValueError, match="not finite for 5 of 5"):
        CollectiveVariable("nan", lambda x: x[:, 0, 0] / 0.0)(positions)
    with pytest.raises(ValueError, match="must return booleans"):
        Basin("mine", function=lambda x: x[:, 0, 0] + 2.0)(positions)


def test_periodic_variables_wrap():
    torsion = CollectiveVariable("angle", lambda x: x[:, 0, 0], "degrees", 360.0)
    angles = torch.tensor([180.0, -180.0, 540.0, 179.0, -179.0, 0.0, -1e-15, 359.0])
    positions = angles[:, None, None].expand(-1, 1, 3)
    values = torsion(positions)
    assert values.tolist() == pytest.approx([-180.0, -180.0, -180.0, 179.0, -179.0, 0.0, 0.0, -1.0], abs=1e-4)
    assert within(torsion, values, 150.0, -120.0).tolist() == [True] * 5 + [False] * 3
    assert within(torsion, values, None, 0.0).tolist() == [True, True, True, False, True, False, False, True]
    assert within(torsion, values, -180.0, 180.0).all()
    assert within(torsion, values, 340.0, 400.0).tolist() == [False] * 5 + [True] * 3
    edges = bin_edges(torsion, values, equal(8), 36)
    assert (edges[0], edges[-1], len(edges)) == (-180.0, 180.0, 37)
    # Every conformation is in a bin, whichever end of the period it came from.
    assert free_energy(Shares(equal(8)), [torsion], [values], [edges], KT).outside == pytest.approx(0.0)
    assert within(LINE, values, -1.0, None).sum() == 4
    for limits in ((0.0, 360.0), (-90.0, 270.0), (540.0, 900.0), (0.0, 190.0)):
        edges = bin_edges(torsion, values, equal(8), 36, limits)
        found = free_energy(Shares(equal(8)), [torsion], [values], [edges], KT)
        turned = (angles.double().numpy() - limits[0]) % 360.0 + limits[0]
        expected = np.histogram(turned[:6], edges)[0]  # the last two are on an edge, but for rounding
        np.testing.assert_array_equal(
            free_energy(Shares(equal(6)), [torsion], [values[:6]], [edges], KT).shares * 6, expected
        )
        assert found.outside == pytest.approx(0.125 if limits == (0.0, 190.0) else 0.0)


def test_profile_of_a_wrapped_normal():
    """A density that straddles the end of the period has one minimum there and the right width."""
    rng = np.random.default_rng(11)
    torsion = CollectiveVariable("angle", lambda x: x[:, 0, 0], "degrees", 360.0)
    angles = rng.normal(180.0, 30.0, size=40_000)
    values = torsion(torch.as_tensor(angles)[:, None, None].expand(-1, 1, 3))
    edges = bin_edges(torsion, values, equal(len(values)), 36)
    surface = free_energy(Shares(equal(len(values))), [torsion], [values], [edges], KT)
    spread = sum(np.diff(stats.norm.cdf(edges, 180.0 + turn, 30.0)) for turn in (-360.0, 0.0, 360.0))
    known = np.isfinite(surface.errors)
    scores = (surface.values + surface.lowest + KT * np.log(spread / 10.0))[known] / surface.errors[known]
    assert np.abs(scores).max() < 4.0
    assert surface.values.argmin() in (0, 35)


@pytest.mark.parametrize("text", ["phi 1 > 200", "phi 1 > 180", "phi 1 < -180", "phi 1 < -200", "phi 1 < 181"])
def test_basins_with_one_end_beyond_the_period_are_refused(alanine, text):
    with pytest.raises(ValueError, match=f"{text} lies beyond -180 to 180 degrees; give both ends"):
        Basin.of("a", text, alanine)


def test_an_infinite_end_is_none(alanine):
    assert str(Basin.of("a", {"phi 1": (0, math.inf), "rg": (-math.inf, 0.4)}, alanine)) == "phi 1 > 0, rg < 0.4"
    assert str(Basin.of("a", {"phi 1": (-180, None), "psi 1": (None, 180)}, alanine)) == "phi 1 > -180, psi 1 < 180"


@pytest.mark.parametrize("text", ["0 < phi 1 < 150", "rg > 0.3, phi 1 < -12.5", "-180 < psi 1 < 1e-05"])
def test_basins_say_what_they_are(alanine, text):
    assert str(Basin.of("mine", text, alanine)) == text
    assert str(Basin("mine", function=lambda x: x[:, 0, 0] > 0)) == ""


def test_intervals_from_text():
    assert parse_intervals(" -1.5e1< C:1 N:2 CA:2 C:2 <20 ,rg>.3") == {
        "C:1 N:2 CA:2 C:2": (-15.0, 20.0),
        "rg": (0.3, None),
    }
    for wrong in ("phi 1", "", "0 < phi 1 < 10, phi 1 > 3", "phi 1 <", "0 > phi 1 > -3", "phi 1 = 3"):
        with pytest.raises(ValueError, match="cannot be read as intervals"):
            parse_intervals(wrong)


# Reweighting ----------------------------------------------------------------------------------------------------------


def test_reweighting_to_another_temperature_is_exact():
    x = torch.as_tensor(Exact().draw(20_000, np.random.default_rng(2)))
    positions = x[:, None, None].expand(-1, 1, 3)
    energies = double_well(x)
    warmer = reweight(WeightedConformations(positions), energies, energies / 1.3)
    assert warmer.warning is None
    assert warmer.pareto_k < 0.5
    shares, refusal = shares_of(warmer.conformations, [])
    assert refusal is None
    truth = Exact(1.3)
    found = difference(shares, x > 0, x <= 0, 1.3 * KT)
    assert abs(found.value + 1.3 * KT * math.log(truth.share(0, 9) / truth.share(-9, 0))) < 3 * found.error
    assert found.error < 0.2
    # One sample, whose bins vary together.
    assert hits(profile(x, shares), truth.free_energies())[1].mean() > 0.8


def test_reweighting_too_far_warns():
    x = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frames = WeightedConformations(x[:, None, None].expand(-1, 1, 3))
    far = reweight(frames, 0.5 * x.square(), 0.5 * (x - 6.0).square())
    assert "No estimate can be trusted" in far.warning
    near = reweight(frames, 0.5 * x.square(), 0.5 * (x - 2.0).square())
    assert near.effective_sample_size < 200
    assert near.warning
    lost = reweight(frames, 0.5 * x.square(), torch.where(x > 0, 0.5 * x.square(), torch.inf))
    assert lost.conformations.num_weighted() == int((x > 0).sum())
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2000"):
        reweight(frames, x[:3], x)
    with pytest.raises(ValueError, match="no energy is finite"):
        reweight(frames, x, x + torch.inf)


def spring_molecule(constant, temperature):
    """Three atoms; O and the first H at a harmonic distance (0.1 nm), the second H anywhere."""
    topology = Topology(("O", "H1", "H2"), ("O", "H", "H"), (Residue("HOH"),), (0, 0, 0), ((0, 1), (0, 2)))
    system = openmm.System()
    for mass in (16.0, 1.0, 1.0):
        system.addParticle(mass)
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.1, constant)
    system.addForce(force)
    return Molecule(topology, system, [[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], temperature, name="spring")


def spring_frames(molecule, constant, count, seed):
    """Exact frames: the distance r has density r^2 exp(-U / kT), by inversion on a grid."""
    grid = np.linspace(0.0, 0.3, 30_001)
    cumulative = np.cumsum(grid**2 * np.exp(-0.5 * constant * (grid - 0.1) ** 2 / molecule.kT))
    rng = np.random.default_rng(seed)
    length = np.interp(rng.random(count), cumulative / cumulative[-1], grid)
    positions = np.zeros((count, 3, 3))
    positions[:, 1, 0], positions[:, 2, 1] = length, 0.1
    return torch.as_tensor(positions, dtype=torch.float32), torch.as_tensor(0.5 * constant * (length - 0.1) ** 2)


def spring_profile(molecule, constant, edges):
    grid = np.linspace(edges[0], edges[-1], 100 * (len(edges) - 1) + 1)
    whole = np.linspace(0.0, 0.3, 300_001)

    def density(r):
        return r**2 * np.exp(-0.5 * constant * (r - 0.1) ** 2 / molecule.kT)

    cells = density((grid[1:] + grid[:-1]) / 2).reshape(-1, 100).mean(1)
    return -molecule.kT * np.log(cells / (density(whole).mean() * 0.3))


@pytest.mark.parametrize(("constant", "temperature"), [(20_000.0, 330.0), (16_000.0, 300.0), (24_000.0, 280.0)])
def test_analysis_for_another_temperature_and_force_field(constant, temperature):
    molecule = spring_molecule(20_000.0, 300.0)
    positions, energies = spring_frames(molecule, 20_000.0, 40_000, seed=4)
    target = molecule.at(temperature) if constant == 20_000.0 else spring_molecule(constant, temperature)
    analysis = analyse(positions, molecule, ["0 1"], target=target, bins=30, limits={"0 1": (0.07, 0.13)})
    surface = analysis.profiles["0 1"]
    truth = spring_profile(target, constant, surface.edges[0])
    known = np.isfinite(surface.errors)
    scores = (surface.values + surface.lowest - truth)[known] / surface.errors[known]
    assert known.sum() > 20
    assert np.abs(scores).max() < 4.0
    assert 0.5 < np.mean(scores**2) < 2.0
    assert (analysis.temperature, analysis.source_temperature, analysis.unit) == (temperature, 300.0, "kJ/mol")
    assert "effective sample size" in analysis.notes[0] and "nan" not in analysis.notes[0]
    given = reweight_to(WeightedConformations(positions), molecule, target, energies)
    computed = reweight_to(WeightedConformations(positions), molecule, target)
    torch.testing.assert_close(given.conformations.weights(), computed.conformations.weights(), rtol=1e-3, atol=0.0)


def test_reweighting_to_another_molecule_is_refused(alanine):
    positions, _ = spring_frames(spring_molecule(2e4, 300.0), 2e4, 10, seed=0)
    with pytest.raises(ValueError, match="another molecule than spring"):
        reweight_to(WeightedConformations(positions), spring_molecule(2e4, 300.0), alanine)


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turned(alanine):
    """Conformations of alanine dipeptide with phi from a known density and the rest as it is: phi turns with all beyond
    it about N-CA; weights undo a bias towards positive phi."""
    rng = np.random.default_rng(6)
    count = 4000
    phi = np.where(rng.random(count) < 0.5, rng.normal(-90.0, 25.0, count), rng.normal(60.0, 12.0, count))
    log_weights = np.where(phi > 0, math.log(0.1 / 0.5), math.log(0.9 / 0.5))
    here = torch.as_tensor(alanine.positions)
    own = CollectiveVariable.of("phi 1", alanine)(here[None])[0].item()
    origin, axis = here[6], torch.nn.functional.normalize(here[8] - here[6], dim=0)
    turn = torch.deg2rad(torch.as_tensor(phi) - own)[:, None, None]
    moved = (here[9:] - origin).expand(count, -1, -1)
    along = (moved @ axis)[..., None] * axis
    beyond = along + (moved - along) * turn.cos() + torch.linalg.cross(axis.expand_as(moved), moved) * turn.sin()
    positions = torch.cat([here[:9].expand(count, -1, -1), origin + beyond], dim=1)
    return positions, torch.as_tensor(log_weights), phi


def test_analysis_of_a_peptide(alanine, turned, tmp_path):
    positions, log_weights, phi = turned
    samples = WeightedSamples(positions, log_weights)
    folder = tmp_path / "ünï cödé"
    analysis = analyse(
        samples,
        alanine,
        basins={"left": "phi 1 > 0", "right": {"phi 1": (None, 0)}, "all": lambda x: x[:, 0, 0] == x[:, 0, 0]},
        unit="kT",
    )
    save_analysis(analysis, folder)
    assert list(analysis.profiles) == ["phi 1", "psi 1"]
    assert list(analysis.maps) == ["phi 1, psi 1"]
    assert analysis.maps["phi 1, psi 1"].values.shape == (36, 36)
    left = analysis.populations["left"]
    assert abs(left.value - 0.1) < 3 * left.error < 0.03
    free = analysis.differences["left", ELSEWHERE]
    assert abs(free.value - math.log(9.0)) < 3 * free.error
    reverse = analysis.differences["right", "left"]
    assert (reverse.value, reverse.error) == pytest.approx((-free.value, free.error))
    assert analysis.differences["all", ELSEWHERE].value == -math.inf
    # The profile's own marginal is that of the map.
    np.testing.assert_allclose(
        analysis.maps["phi 1, psi 1"].shares.sum(1),
        np.histogram(phi, np.linspace(-180, 180, 37), weights=samples.weights.numpy())[0],
        atol=1e-3,
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "analysis.json",
        "basins.csv",
        "map-phi-1-psi-1.csv",
        "map-phi-1-psi-1.png",
        "profile-phi-1.csv",
        "profile-phi-1.png",
        "profile-psi-1.csv",
        "profile-psi-1.png",
        "report.html",
    ]
    rows = list(csv.reader((folder / "profile-phi-1.csv").open(encoding="utf-8")))
    assert rows[0] == [
        "phi 1 from (degrees)",
        "phi 1 to (degrees)",
        "free energy (kT)",
        "standard error (kT)",
        "share",
        "effective count",
    ]
    assert len(rows) == 61
    surface = analysis.profiles["phi 1"]
    np.testing.assert_allclose(np.array(rows[1:], dtype=float)[:, 2], surface.values.ravel(), rtol=1e-5)
    summary = json.loads((folder / "analysis.json").read_text())
    assert summary["populations"]["left"] == {"value": left.value, "error": left.error}
    assert summary["populations"]["all"] == {"value": 1.0, "error": None}
    assert summary["files"]["phi 1, psi 1"] == "map-phi-1-psi-1"
    assert list(csv.reader((folder / "basins.csv").open()))[1][:3] == ["population", "left", ""]
    assert "Population of left: 0.1" in str(analysis)


def test_units_differ_by_their_factor(alanine, turned):
    positions, log_weights, _ = turned
    found = {
        unit: analyse((positions, log_weights), alanine, ["phi 1"], basins={"left": "phi 1 > 0"}, unit=unit)
        for unit in ("kT", "kJ/mol", "kcal/mol")
    }
    for unit, factor in (("kJ/mol", alanine.kT), ("kcal/mol", alanine.kT / 4.184)):
        one, two = found["kT"], found[unit]
        np.testing.assert_allclose(two.profiles["phi 1"].errors, factor * one.profiles["phi 1"].errors)
        assert two.differences["left", ELSEWHERE].value == pytest.approx(
            factor * one.differences["left", ELSEWHERE].value
        )
        assert two.populations["left"] == one.populations["left"]


def test_conformations_that_are_not_finite_are_left_out(alanine, turned):
    positions, log_weights, _ = turned
    broken = positions.clone()
    broken[:10] = torch.nan
    analysis = analyse((broken, log_weights), alanine, ["phi 1"])
    same = analyse((positions[10:], log_weights[10:]), alanine, ["phi 1"])
    np.testing.assert_allclose(analysis.profiles["phi 1"].shares, same.profiles["phi 1"].shares)
    assert analysis.num_samples == same.num_samples + 10
    with pytest.raises(ValueError, match="no conformation is finite and has a weight"):
        analyse(torch.full_like(positions[:10], torch.nan), alanine, ["phi 1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "eV"}, "no unit 'eV'"),
        ({"bins": 0}, "bins is 0"),
        ({"basins": {"a": "phi 1"}}, "cannot be read"),
        ({"basins": {"a": {"rg": (1.0, 0.5)}}}, "holds nothing"),
        ({"basins": {"a": {"phi 1": (5.0, 5.0)}}}, "holds nothing"),
        ({"basins": {"a": "180 < phi 1 < -180"}}, "holds nothing"),
        ({"basins": {"a": {}}}, "no conditions"),
        ({"basins": {ELSEWHERE: "phi 1 > 0"}}, "rename it"),
        ({"limits": {"psi 1": (0.0, 1.0)}}, "limits are given for psi 1"),
        ({"limits": {"phi 1": (0.0, 400.0)}}, "no more than its period of 360"),
        ({"limits": {"phi 1": (150.0, -120.0)}}, "lower end first"),
        ({"variables": ["rg"], "limits": {"rg": (0.3, math.inf)}}, "lower end first"),
        ({"variables": [lambda x: x[:, 0, 0], lambda x: x[:, 0, 1]]}, "two variables are named 'lambda'"),
    ],
)
def test_mistakes_are_told(alanine, turned, options, message):
    with pytest.raises(ValueError, match=message):
        analyse(turned[0][:50], alanine, **({"variables": ["phi 1"]} | options))


@pytest.mark.parametrize(("factor", "typical"), [(10.0, "1.09"), (0.1, "0.0109"), (1000.0, "109")])
def test_positions_in_another_unit_are_refused(alanine, turned, factor, typical):
    positions, log_weights, _ = turned
    for source in (factor * positions[:50], (factor * positions[:50], log_weights[:50])):
        with pytest.raises(ValueError, match=f"bonds of {typical}, typically, .* have 0.109 nm; give positions in nm"):
            analyse(source, alanine, ["rg"])
    with pytest.raises(ValueError, match="the reference has bonds of"):
        evaluate({"flow": positions[:50]}, factor * positions[:50], alanine)


def test_files_of_like_names_are_kept_apart(alanine, turned, tmp_path):
    one, two = (CollectiveVariable(name, lambda x: x[:, 8, 0]) for name in ("a/b", "A b"))
    analysis = analyse(turned[0][:200], alanine, [one, two, "rg"])
    files = save_analysis(analysis, tmp_path)
    assert files["a/b"] == tmp_path / "profile-a-b.png"
    save_analysis(analyse(turned[0][:200], alanine, ["psi 1"]), tmp_path / "again")
    save_analysis(analyse(turned[0][:200], alanine, ["rg"]), tmp_path / "again")  # in place of the first
    assert [path.name for path in (tmp_path / "again").glob("*.png")] == ["profile-rg.png"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "profile-mine.csv").write_text("mine")
    save_analysis(analysis, tmp_path / "own")
    assert (tmp_path / "own" / "profile-mine.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "profile-A-b-2.png",
        "profile-a-b.png",
        "profile-rg.png",
    ]
    assert not analysis.maps


def test_one_value_alone_has_a_profile(alanine, tmp_path):
    positions = torch.as_tensor(alanine.positions).repeat(30, 1, 1)
    analysis = analyse(positions, alanine, ["rg", "phi 1"], maps=[("rg", "phi 1")])
    save_analysis(analysis, tmp_path)
    assert analysis.profiles["rg"].outside == pytest.approx(0.0)

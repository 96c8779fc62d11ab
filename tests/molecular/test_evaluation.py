"""Evaluation of ensembles on synthetic data with known answers."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from molecular import Peptide
from molecular.analysis import Estimate, Evaluation, WeightedConformations, evaluate
from molecular.analysis.compare import FLOOR, describe
from molecular.analysis.divergence import angle_bins, histogram, jensen_shannon
from molecular.analysis.metrics import thin
from molecular.analysis.plots import Curve, curves, ramachandran
from molecular.analysis.validity import intact_bonds, right_chirality
from molecular.data.ensembles import Ensemble
from molecular.molecule.geometry import dihedrals
from molecular.molecule.torsions import backbone_torsions, heavy_torsions, phi_psi_torsions, ramachandran_torsions
from molecular.sampling.shipped import reference_positions
from nflib.montecarlo import WeightedSamples
from tests.molecular.small_molecules import of_bonds

VACUUM = ["amber99sbildn.xml"]  # quick to build; energies play no part here
GAP = 3.0  # energy of state B above A, kT


@pytest.fixture(scope="module")
def alanine() -> Peptide:
    return Peptide("Ace-A-Nme", force_field=VACUUM)


@pytest.fixture(scope="module")
def states(alanine):
    """Conformations A and B that differ by 2 rad in psi alone: (2, n, 3)."""
    start = torch.from_numpy(alanine.positions)
    _, psi = phi_psi_torsions(alanine.topology)
    _, alpha, carbonyl, _ = psi[0]
    names = list(zip(alanine.topology.residue_names, alanine.topology.atom_names, strict=True))
    moving = [i for i, (residue, name) in enumerate(names) if residue == "NME" or (residue, name) == ("ALA", "O")]
    turned = start.clone()
    turned[moving] = rotate(start[moving], start[alpha], start[carbonyl], 2.0)
    return torch.stack([start, turned]).float()


def rotate(points, origin, end, angle):
    """About the axis from origin to end (Rodrigues)."""
    axis = torch.nn.functional.normalize(end - origin, dim=0).expand_as(points)
    arms = points - origin
    along = (axis * arms).sum(-1, keepdim=True)
    turned = arms * math.cos(angle) + torch.linalg.cross(axis, arms) * math.sin(angle)
    return origin + turned + axis * along * (1 - math.cos(angle))


def mixture(states, num_a, num_b):
    return states[torch.tensor([0] * num_a + [1] * num_b)]


def energy_of(states):
    """0 in state A and GAP in state B, told apart by the distance from A."""
    return lambda x: GAP * ((x - states[0]).abs().amax(dim=(1, 2)) > 1e-3).double()


# --- torsions


def test_backbone_torsions_turn_as_told(alanine, states):
    angles = dihedrals(states.double(), backbone_torsions(alanine.topology))
    assert angles.shape == (2, 2)
    torch.testing.assert_close(angles[0, 0], angles[1, 0], rtol=0, atol=1e-5)
    assert abs(math.remainder((angles[1, 1] - angles[0, 1]).item(), 2 * math.pi)) == pytest.approx(2.0, abs=1e-5)


def test_ramachandran_pairs_share_a_residue():
    for sequence, residues in [("Ace-AG-Nme", 2), ("AAA", 1), ("AA", 1)]:
        pairs = ramachandran_torsions(Peptide(sequence, force_field=VACUUM).topology)
        assert pairs.shape == (residues, 2, 4)
        if sequence != "AA":  # the alpha carbon is the third atom of phi and the second of psi
            assert (pairs[:, 0, 2] == pairs[:, 1, 1]).all()


def test_heavy_torsions(alanine):
    """Omega, phi, psi, omega: of alanine dipeptide's heavy bonds only four have neighbours on both sides."""
    quadruples = heavy_torsions(alanine.topology)
    bonds = [{alanine.topology.atom_names[i] for i in quadruple[1:3].tolist()} for quadruple in quadruples]
    assert sorted(map(sorted, bonds)) == [["C", "CA"], ["C", "N"], ["C", "N"], ["CA", "N"]]


# --- validity


def test_thermal_conformations_are_valid(alanine):
    positions = reference_positions(Peptide("Ace-A-Nme"))
    assert intact_bonds(positions, alanine.topology).all()
    assert right_chirality(positions, alanine).all()


def test_all_residues_are_valid_as_built():
    for sequence in ("Ace-CDEFHKMNPQR-Nme", "ITSVWYLG"):
        peptide = Peptide(sequence, force_field=VACUUM)
        positions = torch.from_numpy(peptide.positions)[None]
        assert intact_bonds(positions, peptide.topology).all()
        # All but glycine have an alpha carbon with a hand; isoleucine and threonine one centre more.
        assert len(peptide.topology.stereocentres) == {"Ace-CDEFHKMNPQR-Nme": 11, "ITSVWYLG": 7 + 2}[sequence]


def test_a_mirror_image_has_the_wrong_hand_and_the_right_bonds(alanine, states):
    mirrored = states * torch.tensor([1.0, 1.0, -1.0])
    assert intact_bonds(mirrored, alanine.topology).all()
    assert right_chirality(states, alanine).all() and not right_chirality(mirrored, alanine).any()


def test_one_wrong_side_chain_centre_is_found():
    peptide = Peptide("Ace-T-Nme", force_field=VACUUM)
    positions = torch.from_numpy(peptide.positions)[None].clone()
    i, j = peptide.topology.atom_names.index("CG2"), peptide.topology.atom_names.index("HB")
    positions[:, [i, j]] = positions[:, [j, i]]
    assert not right_chirality(positions, peptide).any()


def test_broken_new_and_collapsed_bonds(alanine, states):
    hydrogen, carbon = 0, alanine.topology.bonds[0][1] if alanine.topology.bonds[0][0] == 0 else 1
    broken, new, collapsed = (states[:1].clone() for _ in range(3))
    towards = broken[0, hydrogen] - broken[0, carbon]
    broken[0, hydrogen] += 0.8 * towards
    collapsed[0, hydrogen] -= 0.5 * towards
    far = (new[0] - new[0, hydrogen]).norm(dim=-1).argmax()
    new[0, hydrogen] = new[0, far] + torch.tensor([0.09, 0.0, 0.0])
    for bad in (broken, new, collapsed):
        assert not intact_bonds(bad, alanine.topology).any()
    both = torch.cat([states, broken])
    assert intact_bonds(both, alanine.topology, batch_size=2).tolist() == [
        True,
        True,
        False,
    ]


def test_unknown_element(capfd):
    with pytest.raises(ValueError, match="Xx is no element that is known here"):
        intact_bonds(torch.zeros(1, 2, 3), of_bonds(["H", "Xx"], [(0, 1)]))
    assert "Traceback" not in capfd.readouterr().err


# --- divergences


def test_jensen_shannon_equals_scipy():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(50, generator=generator, dtype=torch.float64) for _ in range(2))
    p[:10], q[5:15] = 0.0, 0.0
    assert jensen_shannon(p, 7 * q) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-12)
    assert jensen_shannon(p, p) == 0.0


def test_angles_fall_into_the_same_cell_at_every_turn():
    angles = torch.tensor([[-math.pi, math.pi - 1e-3], [0.1, -0.1]], dtype=torch.float64)
    turns = torch.tensor([[2, -1], [0, 5]]) * torch.tensor(2 * math.pi, dtype=torch.float64)
    assert angle_bins(angles + 1e-9).tolist() == angle_bins(angles + 1e-9 + turns).tolist()
    assert angle_bins(torch.tensor([[0.0, 0.0], [6.28, 6.28]])).tolist() == [0, 36 * 36 - 1]
    cells = torch.tensor([0, 2, 2])
    assert histogram(cells, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 4).tolist() == [0.2, 0.0, 0.8, 0.0]


# --- evaluate: two states, every figure in closed form


def test_two_states_in_closed_form(alanine, states):
    """Reference 700 A + 300 B; proposal 500 + 500, and weights 7 : 3 that turn it into the reference."""
    reference, proposal = mixture(states, 700, 300), mixture(states, 500, 500)
    log_weights = torch.tensor([0.7] * 500 + [0.3] * 500, dtype=torch.float64).log() + 123.0
    result = evaluate(
        {
            "proposal": proposal,
            "reweighted": (proposal, log_weights),
            "same": WeightedSamples(reference, torch.zeros(1000)),
        },
        reference,
        alanine,
        energy=energy_of(states),
        num_bootstrap=0,
        transport_points=2000,
    )
    assert result["proposal", "energy_w1"].value == pytest.approx(0.2 * GAP)
    assert result["proposal", "energy_w2"].value == pytest.approx(math.sqrt(0.2) * GAP)
    assert result["proposal", "torus_w2"].value == pytest.approx(math.sqrt(0.2) * 2.0, rel=1e-5)
    expected = jensenshannon([0.5, 0.5], [0.7, 0.3]) ** 2
    assert result["proposal", "ramachandran_jsd"].value == pytest.approx(expected, rel=1e-9)
    assert result["proposal", "effective_sample_size_fraction"].value == pytest.approx(1.0)
    assert result["reweighted", "effective_sample_size_fraction"].value == pytest.approx(1 / (2 * (0.49 + 0.09)))
    for row in ("reweighted", "same"):
        for metric in ("energy_w1", "energy_w2", "torus_w2", "ramachandran_jsd"):
            assert result[row, metric].value == pytest.approx(0.0, abs=1e-6)
    for row in result.rows:
        assert result[row, "chirality_rate"].value == pytest.approx(1.0)
        assert result[row, "bond_graph_rate"].value == pytest.approx(1.0)
        assert math.isnan(result[row, "energy_w1"].error)
    # Contiguous halves: 500 A against 200 A + 300 B.
    assert result[FLOOR, "energy_w1"].value == pytest.approx(0.6 * GAP)
    assert "tica_w2" not in result.units and any("need a reference of trajectories" in note for note in result.notes)


def test_bootstrap_errors_are_those_of_the_binomial(alanine, states):
    """W_1 = GAP |p - q| with p, q shares of B: variance GAP^2 (p (1 - p) / N + q (1 - q) / M)."""
    sources = {"proposal": mixture(states, 200, 200)}, mixture(states, 560, 240), alanine
    settings = {"energy": energy_of(states), "transport_points": 20, "seed": 1}
    result = evaluate(*sources, **settings, num_bootstrap=200)
    expected = GAP * math.sqrt(0.25 / 400 + 0.21 / 800)
    assert result["proposal", "energy_w1"].error == pytest.approx(expected, rel=0.15)
    assert result["proposal", "effective_sample_size_fraction"].error == pytest.approx(0.0, abs=1e-12)
    again = evaluate(*sources, **settings, num_bootstrap=3)
    assert again["proposal", "energy_w1"].value == result["proposal", "energy_w1"].value


def test_groups_are_resampled_whole(alanine, states):
    """16 copies of each of 50 conformations: errors as of 50, not of 800."""
    positions = mixture(states, 25, 25).repeat_interleave(16, dim=0)
    groups = torch.arange(50).repeat_interleave(16)
    reference = mixture(states, 100, 0)
    result = evaluate(
        {"grouped": WeightedConformations(positions, groups=groups), "independent": positions},
        reference,
        alanine,
        energy=energy_of(states),
        num_bootstrap=200,
        transport_points=10,
    )
    for row, count in (("grouped", 50), ("independent", 800)):
        assert result[row, "energy_w1"].error == pytest.approx(GAP * math.sqrt(0.25 / count), rel=0.15)


def test_the_spread_of_few_groups_is_not_too_small(alanine, states):
    """The share of B in three replica groups varies as a mean of three numbers; evaluate states no error of so few."""
    shares = torch.tensor([2, 9, 4])
    state = (torch.arange(10) < shares[:, None]).long().flatten()
    groups = {"replica groups": WeightedConformations(states[state], groups=torch.arange(3).repeat_interleave(10))}
    reference = mixture(states, 8, 0)
    energy = energy_of(states)
    described = describe(groups, reference, alanine, energy=energy).ensembles["replica groups"]
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([described.resampled(generator).mass @ state.double() for _ in range(3000)])
    assert found.std().item() == pytest.approx((0.1 * shares).std().item() / math.sqrt(3), rel=0.05)
    result = evaluate(groups, reference, alanine, energy=energy, num_bootstrap=2, transport_points=10)
    assert math.isnan(result["replica groups", "energy_w1"].error)


def test_weights_decide_validity_and_rejected_samples_are_counted(alanine, states):
    positions = torch.cat([states, states * torch.tensor([1.0, 1.0, -1.0]), states])
    positions[4] = torch.nan
    log_weights = torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0, 0.0]).log()  # the last one weighs nothing
    result = evaluate(
        {"proposal": positions, "reweighted": (positions, log_weights)},
        mixture(states, 4, 4),
        alanine,
        energy=lambda x: torch.where(x[:, 0, 2] == positions[5, 0, 2], torch.nan, energy_of(states)(x)),
        num_bootstrap=0,
    )
    assert (result.num_samples["reweighted"], result.num_rejected["reweighted"]) == (6, 2)
    assert (result.num_samples["proposal"], result.num_rejected["proposal"]) == (6, 1)
    assert result["reweighted", "chirality_rate"].value == pytest.approx(6 / 8)
    assert result["proposal", "chirality_rate"].value == pytest.approx(3 / 5)
    assert result["reweighted", "effective_sample_size_fraction"].value == pytest.approx(8**2 / 20 / 6)
    assert result["proposal", "energy_w1"].value == math.inf


def test_default_energy_is_the_peptides_own(alanine, states):
    result = evaluate({"a": states[:1].expand(4, -1, -1)}, mixture(states, 2, 2), alanine, num_bootstrap=0)
    from molecular.energy.reduced import ReducedEnergy

    low, high = ReducedEnergy(alanine)(states)
    # float32 sums of a batch of another size: equal to rounding only
    assert result["a", "energy_w1"].value == pytest.approx(0.5 * (high - low).abs().item(), rel=1e-4)


def test_trajectories_add_slow_coordinates(alanine, states):
    """Two replica groups that hop between A and B: TICA must find psi, and its clusters the two states."""
    generator = torch.Generator().manual_seed(0)
    hops = torch.rand(2, 600, generator=generator) < 0.05
    state = (hops.long().cumsum(1) % 2).flatten()
    count = len(state)
    shuffled = torch.randperm(count, generator=generator)  # time, not the order of storage, makes a trajectory
    reference = Ensemble(
        positions=states[state],
        energies=torch.zeros(count, dtype=torch.float64),
        replica_group=torch.arange(2).repeat_interleave(600),
        time=torch.arange(600, dtype=torch.float64).repeat(2),
        temperature_index=torch.zeros(count, dtype=torch.int64),
    ).select(shuffled)
    result = evaluate(
        {"only A": mixture(states, 50, 0), "shares": mixture(states, count - int(state.sum()), int(state.sum()))},
        reference,
        alanine,
        energy=energy_of(states),
        num_bootstrap=3,
        transport_points=2000,
        tica_lag=1,
        num_clusters=2,
    )
    share = state.double().mean().item()
    p, q = [1.0, 0.0], [1 - share, share]
    assert result["only A", "kmeans_jsd"].value == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-9)
    assert result["shares", "kmeans_jsd"].value == pytest.approx(0.0, abs=1e-12)
    # A coordinate of variance lambda^2 with two values d apart: d = lambda / sqrt(q (1 - q)); W_2^2 = q d^2.
    eigenvalue = float(
        next(note for note in result.notes if "TICA" in note).rsplit(":", 1)[1].strip(" .").split(",")[0]
    )
    assert eigenvalue == pytest.approx(0.9, abs=0.05)  # 1 - 2 * 0.05
    expected = eigenvalue * math.sqrt(share / (share * (1 - share)))
    assert result["only A", "tica_w2"].value == pytest.approx(expected, rel=0.01)
    assert result["shares", "tica_w2"].value == pytest.approx(0.0, abs=1e-3)


def test_a_trajectory_is_resampled_in_blocks(alanine, states):
    """One trajectory that hops often has the error of its blocks, not of its frames; one that hops once has none."""
    generator = torch.Generator().manual_seed(0)

    def trajectory(state):
        noise = 1e-3 * torch.randn(len(state), alanine.num_atoms, 3, generator=generator)
        return WeightedConformations(states[state] + noise, time=torch.arange(len(state)))

    hops = (torch.rand(8000, generator=generator) < 0.05).long().cumsum(0) % 2
    often, once = trajectory(hops), trajectory(torch.arange(1000).ge(700).long())
    result = evaluate(
        {"often": often, "as if independent": often.positions, "once": once},
        mixture(states, 100, 0),
        alanine,
        energy=lambda x: GAP * ((x - states[0]).square().sum(dim=(1, 2)) > 0.01).double(),
        num_bootstrap=100,
        transport_points=10,
    )
    # Correlated for 1 / (2 * 0.05) frames: errors are sqrt(20) times those of as many independent frames.
    ratio = result["often", "energy_w1"].error / result["as if independent", "energy_w1"].error
    assert ratio == pytest.approx(math.sqrt(20.0), rel=0.35)
    assert math.isnan(result["once", "energy_w1"].error)
    assert any(note.startswith("No error can be told of once:") for note in result.notes)


def test_thinning_keeps_masses():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0])
    mass = torch.softmax(values[:, 1], dim=0)
    points, masses = thin(values, mass, 500)
    assert len(points) <= 500 and masses.sum().item() == pytest.approx(1.0)
    # The widest coordinate's distribution function moves by at most one point's mass.
    for level in torch.linspace(-9, 9, 19):
        assert abs(masses[points[:, 1] <= level].sum() - mass[values[:, 1] <= level].sum()) <= 1 / 500 + 1e-12
    kept, same = thin(values, torch.where(values[:, 0] > 0, mass, 0.0), 5000)
    assert len(kept) == int((values[:, 0] > 0).sum()) and (same > 0).all()


# --- mistakes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(5, 4, 3), r"'proposal' has positions of shape \(5, 4, 3\)"),
        ((torch.zeros(5, 22, 3), torch.zeros(4)), r"'proposal' has log_weights of shape \(4,\)"),
        ((torch.zeros(5, 22, 3), torch.full((5,), torch.nan)), "'proposal' has log_weights that are NaN"),
        ("samples.xtc", "'proposal' is a str"),
        (np.full((5, 22, 3), "x"), "positions of .*'proposal'.* are an array of <U1; give numbers"),
    ],
)
def test_mistakes_in_an_ensemble(alanine, states, source, message):
    with pytest.raises(ValueError, match=message):
        evaluate({"proposal": source}, mixture(states, 4, 4), alanine, energy=energy_of(states))


def test_arrays_are_taken_as_tensors_are(alanine, states):
    positions, log_weights = states.numpy(), np.arange(float(len(states)))
    taken = WeightedConformations.of("own", positions[::-1], alanine)
    assert torch.equal(taken.positions, states.flip(0)) and taken.log_weights is None
    taken = WeightedConformations.of("own", (positions, log_weights[::-1]), alanine)
    assert torch.equal(taken.positions, states) and taken.log_weights.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="own has bonds of .*; give positions in nm"):
        WeightedConformations.of("own", 10.0 * positions, alanine)


def test_other_mistakes(alanine, states):
    with pytest.raises(ValueError, match="there are no ensembles"):
        evaluate({}, states, alanine)
    for name in (FLOOR, "reference"):
        with pytest.raises(ValueError, match="rename it"):
            evaluate({name: states}, states, alanine)
    with pytest.raises(ValueError, match="transport_points is 1"):
        evaluate({"a": states}, states, alanine, transport_points=1)
    with pytest.raises(ValueError, match="the reference has 2 finite conformations"):
        evaluate({"a": states}, states, alanine)
    reference, nothing = mixture(states, 4, 4), torch.full((2,), -torch.inf)
    for source in (states * torch.nan, (states, nothing)):
        with pytest.raises(ValueError, match="ensemble 'a' has no conformation that is finite and has a weight"):
            evaluate({"a": source}, reference, alanine, energy=energy_of(states))


# --- the table


def test_table_prints_and_saves(tmp_path):
    table = Evaluation(
        molecule="AA",
        rows={
            "proposal": {"energy_w1": Estimate(math.inf, math.nan), "torus_w2": Estimate(0.12345, 0.0056)},
            "SMC": {"energy_w1": Estimate(12.3456, 1.23)},
        },
        units={"energy_w1": "kT", "torus_w2": "rad"},
        num_samples={"proposal": 100, "SMC": 50},
        num_rejected={"proposal": 3},
        settings={"seed": 0},
        notes=("a note",),
    )
    assert str(table).splitlines() == [
        "| AA       | samples | rejected | energy_w1 / kT |  torus_w2 / rad |",
        "|----------|--------:|---------:|---------------:|----------------:|",
        "| proposal |     100 |        3 |            inf | 0.1235 ± 0.0056 |",
        "| SMC      |      50 |        0 |     12.3 ± 1.2 |               – |",
        "",
        "- a note",
    ]
    for suffix in (".json", ".csv", ".md"):
        table.save(tmp_path / "new" / f"evaluation{suffix}")
    content = json.loads((tmp_path / "new/evaluation.json").read_text())
    assert content["ensembles"]["proposal"]["metrics"]["energy_w1"] == {"value": None, "error": None}
    assert content["ensembles"]["SMC"]["metrics"]["energy_w1"] == {"value": 12.3456, "error": 1.23}
    with (tmp_path / "new/evaluation.csv").open() as file:
        rows = {(row["ensemble"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(rows["proposal", "torus_w2"]["value"]) == 0.12345 and rows["SMC", "energy_w1"]["unit"] == "kT"
    assert int(rows["proposal", "num_rejected"]["value"]) == 3
    assert (tmp_path / "new/evaluation.md").read_text() == f"{table}\n"
    with pytest.raises(ValueError, match=r"suffix must be \.json"):
        table.save(tmp_path / "evaluation.xls")


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(1.0, 0.0), "1 ± 0"),
        (Estimate(1 - 1e-16, 2e-16), "1 ± 0"),
        (Estimate(1234.5, 67.8), "1234 ± 68"),
        (Estimate(1234.5, 678.0), "1.23e+03 ± 6.8e+02"),
        (Estimate(3.2e9, 1.0e8), "3.2e+09 ± 1e+08"),
        (Estimate(0.25), "0.25"),
    ],
)
def test_estimates_print_to_their_error(estimate, text):
    assert str(estimate) == text


def test_markdown_takes_names_as_text():
    """A folder's name begins no HTML and no column of its own; on the screen it is as it was given."""
    table = Evaluation("m", {"<script>a</script>|b": {"x": Estimate(1.0)}}, {"x": ""}, {"<script>a</script>|b": 2})
    assert table.to_markdown().splitlines()[2] == "| &lt;script&gt;a&lt;/script&gt;&#124;b |       2 |        0 |   1 |"
    assert "<script>a</script>|b" in str(table)


def test_figures_take_names_as_text(tmp_path):
    """What LaTeX would call an unknown symbol is a name like any other."""
    heights = Curve(np.ones(4))
    name = r"x $\foo$ y"
    path = tmp_path / "curves.png"
    curves([(np.linspace(0, 1, 5), {"r": heights, name: heights})], path, labels=[(name, name)], reference="r")
    ramachandran({name: (np.zeros((5, 2)), None)}, tmp_path / "map.png", title=name)
    assert path.stat().st_size > 1000

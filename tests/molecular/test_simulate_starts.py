"""Start structures: which bonds turn, that turning keeps the molecule what it is, and starts drawn from a flow."""

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from molecular.commands import main
from molecular.data.corpus import simulate_corpus
from molecular.data.ensembles import load_ensemble
from molecular.dynamics import report_lines, simulate, start_structures
from molecular.dynamics.starts import UnreliableStarts, is_same_molecule, random_torsions
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.geometry import dihedrals, has_torsion
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import ramachandran_torsions, rigid_torsions, rotatable_bonds
from molecular.sampling import load_flow, sample
from molecular.sampling.shipped import SHIPPED, reference_positions
from molecular.sampling.starts import EnsembleStarts, FlowStarts
from nflib.io import read_json
from nflib.montecarlo import resample
from tests.molecular.small_molecules import of_bonds

# Butane's heavy atoms with explicit hydrogens on the inner carbons, and a three-ring at its end.
CHAIN = of_bonds("CCCCHHHHCC", [(0, 1), (1, 2), (1, 4), (1, 5), (2, 3), (2, 6), (2, 7), (3, 8), (3, 9), (8, 9)])
CONJUGATED = of_bonds("CCCC", [(0, 1), (1, 2), (2, 3)])


def structure(seed: int = 0) -> torch.Tensor:
    return torch.randn(10, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bonds_that_turn():
    turning = {(i, j): set(beyond.tolist()) for i, j, beyond in rotatable_bonds(CHAIN)}
    assert turning == {(2, 1): {0, 1, 4, 5}, (2, 3): {3, 8, 9}} or turning == {
        (1, 2): {2, 3, 6, 7, 8, 9},
        (2, 3): {3, 8, 9},
    }
    for (i, j), beyond in turning.items():
        assert j in beyond and i not in beyond
    assert rotatable_bonds(CONJUGATED) == []  # no tetrahedral atom: conjugated, it does not turn
    assert rigid_torsions(CONJUGATED).tolist() == [[0, 1, 2, 3]]


def test_turning_keeps_bonds_angles_and_handedness():
    x = structure()
    turned = random_torsions(x, rotatable_bonds(CHAIN), 20, torch.Generator().manual_seed(0))
    first, second = torch.tensor(CHAIN.bonds).T

    def lengths(y):
        return (y[:, first] - y[:, second]).norm(dim=-1)

    torch.testing.assert_close(lengths(turned), lengths(x[None]).expand(20, -1))
    for a, b, c in [(0, 1, 2), (1, 2, 3), (4, 1, 2), (6, 2, 3), (2, 3, 8)]:  # angles, as distances of ends
        torch.testing.assert_close(
            (turned[:, a] - turned[:, c]).norm(dim=-1), (x[a] - x[c]).norm().expand(20), msg=str((a, b, c))
        )
    assert bool(is_same_molecule(turned, x, CHAIN).all())
    angles = dihedrals(turned, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 8]]))
    assert angles.std(dim=0).min() > 0.5


def test_a_mirror_image_a_stretched_bond_and_nan_are_another_molecule():
    x = structure()
    wrong = torch.stack([x, x * torch.tensor([-1.0, 1.0, 1.0]), x, x])
    wrong[2, 0] += 3 * (wrong[2, 0] - wrong[2, 1])
    wrong[3, 5, 1] = torch.nan
    assert is_same_molecule(wrong, x, CHAIN).tolist() == [True, False, False, False]


def test_structures_that_break_are_replaced():
    x = structure()
    calls = []

    def relax(y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        y = y.clone()
        y[1::2] *= torch.tensor([-1.0, 1.0, 1.0])
        return y

    starts = start_structures(x, CHAIN, 9, relax, torch.Generator().manual_seed(0))
    assert starts.shape == (9, 10, 3) and calls == [9, 4, 2, 1]
    torch.testing.assert_close(starts[0], x)
    assert bool(is_same_molecule(starts, x, CHAIN).all())
    assert len({tuple(row.flatten().tolist()) for row in starts}) == 9


def test_a_molecule_without_torsions_starts_from_one_structure():
    x = torch.zeros(1, 3)
    assert start_structures(x, of_bonds("C", []), 3, lambda y: y, torch.Generator()).shape == (3, 1, 3)


def test_a_flow_gives_starts_of_equilibrium(tmp_path):
    peptide = Peptide("Ace-A-Nme")
    starts = FlowStarts(num_draws=400)
    x = starts(peptide, 64, 3)
    assert x.shape == (64, peptide.num_atoms, 3) and torch.equal(x, starts(peptide, 64, 3))
    assert not torch.equal(x, starts(peptide, 64, 4))
    drawn = sample(load_flow(peptide), peptide, 400, seed=3)
    rows = (x[:, None] == drawn.x).flatten(2).all(-1)
    assert rows.any(1).all()  # they are draws, in number as their weights say: systematic resampling
    assert ((rows.sum(0) - 64 * drawn.weights / drawn.weights.sum()).abs() < 1).all()
    with pytest.raises(
        UnreliableStarts, match=r"400 draws of Ace-A-Nme are worth \d+ effective samples, not the 390 wanted for 390"
    ):
        starts(peptide, 390, 3)
    many = FlowStarts(num_draws=400, min_effective=64)(peptide, 390, 3)  # several from one draw
    assert len(many) == 390 and len(many.unique(dim=0)) < 390
    with pytest.raises(UnreliableStarts, match="not the 400 wanted"):
        FlowStarts(num_draws=400, tempered=True)(peptide, 400, 3)


def test_starts_by_tempered_weights(monkeypatch):
    peptide, seen = Peptide("Ace-A-Nme"), []
    monkeypatch.setattr(
        "molecular.sampling.starts.resample", lambda weights, *rest: seen.append(weights) or resample(weights, *rest)
    )
    x = FlowStarts(num_draws=400, min_effective=390, tempered=True)(peptide, 64, 3)
    log_weights = sample(load_flow(peptide), peptide, 400, seed=3).log_weights
    weights = seen[0] / seen[0].sum()
    assert len(x) == 64 and abs(float(1 / weights.square().sum()) - 390) < 1
    # A power of the weights: their logarithms are a straight line over the others, of a slope between 0 and 1.
    power = (weights[0] / weights[1]).log() / (log_weights[0] - log_weights[1])
    assert 0.0 < power < 1.0
    torch.testing.assert_close(weights, torch.softmax(power * log_weights, 0), rtol=1e-4, atol=1e-9)
    enough = FlowStarts(num_draws=400, min_effective=64, tempered=True)(peptide, 64, 3)
    assert torch.equal(enough, FlowStarts(num_draws=400, min_effective=64)(peptide, 64, 3))


def test_starts_of_a_flow_are_as_a_simulation_has_them(monkeypatch):
    """Populations and mean energy, of a flow whose own draws have seven times too many of phi > 0."""
    peptide = Peptide("Ace-A-Nme")
    drawn = []
    monkeypatch.setattr("molecular.sampling.starts.sample", lambda *a, **k: drawn.append(sample(*a, **k)) or drawn[0])
    x = FlowStarts(num_draws=2000)(peptide, 800, 5)
    (torsions,), energy = torch.as_tensor(ramachandran_torsions(peptide.topology)), ReducedEnergy(peptide)

    def observed(positions):
        phi, psi = dihedrals(positions, torsions).double().T
        helical = (psi + 2 * torch.pi / 3) % (2 * torch.pi) < torch.pi
        return torch.stack([(phi > 0).double(), helical.double(), energy(positions).double()], dim=1)

    of_starts, of_reference = observed(x), observed(reference_positions(peptide))
    # FlowStarts promises 800 effective samples; the simulation's frames are worth more than 1,000 by its own report.
    error = (of_starts.var(0) / 800 + of_reference.var(0) / 1000).sqrt()

    def z(values):
        return ((values.mean(0) - of_reference.mean(0)) / error).abs()

    assert (z(of_starts) < 3).all()
    raw = z(observed(drawn[0].x))
    assert raw[0] > 10 and raw[2] > 10  # what the weights put right


def test_a_simulation_starts_from_what_it_is_given(tmp_path):
    peptide = Peptide("GG")
    given = torch.from_numpy(peptide.positions).float() + 0.001 * torch.randn(2, peptide.num_atoms, 3)
    seen = []

    def starts(molecule, number, seed):
        seen.append((molecule.sequence, number, seed))
        return given

    options = {
        "hot_ps": 0.0,
        "equilibration_ps": 0.0,
        "num_replica_groups": 2,
        "num_temperatures": 1,
        "timestep_ps": 1e-4,
    }
    options |= {"swap_ps": 1e-4, "save_ps": 1e-4, "progress": False, "starts": starts}
    simulate(peptide, tmp_path, picoseconds=1e-4, seed=5, **options)
    frame = load_ensemble(tmp_path).positions
    moved = (frame - frame[:, :1]) - (given - given[:, :1])
    assert moved.abs().max() < 1e-3  # 0.1 fs later, its centre apart
    report = simulate(peptide, tmp_path, picoseconds=2e-4, seed=5, **options | {"starts": None}).report
    assert seen == [("GG", 2, 5)]  # a continued one has its own, and still says which
    assert read_json(tmp_path / "settings.json")["starts"] == report["starts"] == str(starts)
    assert f"Started from {starts}." in list(report_lines(report))


def test_a_corpus_leaves_out_what_has_no_starts(tmp_path, caplog):
    def starts(molecule, number, seed):
        if molecule.sequence == "GG":
            raise UnreliableStarts("too few.")
        return torch.from_numpy(molecule.positions).float().expand(number, -1, -1)

    options = {
        "hot_ps": 0.0,
        "equilibration_ps": 0.0,
        "num_replica_groups": 2,
        "num_temperatures": 1,
        "validation_fraction": 0.0,
    }
    options |= {"swap_ps": 0.002, "save_ps": 0.002, "progress": False, "starts": starts, "test_fraction": 0.0}
    corpus = simulate_corpus(["GG", "AG"], tmp_path, picoseconds=0.004, **options)
    assert corpus.sequences("train") == ["AG"] and "GG is left out: too few." in caplog.text
    assert corpus.starts("AG") == str(starts)
    # What is finished stays as it is, with its starts; the sequence that had none is simulated without.
    corpus = simulate_corpus(["GG", "AG"], tmp_path, picoseconds=0.004, **options | {"starts": None})
    assert sorted(corpus.sequences("train")) == ["AG", "GG"]
    assert corpus.starts("AG") == str(starts) and corpus.starts("GG") is None


def test_the_command_starts_from_a_flow(tmp_path):
    arguments = ["--peptide", "Ace-A-Nme", "--flow", str(SHIPPED / "Ace-A-Nme"), "--flow_draws", "100"]
    arguments += ["--equilibration_ps", "0", "--num_replica_groups", "4", "--swap_ps", "0.001"]
    arguments += ["--picoseconds", "0.001", "--save_ps", "0.001", "--seed", "3", "--progress", "false"]
    main(["simulate", *arguments, "--output", str(tmp_path)])
    origin = f"100 weighted draws of the flow in {SHIPPED / 'Ace-A-Nme'}"
    settings = read_json(tmp_path / "settings.json")
    assert (settings["starts"], settings["temperatures"], settings["hot_steps"]) == (origin, [300.0], 0)
    given = FlowStarts(num_draws=100)(Peptide("Ace-A-Nme"), 4, 3)
    frame = load_ensemble(tmp_path).positions
    moved = (frame - frame[:, :1]) - (given - given[:, :1])
    assert moved.abs().max() < 0.02  # a femtosecond later, its centre apart


TINY = {"hot_ps": 0.0, "equilibration_ps": 0.0, "num_replica_groups": 3, "num_temperatures": 1, "swap_ps": 0.002}
TINY |= {"save_ps": 0.002, "progress": False}


def test_frames_of_an_earlier_simulation_are_starts(tmp_path, caplog):
    peptide = Peptide("GG")
    simulate(peptide, tmp_path / "first", picoseconds=0.004, **TINY)
    frames, group = load_ensemble(tmp_path / "first").positions, load_ensemble(tmp_path / "first").replica_group
    starts = EnsembleStarts(tmp_path / "first")
    x = starts(peptide, 8, 1)
    assert torch.equal(x, starts(peptide, 8, 1)) and not torch.equal(x, starts(peptide, 8, 2))
    rows = (x[:, None] == frames).flatten(2).all(-1)
    # Six frames for eight replicas: each is there, none more than twice, which is said.
    assert "8 replicas of GG start from 6 frames of 3 replica groups" in caplog.text
    # Replicas take turns with replica groups: three of them are independent.
    for seed in range(10):
        caplog.clear()
        chosen = (starts(peptide, 3, seed)[:, None] == frames).flatten(2).all(-1).int().argmax(1)
        assert sorted(group[chosen].tolist()) == [0, 1, 2] and "independent" not in caplog.text
    assert rows.any(1).all() and set(rows.sum(0).tolist()) == {1, 2}
    # Of the molecule of those frames, and by default nothing that destroys their equilibrium.
    arguments = [
        "simulate",
        "--ensemble",
        str(tmp_path / "first"),
        "--equilibration_ps",
        "0",
        "--num_replica_groups",
        "3",
    ]
    arguments += ["--swap_ps", "0.001"]
    arguments += ["--picoseconds", "0.001", "--save_ps", "0.001", "--seed", "3", "--progress", "false"]
    main([*arguments, "--output", str(tmp_path / "second")])
    settings = read_json(tmp_path / "second" / "settings.json")
    assert settings["starts"] == f"frames of {tmp_path / 'first'}"
    assert (settings["temperatures"], settings["hot_steps"]) == ([310.0], 0)
    given, moved = starts(peptide, 3, 3), load_ensemble(tmp_path / "second").positions
    assert ((moved - moved[:, :1]) - (given - given[:, :1])).abs().max() < 0.02  # a femtosecond later
    with pytest.raises(
        ValueError, match=r"first holds a simulation of something else: its temperature is 310 K, not 350 K"
    ):
        starts(Peptide("GG", temperature=350.0), 3, 0)
    with pytest.raises(SystemExit, match=r"from --flow or from --ensemble; give one"):
        main([*arguments, "--flow", "somewhere", "--output", str(tmp_path / "third")])


def test_a_corpus_gives_starts_of_its_molecules(tmp_path):
    corpus = simulate_corpus(["GG"], tmp_path, picoseconds=0.004, validation_fraction=0.0, test_fraction=0.0, **TINY)
    starts = EnsembleStarts(corpus.folder)
    assert starts(Peptide("GG"), 4, 0).shape == (4, Peptide("GG").num_atoms, 3)
    with pytest.raises(UnreliableStarts, match="has no frames of it"):
        starts(Peptide("AG"), 4, 0)


def test_the_flow_is_on_the_device_of_the_simulation(tmp_path, monkeypatch):
    seen = {}

    def run(molecule, output, **options):
        seen.update(options)
        raise UnreliableStarts("far enough.")

    monkeypatch.setattr("molecular.commands.simulation.run", run)
    arguments = ["--peptide", "GG", "--flow", "somewhere", "--device", "cuda", "--picoseconds", "1"]
    with pytest.raises(SystemExit, match="far enough"):
        main(["simulate", *arguments, "--output", str(tmp_path)])
    assert seen["device"] == seen["starts"].device == "cuda"


def test_linear_groups_are_no_torsions():
    """Around a triple bond four atoms are in a line, and a torsion of them is noise."""
    butyne, noise = Chem.AddHs(Chem.MolFromSmiles("CC#CC")), torch.Generator().manual_seed(0)
    AllChem.EmbedMolecule(butyne, randomSeed=1)
    x = torch.from_numpy(butyne.GetConformer().GetPositions() / 10)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in butyne.GetBonds()]
    topology = of_bonds([atom.GetSymbol() for atom in butyne.GetAtoms()], bonds)
    quadruples = rigid_torsions(topology)
    assert len(quadruples) and not has_torsion(x, quadruples).any()
    shaken = x + 0.003 * torch.randn(200, *x.shape, generator=noise, dtype=x.dtype)
    assert is_same_molecule(shaken, x, topology).all()
    assert has_torsion(structure(), torch.tensor([[0, 1, 2, 3]])).all()

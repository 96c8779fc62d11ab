"""Training of transferable flows on a corpus: symmetries, rigid motion, the objective, the command and its errors."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from molecular import AveragedProse, InternalProse, Peptide, Prose
from molecular.commands import main
from molecular.data.corpus import ConformationStream, open_corpus
from molecular.data.ensembles import load_ensemble
from molecular.dynamics import simulate
from molecular.energy.reduced import ReducedEnergy
from molecular.flows.prose import spread
from molecular.flows.rigid_motion import CentroidEnergy, random_rigid_motion
from molecular.molecule.equivalent_atoms import (
    SymmetryTable,
    hydrogen_triples,
    symmetry_groups,
)
from molecular.molecule.features import pad, prose_context
from molecular.molecule.internal_context import internal_context
from molecular.molecule.storage import load_molecule
from molecular.training.batches import Window
from molecular.training.fit_corpus import (
    LikelihoodAndEnergies,
    LikelihoodPerDimension,
    bucketed_log_prob,
    num_dimensions,
)
from molecular.training.labelled import GROUP, LabelledFrames
from nflib.training import TrainingConfig
from tests.molecular.peptide_topologies import draw_positions, make_topology, padded
from tests.molecular.tiny_flow import make_tiny_flow
from tests.perturb import perturb
from tests.quiet import QUIET, QUIET_OPTIONS

SMALL = ["--channels", "8", "--num_blocks", "1", "--layers_per_block", "1", "--head_dim", "4"]
LOOP = ["--training.batch_size", "8", *QUIET_OPTIONS]
SEQUENCES = ("GG", "AG", "GA")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three dipeptides, GA for validation; conformations are noise about a structure, enough to fit marginals to."""
    folder = tmp_path_factory.mktemp("corpus")
    split = {"train": ["GG", "AG"], "validation": ["GA"], "test": []}
    (folder / "corpus.json").write_text(json.dumps({"seed": 0, "split": split}))
    for sequence in SEQUENCES:
        system = folder / "systems" / sequence
        simulate(
            Peptide(sequence), system, picoseconds=0.02, hot_ps=0.0, equilibration_ps=0.0, num_replica_groups=1,
            num_temperatures=2, save_ps=0.002, progress=False,
        )  # fmt: skip
        shard = system / "frames-000000.npz"
        arrays = {name: np.repeat(array, 20, axis=0) for name, array in np.load(shard).items()}
        noise = 0.01 * np.random.default_rng(0).normal(size=arrays["positions"].shape)
        arrays["positions"] = (arrays["positions"] + noise).astype(np.float32)
        np.savez(shard, **arrays)
        (system / "finished.json").write_text("{}")
    return folder


def train(corpus, output, *options):
    architecture = [] if "--initial" in options else SMALL
    main(["train", "--data", str(corpus), "--output", str(output), *architecture, *LOOP, *options])


def resumed(kind, corpus, folder, steps, *options):
    """The flow of a run whose last checkpoint was lost on the way, asserted to be that of a run in one go."""
    options += ("--training.max_steps", str(steps), "--training.warmup_steps", "1")
    train(corpus, folder / "whole", *options)
    stopped = folder / "stopped"
    train(corpus, stopped, *options)
    shutil.rmtree(stopped / "checkpoints" / f"step-{steps:09d}")
    train(corpus, stopped, *options)
    whole, flow = (kind.from_pretrained(path / "model") for path in (folder / "whole", stopped))
    torch.testing.assert_close(flow.state_dict(), whole.state_dict(), rtol=0, atol=0)
    return flow


@pytest.mark.parametrize(("coordinates", "kind"), [("internal", InternalProse), ("cartesian", Prose)])
def test_training_goes_on_where_it_was_stopped(corpus, tmp_path, coordinates, kind):
    options = ("--coordinates", coordinates, "--training.validation_interval", "2")
    flow = resumed(kind, corpus, tmp_path, 4, *options)
    samples, log_prob = flow.given(Peptide("GA")).sample_and_log_prob(3, seed=0)
    assert samples.shape[1:] == (20, 3)
    assert log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("coordinates", "kind", "energy_weight"),
    [("internal", InternalProse, 0), ("internal", InternalProse, 0.1), ("cartesian", Prose, 0)],
)
def test_a_flow_of_many_molecules_is_fitted_to_one(corpus, tmp_path, coordinates, kind, energy_weight):
    train(corpus, tmp_path / "many", "--coordinates", coordinates, "--training.max_steps", "1")
    data, initial = corpus / "systems" / "AG", tmp_path / "many" / "model"
    options = ("--initial", str(initial), "--energy_weight", str(energy_weight), "--training.learning_rate", "0.01")
    steps = ("--training.max_steps", "12", "--training.validation_interval", "4")
    if energy_weight:
        steps += ("--training.refresh_interval", "8")
    train(data, tmp_path / "one", *options, *steps)
    molecule = load_molecule(tmp_path / "one" / "model")
    x = load_ensemble(data).positions
    x = kind.from_pretrained(initial).augmentation(molecule)(x, torch.Generator().manual_seed(0))
    before, after = (
        kind.from_pretrained(folder).given(molecule).log_prob(x).mean()
        for folder in (initial, tmp_path / "one" / "model")
    )
    assert molecule.name == "AG" and after > before + 0.1
    with pytest.raises(SystemExit, match="model is a flow of many molecules, .* leave refit_marginals out"):
        train(data, tmp_path / "refit", *options, *steps, "--refit_marginals", "true")


def test_a_run_does_not_go_on_with_other_conformations(corpus, tmp_path):
    """Of another temperature, say: as many, so that their number tells nothing."""
    other = shutil.copytree(corpus, tmp_path / "other")
    shard = other / "systems" / "AG" / "frames-000000.npz"
    arrays = dict(np.load(shard))
    arrays["positions"] = arrays["positions"] + np.float32(0.001) * np.sin(arrays["positions"])
    np.savez(shard, **arrays)
    train(corpus, tmp_path / "run", "--training.max_steps", "1")
    train(corpus, tmp_path / "run", "--training.max_steps", "2")
    with pytest.raises(SystemExit, match="begun with other conformations than those in .*other, as of another temp"):
        train(other, tmp_path / "run", "--training.max_steps", "3")
    (tmp_path / "run" / "conformations.json").unlink()  # of an earlier version
    train(other, tmp_path / "run", "--training.max_steps", "3")


def test_a_run_of_one_molecule_does_not_go_on_with_other_frames_or_from_another_flow(corpus, tmp_path):
    """The best of the old validation set was compared with losses on the new one."""
    train(corpus, tmp_path / "many", "--training.max_steps", "1")
    train(corpus, tmp_path / "others", "--training.max_steps", "2")
    data = corpus / "systems" / "AG"
    initial, others = (("--initial", str(tmp_path / name / "model")) for name in ("many", "others"))
    train(data, tmp_path / "run", *initial, "--training.max_steps", "1")
    train(data, tmp_path / "run", *initial, "--training.max_steps", "2")
    with pytest.raises(SystemExit, match="begun from another flow than this one"):
        train(data, tmp_path / "run", *others, "--training.max_steps", "3")
    with pytest.raises(SystemExit, match=r"begun with other settings \(energy_weight 0.0 then, 0.1 now\)"):
        train(data, tmp_path / "run", *initial, "--training.max_steps", "3", "--energy_weight", "0.1")
    again = shutil.copytree(data, tmp_path / "again")
    arrays = dict(np.load(again / "frames-000000.npz"))
    arrays["positions"] = arrays["positions"][::-1]
    np.savez(again / "frames-000000.npz", **arrays)
    with pytest.raises(SystemExit, match="begun with other conformations than those in .*again"):
        train(again, tmp_path / "run", *initial, "--training.max_steps", "3")


def test_the_symmetries_of_all_residues():
    counts = {s: len(symmetry_groups(make_topology(s))) for s in (*"GAVFYDEKWNQR", "MT")}
    # An ammonium at the start, a carboxylate at the end, and what the side chains have.
    assert counts == dict.fromkeys("AFYDEKNQR", 3) | {"G": 2, "V": 4, "W": 2, "MT": 4}


def test_guanidinium_turns_as_a_whole_and_each_nh2_alone():
    peptide = Peptide("RA")
    (group,) = (rows for rows in symmetry_groups(peptide) if len(rows) == 8)
    arrangements = {tuple(peptide.topology.atom_names[atom] for atom in row) for row in group.tolist()}
    assert len(arrangements) == 8 and all(sorted(row) == sorted(group[0].tolist()) for row in group.tolist())
    names = [peptide.topology.atom_names[atom] for atom in group[0]]
    for row in arrangements:  # hydrogens stay on their nitrogen: HH1x on NH1, HH2x on NH2
        now = dict(zip(names, row, strict=True))
        pairs = {now["NH1"]: {now["HH11"], now["HH12"]}, now["NH2"]: {now["HH21"], now["HH22"]}}
        assert pairs == {"NH1": {"HH11", "HH12"}, "NH2": {"HH21", "HH22"}}


@pytest.mark.slow
def test_symmetries_keep_the_energy():
    """To the few tenths of kT by which improper torsions, whose atoms have an order, tell them apart."""
    for sequence, bound in {"FD": 0.3, "YE": 0.3, "KV": 0.3, "NA": 0.5, "GQ": 0.5, "RN": 1.0}.items():
        peptide = Peptide(sequence)
        energy = ReducedEnergy(peptide, dtype=torch.float64)
        noise = 0.005 * torch.randn(1, peptide.num_atoms, 3, generator=torch.Generator().manual_seed(0))
        x = (torch.from_numpy(peptide.positions) + noise).double()
        table = SymmetryTable([symmetry_groups(peptide)], peptide.num_atoms)
        turned = table.turn(x.expand(20, -1, -1), torch.zeros(20, dtype=torch.int64), torch.Generator().manual_seed(0))
        assert not torch.equal(turned, x.expand_as(turned))
        assert (energy(turned) - energy(x)).abs().max() < bound


def test_turning_a_batch_exchanges_the_atoms_of_groups_and_no_others():
    topologies = [make_topology("GG"), make_topology("FR")]
    groups = [symmetry_groups(topology) for topology in topologies]
    lengths = [topology.getNumAtoms() for topology in topologies]
    table = SymmetryTable(groups, max(lengths))
    x = torch.arange(max(lengths)).float()[None, :, None].expand(400, -1, 3)
    molecules = torch.arange(400) % 2
    turned = table.turn(x, molecules, torch.Generator().manual_seed(0))[..., 0].long()
    for molecule, own in enumerate(groups):
        rows = turned[molecules == molecule]
        moved = {int(atom) for group in own for atom in group.flatten()}
        still = [atom for atom in range(max(lengths)) if atom not in moved]
        assert torch.equal(rows[:, still], torch.tensor(still).expand(len(rows), -1))
        for group in own:
            found, counts = rows[:, group[0]].unique(dim=0, return_counts=True)
            assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in group.tolist()}
            assert counts.min() > 200 / len(group) * 0.6


def test_hydrogens_are_named_clockwise_in_every_molecule():
    """Whichever two of a methyl or ammonium group exchanged names before, and nothing else moves."""
    peptides = [Peptide(sequence) for sequence in ("KA", "VM", "GG")]
    longest = max(peptide.num_atoms for peptide in peptides)
    triples = [hydrogen_triples(peptide) for peptide in peptides]
    assert [len(rows) for rows in triples] == [3, 4, 1]
    table = SymmetryTable([[], [], []], longest, triples)
    for molecule, (peptide, rows) in enumerate(zip(peptides, triples, strict=True)):
        x = torch.from_numpy(peptide.positions)
        for atom, *hydrogens in rows.tolist():
            assert torch.linalg.det(x[hydrogens] - x[atom]) > 0
            assert [peptide.topology.atom_names[h] for h in hydrogens] == sorted(
                peptide.topology.atom_names[h] for h in hydrogens
            )
        molecules = torch.full((8,), molecule)
        right = torch.nn.functional.pad(x, (0, 0, 0, longest - len(x))).expand(8, -1, -1)
        assert torch.equal(table.named(right, molecules), right)
        exchanged = right.clone()
        exchanged[3, rows[-1, [1, 2]]] = right[3, rows[-1, [2, 1]]]
        named = table.named(exchanged, molecules)
        alone = exchanged[:, : len(x)]
        assert torch.equal(SymmetryTable.of([peptide]).named(alone, torch.zeros(8).long()), named[:, : len(x)])
        hydrogens = rows[-1, 1:]
        others = [atom for atom in range(longest) if atom not in hydrogens.tolist()]
        assert torch.equal(named[:, others], right[:, others])
        assert torch.equal(named[:3], right[:3]) and torch.equal(named[4:], right[4:])
        assert torch.linalg.det(named[3, hydrogens] - named[3, rows[-1, 0]]) > 0
        assert {tuple(p) for p in named[3, hydrogens].tolist()} == {tuple(p) for p in right[3, hydrogens].tolist()}


def test_random_rigid_motion_keeps_distances_and_places_the_centroid():
    topology = make_topology("GA")
    x = draw_positions(topology, 1).expand(4000, -1, -1)
    x = torch.nn.functional.pad(x, (0, 0, 0, 2))
    exists = (torch.arange(x.shape[1]) < topology.getNumAtoms()).expand(4000, -1)
    moved = random_rigid_motion(x, exists, 0.5, torch.Generator().manual_seed(0))
    assert (moved[~exists] == 0).all()
    own = moved[:, : topology.getNumAtoms()]
    torch.testing.assert_close(
        torch.cdist(own[:5], own[:5]), torch.cdist(x[:5], x[:5])[:, : own.shape[1], : own.shape[1]]
    )
    centroid = own.mean(1)
    expected = 0.5 / math.sqrt(own.shape[1])
    torch.testing.assert_close(centroid.std(0), torch.full((3,), expected).double(), rtol=0.1, atol=0)
    direction = torch.nn.functional.normalize(own[:, 0] - own[:, 1], dim=-1)
    assert direction.mean(0).norm() < 0.06
    assert (torch.det(torch.stack([own[:, i] - own[:, 3] for i in range(3)], dim=1)).sign().unique()).numel() == 1


def test_the_centroid_energy_normalises_position_and_orientation():
    """Two atoms on a spring: the integral over their six coordinates by Monte Carlo is 8 pi^2 over 8 pi^2."""
    scale, stiffness = 0.5, 3.0
    energy = CentroidEnergy(lambda x: stiffness * (x[:, 0] - x[:, 1]).square().sum(-1), scale)
    x = torch.randn(200_000, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_normal = -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(-1)
    integral = (-energy(x) - log_normal).exp().mean()
    # The spring's own integral over the relative position, per solid angle and per turn: x = centroid +- r / 2.
    spring = (math.pi / stiffness) ** 1.5
    assert float(integral) == pytest.approx(spring / (8 * math.pi**2), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("kind", [InternalProse, Prose])
def test_buckets_change_nothing_and_all_molecules_weigh_alike(kind):
    torch.manual_seed(0)
    flow = perturb(kind(channels=8, num_blocks=2, layers_per_block=1, head_dim=4, **EXTRA[kind]), 0.05)
    topologies = [make_topology(sequence) for sequence in ("GAG", "G", "AA", "GW", "K")]
    positions = [draw_positions(topology, 1, seed, torch.float32) for seed, topology in enumerate(topologies)]
    x = padded(positions)
    context = flow.context(*topologies)
    log_prob = flow.log_prob(x, context)
    torch.testing.assert_close(bucketed_log_prob(flow, x, context, 3), log_prob, atol=1e-3, rtol=1e-5)
    dimensions = num_dimensions(flow, context)
    removed = 6 if kind is InternalProse else 0
    assert dimensions.tolist() == [3 * t.getNumAtoms() - removed for t in topologies]
    if kind is InternalProse:  # a flow on plain positions sees them moved at random
        groups = [[] for _ in topologies]
        batch = {"inputs": x, "context": context, "system": torch.arange(5)}
        loss, metrics = LikelihoodPerDimension(SymmetryTable(groups, x.shape[1]))(flow, batch, torch.Generator())
        torch.testing.assert_close(loss, -(log_prob / dimensions).mean(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(metrics["negative_log_likelihood"], -log_prob.mean(), rtol=1e-5, atol=1e-3)


EXTRA = {InternalProse: {"condition_channels": 8}, Prose: {"scale": 0.3}}


def test_the_spread_leaves_out_padding():
    x = torch.nn.functional.pad(torch.randn(50, 20, 3, generator=torch.Generator().manual_seed(0)), (0, 0, 0, 5))
    context = torch.zeros(50, 25, 4, dtype=torch.int64)
    context[:, :20] = 1
    centred = x[:, :20] - x[:, :20].mean(1, keepdim=True)
    assert spread([{"inputs": x, "context": context}]) == pytest.approx(float(centred.square().mean().sqrt()))


def test_a_window_on_a_large_corpus_moves_on(corpus):
    options = {"batch_size": 1, "epochs": None, "context": internal_context, "buffer_size": 16}
    window, resumed = (Window(ConformationStream(open_corpus(corpus), **options), 40) for _ in range(2))
    before = window.batch(torch.arange(40))
    window.refresh(None, 1, torch.Generator())
    after = window.batch(torch.arange(40))
    assert torch.equal(before["inputs"][10:], after["inputs"][10:])
    assert not torch.equal(before["inputs"][:10], after["inputs"][:10])
    assert len(window) == 40
    # A resumed run begins with the same window, and goes on in an order of its own.
    assert torch.equal(resumed.batch(torch.arange(40))["inputs"], before["inputs"])
    resumed.refresh(None, 2, torch.Generator())
    assert not torch.equal(resumed.batch(torch.arange(10))["inputs"], after["inputs"][:10])


def labelled_source(corpus, flow):
    return LabelledFrames(open_corpus(corpus), partial(internal_context, orderings=flow.orderings), 0, 12)


def test_batches_with_energies_hold_groups_of_one_molecule(corpus):
    flow = make_tiny_flow(Peptide("GG"))
    source = labelled_source(corpus, flow)
    assert len(source) == 400
    for drawn in (False, True):
        batch = source.batch(torch.arange(32) * 12)
        for rows in torch.arange(32).split(GROUP):
            system = batch["system"][rows].unique()
            assert len(system) == 1
            peptide = Peptide(source.systems[int(system)])
            is_data = batch["is_data"][rows] == 1
            assert int(is_data.sum()) == (GROUP // 2 if drawn else GROUP)
            kept = batch["energy"][rows].isfinite()
            assert kept[is_data].all()
            x = batch["inputs"][rows][:, : peptide.num_atoms]
            # The fixture's frames have noise on them, but not their energies.
            torch.testing.assert_close(
                ReducedEnergy(peptide)(x[kept]), batch["energy"][rows][kept], rtol=1e-5, atol=1e-3
            )
        source.refresh(flow, 1, torch.Generator().manual_seed(0))
    assert all(len(part) == 12 for part in source.samples)
    assert any(bool(part.isfinite().any()) for part in source.sample_energies)


@torch.no_grad()
def test_the_log_variance_is_of_each_molecule_on_its_own(corpus):
    """A constant added to all energies of a molecule, a normaliser, changes nothing; rows without a label neither."""
    flow = make_tiny_flow(Peptide("GG")).double()
    source = labelled_source(corpus, flow)
    source.refresh(flow.float(), 1, torch.Generator().manual_seed(0))
    flow = flow.double()
    batch = source.batch(torch.arange(32) * 12)
    batch["inputs"] = batch["inputs"].double()
    objective = LikelihoodAndEnergies(SymmetryTable([[], []], batch["inputs"].shape[1]), 0.3, 1e9)
    loss, metrics = objective(flow, batch, torch.Generator())
    log_prob = flow.log_prob(batch["inputs"], batch["context"])
    dimensions = num_dimensions(flow, batch["context"])
    frames = batch["is_data"] == 1
    labelled = batch["energy"].isfinite()
    expected = -(log_prob / dimensions)[frames].mean()
    total = 0.0
    for rows in torch.arange(32).split(GROUP):
        own = rows[labelled[rows]]
        difference = log_prob[own] + batch["energy"][own]
        total += ((difference - difference.mean()).square() / dimensions[own]).sum()
    torch.testing.assert_close(loss, expected + 0.3 * total / labelled.sum(), rtol=1e-9, atol=0)
    assert float(metrics["rejected_energies"]) == pytest.approx(1 - float(labelled.double().mean()))
    shift = torch.where(torch.arange(32) < GROUP, 7.0, -30.0)
    again, _ = objective(flow, batch | {"energy": batch["energy"] + shift}, torch.Generator())
    torch.testing.assert_close(again, loss, rtol=1e-9, atol=0)


def test_training_with_energies_goes_on_where_it_was_stopped(corpus, tmp_path):
    options = ("--energy_weight", "0.1", "--training.batch_size", "16", "--training.refresh_interval", "2")
    resumed(InternalProse, corpus, tmp_path, 5, *options, "--training.checkpoint_interval", "3")


def damaged(corpus, tmp_path, sequence="AG"):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    return copy, copy / "systems" / sequence


def test_damaged_shards_and_frames_are_left_out_and_counted(corpus, tmp_path, caplog):
    copy, _ = damaged(corpus, tmp_path)
    arrays = dict(np.load(copy / "systems" / "GG" / "frames-000000.npz"))
    arrays["positions"][3] = np.nan
    np.savez(copy / "systems" / "GG" / "frames-000000.npz", **arrays)
    shutil.copy(copy / "systems" / "GG" / "frames-000000.npz", copy / "systems" / "GG" / "frames-000001.npz")
    path = copy / "systems" / "GG" / "frames-000001.npz"
    path.write_bytes(path.read_bytes()[:1000])
    train(copy, tmp_path / "output", "--training.max_steps", "1")
    assert "Left out 1 damaged shards and 1 frames." in caplog.text


def test_mistakes_are_answered_in_one_sentence(corpus, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "corpus.json").write_text(json.dumps({"split": {"train": [], "validation": [], "test": []}}))
    copy, system = damaged(corpus, tmp_path)
    capped = copy / "systems" / "Ace-A-Nme"
    shutil.copytree(system, capped)
    (copy / "corpus.json").write_text(
        json.dumps({"split": {"train": ["GG", "Ace-A-Nme"], "validation": [], "test": []}})
    )
    peptide = Peptide("Ace-A-Nme")
    from openmm import app, unit

    with (capped / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(peptide.topology.to_openmm(), peptide.positions * unit.nanometer, file, keepIds=True)
    mismatched = shutil.copytree(corpus, tmp_path / "mismatched")
    shard = mismatched / "systems" / "GG" / "frames-000000.npz"
    arrays = dict(np.load(shard))
    np.savez(shard, **arrays | {"positions": arrays["positions"][:, 1:]})
    cases = (
        (mismatched, (), "a frame of GG has 16 atoms, but its PDB file has 17"),
        (empty, (), "holds no frames for train"),
        (tmp_path / "none", (), "no molecule.json"),
        (corpus, ("--coordinates", "local_frames"), "coordinates must be one of"),
        (corpus, ("--energy_weight", "1"), "a multiple of 16"),
        (corpus, ("--energy_weight", "1", "--coordinates", "cartesian"), "flow on internal coordinates"),
        (copy, (), "Ace-A-Nme"),
    )
    for folder, options, words in cases:
        with pytest.raises(SystemExit) as stop:
            train(folder, tmp_path / "output", "--training.max_steps", "1", *options)
        assert words in str(stop.value), stop.value


def test_peptides_that_are_too_long_are_refused(corpus, tmp_path):
    from molecular.training.fit_corpus import train_on_corpus

    config = TrainingConfig(max_steps=1, batch_size=8, **QUIET)
    small = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 4}
    with pytest.raises(ValueError, match="AG has 20 atoms, but the flow takes 18"):
        train_on_corpus(corpus, tmp_path, config, max_atoms=18, **small)


def test_marginals_are_refitted_where_that_is_asked_for(corpus, tmp_path):
    small = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 4}
    unfitted = InternalProse(**small, condition_channels=8)
    unfitted.save_pretrained(tmp_path / "unfitted")
    options = ("--initial", str(tmp_path / "unfitted"), "--training.max_steps", "1")
    knots = []
    for refit in ("false", "true"):
        train(corpus, tmp_path / refit, *options, "--refit_marginals", refit)
        knots.append(InternalProse.from_pretrained(tmp_path / refit / "model").marginals.knots_x)
    assert torch.equal(knots[0], unfitted.marginals.knots_x)
    assert (knots[1][:, -1] - knots[1][:, 0]).max() == pytest.approx(2 * math.pi)
    with pytest.raises(SystemExit, match="refit_marginals is for flows on internal coordinates"):
        train(corpus, tmp_path / "plain", "--coordinates", "cartesian", *options, "--refit_marginals", "true")
    with pytest.raises(SystemExit, match="the initial flow has its own channels, dropout: leave channels, dropout out"):
        train(corpus, tmp_path / "wider", *options, "--channels", "16", "--dropout", "0.1")


def test_an_average_is_trained_as_one_flow(corpus, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        train(corpus, folder, "--training.max_steps", "1", "--training.seed", str(seed))
    average = AveragedProse([InternalProse.from_pretrained(folder / "model") for folder in folders])
    average.save_pretrained(tmp_path / "average")
    train(corpus, tmp_path / "on", "--initial", str(tmp_path / "average"), "--training.max_steps", "2")
    trained = AveragedProse.from_pretrained(tmp_path / "on" / "model")
    changed = [not torch.equal(a, b) for a, b in zip(average.parameters(), trained.parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2
    samples, log_prob = trained.given(Peptide("GA")).sample_and_log_prob(3, seed=0)
    torch.testing.assert_close(trained.given(Peptide("GA")).log_prob(samples), log_prob, atol=1e-3, rtol=1e-4)
    with pytest.raises(SystemExit, match="holds a flow on internal coordinates, not cartesian ones"):
        options = ("--coordinates", "cartesian", "--training.max_steps", "1")
        train(corpus, tmp_path / "plain", "--initial", str(tmp_path / "average"), *options)


def test_contexts_of_both_flows_are_padded_by_one_function():
    topologies = [make_topology("G"), make_topology("GA")]
    for context_of in (internal_context, prose_context):
        contexts = [context_of(topology) for topology in topologies]
        batch = pad(contexts)
        assert torch.equal(batch[1], contexts[1])
        assert (batch[0, len(contexts[0]) :, 0] == 0).all()


def test_regularization_is_for_flows_that_know_it(corpus, tmp_path):
    train(corpus, tmp_path / "flow", "--dropout", "0.2", "--neighbours", "false", "--training.max_steps", "1")
    config = InternalProse.from_pretrained(tmp_path / "flow" / "model").config
    assert (config["dropout"], config["neighbours"]) == (0.2, False)
    for data, options, message in (
        (corpus, ("--coordinates", "cartesian", "--neighbours", "false"), "internal coordinates"),
        (corpus / "systems" / "GG", ("--dropout", "0.2"), "--dropout is for a corpus, but the data are of one"),
    ):
        with pytest.raises(SystemExit) as stop:
            train(data, tmp_path / "none", *options, "--training.max_steps", "1")
        assert message in str(stop.value)


def test_an_initial_flow_whose_folder_names_no_module(corpus, tmp_path):
    train(corpus, tmp_path / "first", "--training.max_steps", "1")
    path = tmp_path / "first" / "model" / "config.json"
    document = json.loads(path.read_text())
    del document["module"]
    path.write_text(json.dumps(document))
    train(corpus, tmp_path / "on", "--initial", str(path.parent), "--training.max_steps", "1")
    assert (tmp_path / "on" / "model" / "config.json").is_file()

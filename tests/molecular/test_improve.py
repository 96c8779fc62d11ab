"""Self-improvement: rows of own samples, their weights, and a command that goes on where it was stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from molecular import InternalProse, Peptide, Prose
from molecular.commands import main
from molecular.commands.improvement import RECORD
from molecular.molecule.storage import load_molecule, save_molecule
from molecular.sampling import sample
from molecular.sampling.targets import energy_for
from molecular.training.beginnings import refuse_another_beginning
from molecular.training.replay_buffer import SIZE, ReplayBuffer
from nflib.flows import TARFlow
from nflib.io import only_run
from nflib.montecarlo import BoltzmannDensity, WeightedSamples, importance_sample
from nflib.montecarlo.diagnostics import effective_sample_size
from nflib.training import LogVariance, TrainingConfig, fit
from nflib.training.checkpoints import WEIGHTS
from tests.molecular.tiny_flow import SETTINGS, make_tiny_flow
from tests.quiet import QUIET, QUIET_OPTIONS

LOOP = ["--training.batch_size", "8", *QUIET_OPTIONS]


@pytest.fixture(scope="module")
def flow(gg):
    return make_tiny_flow(gg)


def shifted(x):
    """A normal density of standard deviation 0.7 about (1, -0.5, 0), not normalised."""
    return 0.5 * ((x - torch.tensor([1.0, -0.5, 0.0])) / 0.7).square().sum(-1)


def small_source(flow, size=400, **options):
    source = ReplayBuffer(lambda student: student, shifted, size, **{"teacher_weight": 0.3, "labelled": True} | options)
    source.refresh(flow, 0, torch.Generator().manual_seed(0))
    return source


@pytest.mark.parametrize("energy_weight", [0.0, 0.3])
def test_the_effective_sample_size_rises(tmp_path, energy_weight):
    torch.manual_seed(0)
    flow = TARFlow(event_shape=(3,), channels=16, num_blocks=2, layers_per_block=1, head_dim=8).eval()
    before = importance_sample(flow, BoltzmannDensity(shifted), 2000, seed=1).effective_sample_size_fraction
    source = small_source(flow, labelled=energy_weight > 0)
    rates = {"learning_rate": 3e-3, "ema_decay": 0.9, "refresh_interval": 50}
    config = TrainingConfig(batch_size=100, max_steps=150, **rates, **QUIET)
    fit(flow, source, config=config, objective=LogVariance(energy_weight=energy_weight, clip=4.0), output=tmp_path)
    after = importance_sample(flow, BoltzmannDensity(shifted), 2000, seed=1).effective_sample_size_fraction
    assert after > 2 * before
    assert source.num_energies == 3 * 400
    assert [part["step"] for part in source.rounds()] == [0, 50, 100]
    assert source.rounds()[0]["effective_sample_size_fraction"] == pytest.approx(before, abs=0.1)


def test_parts_of_the_rows():
    torch.manual_seed(0)
    flow = TARFlow(event_shape=(3,), channels=8, num_blocks=1, layers_per_block=1, head_dim=8).eval()
    source = small_source(flow, size=1000)
    source.refresh(flow, 10, torch.Generator().manual_seed(1))
    batch = source.batch(torch.arange(len(source)))
    target, teacher, later = batch["inputs"].split(1000)
    # The mean of the target, of the flow, and of the flow again; a standard error is about 0.1.
    torch.testing.assert_close(target.mean(0), torch.tensor([1.0, -0.5, 0.0]), atol=0.3, rtol=0)
    assert torch.equal(teacher.sort(0).values, source.positions[:1000].sort(0).values)
    assert torch.equal(later.sort(0).values, source.positions[1000:].sort(0).values)
    assert batch["is_data"].unique_consecutive().tolist() == pytest.approx([1.0, 0.3, 0.0])
    torch.testing.assert_close(batch["energy"], shifted(batch["inputs"]).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_the_processes_of_torchrun_one_writes(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", rank)
    torch.manual_seed(0)
    flow = TARFlow(event_shape=(3,), channels=8, num_blocks=1, layers_per_block=1, head_dim=8).eval()
    small_source(flow, size=20, best=tmp_path / "best")
    refuse_another_beginning(tmp_path, "data", None, None, {"energy_weight": 0.1})
    assert {path.name for path in tmp_path.iterdir()} == ({"best", "conformations.json"} if rank == "0" else set())


def test_particles_are_part_of_the_target_and_move_on():
    torch.manual_seed(0)
    flow = TARFlow(event_shape=(3,), channels=8, num_blocks=1, layers_per_block=1, head_dim=8).eval()
    given = []

    class Particles:
        count = 50

        def __call__(self, student, last, generator):
            assert student is flow
            given.append(last)
            x = torch.full((50, 3), 9.0) + len(given)
            log_weights = torch.zeros(50, dtype=torch.float64)
            log_weights[:5] = -torch.inf
            return WeightedSamples(x, log_weights, log_target=-shifted(x)), 70

    source = small_source(flow, size=200, particles=Particles())
    source.refresh(flow, 10, torch.Generator().manual_seed(1))
    assert given[0] is None
    assert (given[1].x[5:] == 10).all()
    torch.testing.assert_close(given[1].log_target[5:], -shifted(given[1].x[5:]).double())
    assert source.num_energies == 2 * (200 + 70)
    assert [part["num_energies"] for part in source.rounds()] == [270, 540]
    batch = source.batch(torch.arange(len(source)))
    target, teacher, later = batch["inputs"].split([250, 200, 200])
    sizes = [effective_sample_size(source.log_weights[source.sets == number]) for number in range(4)]
    for value, size in ((10.0, sizes[1]), (11.0, sizes[3])):
        share = (target == value).all(-1).float().mean()
        assert share == pytest.approx(size / sum(sizes), abs=0.01)
    assert teacher.max() < 9 and later.max() < 9
    again = small_source(flow, size=200, particles=Particles())
    again.load_state_dict(source.state_dict())
    assert again.rounds() == source.rounds()


def test_one_heavy_sample_does_not_become_all_rows():
    class Uniform:
        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.arange(num_samples).float().view(-1, 1, 1), torch.zeros(num_samples)

    source = ReplayBuffer(
        lambda _: Uniform(),
        lambda x: torch.where(x == 3, -50.0, 0.0).flatten(),
        100,
        teacher_weight=0.1,
        labelled=False,
    )
    source.refresh(torch.nn.Identity(), 0, torch.Generator().manual_seed(0))
    target = source.batch(torch.arange(100))["inputs"]
    assert int((target == 3).sum()) == 1
    assert source.rounds()[0]["effective_sample_size_fraction"] == pytest.approx(0.01, abs=1e-6)


def particles_without_draws():
    """Particles of finite energy, whatever the draws are."""

    class Particles:
        count = 5

        def __call__(self, student, last, generator):
            return WeightedSamples(torch.ones(5, 1, 1), torch.zeros(5), log_target=torch.zeros(5)), 5

    return Particles()


def test_rejected_samples_are_rows_of_no_part_and_high_energies_no_labels():
    class Line:
        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.arange(num_samples).float().view(-1, 1, 1), torch.zeros(num_samples)

    def energy(x):
        x = x.flatten()
        return torch.where(x < 10, torch.nan, torch.where(x < 20, 1000.0, 0.0))

    source = ReplayBuffer(lambda _: Line(), energy, 100, teacher_weight=0.5, labelled=True)
    source.refresh(torch.nn.Identity(), 0, torch.Generator().manual_seed(0))
    batch = source.batch(torch.arange(300))
    assert batch["inputs"].min() >= 10
    high = batch["inputs"].flatten() < 20
    assert high.any()
    assert torch.equal(torch.isinf(batch["energy"]), high)


@pytest.mark.parametrize("particles", [None, particles_without_draws()], ids=["draws", "particles"])
def test_first_draws_without_an_energy_are_refused(particles):
    class Line:
        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.arange(num_samples).float().view(-1, 1, 1), torch.zeros(num_samples)

    nothing = ReplayBuffer(
        lambda _: Line(),
        lambda x: x.flatten() * torch.nan,
        100,
        teacher_weight=0.5,
        labelled=True,
        particles=particles,
    )
    with pytest.raises(ValueError, match="none of the flow's first 100 samples has a finite energy; train it further"):
        nothing.refresh(torch.nn.Identity(), 0, torch.Generator())


def improve(model, output, *options, steps=4):
    main(
        ["improve", "--peptide", "GG", "--model", str(model), "--output", str(output), "--samples_per_round", "20"]
        + [*LOOP, "--training.max_steps", str(steps), "--training.refresh_interval", "2"]
        + ["--training.checkpoint_interval", "2", "--training.warmup_steps", "1", *options]
    )


def test_a_run_goes_on_where_it_was_stopped(flow, tmp_path, caplog):
    flow.save_pretrained(tmp_path / "teacher")
    for name in ("whole", "stopped"):
        improve(tmp_path / "teacher", tmp_path / name)
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-000000004")
    improve(tmp_path / "teacher", tmp_path / "stopped")
    last = Path("checkpoints", "step-000000004", WEIGHTS)
    weights = [load_file(tmp_path / name / last) for name in ("whole", "stopped")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)
    records = [json.loads((tmp_path / name / RECORD).read_text()) for name in ("whole", "stopped")]
    assert records[0] == records[1]
    assert records[0]["num_energies"] == 40
    assert [part["step"] for part in records[0]["rounds"]] == [0, 2]
    # The second round's draws were worth less than the first flow's, which is kept, not the last one.
    first, second = (part[SIZE] for part in records[0]["rounds"])
    assert first > second and records[0]["kept_step"] == 0 and "It fell" in caplog.text
    improve(tmp_path / "teacher", tmp_path / "one round", steps=2)
    assert json.loads((tmp_path / "one round" / RECORD).read_text())["kept_step"] == 2
    for name, is_kept in (("whole", True), ("stopped", True), ("one round", False)):
        kept = InternalProse.from_pretrained(tmp_path / name / "model").state_dict()
        assert is_kept == all(torch.equal(kept[part], value) for part, value in flow.state_dict().items())
    # Sampling needs the model alone, and energies over another kT are not gone on with.
    assert load_molecule(tmp_path / "whole" / "model").difference(Peptide("GG")) is None
    for options, words in (
        (["--temperature", "350"], "its temperature is 310 K, not 350 K; give another output"),
        (["--teacher_weight", "0.4"], r"begun with other settings \(teacher_weight 0.3 then, 0.4 now\); go on with"),
        (["--samples_per_round", "30"], "begun with rounds of 60 rows, not 90; give the same samples_per_round"),
    ):
        with pytest.raises(SystemExit, match=words):
            improve(tmp_path / "teacher", tmp_path / "whole", *options)


def test_a_run_that_has_no_checkpoint_yet_keeps_its_molecule(flow, tmp_path):
    flow.save_pretrained(tmp_path / "teacher")
    save_molecule(Peptide("GG", temperature=350.0), tmp_path / "run" / "model")
    with pytest.raises(SystemExit, match="its temperature is 350 K, not 310 K; give another output"):
        improve(tmp_path / "teacher", tmp_path / "run")
    assert load_molecule(tmp_path / "run" / "model").temperature == 350.0
    with only_run(tmp_path / "other"), pytest.raises(SystemExit, match="another run is at work"):
        improve(tmp_path / "teacher", tmp_path / "other")
    assert not (tmp_path / "other" / "model").exists()


def test_a_run_with_particles_goes_on_where_it_was_stopped(flow, tmp_path):
    flow.save_pretrained(tmp_path / "teacher")
    options = ["--num_particles", "6", "--moves_per_round", "2"]
    for name in ("whole", "stopped"):
        improve(tmp_path / "teacher", tmp_path / name, *options)
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-000000004")
    improve(tmp_path / "teacher", tmp_path / "stopped", *options)
    records = [json.loads((tmp_path / name / RECORD).read_text()) for name in ("whole", "stopped")]
    assert records[0] == records[1]
    assert records[0]["num_energies"] > 40 + 2 * 12


def test_flows_of_plain_positions_are_weighted_with_their_centroid(gg, tmp_path):
    torch.manual_seed(0)
    prose = Prose(**SETTINGS, scale=0.3).eval()
    energy = energy_for(prose.given(gg), gg)
    x = torch.from_numpy(gg.positions).float()[None]
    x = x - x.mean(1, keepdim=True)
    moved = x + 0.1
    variance = 0.3**2 / gg.num_atoms
    assert float(energy(moved) - energy(x)) == pytest.approx(3 * 0.01 / (2 * variance), rel=1e-2)
    turned = prose.augmentation(gg)(moved.expand(5, -1, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned.mean(1), moved.mean(1).expand(5, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(energy(turned), energy(moved).expand(5), atol=0.3, rtol=1e-4)
    prose.save_pretrained(tmp_path / "teacher")
    improve(tmp_path / "teacher", tmp_path / "improved", steps=1)
    assert Prose.from_pretrained(tmp_path / "improved" / "model").config == prose.config


def test_temperatures_change_the_weights_alone(flow, gg):
    """Transfer to another temperature: the draws stay, the weights follow the energies in units of its kT."""
    warm, hot = (sample(flow.given(peptide), peptide, 50, seed=0) for peptide in (gg, Peptide("GG", temperature=350.0)))
    assert torch.equal(warm.x, hot.x)
    energies = -warm.log_target * gg.kT
    expected = -energies / (gg.kT * 350.0 / gg.temperature) - warm.log_prob.double()
    torch.testing.assert_close(hot.log_weights, expected, rtol=1e-4, atol=1e-2)


MISTAKES = {
    "too few samples": (["--samples_per_round", "1"], "samples_per_round"),
    "negative teacher": (["--teacher_weight", "-1"], "teacher_weight"),
    "negative energy weight": (["--energy_weight", "-1"], "zero or more"),
    "one particle": (["--num_particles", "1"], "num_particles"),
    "no moves": (["--num_particles", "5", "--moves_per_round", "0"], "moves_per_round"),
    "no such model": (["--model", "nowhere"], "config.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name, flow, tmp_path):
    flow.save_pretrained(tmp_path / "teacher")
    options, words = MISTAKES[name]
    with pytest.raises(SystemExit, match="error: ") as stop:
        improve(tmp_path / "teacher", tmp_path / "output", *options)
    assert words in str(stop.value)

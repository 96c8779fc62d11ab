"""Sequential Monte Carlo of a peptide from a flow: the split, densities, poison, and what is written."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import mdtraj
import numpy as np
import pytest
import torch

from molecular.commands import main
from molecular.commands.sampling import CHECKPOINT
from molecular.energy.reduced import ReducedEnergy
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import phi_psi_torsions
from molecular.sampling import load_flow, sample, smc
from molecular.sampling.sequential import move_at_target
from molecular.sampling.shipped import reference_positions
from nflib.montecarlo import (
    BoltzmannDensity,
    FixedStepSizes,
    TransformedTarget,
    WeightedSamples,
    resample,
    score_scales,
)
from nflib.montecarlo.run import Run
from tests.molecular.tiny_flow import make_molecule_flow
from tests.molecular.tiny_runs import FILES_OF_SAMPLES

SEQUENCE = "Ace-A-Nme"


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide(SEQUENCE)


@pytest.fixture(scope="module")
def flow() -> MoleculeFlow:
    return load_flow(Peptide(SEQUENCE)).flow


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    positions = reference_positions(Peptide(SEQUENCE))
    assert positions is not None
    return positions


@pytest.mark.parametrize("coordinates", ["internal", "local_frames"])
def test_split_is_the_flow(peptide, frames, coordinates):
    flow = make_molecule_flow(peptide, frames, coordinates).double()
    fixed, rest = flow.split_coordinates()
    x = frames[:50].double()
    with torch.no_grad():
        y, logabsdet = fixed(x)
        torch.testing.assert_close(rest.log_prob(y) + logabsdet, flow.log_prob(x), atol=1e-9, rtol=0)
        y, log_prob = rest.sample_and_log_prob(40, seed=2)
        x, logabsdet = fixed.inverse(y)
        expected, expected_log_prob = flow.sample_and_log_prob(40, seed=2)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(log_prob - logabsdet, expected_log_prob)


def test_split_of_the_shipped_flow(flow, frames):
    """Equal to 1e-5 of the log-density, in float32, and periodic: a torsion may go round."""
    fixed, rest = flow.split_coordinates()
    with torch.no_grad():
        y, logabsdet = fixed(frames[:200])
        log_prob = rest.log_prob(y)
        torch.testing.assert_close(log_prob + logabsdet, flow.log_prob(frames[:200]), rtol=1e-5, atol=0)
        turned = y.clone()
        turned[:, 1:, 2] += 2 * torch.pi
        torch.testing.assert_close(rest.log_prob(turned), log_prob, rtol=1e-5, atol=1e-3)
        x, again = fixed.inverse(turned)
    torch.testing.assert_close(x.diff(dim=1), fixed.inverse(y)[0].diff(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(again, -logabsdet, rtol=1e-5, atol=0)


def test_steps_of_one_length_fit_all_coordinates(peptide, flow):
    """Divided by the flow's own lengths, forces along all coordinates are alike."""
    fixed, rest = flow.split_coordinates()
    scales = score_scales(rest, 200, seed=1)
    assert scales.shape == (peptide.num_atoms - 2, 3) and (scales > 0).all()
    target = TransformedTarget(BoltzmannDensity(ReducedEnergy(peptide)), fixed)
    y = rest.sample(400, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_prob(y).sum(), y)
    typical = (scales * gradient).abs().nanmedian(dim=0).values / 0.6745
    assert (typical > 0.3).all() and (typical < 3.0).all()


def test_flow_on_plain_positions_is_refused(peptide, frames):
    with pytest.raises(ValueError, match="no normaliser"):
        smc(make_molecule_flow(peptide, frames, "cartesian"), peptide, 10)
    with pytest.raises(ValueError, match="no kernel 'nuts'"):
        smc(make_molecule_flow(peptide, frames, "internal"), peptide, 10, kernel="nuts")
    with pytest.raises(ValueError, match="no split_coordinates"):
        smc(torch.nn.Linear(2, 2), peptide, 10)  # type: ignore[arg-type]


def test_single_precision_is_enough(peptide, flow):
    """Density and gradient of the target in the flow's coordinates, energies and map in float32, beside float64."""
    fixed, rest = flow.split_coordinates()
    y = rest.sample(200, seed=5)
    found = {}
    for dtype in (torch.float32, torch.float64):
        target = TransformedTarget(
            BoltzmannDensity(ReducedEnergy(peptide, dtype=dtype)), copy.deepcopy(fixed).to(dtype)
        )
        points = y.to(dtype).requires_grad_()
        log_prob = target.log_prob(points)
        (gradient,) = torch.autograd.grad(log_prob.sum(), points)
        found[dtype] = log_prob.detach().double(), gradient.double()
    (value, gradient), (exact, exact_gradient) = found[torch.float32], found[torch.float64]
    thermal = exact > exact.median() - 30.0
    assert thermal.float().mean() > 0.8
    assert (value - exact)[thermal].abs().max() < 1e-3
    error = (gradient - exact_gradient)[thermal].flatten(1).norm(dim=1)
    assert (error / exact_gradient[thermal].flatten(1).norm(dim=1)).max() < 1e-3


def test_gradient_is_that_of_the_density(peptide, flow):
    """Against central differences in float64, also where a torsion is next to the end of its interval."""
    fixed, rest = flow.split_coordinates()
    target = TransformedTarget(
        BoltzmannDensity(ReducedEnergy(peptide, dtype=torch.float64)), copy.deepcopy(fixed).double()
    )
    y = rest.sample(6, seed=3).double()
    y[3:, 1, 2] = torch.tensor([3.14, -3.14, 3.2], dtype=torch.float64)
    y.requires_grad_()
    log_prob = target.log_prob(y)
    assert torch.isfinite(log_prob).all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), y)
    with torch.no_grad():
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step = 1e-6 * direction
        difference = (target.log_prob(y + step) - target.log_prob(y - step)) / 2e-6
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-2)


def test_density_across_the_cut_of_a_torsion(peptide, flow):
    """Steps lead across where a circle was cut: there the target goes on, and the flow's density stays finite."""
    fixed, rest = flow.split_coordinates()
    target = TransformedTarget(BoltzmannDensity(ReducedEnergy(peptide)), fixed)
    y = rest.sample(1, seed=3).repeat(8, 1, 1)
    y[:, 1, 2] = torch.pi + torch.tensor([-30.0, -1e-3, -1e-4, 0.0, 1e-4, 1e-3, 0.5, 30.0])
    y.requires_grad_()
    log_prob, proposal = target.log_prob(y), rest.log_prob(y)
    for values in (log_prob, proposal):
        (gradient,) = torch.autograd.grad(values.sum(), y)
        assert torch.isfinite(values).all() and torch.isfinite(gradient).all()
    assert (log_prob[1:6] - log_prob[3]).abs().max() < 1.0


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_densities_and_weights_of_the_result(peptide, flow, kernel):
    samples = smc(flow, peptide, 120, kernel=kernel, temperatures=[0.5, 1.0], step_sizes=FixedStepSizes([0.3]), seed=1)
    assert samples.x.shape == (120, peptide.num_atoms, 3)
    alive = samples.log_weights > -torch.inf
    with torch.no_grad():
        energy = ReducedEnergy(peptide)(samples.x[alive])
        log_prob = flow.log_prob(samples.x[alive])
    torch.testing.assert_close(samples.log_target[alive], -energy, atol=5e-2, rtol=0)
    torch.testing.assert_close(samples.log_prob[alive], log_prob.double(), atol=5e-2, rtol=0)
    assert abs(samples.log_normalizer + 195.31) < 1.0
    per_particle = 1 + 2 * (5 if kernel == "hmc" else 1)
    # Draws cost one evaluation each, with the gradient that the first move needs; a trajectory that dies costs less.
    spared = per_particle * 120 - samples.history.num_evaluations[-1]
    assert spared == 0 if kernel == "mala" else 0 <= spared < 40
    assert samples.history.num_gradients == samples.history.num_evaluations


def test_particles_move_on_at_the_target(peptide, flow):
    """From exact samples, weighted ones resampled: energies stay what they are, conformations do not."""
    drawn = sample(flow, peptide, 2000, seed=2)
    start = drawn.x[resample(drawn.weights, 300, torch.Generator().manual_seed(0))]
    moved = move_at_target(flow, peptide, start, 12, generator=torch.Generator().manual_seed(1))
    energy = ReducedEnergy(peptide)
    torch.testing.assert_close(moved.log_target, -energy(moved.x), atol=5e-2, rtol=0)
    assert abs(energy(moved.x).mean() - energy(start).mean()) < 1.5  # whose deviation is 5.5: three standard errors
    bonds = [torch.linalg.vector_norm(x[:, 1] - x[:, 0], dim=-1) for x in (start, moved.x)]
    assert abs(torch.corrcoef(torch.stack(bonds))[0, 1]) < 0.5
    assert 300 * 13 <= moved.num_evaluations <= 300 * 13 + 20 * 256
    with pytest.raises(ValueError, match="no split_coordinates"):
        move_at_target(object(), peptide, start, 1, generator=torch.Generator())
    with pytest.raises(ValueError, match="no kernel 'walk'"):
        move_at_target(flow, peptide, start, 1, kernel="walk", generator=torch.Generator())


class Poisoned:
    """A flow whose draws are spoilt now and then: NaN, infinite, one atom on another."""

    def __init__(self, flow: MoleculeFlow, every: int) -> None:
        self.flow, self.every = flow, every

    def split_coordinates(self):
        fixed, rest = self.flow.split_coordinates()
        every = self.every

        class Spoilt(torch.nn.Module):
            log_prob = staticmethod(rest.log_prob)

            def sample_and_log_prob(self, num_samples, *, generator=None):
                y, log_prob = rest.sample_and_log_prob(num_samples, generator=generator)
                kinds = torch.arange(0, num_samples, every)
                y[kinds[0::3], 3] = torch.nan
                y[kinds[1::3], 4] = torch.inf
                y[kinds[2::3], -1] = -1e6  # a bond of no length
                return y, log_prob

        return fixed, Spoilt()


def test_poison_is_rejected_and_counted(peptide, flow):
    plain = smc(flow, peptide, 200, temperatures=[0.5, 1.0], seed=1)
    samples = smc(Poisoned(flow, 20), peptide, 200, temperatures=[0.5, 1.0], seed=1)
    assert samples.num_rejected == 10 and plain.num_rejected == 0
    error = samples.log_normalizer_standard_error + plain.log_normalizer_standard_error
    # A twentieth of the draws is lost to the normaliser, which counts them.
    assert abs(samples.log_normalizer - np.log(0.95) - plain.log_normalizer) < 4 * error
    used = samples.log_weights > -torch.inf
    assert torch.isfinite(samples.x[used]).all() and used.any()


def test_an_exactly_collinear_torsion_stops_nothing(peptide, flow):
    """OpenMM gives it a finite energy and NaN forces; here both are finite, and its bent angle leaves it no weight."""
    phi, _ = phi_psi_torsions(peptide.topology)
    first, second, third, _ = phi[0].tolist()
    x = torch.tensor(np.asarray(peptide.positions), dtype=torch.float32).repeat(3, 1, 1)
    x[1, third], x[1, second], x[1, first] = torch.zeros(3), torch.tensor([0.125, 0, 0]), torch.tensor([0.25, 0, 0])
    energy = ReducedEnergy(peptide)(x)
    assert torch.isfinite(energy).all() and energy[1] > energy[0] + 1000
    samples = WeightedSamples.from_log_densities(x, torch.zeros(3), -energy)
    assert samples.num_rejected == 0 and samples.weights[1] == 0.0


def test_command_line(peptide, tmp_path):
    output = tmp_path / "samples"
    arguments = ["sample", "--peptide", SEQUENCE, "--output", str(output), "--num_samples", "100", "--sampler", "smc"]
    arguments += ["--conditional_ess", "0.5", "--kernel", "mala"]
    main(arguments)
    assert {path.name for path in output.iterdir()} == FILES_OF_SAMPLES | {"history.png"}
    summary = json.loads((output / "summary.json").read_text())
    history = summary["history"]
    assert summary["sampler"] == "smc" and history["inverse_temperatures"][-1] == 1.0
    assert len(history["acceptance"]) == len(history["inverse_temperatures"])
    samples = WeightedSamples.load(output / "weights.npz")
    assert samples.log_normalizer == pytest.approx(summary["log_normalizer"])
    trajectory = mdtraj.load(str(output / "samples.xtc"), top=str(output / "topology.pdb"))
    np.testing.assert_allclose(trajectory.xyz, samples.x, atol=1e-3)


@pytest.mark.parametrize(("draws", "sampler", "number"), [(400, "importance", 400), (60, "smc", 30)])
def test_automatic_choice(draws, sampler, number, tmp_path, caplog):
    """Weights that can be used are kept; of those that cannot, the very draws are moved."""
    arguments = ["sample", "--peptide", SEQUENCE, "--sampler", "auto", "--num_draws", str(draws), "--num_samples", "30"]
    caplog.set_level("INFO")
    main([*arguments, "--conditional_ess", "0.5", "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["sampler"], summary["num_samples"]) == (sampler, number)
    said = "The weights of 60 draws cannot be used (they are worth fewer than 50 independent draws): moving 30 of them"
    assert (said in caplog.text) == (sampler == "smc") == ((tmp_path / "history.png").is_file())
    if sampler == "smc":
        assert summary["importance"]["num_samples"] == 60
        assert "move the samples to the force field with --sampler smc" not in caplog.text
    else:
        assert "The weights can be used" in caplog.text and "importance" not in summary


def test_a_stopped_automatic_run_goes_on_and_other_settings_are_refused_before_the_draws(tmp_path, monkeypatch):
    """They were refused after the draws, which may take hours."""
    command = import_module("molecular.commands.sampling")
    common = ["sample", "--peptide", SEQUENCE, "--sampler", "auto", "--num_samples", "30", "--num_draws", "60"]
    common += ["--conditional_ess", "0.5"]
    main([*common, "--output", str(tmp_path / "whole")])
    output, draw = tmp_path / "stopped", command.draw

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "advance", stopped)
        main([*common, "--output", str(output)])
    with (
        monkeypatch.context() as patch,
        pytest.raises(SystemExit, match="error: .*other settings .moves 1 then, 2 now"),
    ):
        patch.setattr(command, "draw", stopped)
        main([*common, "--moves", "2", "--output", str(output)])
    assert command.draw is draw
    main([*common, "--output", str(output)])
    whole, again = (WeightedSamples.load(tmp_path / name / "weights.npz") for name in ("whole", "stopped"))
    assert torch.equal(whole.x, again.x) and torch.equal(whole.log_weights, again.log_weights)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped")]
    assert summaries[0]["importance"] == summaries[1]["importance"]


def test_smc_from_draws_that_are_there(peptide, flow):
    draws = sample(flow, peptide, 200, seed=0)
    samples = smc(flow, peptide, 100, draws=draws, temperatures=[0.5, 1.0], seed=1)
    assert samples.history.num_particles[0] == 200 and samples.x.shape == (100, peptide.num_atoms, 3)
    assert abs(samples.log_normalizer - draws.log_normalizer) < 1.0
    energy = ReducedEnergy(peptide)(samples.x)
    torch.testing.assert_close(samples.log_target.double(), -energy.double(), atol=0.05, rtol=0)


def test_stopped_run_goes_on(peptide, tmp_path, monkeypatch):
    """Stopped between two temperatures, and called again: the same samples, and the checkpoint goes."""
    common = ["sample", "--peptide", SEQUENCE, "--num_samples", "60", "--sampler", "smc", "--conditional_ess", "0.95"]
    main([*common, "--output", str(tmp_path / "whole")])
    advance, calls = Run.advance, []

    def interrupted(run, state):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(None)
        return advance(run, state)

    output = tmp_path / "stopped"
    monkeypatch.setattr(Run, "advance", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--output", str(output)])
    assert stopped.value.code == 130
    assert [path.name for path in output.iterdir()] == [CHECKPOINT]
    monkeypatch.setattr(Run, "advance", advance)
    with pytest.raises(SystemExit, match="error: .*other settings"):
        main([*common, "--output", str(output), "--seed", "1"])
    main([*common, "--output", str(output)])
    assert CHECKPOINT not in {path.name for path in output.iterdir()}
    whole, again = (WeightedSamples.load(tmp_path / name / "weights.npz") for name in ("whole", "stopped"))
    assert torch.equal(whole.x, again.x) and torch.equal(whole.log_weights, again.log_weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "gibbs"], "no sampler 'gibbs'"),
        (["--sampler", "smc", "--kernel", "nuts"], "no kernel 'nuts'"),
        (["--sampler", "smc", "--conditional_ess", "2"], "conditional_ess is 2"),
        (["--sampler", "smc", "--num_samples", "1"], "num_samples is 1"),
    ],
)
def test_mistakes_end_in_one_sentence(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["sample", "--peptide", SEQUENCE, "--output", str(tmp_path / "output"), *options])
    assert not list((tmp_path / "output").glob("*"))


def test_a_flow_of_another_molecule_is_refused():
    """Glycylalanine has as many atoms as alanylglycine, and would be moved as if it were that."""
    one, other = Peptide("AG"), Peptide("GA")
    with pytest.raises(ValueError, match="the flow is of another molecule"):
        smc(load_flow(one), other, 20, seed=0)
    with pytest.raises(ValueError, match="the flow is of another molecule"):
        move_at_target(
            load_flow(one), other, torch.from_numpy(other.positions)[None].float(), 1, generator=torch.Generator()
        )

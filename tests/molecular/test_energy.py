"""Compiled energies against OpenMM's Reference platform, closed forms and autograd."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import openmm
import pytest
import torch
from openmm import app
from openmm.app.internal.customgbforces import GBSAHCTForce, GBSAOBC1Force, GBSAOBC2Force
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from molecular import Peptide
from molecular.energy import CompiledEnergy, compile_system
from molecular.energy.tables import rounded
from tests.molecular.openmm_energies import (
    assert_matches,
    nonbonded,
    peptide,
    periodic_nonbonded,
    random_positions,
    reference,
    system_of,
    thermal,
)

SEQUENCES = ("Ace-A-Nme", "AA", "WK", "AP", "Ace-P-Nme")


# --- one force at a time -------------------------------------------------------------------------


def test_bond_closed_form() -> None:
    force = openmm.HarmonicBondForce()
    force.addBond(1, 0, 0.1, 2000.0)
    x = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.13, 0.0]]], dtype=torch.float64)
    energy, forces = compile_system(system_of(2, force), torch.float64).energy_and_force(x)
    assert energy.item() == pytest.approx(0.5 * 2000.0 * 0.03**2)
    torch.testing.assert_close(forces[0, 1], torch.tensor([0.0, -60.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(forces[0, 0], -forces[0, 1])


def test_two_bonds_between_the_same_atoms() -> None:
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.1, 2000.0)
    force.addBond(1, 0, 0.2, 300.0)
    assert_matches(system_of(3, force), random_positions(3))


def test_angles() -> None:
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, 1.9, 400.0)
    force.addAngle(3, 1, 0, 2.1, 300.0)
    force.addAngle(2, 3, 1, 0.3, 100.0)
    assert_matches(system_of(4, force), random_positions(4))


@pytest.mark.parametrize("bend", [0.0, 1e-3, math.pi - 1e-3])
def test_angle_nearly_straight(bend: float) -> None:
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, 2.0, 400.0)
    x = np.array([[[-0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.12 * math.cos(bend), 0.12 * math.sin(bend), 0.0]]])
    if bend:
        assert_matches(system_of(3, force), x, 1e-7)
    else:
        energy, forces = compile_system(system_of(3, force)).energy_and_force(torch.from_numpy(x))
        assert energy.item() == pytest.approx(200.0 * (math.pi - 2.0) ** 2, rel=1e-5)
        assert forces.isfinite().all()


def test_torsions_of_any_phase_and_order() -> None:
    force = openmm.PeriodicTorsionForce()
    rng = np.random.default_rng(3)
    for atoms in ((0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 2, 3), (4, 2, 0, 1), (1, 3, 4, 0)):
        force.addTorsion(*atoms, int(rng.integers(1, 7)), rng.uniform(-3, 3), rng.uniform(1, 20))
    assert_matches(system_of(5, force), random_positions(5))


def test_torsion_with_phase_zero_or_pi_closed_form() -> None:
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 3, 0.0, 2.0)
    force.addTorsion(0, 1, 2, 3, 2, math.pi, 5.0)
    phi = torch.linspace(-3.1, 3.1, 11, dtype=torch.float64)
    x = torch.zeros(11, 4, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 2] = 0.1, 0.15
    x[:, 3] = torch.stack((0.1 * phi.cos(), 0.1 * phi.sin(), torch.full_like(phi, 0.2)), -1)
    energy = compile_system(system_of(4, force), torch.float64).energy(x)
    torch.testing.assert_close(energy, 2.0 * (1 + (3 * phi).cos()) + 5.0 * (1 - (2 * phi).cos()))
    assert_matches(system_of(4, force), x.numpy())


@pytest.mark.parametrize(
    "options", [(None,), (0.6,), (0.6, 1.0), (50.0, 10.0), (0.6, 78.3, 0.4), (50.0, 1.0, 0.3)], ids=str
)
def test_nonbonded(options: tuple[float | None, ...]) -> None:
    assert_matches(system_of(8, nonbonded(8, *options)), random_positions(8))  # type: ignore[arg-type]


def test_exceptions_ignore_the_cutoff() -> None:
    force = nonbonded(6, 0.2)
    x = torch.from_numpy(10.0 * random_positions(6, 1))
    distance = (x[0, 3] - x[0, 0]).norm(), (x[0, 1] - x[0, 4]).norm()
    expected = 138.935457644 * (0.3 / distance[0] - 0.5 / distance[1])
    energy = compile_system(system_of(6, force), torch.float64).energy(x)
    assert energy.item() == pytest.approx(expected.item(), rel=1e-6)


def gbsa_obc(cutoff: float | None, surface: float | None = None) -> openmm.Force:
    rng = np.random.default_rng(7)
    force = openmm.GBSAOBCForce()
    for _ in range(8):
        force.addParticle(rng.normal(), rng.uniform(0.1, 0.2), rng.uniform(0.7, 0.9))
    force.setSolventDielectric(60.0)
    force.setSoluteDielectric(2.0)
    if surface is not None:
        force.setSurfaceAreaEnergy(surface)
    if cutoff is not None:
        force.setNonbondedMethod(openmm.GBSAOBCForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
    return force


def custom_gb(
    kind: Callable[..., openmm.CustomGBForce] = GBSAOBC1Force, cutoff: float | None = None, **options: object
):
    rng = np.random.default_rng(7)
    force = kind(cutoff=cutoff, **options)
    for _ in range(8):
        force.addParticle([rng.normal(), rng.uniform(0.1, 0.2), rng.uniform(0.7, 0.9)])
    force.finalize()
    if cutoff is not None:
        force.setNonbondedMethod(openmm.CustomGBForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
    return force


GENERALIZED_BORN = {
    "gbsa": lambda: gbsa_obc(None),
    "gbsa, cutoff": lambda: gbsa_obc(0.6),
    "gbsa, wide cutoff": lambda: gbsa_obc(20.0),
    "gbsa, no surface": lambda: gbsa_obc(None, 0.0),
    "obc1": lambda: custom_gb(),
    "obc1, ACE": lambda: custom_gb(SA="ACE", solventDielectric=70.0, soluteDielectric=2.0),
    "obc1, ACE, cutoff": lambda: custom_gb(SA="ACE", cutoff=0.6),
    "obc2, ACE": lambda: custom_gb(GBSAOBC2Force, SA="ACE"),
    "obc2, wide cutoff": lambda: custom_gb(GBSAOBC2Force, cutoff=20.0),
    "obc2, salt": lambda: custom_gb(GBSAOBC2Force, kappa=1.5, SA="ACE"),
    "obc1, salt, cutoff": lambda: custom_gb(cutoff=0.6, kappa=3.0),
    "hct": lambda: custom_gb(GBSAHCTForce),
    "hct, ACE, salt, cutoff": lambda: custom_gb(GBSAHCTForce, SA="ACE", kappa=0.7, cutoff=0.6),
}


@pytest.mark.parametrize("make", GENERALIZED_BORN.values(), ids=GENERALIZED_BORN)
@pytest.mark.parametrize("spread", [0.3, 0.05], ids=["apart", "overlapping"])
def test_generalized_born(make: Callable[[], openmm.Force], spread: float) -> None:
    assert_matches(system_of(8, make()), random_positions(8, spread=spread))


@pytest.mark.parametrize("make", [lambda: gbsa_obc(None), custom_gb], ids=["gbsa", "custom"])
def test_generalized_born_of_an_atom_inside_another(make: Callable[[], openmm.Force]) -> None:
    x = random_positions(8, batch=20, spread=0.4)
    step = np.random.default_rng(1).standard_normal((20, 3))
    x[:, 1] = x[:, 0] + 0.01 * step / np.linalg.norm(step, axis=-1, keepdims=True)
    assert_matches(system_of(8, make()), x)


# --- whole peptides ------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_peptide_double_precision(sequence: str, noise: float) -> None:
    x = thermal(sequence)
    x = x + noise * np.random.default_rng(2).standard_normal(x.shape)
    assert_matches(peptide(sequence).system, x)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_peptide_single_precision(sequence: str) -> None:
    x = thermal(sequence)
    expected_energy, expected_force = reference(peptide(sequence).system, x)
    energy, force = compile_system(peptide(sequence).system).energy_and_force(torch.from_numpy(x))
    assert energy.dtype == force.dtype == torch.float32
    assert np.abs(energy.numpy() - expected_energy).max() < 1e-3
    assert np.abs(force.numpy() - expected_force).max() < 1e-4 * np.abs(expected_force).max()


def test_parameters_are_rounded_without_a_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4000, generator=generator, dtype=torch.float64)
    values[1] = 0.2719  # what all hydrogens of a molecule share
    values[2, :5] = torch.tensor([0.0, 1.0, -0.5, torch.inf, -torch.inf])
    single = rounded(values, torch.float32)
    assert single.dtype == torch.float32 and single.shape == values.shape
    finite = values.isfinite()
    errors = torch.where(finite, single.double() - values, 0.0)
    place = (torch.nextafter(single.abs(), torch.tensor(torch.inf)) - single.abs()).double()
    assert (errors.abs() <= place)[finite].all()
    assert (errors[:, :5][2] == 0.0).all() and (single[2, 3:5] == values[2, 3:5]).all()
    shared = values[1].float().double() - values[1]
    assert errors[1].sum().abs() < 1e-3 * shared.sum().abs()
    assert errors.sum().abs() < 1e-6
    assert torch.equal(rounded(values, torch.float64), values)


@pytest.fixture(scope="module")
def dialanine() -> CompiledEnergy:
    return compile_system(peptide("AA").system, torch.float64)


@pytest.fixture()
def x() -> Tensor:
    return torch.from_numpy(thermal("AA"))


def test_forces_neither_push_nor_turn_the_molecule(dialanine: CompiledEnergy, x: Tensor) -> None:
    _, force = dialanine.energy_and_force(x)
    torch.testing.assert_close(force.sum(1), torch.zeros(8, 3, dtype=torch.float64), atol=1e-9, rtol=0)
    torque = torch.linalg.cross(x, force).sum(1)
    torch.testing.assert_close(torque, torch.zeros_like(torque), atol=1e-9, rtol=0)


def test_gradient_is_minus_the_force(dialanine: CompiledEnergy, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    weight = torch.arange(1.0, 9.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * dialanine.energy(x)).sum(), x)
    torch.testing.assert_close(gradient, -weight[:, None, None] * dialanine.energy_and_force(x)[1])


def test_gradient_is_the_slope_of_the_energy(dialanine: CompiledEnergy, x: Tensor) -> None:
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    difference = dialanine.energy(x + 1e-5 * direction) - dialanine.energy(x - 1e-5 * direction)
    _, force = dialanine.energy_and_force(x)
    torch.testing.assert_close(difference / 2e-5, -(force * direction).sum((1, 2)), rtol=1e-5, atol=1e-3)


def test_gradient_has_the_dtype_of_the_positions(x: Tensor) -> None:
    x = x.clone().requires_grad_()
    energy = compile_system(peptide("AA").system)(x)
    energy.sum().backward()
    assert energy.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float64


def test_energy_alone_is_the_energy_beside_the_force(dialanine: CompiledEnergy, x: Tensor) -> None:
    torch.testing.assert_close(dialanine.energy(x), dialanine.energy_and_force(x)[0], rtol=1e-14, atol=0)


def test_leading_shapes_and_chunks(dialanine: CompiledEnergy, x: Tensor) -> None:
    energy, force = dialanine.energy_and_force(x)
    shaped = dialanine.energy_and_force(x.view(2, 1, 4, 23, 3))
    assert shaped[0].shape == (2, 1, 4)
    torch.testing.assert_close(shaped[1].view_as(force), force)
    assert dialanine.energy(x[0]).shape == ()
    many = x.repeat(2 * dialanine.chunk_size // 8 + 1, 1, 1)[:-3]
    torch.testing.assert_close(dialanine.energy_and_force(many)[1][-5:], force[:5])
    torch.testing.assert_close(dialanine.energy(many)[8:16], energy)
    empty = dialanine.energy_and_force(x[:0])
    assert empty[0].shape == (0,)
    assert empty[1].shape == (0, 23, 3)


def test_threads_change_nothing(dialanine: CompiledEnergy, x: Tensor) -> None:
    before = torch.get_num_threads()
    many = x.repeat(40, 1, 1)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(dialanine.energy_and_force(many))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-9)


def test_bad_conformations_stay_alone(dialanine: CompiledEnergy, x: Tensor) -> None:
    energy, force = dialanine.energy_and_force(x)
    bad = x.clone()
    bad[1, 5] = math.nan
    bad[3, 2, 0] = math.inf
    bad[4, 7] = bad[4, 20]
    bad[6] = 0.0
    keep = [0, 2, 5, 7]
    bad_energy, bad_force = dialanine.energy_and_force(bad)
    assert not bad_energy[[1, 3, 4, 6]].isfinite().any()
    # A bad neighbour switches on general code paths, so equal to rounding rather than to the bit.
    torch.testing.assert_close(bad_energy[keep], energy[keep], rtol=1e-12, atol=0)
    torch.testing.assert_close(bad_force[keep], force[keep], rtol=1e-9, atol=1e-9)


def periodic_torsion(periodicity: int, phase: float) -> openmm.Force:
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, periodicity, phase, 3.0)
    return force


def correction_map() -> openmm.Force:
    force = openmm.CMAPTorsionForce()
    force.addMap(6, np.random.default_rng(0).normal(0.0, 1.0, 36))
    force.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    return force


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make", [lambda: periodic_torsion(2, math.pi), lambda: periodic_torsion(1, 0.7), correction_map]
)
def test_dihedrals_of_collinear_atoms(make: Callable[[], openmm.Force], dtype: torch.dtype) -> None:
    """Atoms on a line, folded back on it, and nearly on it: finite, with bounded energies, beside others untouched."""
    bent = np.array([[0.0, 0.1, 0.0], [0.15, 0.0, 0.0], [0.3, 0.0, 0.0], [0.38, 0.12, 0.0], [0.5, 0.1, 0.1]])
    x = np.repeat(bent[None], 5, axis=0)
    x[1, 0] = 0.0
    x[2, :, 1:] = 0.0
    x[3, 0] = [0.31, 0.0, 0.0]
    x[4, 0] = [0.0, 1e-5, 0.0]
    compiled = compile_system(system_of(5, make()), dtype)
    energy, force = compiled.energy_and_force(torch.from_numpy(x))
    assert energy.isfinite().all() and force.isfinite().all()
    assert (energy.abs() < 10.0).all()
    alone = compiled.energy_and_force(torch.from_numpy(x[:1]))
    torch.testing.assert_close(energy[:1], alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(force[:1], alone[1], rtol=1e-5, atol=1e-5)


def test_peptide_with_collinear_atoms() -> None:
    made = peptide("Ace-A-Nme").system
    x = torch.from_numpy(thermal("Ace-A-Nme")[:2])
    torsions = next(force for force in made.getForces() if isinstance(force, openmm.PeriodicTorsionForce))
    i, j, k, *_ = torsions.getTorsionParameters(0)
    x[1, i] = 2.0 * x[1, j] - x[1, k]
    for dtype in (torch.float32, torch.float64):
        energy, force = compile_system(made, dtype).energy_and_force(x)
        assert energy.isfinite().all() and force.isfinite().all()


def test_precision_survives_conversions(x: Tensor) -> None:
    single = compile_system(peptide("AA").system)
    double = compile_system(peptide("AA").system, torch.float64)
    expected = double.energy(x)
    torch.testing.assert_close(single.double().energy(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(double.float().to(torch.float64).energy(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(single)).energy(x), expected, rtol=0, atol=0)
    assert not single.state_dict()


def test_system_of_free_particles() -> None:
    system = system_of(1, openmm.PeriodicTorsionForce(), openmm.HarmonicAngleForce(), openmm.HarmonicBondForce())
    energy, forces = compile_system(system).energy_and_force(torch.zeros(2, 1, 3))
    torch.testing.assert_close(energy, torch.zeros(2))
    torch.testing.assert_close(forces, torch.zeros(2, 1, 3))


def test_born_atom_alone() -> None:
    force = openmm.GBSAOBCForce()
    force.addParticle(1.0, 0.15, 0.8)
    assert_matches(system_of(1, force), np.zeros((2, 1, 3)))


def test_reduced_energies_by_temperature(dialanine: CompiledEnergy, x: Tensor) -> None:
    temperature = torch.tensor([300.0, 600.0])
    reduced = dialanine.reduced_energy(x.view(4, 2, 23, 3), temperature)
    torch.testing.assert_close(
        reduced, dialanine.energy(x).view(4, 2) / (8.31446261815324e-3 * temperature.double()), rtol=1e-14, atol=0
    )
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dialanine.reduced_energy(x, 310.0).sum(), x)
    torch.testing.assert_close(gradient, -dialanine.energy_and_force(x)[1] / peptide("AA").kT)
    with pytest.raises(ValueError, match="temperature is -1"):
        dialanine.reduced_energy(x, -1.0)


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that a tensor made inside has."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.largest = max(self.largest, tensor.numel())
        return result


def test_batches_are_split_by_memory(dialanine: CompiledEnergy, x: Tensor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode below sees its own thread
    try:
        sizes = {}
        for batch in (4000, 8000):
            positions = x[:1].expand(batch, -1, -1)
            with LargestTensor() as seen:
                dialanine.energy_and_force(positions)
            sizes[batch] = seen.largest
        # Only positions and forces themselves grow with the batch.
        assert sizes[8000] == 8000 * 69
        small = compile_system(peptide("AA").system, torch.float64, batch_size=5)
        with LargestTensor() as seen:
            energy, force = small.energy_and_force(x[:1].expand(40, -1, -1))
        pairs = 23 * 22 // 2
        assert seen.largest <= 5 * 15 * pairs
    finally:
        torch.set_num_threads(before)
    expected_energy, expected_force = dialanine.energy_and_force(x[0])
    torch.testing.assert_close(energy, expected_energy.expand(40), rtol=1e-12, atol=0)
    torch.testing.assert_close(force, expected_force.expand(40, -1, -1), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="batch_size is 0"):
        compile_system(peptide("AA").system, batch_size=0)


@pytest.mark.slow
def test_fused_kernel_matches() -> None:
    field = app.ForceField("amber19/protein.ff19SB.xml", "implicit/gbn2.xml")
    correction = field.createSystem(Peptide("AAA").topology.to_openmm())
    systems = {"AA": peptide("AA").system, "Ace-A-Nme": peptide("Ace-A-Nme").system, "AAA": correction}
    before = torch.get_num_threads()
    try:
        for sequence, system in systems.items():
            fused, eager = compile_system(system, compile=True), compile_system(system)
            bad = torch.from_numpy(thermal(sequence)).float().repeat(40, 1, 1)
            bad[3, 4] = math.nan
            bad[7, 4] = bad[7, 9]
            for threads, batch in ((2, bad), (1, bad[:3]), (1, bad[:1]), (1, bad[0])):
                torch.set_num_threads(threads)
                for actual, expected in zip(fused.energy_and_force(batch), eager.energy_and_force(batch), strict=True):
                    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-2, equal_nan=True)
                torch.testing.assert_close(fused.energy(batch), eager.energy(batch), rtol=0, atol=2e-3, equal_nan=True)
    finally:
        torch.set_num_threads(before)


# --- what is refused -----------------------------------------------------------------------------


def periodic_bond() -> openmm.Force:
    force = openmm.HarmonicBondForce()
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def nonbonded_with_offsets() -> openmm.Force:
    force = nonbonded(8, None)
    force.addGlobalParameter("scale", 1.0)
    force.addParticleParameterOffset("scale", 0, 1.0, 0.0, 0.0)
    return force


def custom_gb_with_other_value(index: int, old: str, new: str) -> openmm.Force:
    force = custom_gb(SA="ACE")
    name, expression, kind = force.getComputedValueParameters(index)
    assert old in expression
    force.setComputedValueParameters(index, name, expression.replace(old, new), kind)
    return force


def custom_gb_with_other_energy(old: str, new: str) -> openmm.Force:
    """The first energy term that has `old` says `new`."""
    force = custom_gb(SA="ACE")
    for index in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(index)
        if old in expression:
            force.setEnergyTermParameters(index, expression.replace(old, new), kind)
            return force
    raise AssertionError(f"no energy term has {old!r}")


def torsion_of_order(n: int) -> openmm.PeriodicTorsionForce:
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, n, 0.3, 2.0)
    return force


def test_the_highest_order_of_a_torsion_in_single_precision() -> None:
    x, system = random_positions(4, batch=200), system_of(4, torsion_of_order(12))
    energy = compile_system(system).energy(torch.from_numpy(x))
    np.testing.assert_allclose(energy.numpy(), reference(system, x)[0], atol=4e-3)


REFUSED = {
    "CustomBondForce": lambda: openmm.CustomBondForce("r"),
    "MonteCarloBarostat": lambda: openmm.MonteCarloBarostat(1.0, 300.0),
    "Torsion 0 has the periodicity 13": lambda: torsion_of_order(13),
    "Torsion 0 has the periodicity -2": lambda: torsion_of_order(-2),
    "NonbondedForce is periodic": periodic_nonbonded,
    "HarmonicBondForce is periodic": periodic_bond,
    "NonbondedForce has parameter offsets": nonbonded_with_offsets,
    "CustomGBForce has the energy term.*charge": lambda: custom_gb_with_other_energy("*charge^2/B", "*charge/B"),
    "CustomGBForce has self and pair terms of different": lambda: custom_gb_with_other_energy("78.5", "80"),
    "CustomGBForce has the energy term.*0.15": lambda: custom_gb_with_other_energy("+0.14", "+0.15"),
    "CustomGBForce computes I": lambda: custom_gb_with_other_value(0, "0.25", "0.5"),
    "CustomGBForce computes B": lambda: custom_gb_with_other_value(1, "psi^3", "psi^4"),
    "CustomGBForce has several radius offsets": lambda: custom_gb_with_other_value(1, "0.009", "0.01"),
    "CustomGBForce with per-particle parameters": lambda: openmm.CustomGBForce(),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.items(), ids=list(REFUSED))
def test_unsupported_forces_are_named(message: str, make: Callable[[], openmm.Force]) -> None:
    with pytest.raises(ValueError, match=f"{message}.*supports"):
        compile_system(system_of(8, make()))


def test_other_coefficients_of_a_born_radius_are_read() -> None:
    force = custom_gb_with_other_value(1, "2.909125", "2.5")
    assert_matches(system_of(8, force), random_positions(8))


def test_two_nonbonded_forces_are_refused() -> None:
    with pytest.raises(ValueError, match="several NonbondedForces"):
        compile_system(system_of(8, nonbonded(8, None), nonbonded(8, None)))


def test_constraints_and_virtual_sites_are_refused() -> None:
    system = system_of(3)
    constrained = copy.deepcopy(system)
    constrained.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match="constraints=None"):
        compile_system(constrained)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match="Particle 2 is a virtual site"):
        compile_system(system)


@pytest.mark.parametrize("force", [openmm.CMMotionRemover(), openmm.AndersenThermostat(300.0, 1.0)])
def test_what_acts_on_motion_is_ignored(force: openmm.Force) -> None:
    system = system_of(2, openmm.XmlSerializer.clone(force))
    assert compile_system(system).energy(torch.zeros(1, 2, 3)).item() == 0.0


@pytest.mark.parametrize("shape", [(8, 22, 3), (8, 23, 2), (3,)])
def test_wrong_shapes_are_refused(dialanine: CompiledEnergy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 23, 3\)"):
        dialanine.energy(torch.zeros(shape))


def test_obc2_file_of_openmm_is_recognised() -> None:
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(peptide("AA").topology.to_openmm(), nonbondedMethod=app.NoCutoff)
    assert_matches(system, thermal("AA")[:2])

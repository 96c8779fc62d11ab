"""Whole peptides in every force field that compile_system knows, against OpenMM's Reference platform."""

import copy
import functools

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from molecular.energy import compile_system
from molecular.molecule.force_fields import CAPPED_FORCE_FIELD, UNCAPPED_FORCE_FIELD
from tests.molecular.openmm_energies import assert_matches, peptide, reference, system_of, thermal

SEQUENCES = ("Ace-A-Nme", "AA", "AAA", "WK", "AP", "CM", "GYDPETGTWG")
SETUPS = {"capped": CAPPED_FORCE_FIELD, "uncapped": UNCAPPED_FORCE_FIELD}
CUTOFFS = {"no cutoff": None, "cutoff": 0.8}
MODELS = ("hct", "obc1", "obc2", "gbn", "gbn2")
OPTIONS = ("ACE", "no surface", "ACE, salt", "ACE, salt, cutoff")
SALT = {"implicitSolventKappa": 1.2 / unit.nanometer}


def system(sequence: str, force_field: tuple[str, ...], cutoff: float | None = None, **options: object):
    if cutoff is not None:
        options |= {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": cutoff * unit.nanometer}
    return app.ForceField(*force_field).createSystem(peptide(sequence).topology.to_openmm(), **options)


@functools.cache
def conformations(sequence: str) -> tuple[np.ndarray, np.ndarray]:
    """Four of a short Langevin simulation at 300 K, and four strongly distorted: (4, n, 3) nm each."""
    near = thermal(sequence, count=4, apart=60)
    noise = np.random.default_rng(2).standard_normal(near.shape)
    return near, near + np.array([0.01, 0.03, 0.1, 0.3])[:, None, None] * noise


@pytest.mark.parametrize("cutoff", CUTOFFS.values(), ids=CUTOFFS)
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_set_ups_of_peptide(sequence: str, setup: tuple[str, ...], cutoff: float | None) -> None:
    near, distorted = conformations(sequence)
    made = system(sequence, setup, cutoff)
    assert_matches(made, np.concatenate((near, distorted)))
    single = torch.from_numpy(near).float()
    # Rounding positions to single precision moves the energy of the longest by 5e-4 kJ/mol; the rest is arithmetic.
    expected, _ = reference(made, single.double().numpy())
    assert np.abs(compile_system(made).energy(single).numpy() - expected).max() < 1e-3


def test_long_peptide_in_single_precision() -> None:
    """Over 64 conformations the arithmetic loses 2.5e-4 kJ/mol (root mean square), and no molecule is shifted."""
    made = system("GYDPETGTWG", CAPPED_FORCE_FIELD)
    context = openmm.Context(made, openmm.LangevinMiddleIntegrator(300.0, 10.0, 0.001), _cpu(), {"Threads": "1"})
    context.getIntegrator().setRandomNumberSeed(7)
    context.setPositions(conformations("GYDPETGTWG")[0][-1])
    frames = []
    for _ in range(64):
        context.getIntegrator().step(20)
        frames.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    single = torch.from_numpy(np.array(frames)).float()
    expected, _ = reference(made, single.double().numpy())
    deviation = compile_system(made).energy(single).numpy() - expected
    # Conformations, and what rounding does to each, differ from processor to processor: six deviations of the worst.
    assert np.abs(deviation).max() < 1.5e-3
    assert np.sqrt(np.square(deviation).mean()) < 4e-4 and abs(deviation.mean()) < 2e-4


def _cpu() -> openmm.Platform:
    return openmm.Platform.getPlatformByName("CPU")


@pytest.mark.parametrize("sequence", ["AAA", "CM"])
@pytest.mark.parametrize("options", [{}, {"sasaMethod": None}, SALT, SALT | {"cutoff": 0.8}], ids=OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_born_models(model: str, options: dict, sequence: str) -> None:
    made = system(sequence, ("amber14-all.xml", f"implicit/{model}.xml"), **options)
    assert_matches(made, np.concatenate(conformations(sequence)))


@pytest.mark.parametrize("model", ["gbn", "gbn2"])
def test_born_models_in_single_precision(model: str) -> None:
    made = system("CM", ("amber14-all.xml", f"implicit/{model}.xml"), **SALT)
    single = torch.from_numpy(conformations("CM")[0]).float()
    expected, _ = reference(made, single.double().numpy())
    assert np.abs(compile_system(made).energy(single).numpy() - expected).max() < 1e-3


def test_overlapping_atoms_in_every_born_model() -> None:
    for model in MODELS:
        made = system("CM", ("amber14-all.xml", f"implicit/{model}.xml"))
        x = np.repeat(conformations("CM")[0][:1], 6, axis=0)
        expected = compile_system(made, torch.float64).energy(torch.from_numpy(x))
        x[1, 5], x[2, 4], x[3, 2], x[4] = np.nan, x[2, 12], np.inf, 0.0
        energy = compile_system(made, torch.float64).energy(torch.from_numpy(x))
        torch.testing.assert_close(energy[[0, 5]], expected[[0, 5]], rtol=1e-12, atol=0)
        assert not (energy[1:5].abs() < 1e6).any()


def maps_of(file: str, sequence: str) -> openmm.CMAPTorsionForce:
    made = system(sequence, (file,))  # owns its forces: one must be copied before it goes
    return copy.deepcopy(next(force for force in made.getForces() if isinstance(force, openmm.CMAPTorsionForce)))


@pytest.mark.parametrize("file", ["amber19/protein.ff19SB.xml", "charmm36.xml"])
def test_correction_maps(file: str) -> None:
    sequence = "GYDPETGTWG"
    force = maps_of(file, sequence)
    assert force.getNumTorsions() >= 8
    # Wide noise visits cells all over the maps.
    assert_matches(system_of(peptide(sequence).num_atoms, force), np.concatenate(conformations(sequence)))


def test_correction_maps_of_several_sizes_at_grid_points() -> None:
    rng = np.random.default_rng(0)
    force = openmm.CMAPTorsionForce()
    for size in (4, 7):
        force.addMap(size, rng.normal(0.0, 10.0, size * size))
    force.addTorsion(1, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(0, 4, 3, 2, 1, 0, 2, 4, 1)
    x = 0.3 * rng.standard_normal((20, 5, 3))
    assert_matches(system_of(5, force), x)
    # phi = psi = pi: on a corner of the map of size 4, amid a cell of the other one
    flat = np.zeros((1, 5, 3))
    flat[0, :, 0], flat[0, :, 1] = 0.1 * np.arange(5), [0.0, 0.1, 0.03, 0.12, -0.05]
    assert_matches(system_of(5, force), flat, 1e-6)


def test_force_field_with_maps_and_necks() -> None:
    made = system("AAA", ("amber19/protein.ff19SB.xml", "implicit/gbn2.xml"), **SALT)
    assert_matches(made, np.concatenate(conformations("AAA")))


def test_lcpo_surface_is_refused_by_name() -> None:
    made = system("AAA", ("amber14-all.xml", "implicit/obc2.xml"), sasaMethod="LCPO")
    with pytest.raises(ValueError, match="LCPOForce"):
        compile_system(made)

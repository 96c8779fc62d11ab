"""The flow of one peptide: exact densities modulo rigid motion, in every choice of coordinates."""

import math

import pytest
import torch

from molecular.flows.molecule_flow import COORDINATES, MoleculeFlow
from molecular.molecule.peptide import Peptide
from nflib.transforms import Whiten
from tests.molecular.tiny_flow import make_molecule_flow


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide("Ace-G-Nme")


@pytest.fixture(scope="module")
def frames(peptide: Peptide) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor(peptide.positions, dtype=torch.float32)
    return start + 0.004 * torch.randn(500, *start.shape, generator=generator)


@pytest.mark.parametrize(
    ("coordinates", "conditional"),
    [
        *((coordinates, conditional) for coordinates in COORDINATES for conditional in ("spline", "affine")),
        *(("internal", conditional) for conditional in ("quadratic", "binned", "mixture", "circular")),
    ],
)
def test_density_of_samples_is_their_log_prob(peptide, frames, coordinates, conditional):
    flow = make_molecule_flow(peptide, frames, coordinates, conditional).double()
    samples, log_prob = flow.sample_and_log_prob(64, seed=3)
    assert samples.shape == (64, peptide.num_atoms, 3)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-6, rtol=1e-8)


@pytest.mark.parametrize("coordinates", ["internal", "local_frames"])
def test_density_does_not_change_under_rigid_motion(peptide, frames, coordinates):
    flow = make_molecule_flow(peptide, frames, coordinates).double()
    generator = torch.Generator().manual_seed(5)
    x = frames[:20].double()
    rotation, _ = torch.linalg.qr(torch.randn(20, 3, 3, generator=generator, dtype=torch.float64))
    rotation[torch.linalg.det(rotation) < 0, :, 0] *= -1
    moved = x @ rotation.mT + torch.randn(20, 1, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(moved), flow.log_prob(x), atol=1e-6, rtol=1e-8)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_whitened_coordinates(peptide, frames, coordinates, tmp_path):
    """The transformer sees what it saw, whitened; densities are still those of samples, and files hold the map."""
    flow = make_molecule_flow(peptide, frames, coordinates, whitened=True)

    def seen(flow: MoleculeFlow) -> torch.Tensor:
        inputs = frames
        for step, _ in flow._fixed:
            inputs, _ = step(inputs)
        return inputs

    with torch.no_grad():
        plain = seen(make_molecule_flow(peptide, frames, coordinates))
        torch.testing.assert_close(seen(flow), Whiten.fit(plain)(plain)[0])
        assert not torch.allclose(seen(flow), plain, atol=0.1)
        flow.save_pretrained(tmp_path)
        again = MoleculeFlow.from_pretrained(tmp_path)
        assert torch.equal(again.log_prob(frames), flow.log_prob(frames))
        samples, log_prob = flow.double().sample_and_log_prob(16, seed=3)
        torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-6, rtol=1e-8)


def test_circular_torsions_have_no_seam(peptide, frames):
    """Where the circle was cut, the density is the same from both sides; without, it is not."""
    gaps = {}
    for conditional in ("circular", "spline"):
        flow = make_molecule_flow(peptide, frames, "internal", conditional).double()
        fixed, rest = flow.split_coordinates()
        with torch.no_grad():
            ahead, _ = fixed(frames[:10].double())
            gaps[conditional] = 0.0
            for token in range(1, peptide.num_atoms - 2):
                behind = ahead.clone()
                ahead[:, token, 2], behind[:, token, 2] = math.pi - 1e-12, -math.pi + 1e-12
                gap = (rest.log_prob(ahead) - rest.log_prob(behind)).abs().max().item()
                gaps[conditional] = max(gaps[conditional], gap)
    assert gaps["circular"] < 1e-6 < gaps["spline"]


@pytest.mark.parametrize("conditional", ["spline", "circular"])
def test_saved_flow_is_bit_equal(peptide, frames, tmp_path, conditional):
    flow = make_molecule_flow(peptide, frames, "internal", conditional)
    flow.save_pretrained(tmp_path / "model")
    again = MoleculeFlow.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again.log_prob(frames), flow.log_prob(frames))
    assert again.topology == peptide.topology


def test_mistakes(peptide, frames):
    with pytest.raises(ValueError, match="coordinates must be one of"):
        MoleculeFlow.of(peptide, coordinates="polar")
    with pytest.raises(ValueError, match="conditional must be one of"):
        MoleculeFlow.of(peptide, conditional="cubic")
    for settings in ({"coordinates": "cartesian"}, {"whitened": True}):
        with pytest.raises(ValueError, match="need internal coordinates, which are not whitened"):
            MoleculeFlow.of(peptide, conditional="circular", **settings)
    flow = make_molecule_flow(peptide, frames, "internal")
    with pytest.raises(ValueError, match="of 19 atoms"):
        flow.fit_coordinates(frames[:, :5])
    with pytest.raises(ValueError, match="of another molecule: it has 33 atoms, not 19"):
        flow.given(Peptide("AAA"))
    assert math.isfinite(flow.log_prob(frames[:1]).item())

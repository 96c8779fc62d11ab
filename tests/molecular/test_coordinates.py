import math

import numpy as np
import openmm
import pytest
import torch
from torch.autograd.functional import jacobian

from molecular import Peptide
from molecular.coordinates.local_frames import LocalFrames
from molecular.coordinates.spherical import FirstAngleOnCircle, Spherical, torsion_cuts
from molecular.molecule.symmetry import methyl_rotations, random_symmetry
from molecular.molecule.z_matrix import z_matrix_order
from tests.molecular.small_molecules import VACUUM, of_bonds

SEQUENCES = ["Ace-A-Nme", "AAA", "Ace-P-Nme", "PW", "Ace-G-Nme"]
METHANOL = ([(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)], 6, ["C", "O", "H", "H", "H", "H"])


@pytest.fixture(scope="module")
def peptides() -> dict[str, Peptide]:
    return {sequence: Peptide(sequence, force_field=VACUUM) for sequence in SEQUENCES}


def frames_of(peptide):
    """Rooted at the first alpha carbon."""
    topology = peptide.topology
    return LocalFrames(topology.bonds, topology.num_atoms, topology.elements, root=topology.atom_names.index("CA"))


def conformations(peptide, batch, dtype, seed=0, noise=0.01):
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(peptide.positions)
    x = x + noise * torch.randn(batch, *x.shape, generator=generator, dtype=torch.float64)
    return (x - x.mean(1, keepdim=True)).to(dtype)


def rotations(batch, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator, dtype=torch.float64))
    return (q * torch.linalg.det(q)[:, None, None]).to(dtype)


def superposed_distance(x, y):
    """Largest distance of an atom in x from itself in y after the best proper rotation (Kabsch)."""
    x, y = x.double() - x.double().mean(1, keepdim=True), y.double() - y.double().mean(1, keepdim=True)
    u, _, vt = torch.linalg.svd(y.transpose(1, 2) @ x)
    sign = torch.ones(len(x), 3, dtype=torch.float64)
    sign[:, 2] = torch.linalg.det(u @ vt)
    return (y @ (u * sign[:, None]) @ vt - x).norm(dim=-1).max().item()


def methanol_tokens(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(
        [
            [0, 0, 0],
            [0.14, 0, 0],
            [-0.04, 0.1, 0],
            [-0.04, -0.05, 0.09],
            [-0.04, -0.05, -0.09],
            [0.17, 0.09, 0.02],
        ]
    ).double()
    x = x + 0.01 * torch.randn(batch, 6, 3, generator=generator, dtype=torch.float64)
    return LocalFrames(*METHANOL)(x)[0]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_positions_come_back_up_to_rigid_motion(peptides, sequence):
    frames = frames_of(peptides[sequence])
    x = conformations(peptides[sequence], 16, torch.float32)
    tokens, logabsdet = frames(x)
    assert tokens.shape == (16, x.shape[1] - 2, 3) and logabsdet.shape == (16,)
    again, inverse_logabsdet = frames.inverse(tokens)
    assert superposed_distance(x, again) < 1e-5
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-4, rtol=0)
    torch.testing.assert_close(frames(again)[0], tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sequence", ["Ace-A-Nme", "PW"])
def test_walk_is_a_chain_of_bonds(peptides, sequence):
    peptide = peptides[sequence]
    frames = frames_of(peptide)
    order, references = frames.order.tolist(), frames.references.tolist()
    assert sorted(order) == list(range(peptide.num_atoms))
    assert peptide.topology.atom_names[order[0]] == "CA"
    bonded = {frozenset(bond) for bond in peptide.topology.bonds}
    assert {order[0], order[1]} in bonded and {order[0], order[2]} in bonded
    for position in range(3, len(order)):
        p, q, s = references[position]
        assert {p, q, s} <= set(order[:position]) and len({p, q, s}) == 3
        assert {order[position], p} in bonded and {p, q} in bonded
        assert {s, p} in bonded or {s, q} in bonded


def test_siblings_are_rigid_so_a_torsion_moves_one_token(peptides):
    """Turn the methyl of alanine about CA-CB: only the first of its hydrogens sees it."""
    peptide = peptides["Ace-A-Nme"]
    frames = frames_of(peptide)
    x = torch.from_numpy(peptide.positions)[None]
    index = {name: i for i, name in enumerate(peptide.topology.atom_names)}
    ca, cb = x[0, index["CA"]], x[0, index["CB"]]
    axis = (cb - ca) / (cb - ca).norm()
    cross = torch.linalg.cross(torch.eye(3, dtype=x.dtype), axis.expand(3, 3))
    turned = x.clone()
    hydrogens = [index[f"HB{k}"] for k in (1, 2, 3)]
    turned[0, hydrogens] = (x[0, hydrogens] - cb) @ torch.linalg.matrix_exp(0.7 * cross) + cb
    change = (frames(turned)[0] - frames(x)[0]).norm(dim=-1)[0]
    moved = [frames.order[k + 2].item() for k in torch.nonzero(change > 1e-9).flatten()]
    assert moved == [index["HB1"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_do_not_see_rigid_motion(peptides, dtype):
    frames = frames_of(peptides["PW"])
    x = conformations(peptides["PW"], 8, dtype)
    moved = x @ rotations(8, dtype) + torch.tensor([0.3, -0.2, 0.5], dtype=dtype)
    (tokens, logabsdet), (moved_tokens, moved_logabsdet) = frames(x), frames(moved)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert (tokens - moved_tokens).abs().max() < tolerance
    assert (logabsdet - moved_logabsdet).abs().max() < 30 * tolerance  # 3 / bond length


def test_mirror_image_has_other_tokens(peptides):
    frames = frames_of(peptides["Ace-A-Nme"])
    x = conformations(peptides["Ace-A-Nme"], 4, torch.float64)
    mirrored = x * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    tokens, other = frames(x)[0], frames(mirrored)[0]
    torch.testing.assert_close(other[..., :2], tokens[..., :2])
    torch.testing.assert_close(other[:, 1:, 2], -tokens[:, 1:, 2])
    assert (other - tokens).abs().amax((1, 2)).min() > 0.05
    assert superposed_distance(x, frames.inverse(other)[0]) > 0.05


def test_canonical_frame_has_unit_jacobian():
    frames = LocalFrames(*METHANOL)
    tokens = methanol_tokens(1)

    def free_coordinates(flat):
        x = frames.inverse(flat.view(1, 4, 3))[0][0][frames.order]
        return torch.cat([x[1, :1], x[2, :2], x[3:].flatten()])  # the others are zero by construction

    x = frames.inverse(tokens)[0][0][frames.order]
    assert x[0].abs().max() == 0 and x[1, 1:].abs().max() == 0 and x[2, 2] == 0 and x[2, 1] > 0
    _, log_volume = torch.linalg.slogdet(jacobian(free_coordinates, tokens.flatten()))
    assert log_volume.abs() < 1e-12


def test_logabsdet_is_that_of_rigid_motion_and_tokens_together():
    """(translation, rotation vector, tokens) -> all 3n coordinates, differentiated densely."""
    frames = LocalFrames(*METHANOL)
    for seed in range(3):
        tokens = methanol_tokens(1, seed)
        orientation = rotations(1, torch.float64, seed)[0]

        def positions(u, orientation=orientation):
            x, _ = frames.inverse(u[6:].view(1, 4, 3))
            a, b, c = u[3:6]
            zero = torch.zeros_like(a)
            generator = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).view(3, 3)
            rotation = orientation @ torch.linalg.matrix_exp(generator)
            return (x[0] @ rotation.T + u[:3]).flatten()

        u = torch.cat([torch.zeros(6, dtype=torch.float64), tokens.flatten()])
        _, log_volume = torch.linalg.slogdet(jacobian(positions, u))
        torch.testing.assert_close(frames.inverse(tokens)[1][0], log_volume, atol=1e-10, rtol=0)
        x = positions(u).view(1, 6, 3)
        torch.testing.assert_close(frames(x)[1][0], -log_volume, atol=1e-10, rtol=0)
        torch.testing.assert_close(frames(x)[0], tokens, atol=1e-12, rtol=0)


def test_undefined_frames_spoil_only_their_sample():
    # O-C-N with hydrogens; in sample 1 the first three atoms, in z-matrix order, lie on one line.
    bonds, elements = [(0, 1), (1, 2), (0, 3), (2, 4)], ["O", "C", "N", "H", "H"]
    frames = LocalFrames(bonds, 5, elements)
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
    x[1, 0], x[1, 1], x[1, 2] = torch.eye(3)[0], torch.zeros(3), -2 * torch.eye(3)[0]
    tokens, logabsdet = frames(x)
    assert not torch.isfinite(tokens[1]).all() and not torch.isfinite(logabsdet[1])
    assert torch.isfinite(tokens[[0, 2]]).all() and torch.isfinite(logabsdet[[0, 2]]).all()
    bad = tokens[[0, 0, 2]].clone()
    bad[1, 0, 2] = 0.0
    positions, logabsdet = frames.inverse(bad)
    assert not torch.isfinite(positions[1]).all() and not torch.isfinite(logabsdet[1])
    assert torch.isfinite(positions[[0, 2]]).all()
    bad[1, 0, 2] = -0.1  # would be a second name of the same conformation
    assert not torch.isfinite(frames.inverse(bad)[0][1]).all()


def test_walk_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="connected"):
        z_matrix_order([(0, 1), (0, 2), (3, 4)], ["O", "H", "H", "O", "H"])
    with pytest.raises(ValueError, match=r"\(0, 7\)"):
        z_matrix_order([(0, 7)], ["O", "H", "H"])
    with pytest.raises(ValueError, match="two or more neighbours"):
        z_matrix_order([(0, 1), (0, 2)], ["O", "H", "H"], root=1)
    with pytest.raises(ValueError, match="three or more atoms"):
        z_matrix_order([(0, 1)], ["C", "O"])
    frames = LocalFrames([(0, 1), (0, 2)], 3, ["O", "H", "H"])
    with pytest.raises(ValueError, match="3, 3"):
        frames(torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match="1, 3"):
        frames.inverse(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="elements"):
        LocalFrames([(0, 1), (0, 2)], 3, ["O", "H"])


@pytest.mark.parametrize("with_offset", [False, True])
def test_spherical_logabsdet_against_autograd(with_offset):
    tokens = methanol_tokens(5)
    spherical = Spherical(torch.tensor([9.0, 1.0, -2.0, 3.0]).double() if with_offset else None)
    outputs, logabsdet = spherical(tokens)
    again, inverse_logabsdet = spherical.inverse(outputs)
    torch.testing.assert_close(again, tokens, atol=1e-14, rtol=0)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-10, rtol=0)
    for k in range(5):
        dense = jacobian(lambda u: spherical(u.view(1, 4, 3))[0].flatten(), tokens[k].flatten())
        torch.testing.assert_close(logabsdet[k], torch.linalg.slogdet(dense)[1], atol=1e-10, rtol=0)
        dense = jacobian(lambda u: spherical.inverse(u.view(1, 4, 3))[0].flatten(), outputs[k].flatten())
        torch.testing.assert_close(inverse_logabsdet[k], torch.linalg.slogdet(dense)[1], atol=1e-10, rtol=0)


def test_the_first_angle_on_a_circle():
    spherical, _ = Spherical()(methanol_tokens(5))
    turned, logabsdet = FirstAngleOnCircle()(spherical)
    angle = math.pi * torch.sigmoid(spherical[:, 0, 2])
    torch.testing.assert_close(turned[:, 0, 2], 2 * angle - math.pi)
    again, inverse_logabsdet = FirstAngleOnCircle().inverse(turned)
    torch.testing.assert_close(again, spherical)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet)
    for k in range(5):
        dense = jacobian(lambda u: FirstAngleOnCircle()(u.view(1, 4, 3))[0].flatten(), spherical[k].flatten())
        torch.testing.assert_close(logabsdet[k], torch.linalg.slogdet(dense)[1])


def test_spherical_coordinates_mean_what_they_say():
    tokens = methanol_tokens(1)
    outputs, _ = Spherical()(tokens)
    x, _ = LocalFrames(*METHANOL).inverse(tokens)
    bond = (x[0, 5] - x[0, 1]).norm()  # O-H, the first and only child of O: atom 5
    angle = torch.arccos(((x[0, 5] - x[0, 1]) * (x[0, 0] - x[0, 1])).sum() / bond / (x[0, 0] - x[0, 1]).norm())
    token = LocalFrames(*METHANOL).order.tolist().index(5) - 2
    torch.testing.assert_close(outputs[0, token, 0], bond.log())
    torch.testing.assert_close(outputs[0, token, 1], torch.logit(angle / math.pi))
    torch.testing.assert_close(outputs[0, 0, 0], (x[0, 1] - x[0, 0]).norm().log())
    torch.testing.assert_close(outputs[0, 0, 1], (x[0, 2] - x[0, 0]).norm().log())


def test_azimuths_are_minus_the_iupac_torsions(peptides):
    import mdtraj

    peptide = peptides["AAA"]
    frames = frames_of(peptide)
    x = conformations(peptide, 3, torch.float64)
    azimuth = Spherical()(frames(x)[0])[0][:, 1:, 2]
    bonded = {frozenset(bond) for bond in peptide.topology.bonds}
    atoms = [
        (s, q, p, a) for a, (p, q, s) in zip(frames.order[3:].tolist(), frames.references[3:].tolist(), strict=True)
    ]
    proper = [k for k, (s, q, _, _) in enumerate(atoms) if {s, q} in bonded]
    assert len(proper) > 8
    trajectory = mdtraj.Trajectory(x.numpy(), peptide.topology.to_mdtraj())
    torsions = mdtraj.compute_dihedrals(trajectory, np.array([atoms[k] for k in proper]), periodic=False)
    difference = azimuth[:, proper] + torch.from_numpy(torsions).double()
    assert (torch.cos(difference) > 1 - 1e-6).all()


def test_spherical_inverse_takes_any_length_and_angle_in_float32():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 7, 3, generator=generator) * torch.tensor([1.0, 4.0, 1.0])
    inputs[:, 0, 2] *= 4.0
    inputs[:, 1:, 2] = (torch.rand(256, 6, generator=generator) * 2 - 1) * 3.1415
    spherical = Spherical(torch.linspace(-3, 3, 7))
    tokens, logabsdet = spherical.inverse(inputs)
    assert torch.isfinite(tokens).all() and torch.isfinite(logabsdet).all()
    again, forward_logabsdet = spherical(tokens)
    torch.testing.assert_close(again, inputs, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(forward_logabsdet, -logabsdet, atol=2e-3, rtol=1e-4)
    inputs[3, 2, 2] = 3.3  # no conformation has this azimuth
    tokens, _ = spherical.inverse(inputs)
    finite = torch.isfinite(tokens).flatten(1).all(1)
    assert not finite[3] and finite.sum() == 255


def test_torsion_cuts_lie_in_the_emptiest_arc():
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(4000, 3, generator=generator)
    phi = noise + torch.tensor([3.0, -1.0, 0.5])
    phi[::2, 1] += 1.5  # two states, at -1 and 0.5: the middle of the larger gap is opposite their mean
    phi = torch.remainder(phi + math.pi, 2 * math.pi) - math.pi
    offset = torsion_cuts(phi)
    expected = torch.tensor([3.0, -0.25, 0.5])
    assert torch.cos(offset - expected).min() > math.cos(0.15)
    tokens = torch.stack([torch.zeros_like(phi), phi.cos(), phi.sin()], dim=-1)
    outputs, _ = Spherical.fit(tokens)(tokens)
    assert outputs[:, 1:, 2].abs().max() < math.pi - 0.5  # nothing near the cut
    with pytest.raises(ValueError, match="N >= 1"):
        torsion_cuts(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="offsets"):
        Spherical(torch.zeros(5))(tokens)


def test_the_whole_map_composes(peptides):
    from nflows.transforms import CompositeTransform

    peptide = peptides["AAA"]
    frames = frames_of(peptide)
    x = conformations(peptide, 64, torch.float32)
    spherical = Spherical.fit(frames(x)[0])
    both = CompositeTransform([frames, spherical])
    outputs, logabsdet = both(x)
    again, inverse_logabsdet = both.inverse(outputs)
    assert superposed_distance(x, again) < 2e-5
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-2, rtol=1e-5)
    outputs.requires_grad_()
    both.inverse(outputs)[0].square().sum().backward()
    assert torch.isfinite(outputs.grad).all() and outputs.grad.abs().sum() > 0


def energies(peptide, x):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(peptide.system, openmm.VerletIntegrator(0.001), platform)
    values = []
    for frame in x.double().numpy():
        context.setPositions(frame)
        values.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(values)


@pytest.mark.parametrize(("sequence", "groups"), [("Ace-A-Nme", 3), ("AAA", 4), ("MK", 3), ("Ace-I-Nme", 4)])
def test_methyl_rotations_keep_energy_and_chirality(sequence, groups):
    peptide = Peptide(sequence)
    found = methyl_rotations(peptide.topology)
    assert len(found) == groups
    for group in found:
        assert (
            len(
                {
                    peptide.topology.bonds[k][0]
                    for k in range(len(peptide.topology.bonds))
                    if peptide.topology.bonds[k][1] in group[0]
                }
            )
            == 1
        )
        assert all(sorted(row) == sorted(group[0].tolist()) for row in group.tolist())
    x = conformations(peptide, 6, torch.float64, noise=0.005)
    moved = random_symmetry(x, found, torch.Generator().manual_seed(1))
    assert ((moved - x).abs().amax((1, 2)) > 0).sum() >= 5  # one sample in 3^groups stays
    np.testing.assert_allclose(energies(peptide, moved), energies(peptide, x), rtol=0, atol=1e-6)
    others = torch.ones(peptide.num_atoms, dtype=torch.bool)
    others[torch.stack(found)[:, 0].flatten()] = False
    torch.testing.assert_close(moved[:, others], x[:, others], rtol=0, atol=0)

    frames = frames_of(peptide)
    # A cycle keeps the handedness of the hydrogens: azimuths of siblings keep their signs.
    tokens, moved_tokens = frames(x)[0], frames(moved)[0]
    siblings = [
        k for k in range(1, tokens.shape[1]) if (frames.references[3:, 0] == frames.references[k + 2, 0])[: k - 1].any()
    ]
    sizes = tokens[:, siblings, 2].abs() > 0.03
    assert (torch.sign(tokens[:, siblings, 2]) == torch.sign(moved_tokens[:, siblings, 2]))[sizes].all()


def test_random_symmetry_is_uniform_reproducible_and_optional():
    bonds = [(0, 1), *((0, k) for k in (2, 3, 4)), *((1, k) for k in (5, 6, 7))]
    groups = methyl_rotations(of_bonds("CCHHHHHH", bonds))
    x = torch.arange(8.0)[None, :, None].expand(9000, 8, 3)
    moved = random_symmetry(x, groups, torch.Generator().manual_seed(0))
    assert torch.equal(moved, random_symmetry(x, groups, torch.Generator().manual_seed(0)))
    states, counts = torch.unique(moved[:, :, 0], dim=0, return_counts=True)
    assert len(states) == 9  # three rotations of each of two groups, independently
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    assert random_symmetry(x, []) is x

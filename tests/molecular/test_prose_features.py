"""Codes and orderings of Prose against those recorded from the public reference: prose.json and, for every
residue at the N-terminus, inside and at the C-terminus, prose_orderings.json."""

import mdtraj
import pytest
import torch
from openmm import app

from molecular import Peptide
from molecular.molecule.features import Encoding, encode, pad, prose_context
from molecular.molecule.orderings import ORDERINGS, PROSE_ORDERINGS, SIDE_CHAINS, ordering
from tests.recorded import document, recorded

RECORDED = document("prose_orderings")["sequences"]
GOLDEN = recorded("prose")
CODES = ("atom_type", "aa_type", "aa_pos", "seq_len")


def topology(residues: list[str], atoms: list[str]) -> app.Topology:
    """A topology of residue names and, for each, its atom names."""
    result = app.Topology()
    chain = result.addChain()
    for name, names in zip(residues, atoms, strict=True):
        residue = result.addResidue(name, chain)
        for atom in names.split():
            result.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
    return result


def recorded_topology(sequence: str) -> app.Topology:
    return topology(RECORDED[sequence]["residues"], RECORDED[sequence]["atoms"])


def assert_recorded(molecule, sequence):
    codes = RECORDED[sequence]["encoding"]
    assert_encoding(encode(molecule), {name: torch.tensor(values) for name, values in codes.items()})
    for name, expected in RECORDED[sequence]["orderings"].items():
        assert ordering(molecule, name).tolist() == expected
        assert ordering(molecule, f"{name}_flip").tolist() == expected[::-1]


def assert_encoding(encoding, expected):
    for codes, name in zip(encoding, CODES, strict=True):
        # The reference keeps one seq_len a molecule.
        torch.testing.assert_close(codes, expected[name].expand(len(encoding[0])), rtol=0, atol=0)


@pytest.fixture(scope="module")
def peptides() -> dict[str, Peptide]:
    """Those of the golden file, and ends that differ from other residues'; in vacuum, so that they build quickly."""
    ends = [sequence for sequence in RECORDED if sequence[0] in "PH" or sequence[-1] in "PGR"]
    return {sequence: Peptide(sequence, force_field=["amber99sbildn.xml"]) for sequence in ("AA", "GKW", *ends)}


def test_the_recording_has_every_residue_at_every_place():
    for place in range(3):
        assert {peptide["residues"][place] for peptide in RECORDED.values()} == set(SIDE_CHAINS)
    for peptide in RECORDED.values():
        assert {name for key in peptide["orderings"] for name in (key, f"{key}_flip")} == set(ORDERINGS)


@pytest.mark.parametrize("sequence", RECORDED)
def test_codes_and_orderings_equal_the_recorded_ones(sequence):
    assert_recorded(recorded_topology(sequence), sequence)


def test_peptides_give_the_recorded_codes_and_orderings(peptides):
    sequences = peptides.keys() & RECORDED.keys()
    assert sequences == {"CKR", "HQY", "PYG", "YHP"}
    for sequence in sequences:
        assert list(peptides[sequence].topology.atom_names) == " ".join(RECORDED[sequence]["atoms"]).split()
        assert_recorded(peptides[sequence], sequence)


@pytest.mark.parametrize("sequence", GOLDEN.document["sequences"])
def test_peptides_of_the_golden_file(peptides, sequence):
    peptide = peptides[sequence]
    labels = zip(
        peptide.topology.residue_names, peptide.topology.residue_indices, peptide.topology.atom_names, strict=True
    )
    assert [f"{residue}{index}:{atom}" for residue, index, atom in labels] == GOLDEN.document["atoms"][sequence][
        "atoms"
    ]
    prefix = f"{sequence}/encoding/"
    assert_encoding(
        encode(peptide), {k.removeprefix(prefix): v for k, v in GOLDEN.inputs.items() if k.startswith(prefix)}
    )
    for name in PROSE_ORDERINGS:
        expected = GOLDEN.inputs[f"{sequence}/ordering/{name}"]
        torch.testing.assert_close(ordering(peptide, name), expected, rtol=0, atol=0)


def test_default_orderings_are_those_of_the_released_blocks():
    assert list(PROSE_ORDERINGS) == GOLDEN.document["config"]["permutation_keys"]


def test_context_has_the_codes_then_one_column_an_ordering(peptides):
    peptide = peptides["GKW"]
    context = prose_context(peptide)
    assert context.shape == (56, 12) and context.dtype == torch.int64
    assert torch.equal(context[:, :4], torch.stack(encode(peptide), dim=1))
    for column, name in enumerate(PROSE_ORDERINGS, start=4):
        assert torch.equal(context[:, column], ordering(peptide, name))
    assert torch.equal(prose_context(peptide, PROSE_ORDERINGS[2:3]), context[:, [0, 1, 2, 3, 6]])
    assert torch.equal(prose_context(peptide, ()), context[:, :4])


def test_padding_has_no_codes_and_is_visited_last(peptides):
    contexts = [prose_context(peptides[sequence]) for sequence in GOLDEN.document["padded_order"]]
    batch = pad(contexts)
    assert torch.equal((batch[..., 0] > 0).float(), GOLDEN.inputs["padded/mask"])
    for row, context in zip(batch, contexts, strict=True):
        n = len(context)
        assert torch.equal(row[:n], context)
        assert (row[n:, :4] == 0).all()
        assert torch.equal(row[n:, 4:], torch.arange(n, len(row))[:, None].expand(-1, 8))
        for order in row[:, 4:].T:
            assert torch.equal(order.sort().values, torch.arange(len(row)))
    assert torch.equal(pad(contexts[::-1]), batch.flip(0))


def test_other_kinds_of_topology_and_atom_orders():
    given = recorded_topology(next(iter(RECORDED)))
    context = prose_context(given)
    assert torch.equal(prose_context(mdtraj.Topology.from_openmm(given)), context)

    residues = list(given.residues())
    shuffled = topology(
        [residue.name for residue in residues],
        [" ".join(sorted((atom.name for atom in residue.atoms()), reverse=True)) for residue in residues],
    )
    names, shuffled_names = ([(a.residue.index, a.name) for a in t.atoms()] for t in (given, shuffled))
    order = torch.tensor([names.index(name) for name in shuffled_names])
    assert torch.equal(torch.stack(encode(shuffled), dim=1), context[order, :4])
    for column, name in enumerate(PROSE_ORDERINGS, start=4):  # visits the same atoms, wherever they lie
        assert torch.equal(order[ordering(shuffled, name)], context[:, column])


def test_both_names_of_histidine_are_one():
    residues, atoms = ["HIS", "HIE"], ["N H H2 H3 CA HA C O", "N H CA HA C O OXT"]
    ring = " CB HB2 HB3 CG ND1 CD2 HD2 CE1 HE1 NE2 HE2"
    encoding = encode(topology(residues, [atoms[0] + ring, atoms[1] + ring]))
    assert isinstance(encoding, Encoding)
    assert set(encoding.residue_type.tolist()) == {9}


GLYCINES = ["N H H2 H3 CA HA2 HA3 C O", "N H CA HA2 HA3 C O OXT"]


@pytest.mark.parametrize(
    ("residues", "atoms", "message"),
    [
        (["ACE", "NME"], ["H1 CH3 H2 H3 C O", "N H C H1 H2 H3"], "residue 1 of the topology is ACE.*without caps"),
        (["GLY", "DAL"], GLYCINES, "residue 2 of the topology is DAL"),
        (["GLY", "ALA"], GLYCINES, "residue 2 of the topology, ALA, lacks CB, HA, HB1, HB2, HB3 and has HA2, HA3"),
        (["GLY", "GLY"], [GLYCINES[0], "N H CA HA2 HA3 C O"], "residue 2 .* lacks OXT and has no atom beyond"),
        (["GLY", "GLY"], ["H1 N H2 H3 CA HA2 HA3 C O", GLYCINES[1]], "residue 1 .* lacks H and has H1"),
        (["GLY", "GLY"], [GLYCINES[0] + " O", GLYCINES[1]], "lacks no atom and has O beyond"),
        (["GLY", "GLY"], [GLYCINES[0] + " CX", GLYCINES[1]], "lacks no atom and has CX beyond"),
        (["GLY", "HIS"], [GLYCINES[0], "N H CA HA C O CB HB2 HB3 CG ND1 HD1 CD2 HD2 CE1 HE1 NE2 OXT"], "has HD1"),
        ([], [], "needs atoms"),
    ],
)
def test_what_is_not_a_standard_peptide_is_named(residues, atoms, message):
    molecule = topology(residues, atoms)
    for call in (encode, prose_context, lambda given: ordering(given, PROSE_ORDERINGS[0])):
        with pytest.raises(ValueError, match=message):
            call(molecule)


def test_bad_arguments():
    molecule = topology(["GLY", "GLY"], GLYCINES)
    for name in ("n2c", "n2c_backbone-first", "n2c_backbone-first_standard_flip_flip", "c2n_sidechain-first_standard"):
        with pytest.raises(ValueError, match=f"unknown ordering '{name}'; the orderings are n2c_backbone-first_standa"):
            ordering(molecule, name)
    with pytest.raises(ValueError, match="expected a molecule or a topology, got 'AA'"):
        encode("AA")
    with pytest.raises(ValueError, match="no contexts"):
        pad([])
    context = prose_context(molecule)
    for other in (context[:, :5], context[:, :3], context[None], context[:, 0]):
        with pytest.raises(ValueError, match=r"each must be \(atoms, 4 \+ orderings\)"):
            pad([context, other])

"""Streaming a corpus: complete, shuffled by seed, shared out, padded; damage skipped and counted, mistakes named."""

import io
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from molecular.data.corpus import CorpusSource, ManyPeptides, stream
from molecular.data.corpus.shards import TarShard
from molecular.molecule.features import prose_context
from molecular.molecule.peptide import Peptide

PEPTIDES = ("GG", "AG", "AA")
TARS, FRAMES = 4, 12


@pytest.fixture(scope="module")
def peptides():
    return {sequence: Peptide(sequence) for sequence in PEPTIDES}


def write_tar(path, frames):
    """A tar by tarfile's own means, in the layout of the public data; frames: (key, positions)."""
    with tarfile.open(path, "w") as archive:
        for key, positions in frames:
            content = positions.astype("<f4").tobytes()
            member = tarfile.TarInfo(f"{key}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def public(tmp_path_factory, peptides):
    """A folder like ManyPeptidesMD; a frame's number is its first coordinate."""
    folder = tmp_path_factory.mktemp("public")
    for part, members in {"train": PEPTIDES, "val": (), "test": ()}.items():
        (folder / "pdbs" / part).mkdir(parents=True)
        for sequence in members:
            peptides[sequence].save_pdb(folder / "pdbs" / part / f"{sequence}.pdb")
    (folder / "webdatasets" / "single_frames").mkdir(parents=True)
    for tar in range(TARS):
        frames = []
        for index in range(FRAMES):
            sequence = PEPTIDES[(tar + index) % 3]
            positions = peptides[sequence].positions.copy()
            positions[0, 0] = FRAMES * tar + index
            frames.append((f"{sequence}_{index}", positions))
        write_tar(folder / "webdatasets" / "single_frames" / f"{tar:04d}.tar", frames)
    return folder


@pytest.fixture
def copy(public, tmp_path):
    return shutil.copytree(public, tmp_path / "copy")


def tar(folder, index):
    return folder / "webdatasets" / "single_frames" / f"{index:04d}.tar"


def numbers(batches) -> list[int]:
    """Which frames the batches hold, in their order."""
    return [round(value) for batch in batches for value in batch["inputs"][:, 0, 0].tolist()]


ALL = list(range(TARS * FRAMES))


def test_an_epoch_has_every_frame_once_with_its_own_context(public, peptides):
    data = stream(public, batch_size=5)
    assert data.systems == sorted(PEPTIDES)
    batches = list(data)
    assert sorted(numbers(batches)) == ALL
    for batch in batches:
        for positions, context, system in zip(batch["inputs"], batch["context"], batch["system"], strict=True):
            peptide = peptides[data.systems[system]]
            n = peptide.num_atoms
            assert torch.equal(context[:n], prose_context(peptide))
            assert bool((context[n:, :4] == 0).all() and (positions[n:] == 0).all())
            torch.testing.assert_close(positions[1:n], torch.from_numpy(peptide.positions[1:]).float())


def test_batches_are_of_similar_molecules_and_full_but_the_last(public):
    batches = list(stream(public, batch_size=5, bucket_width=1))
    sizes = [(batch["context"][..., 0] > 0).sum(1) for batch in batches]
    full = [size for size in sizes if len(size) == 5]
    assert len(full) >= len(batches) - 2 and sum(len(size.unique()) == 1 for size in full) >= 9
    dropped = list(stream(public, batch_size=5, bucket_width=1, drop_last=True))
    assert all(len(batch["inputs"]) == 5 for batch in dropped) and len(dropped) == 9


def test_order_is_by_seed_and_epoch(public):
    def order(seed=0, epoch=0, **options):
        data = stream(public, batch_size=48, bucket_width=1000, seed=seed, **options)
        data.set_epoch(epoch)
        return numbers(data)

    assert order() == order() != order(seed=1)
    assert order() != order(epoch=1)
    assert order(shuffle=False) == ALL
    # Well mixed: the frames of the first tar are spread over the epoch.
    places = [order().index(frame) for frame in range(FRAMES)]
    assert max(places) - min(places) > 24
    assert sorted(order(buffer_size=2, open_shards=1)) == ALL
    two = numbers(stream(public, batch_size=48, bucket_width=1000, epochs=2))
    assert two[:48] == order() and two[48:] == order(epoch=1)


def test_without_end(public):
    data = iter(stream(public, batch_size=48, bucket_width=1000, epochs=None))
    assert all(sorted(numbers([next(data)])) == ALL for _ in range(3))


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_an_epoch_out(public, world_size, shuffle):
    """With more readers than the four tars, too."""
    parts = [
        numbers(stream(public, batch_size=4, rank=rank, world_size=world_size, shuffle=shuffle))
        for rank in range(world_size)
    ]
    assert sorted(frame for part in parts for frame in part) == ALL and all(parts)


def test_processes_of_torchrun(public, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = stream(public, batch_size=4)
    assert (data.rank, data.world_size) == (1, 2) and len(numbers(data)) == 24
    with pytest.raises(ValueError, match="rank 3 is none of 2 processes"):
        stream(public, batch_size=4, rank=3, world_size=2)


def test_workers_share_an_epoch_out_and_count_damage(copy):
    content = tar(copy, 2).read_bytes()
    tar(copy, 2).write_bytes(content[: len(content) // 2])
    data = stream(copy, batch_size=4)
    loader = DataLoader(data, batch_size=None, num_workers=2)
    found = numbers(loader)
    assert len(set(found)) == len(found) and {*range(24), *range(36, 48)} <= set(found)
    assert data.skipped_shards == 1


def test_kept_sequences(public):
    data = stream(public, batch_size=4, keep=lambda sequence: sequence != "AA")
    systems = Counter(data.systems[index] for batch in data for index in batch["system"])
    assert systems == {"GG": 16, "AG": 16}


# Damage: skipped, counted, and the epoch goes on


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut inside a frame":
        path.write_bytes(content[: 5 * 1024 + 600])
    elif how == "cut between frames":
        path.write_bytes(content[: 5 * 1024])
    elif how == "overwritten header":
        content[5 * 1024 : 5 * 1024 + 512] = b"\xff" * 512
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no tar":
        path.write_bytes(b"nonsense" * 1000)
    elif how == "gone":
        path.unlink()
        path.symlink_to("nowhere")
    elif how == "not a multiple of three":
        write_tar(path, [("GG_0", np.zeros(17 * 3 + 1))])


@pytest.mark.parametrize(
    "how",
    [
        "cut inside a frame", "cut between frames", "overwritten header", "empty", "no tar", "gone",
        "not a multiple of three",
    ],
)  # fmt: skip
def test_a_damaged_shard_is_skipped_and_counted(copy, how, caplog):
    damage(tar(copy, 1), how)
    data = stream(copy, batch_size=4)
    found = numbers(data)
    others = [frame for frame in ALL if frame // FRAMES != 1]
    assert set(others) <= set(found) and len(found) == len(set(found)) < len(ALL)
    assert (data.skipped_shards, data.skipped_frames) == (1, 0)
    assert "0001.tar" in caplog.text
    list(data)
    assert data.skipped_shards == 2  # once an epoch


def test_frames_that_are_not_finite_are_skipped_and_counted(copy, peptides):
    bad = peptides["GG"].positions.copy()
    bad[3, 1] = np.nan
    write_tar(tar(copy, 1), [("GG_0", bad), ("GG_1", peptides["GG"].positions), ("GG_2", bad)])
    data = stream(copy, batch_size=4)
    assert len(numbers(data)) == 37
    assert (data.skipped_shards, data.skipped_frames) == (0, 2)


def test_nothing_left_to_read_is_an_error(copy):
    for index in range(TARS):
        tar(copy, index).write_bytes(b"")
    for epochs in (1, None):
        with pytest.raises(ValueError, match="could read no frame for train"):
            list(stream(copy, batch_size=4, epochs=epochs))


# Mistakes


def test_mismatched_structures(copy, peptides):
    shutil.copy(copy / "pdbs/train/AA.pdb", copy / "pdbs/train/AG.pdb")
    with pytest.raises(ValueError, match=r"AG\.pdb holds the residues AA, not those of AG"):
        list(stream(copy, batch_size=4))
    peptides["AG"].save_pdb(copy / "pdbs/train/AG.pdb")
    write_tar(tar(copy, 0), [("AG_0", peptides["AA"].positions)])
    with pytest.raises(ValueError, match=r"0000\.tar: a frame of AG has 23 atoms, but its PDB file has 20"):
        list(stream(copy, batch_size=4))
    lines = (copy / "pdbs/train/GG.pdb").read_text().splitlines(keepends=True)
    (copy / "pdbs/train/GG.pdb").write_text("".join(line for line in lines if " OXT " not in line))
    with pytest.raises(ValueError, match="residue 2 of the topology, GLY, lacks OXT"):
        list(stream(copy, batch_size=4))
    (copy / "pdbs/train/GG.pdb").unlink()
    with pytest.raises(FileNotFoundError, match=r"no structure .*GG\.pdb of GG"):
        list(stream(copy, batch_size=4))


def test_d_residues(copy, peptides):
    write_tar(tar(copy, 0), [("Ga_0", peptides["AG"].positions)])
    with pytest.raises(ValueError, match="lowercase; write 'A', or 'dAla'"):
        list(stream(copy, batch_size=4))
    write_tar(tar(copy, 0), [("AA_0", peptides["AA"].positions)])
    path = copy / "pdbs/train/AA.pdb"
    path.write_text(peptides["AA"].pdb_string(peptides["AA"].positions * np.array([1, 1, -1])))
    with pytest.raises(ValueError, match=r"AA\.pdb: residue 1, ALA, has the handedness of DAL"):
        list(stream(copy, batch_size=4))
    path.write_text(peptides["AA"].pdb_string().replace("ALA", "DAL"))
    with pytest.raises(ValueError, match="residue DAL is a D-amino acid"):
        list(stream(copy, batch_size=4))


def test_a_test_sequence_among_the_training_frames(copy):
    (copy / "pdbs/train/AA.pdb").rename(copy / "pdbs/test/AA.pdb")
    with pytest.raises(ValueError, match="a frame of AA, which is none of the sequences for train"):
        list(stream(copy, batch_size=4))


def test_an_empty_corpus(copy, tmp_path):
    with pytest.raises(ValueError, match="holds no frames for test"):
        stream(copy, "test", batch_size=4)
    for index in range(TARS):
        tar(copy, index).unlink()
    with pytest.raises(ValueError, match="holds no frames for train"):
        stream(copy, batch_size=4)
    shutil.rmtree(copy / "pdbs")
    with pytest.raises(FileNotFoundError, match="has no folder pdbs"):
        ManyPeptides(copy)


@pytest.mark.parametrize("name", ["batch_size", "bucket_width", "buffer_size", "open_shards"])
def test_impossible_settings(public, name):
    with pytest.raises(ValueError, match=f"{name} must be positive, not 0"):
        stream(public, **{"batch_size": 4, name: 0})


# Other sources


def test_validation_trajectories_and_half_precision_members(copy, peptides, tmp_path):
    folder = copy / "trajectories_subsampled" / "val" / "2AA"
    folder.mkdir(parents=True)
    positions = np.repeat(peptides["GG"].positions[None], 6, axis=0)
    np.savez(folder / "GG_subsampled.npz", positions=positions, tica_mean=np.zeros(3))
    (copy / "pdbs/train/GG.pdb").rename(copy / "pdbs/val/GG.pdb")
    data = stream(copy, "validation", batch_size=4)
    assert data.systems == ["GG"] and [len(batch["inputs"]) for batch in data] == [4, 2]
    buffer = io.BytesIO()
    np.save(buffer, positions[0].astype(np.float16))
    with tarfile.open(tmp_path / "half.tar", "w") as archive:
        member = tarfile.TarInfo("GG_0.npy")
        member.size = len(buffer.getvalue())
        archive.addfile(member, io.BytesIO(buffer.getvalue()))
        archive.addfile(tarfile.TarInfo("GG_0.json"))
    (item,) = TarShard(tmp_path / "half.tar").conformations()
    assert item.sequence == "GG" and item.positions.dtype == np.float32
    np.testing.assert_allclose(item.positions, positions[0], atol=2.5e-4)


def test_a_part_in_memory_is_a_source_of_batches(public):
    source = CorpusSource(ManyPeptides(public))
    assert len(source) == 48
    batch = source.batch(torch.tensor([0, 17, 47]))
    assert numbers([batch]) == [0, 17, 47]
    assert [source.systems[index] for index in batch["system"]] == ["GG", "GG", "AA"]
    assert batch["context"].shape[:2] == batch["inputs"].shape[:2] == (3, 23)


def test_a_batch_is_what_a_prose_flow_takes(public):
    from molecular.flows.prose import Prose

    flow = Prose(channels=16, num_blocks=1, layers_per_block=1, head_dim=8, scale=0.3)
    batch = next(iter(stream(public, batch_size=6, bucket_width=1000)))
    with torch.no_grad():
        together = flow.log_prob(batch["inputs"], batch["context"])
        for row in range(6):
            n = int((batch["context"][row, :, 0] > 0).sum())
            alone = flow.log_prob(batch["inputs"][row : row + 1, :n], batch["context"][row : row + 1, :n])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-3)

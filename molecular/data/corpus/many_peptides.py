"""The layout of the public ManyPeptidesMD data: tar shards of single frames beside PDB files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from openmm import app
from torch import Tensor
from tqdm import tqdm

from molecular.data.corpus.folder import Corpus
from molecular.data.corpus.layout import check_part
from molecular.data.corpus.sequences import seed_of
from molecular.data.corpus.shards import ArrayShard, DamagedShard, Shard, TarShard
from molecular.data.corpus.structure import read_structure
from molecular.molecule.sequences import parse_sequence
from nflib.io import complete_file, read_json, write_json

FRAMES = "webdatasets/single_frames"
STRUCTURES = "pdbs"
TRAJECTORIES = "trajectories_subsampled"
PACKED = "packed.json"
_DIRECTORIES = {"train": "train", "validation": "val", "test": "test"}
_SUFFIX = "_subsampled.npz"


class ManyPeptides:
    """A corpus in the layout of the public ManyPeptidesMD data, which `pack` writes too.

    ``webdatasets/single_frames/*.tar``: training frames (`TarShard`); ``pdbs/{train,val,test}/SEQUENCE.pdb``;
    ``trajectories_subsampled/{val,test}/*/SEQUENCE_subsampled.npz``: "positions" (N, n, 3) for validation and test.

    Args:
        folder: a local one.

    Raises:
        FileNotFoundError: the folder has no structures.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / STRUCTURES).is_dir():
            raise FileNotFoundError(
                f"{self.folder} has no folder {STRUCTURES} with the peptides' structures; unpack the PDB files into it."
            )
        self._structures = {path.stem: path for path in sorted((self.folder / STRUCTURES).glob("*/*.pdb"))}

    def sequences(self, part: str) -> list[str]:
        """Those with a structure (training), or a trajectory (validation, test)."""
        if check_part(part) == "train":
            held_out = (_DIRECTORIES["validation"], _DIRECTORIES["test"])
            return sorted(name for name, path in self._structures.items() if path.parent.name not in held_out)
        return sorted(self._trajectories(part))

    def shards(self, part: str) -> list[Shard]:
        if check_part(part) == "train":
            return [TarShard(path) for path in sorted((self.folder / FRAMES).glob("*.tar"))]
        return [ArrayShard(path, sequence) for sequence, path in self._trajectories(part).items()]

    def topology(self, sequence: str) -> app.Topology:
        path = self._structures.get(sequence, self.folder / STRUCTURES / "train" / f"{sequence}.pdb")
        return read_structure(path, sequence)

    def reference(self, sequence: str, part: str = "test") -> Tensor:
        """The reference conformations of a validation or test sequence, (N, n, 3) float32 in nm.

        Args:
            sequence: one of `sequences`.
            part: "validation" or "test".

        Raises:
            FileNotFoundError: there are none.
            DamagedShard: they cannot be read.
        """
        path = self._trajectories(part).get(sequence)
        if path is None:
            raise FileNotFoundError(f"{self.folder} has no trajectory of {sequence} among those for {part}.")
        rows = [torch.from_numpy(item.positions) for item in ArrayShard(path, sequence).conformations()]
        positions = torch.stack(rows) if rows else torch.zeros(0)
        if positions.shape[1:] != (self.topology(sequence).getNumAtoms(), 3) or not bool(positions.isfinite().all()):
            raise DamagedShard(f"{path} holds no finite positions of {sequence}, but {tuple(positions.shape)}.")
        return positions

    def _trajectories(self, part: str) -> dict[str, Path]:
        paths = sorted((self.folder / TRAJECTORIES / _DIRECTORIES[check_part(part)]).glob(f"*/*{_SUFFIX}"))
        return {path.name.removesuffix(_SUFFIX): path for path in paths}


def pack(corpus: Corpus, storage: str = "float32", shard_megabytes: float = 64.0, seed: int = 0) -> list[Path]:
    """Pack a corpus for streaming: write its frames into its folder once more, as `ManyPeptides` reads them.

    Training frames are shuffled over all peptides. What is packed already is left as it is.

    Args:
        corpus: whose simulations are finished; others are left out.
        storage: of training frames: "float32" (``.bin`` members) or "float16" (``.npy``).
        shard_megabytes: about the size of a tar.
        seed: of the shuffle.

    Returns:
        The tar files.

    Raises:
        ValueError: another storage, or no frames to train on.
    """
    if storage not in ("float32", "float16"):
        raise ValueError(f"tar shards hold float32 or float16, not {storage!r}.")
    folder = corpus.folder
    shards = {part: corpus.shards(part) for part in _DIRECTORIES}
    record = {
        "storage": storage,
        "shard_megabytes": shard_megabytes,
        "seed": seed,
        "shards": {part: [_identity(shard.path) for shard in found] for part, found in shards.items()},
    }
    if (folder / PACKED).is_file() and read_json(folder / PACKED, "delete it to pack again") == record:
        return sorted((folder / FRAMES).glob("*.tar"))
    (folder / PACKED).unlink(missing_ok=True)
    if not shards["train"]:
        raise ValueError(f"{folder} has no finished simulation to train on; simulate it first.")
    for part, directory in _DIRECTORIES.items():
        for sequence in corpus.sequences(part):
            text = (corpus.system(sequence) / "topology.pdb").read_text()
            with complete_file(folder / STRUCTURES / directory / f"{sequence}.pdb") as path:
                path.write_text(text)
            if part != "train":
                name = f"{len(parse_sequence(sequence, letters=True).residues)}AA/{sequence}{_SUFFIX}"
                with complete_file(folder / TRAJECTORIES / directory / name) as path:
                    np.savez(path, allow_pickle=False, positions=corpus.ensemble(sequence).positions.numpy())
    _pack_frames(shards["train"], folder / FRAMES, storage, shard_megabytes, seed)
    write_json(folder / PACKED, record)
    return sorted((folder / FRAMES).glob("*.tar"))


def _pack_frames(shards: list[Shard], output: Path, storage: str, shard_megabytes: float, seed: int) -> None:
    """A shuffle in two passes, which holds one tar's frames at a time: deal frames out, then shuffle each hand."""
    encode, suffix = (_raw, "bin") if storage == "float32" else (_half, "npy")
    total = sum(_tar_bytes(item.positions.nbytes) for shard in shards for item in shard.conformations())
    number = max(1, round(total / (shard_megabytes * 2**20)))
    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob("*.tar*"):
        path.unlink()
    hands = [output / f"{index:04d}.tar.dealt" for index in range(number)]
    generator = torch.Generator().manual_seed(seed)
    counts: dict[str, int] = {}
    files = [tarfile.open(path, "w") for path in hands]  # noqa: SIM115 - many at once, closed below
    try:
        for shard in tqdm(shards, desc="packing", unit="shard", mininterval=1.0):
            for sequence, positions in shard.conformations():
                index = counts[sequence] = counts.get(sequence, -1) + 1
                hand = int(torch.randint(number, (), generator=generator))
                _add(files[hand], f"{sequence}_{index:08d}.{suffix}", encode(positions))
    finally:
        for file in files:
            file.close()
    for path in hands:
        with tarfile.open(path) as dealt:
            members = [(member.name, dealt.extractfile(member)) for member in dealt.getmembers()]
            contents = [(name, file.read()) for name, file in members if file is not None]
        order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(seed_of(path.name, seed)))
        with complete_file(path.with_suffix("")) as shuffled, tarfile.open(shuffled, "w") as file:
            for index in order.tolist():
                _add(file, *contents[index])
        path.unlink()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _raw(positions: NDArray[np.float32]) -> bytes:
    return positions.astype("<f4").tobytes()


def _half(positions: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, positions.astype(np.float16), allow_pickle=False)
    return buffer.getvalue()


def _tar_bytes(content: int) -> int:
    """What a member of ``content`` bytes takes in a tar: a header, and whole blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-content // tarfile.BLOCKSIZE))


def _identity(path: Path) -> list[object]:
    return [path.parent.name, path.name, path.stat().st_size]

"""Make a corpus: simulate many peptides, one after the other, into one folder."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molecular.data.corpus.folder import DESCRIPTION, FINISHED, Corpus, read_description
from molecular.data.corpus.many_peptides import pack
from molecular.data.corpus.sequences import PARTS, Split, seed_of, split_by_sequence
from molecular.dynamics import report_lines
from molecular.dynamics.former_names import with_current_names
from molecular.dynamics.simulation import Starts, simulate
from molecular.dynamics.starts import UnreliableStarts
from molecular.molecule.peptide import Peptide
from molecular.molecule.sequences import parse_sequence
from nflib.io import only_run, read_json, write_json

log = logging.getLogger(__name__)


def simulate_corpus(
    sequences: Sequence[str],
    output: str | Path,
    *,
    split: Split | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    temperature: float | None = None,
    hydrogen_mass: float | None = None,
    seed: int = 0,
    tar: bool = False,
    storage: str = "float32",
    starts: Starts | None = None,
    **options: Any,
) -> Corpus:
    """Make a corpus: simulate every sequence by `molecular.dynamics.simulate`, one after the other.

    Run again after an interruption it leaves out finished sequences and goes on inside the one that was under way; more
    sequences or more picoseconds extend a corpus, whose earlier sequences stay in their part of the split. A sequence's
    simulation depends on the seed and itself alone, not on its place in the list.

    Args:
        sequences: as `Peptide` takes them; see `read_sequences`.
        output: folder of the corpus; each simulation is in ``systems/SEQUENCE``.
        split: the sequences of "train", "validation" and "test" (`read_split`); default: `split_by_sequence`.
        validation_fraction: share of the sequences, for that default.
        test_fraction: share of the sequences, for that default.
        temperature: K, of every peptide; default as of `Peptide`.
        hydrogen_mass: amu, of every peptide, for hydrogen mass repartition; see `Peptide`.
        seed: of the split and the simulations.
        tar: pack the frames for streaming as well (`molecular.data.corpus.pack`).
        storage: of the frames, as of `simulate`.
        starts: as of `simulate`; a sequence for which it has none (`UnreliableStarts`) is left out, with a warning.
        options: further arguments of `simulate`, such as ``picoseconds``.

    Raises:
        ValueError: no sequences, a corpus in ``output`` that has another seed or sequences that are missing here, a
            split without a place for one, or with another place than it has in that corpus, and what `simulate`
            refuses.
        OSError: another run is at work in the folder.
    """
    if not sequences:
        raise ValueError("no sequences to simulate; give at least one.")
    folder = Path(output)
    known: dict[str, Any] = read_description(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    if known and known.get("seed") != seed:
        raise ValueError(f"{folder} holds a corpus with seed {known.get('seed')}, not {seed}; use another folder.")
    lacking = {name for part in known.get("split", {}).values() for name in part} - set(sequences)
    if lacking:
        raise ValueError(
            f"{folder} holds {min(lacking)}, which is not among the sequences; add it or use another folder."
        )
    if split is None:
        split = split_by_sequence(sequences, validation_fraction, test_fraction, seed, fixed=known.get("split"))
    unplaced = set(sequences) - {name for part in PARTS for name in split.get(part, [])}
    if unplaced:
        raise ValueError(f"the split has no place for {min(unplaced)}; put it into one of {', '.join(PARTS)}.")
    for part, names in known.get("split", {}).items():
        if moved := sorted(set(names) - set(split.get(part, []))):
            raise ValueError(
                f"{folder} has {moved[0]} for {part}, and the split puts it into {_part_of(moved[0], split)}; leave it "
                "where it is, or use another folder."
            )
    with only_run(folder):
        write_json(folder / DESCRIPTION, {"seed": seed, "split": {part: list(split.get(part, [])) for part in PARTS}})
        for number, sequence in enumerate(sequences, start=1):
            system = folder / "systems" / sequence
            build: dict[str, Any] = {"temperature": temperature, "hydrogen_mass": hydrogen_mass}
            wanted = json.loads(json.dumps({**build, "storage": storage, **options}, default=str))
            finished = system / FINISHED
            if finished.is_file() and _same(with_current_names(read_json(finished, "delete it to go on")), wanted):
                continue
            log.info("%d of %d: %s, for %s.", number, len(sequences), sequence, _part_of(sequence, split))
            try:
                result = simulate(
                    Peptide(parse_sequence(sequence, letters=True), **build),
                    system,
                    seed=seed_of(sequence, seed),
                    storage=storage,
                    starts=starts,
                    **options,
                )
            except UnreliableStarts as error:
                log.warning("%s is left out: %s", sequence, error)
                continue
            for line in report_lines(result.report):
                log.info("%s", line)
            write_json(finished, wanted)
    corpus = Corpus(folder)
    if tar:
        paths = pack(corpus, "float16" if storage == "float16" else "float32", seed=seed)
        log.info("Packed into %d tar files.", len(paths))
    return corpus


def _same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a finished simulation is the wanted one; how it is shown does not matter."""
    ignored = {"progress", "checkpoint_seconds", "device", "compile", "platform"}
    return {k: v for k, v in before.items() if k not in ignored} == {k: v for k, v in now.items() if k not in ignored}


def _part_of(sequence: str, split: Split) -> str:
    return next(part for part in PARTS if sequence in split.get(part, []))

"""Making a corpus: sequences, splits, resuming, packing, and how mistakes are answered."""

import json
import shutil

import numpy as np
import pytest
import torch

from molecular import Peptide
from molecular.commands import main
from molecular.data.corpus import (
    Corpus,
    ManyPeptides,
    open_corpus,
    pack,
    read_sequences,
    read_split,
    simulate_corpus,
    split_by_sequence,
)
from molecular.data.corpus.folder import split_of
from molecular.data.corpus.structure import read_structure
from nflib.io import only_run

OPTIONS = {
    "picoseconds": 0.02, "hot_ps": 0.0, "equilibration_ps": 0.0, "num_replica_groups": 2, "num_temperatures": 2,
    "swap_ps": 0.01, "save_ps": 0.002, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Made by the command line, float16, packed."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "sequences.txt").write_text("# two dipeptides and their elder\nGG\nGA # reversed below\n\nAG\n")
    arguments = ["--picoseconds", "0.02", "--hot_ps", "0", "--equilibration_ps", "0"]
    arguments += ["--num_replica_groups", "2", "--num_temperatures", "2"]
    arguments += ["--save_ps", "0.002", "--storage", "float16", "--tar", "true", "--validation_fraction", "0"]
    arguments += ["--sequences", str(folder / "sequences.txt"), "--test_fraction", "0.4"]
    main(["simulate", *arguments, "--output", str(folder / "corpus")])
    return folder / "corpus"


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_corpus_by_the_command_line(made):
    corpus = open_corpus(made)
    assert isinstance(corpus, Corpus)
    assert [len(corpus.sequences(part)) for part in ("train", "validation", "test")] == [2, 0, 1]
    assert sorted(corpus.sequences("train") + corpus.sequences("test")) == ["AG", "GA", "GG"]
    for sequence in ("AG", "GA", "GG"):
        ensemble = corpus.ensemble(sequence)
        assert len(ensemble) == 20 and ensemble.num_atoms == corpus.topology(sequence).getNumAtoms()
        assert json.loads((corpus.system(sequence) / "report.json").read_text())["molecule"] == sequence
    with np.load(corpus.system("GG") / "frames-000000.npz") as stored:
        assert stored["positions"].dtype == np.float16


def test_packed_it_reads_as_many_peptides(made):
    corpus, public = Corpus(made), ManyPeptides(made)
    assert public.sequences("train") == corpus.sequences("train")
    assert public.sequences("test") == corpus.sequences("test")
    (test,) = corpus.sequences("test")
    assert torch.equal(public.reference(test), corpus.ensemble(test).positions)
    frames = [item for shard in public.shards("train") for item in shard.conformations()]
    assert len(frames) == 40
    for sequence in corpus.sequences("train"):
        packed = {item.positions.tobytes() for item in frames if item.sequence == sequence}
        assert packed == {row.numpy().tobytes() for row in corpus.ensemble(sequence).positions}
    order = [item.sequence for item in frames]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    with pytest.raises(FileNotFoundError, match="no trajectory of WW among those for test"):
        public.reference("WW")


def test_packing_again_changes_nothing_and_more_tars_hold_the_same_frames(made, tmp_path):
    before = snapshot(made)
    pack(Corpus(made), "float16")
    assert snapshot(made) == before
    shutil.copytree(made, tmp_path / "copy")
    paths = pack(Corpus(tmp_path / "copy"), "float32", shard_megabytes=0.01)
    assert len(paths) > 1 and not list((tmp_path / "copy").rglob("*.dealt"))

    def frames(folder):
        shards = ManyPeptides(folder).shards("train")
        return sorted((i.sequence, i.positions.tobytes()) for shard in shards for i in shard.conformations())

    assert frames(tmp_path / "copy") == frames(made)
    with pytest.raises(ValueError, match="float32 or float16, not 'xtc'"):
        pack(Corpus(made), "xtc")


def test_finished_sequences_are_left_alone_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    import molecular.data.corpus.make as make

    whole = simulate_corpus(["GG", "AG"], tmp_path / "whole", **OPTIONS)
    simulated = []
    original = make.simulate

    def interrupted(peptide, *arguments, **options):
        simulated.append(peptide.sequence)
        if len(simulated) == 2:
            raise KeyboardInterrupt
        return original(peptide, *arguments, **options)

    monkeypatch.setattr(make, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate_corpus(["GG", "AG"], tmp_path / "resumed", **OPTIONS)
    assert Corpus(tmp_path / "resumed").sequences("train") == ["GG"]
    resumed = simulate_corpus(["GG", "AG"], tmp_path / "resumed", **OPTIONS)
    assert simulated == ["GG", "AG", "AG"]
    finished = tmp_path / "resumed" / "systems" / "GG" / "finished.json"
    finished.write_text(finished.read_text().replace("num_replica_groups", "num_ladders"))  # of an earlier version
    simulate_corpus(["GG", "AG"], tmp_path / "resumed", **OPTIONS)
    assert simulated == ["GG", "AG", "AG"]
    for sequence in ("GG", "AG"):
        assert torch.equal(resumed.ensemble(sequence).positions, whole.ensemble(sequence).positions)


def test_a_simulation_does_not_depend_on_the_other_sequences_and_can_be_extended(tmp_path):
    corpus = simulate_corpus(["GG"], tmp_path, **OPTIONS)
    before = corpus.ensemble("GG").positions
    corpus = simulate_corpus(["AG", "GG"], tmp_path, **OPTIONS | {"picoseconds": 0.03})
    assert len(corpus.ensemble("AG")) == len(corpus.ensemble("GG")) == 30
    assert torch.equal(corpus.ensemble("GG").positions[:20], before)


# Sequences and splits

NAMES = [a + b for a in "ACDEFGH" for b in "KLMNPQ"]


@pytest.mark.parametrize("sequence", ["Ace-A-NH2", "Ace-HC-Nme", "KD"])
def test_structures_are_of_their_sequence(sequence, tmp_path):
    Peptide(sequence).save_pdb(tmp_path / "a.pdb")
    assert read_structure(tmp_path / "a.pdb", sequence).getNumAtoms() == Peptide(sequence).num_atoms
    with pytest.raises(ValueError, match="not those of GG"):
        read_structure(tmp_path / "a.pdb", "GG")


def test_split_has_exact_shares_whatever_the_order():
    split = split_by_sequence(NAMES, 0.1, 0.25, seed=3)
    assert [len(split[part]) for part in ("train", "validation", "test")] == [28, 4, 10]
    assert sorted(name for part in split.values() for name in part) == sorted(NAMES)
    assert split == split_by_sequence(NAMES[::-1], 0.1, 0.25, seed=3)
    assert split != split_by_sequence(NAMES, 0.1, 0.25, seed=4)


def test_a_growing_corpus_moves_no_sequence():
    early = split_by_sequence(NAMES[:20], 0.1, 0.2, seed=0)
    late = split_by_sequence(NAMES, 0.1, 0.2, seed=0, fixed=early)
    for part, members in early.items():
        assert set(members) <= set(late[part])
    assert [len(late[part]) for part in ("train", "validation", "test")] == [30, 4, 8]


def test_a_split_moves_no_sequence_of_a_corpus_made_before(made, tmp_path):
    """A test sequence that the file did not name went to training without a word."""
    [held_out] = split_of(made)["test"]
    path = tmp_path / "split.json"
    path.write_text('{"validation": ["AA"]}')
    names = ["GG", "GA", "AG", "AA"]
    assert read_split(path, names, split_of(made)) == {
        "train": [name for name in names[:3] if name != held_out],
        "validation": ["AA"],
        "test": [held_out],
    }
    with pytest.raises(ValueError, match=f"has {held_out} for test, and the split puts it into train; leave it where"):
        simulate_corpus(names, made, split=read_split(path, names), **OPTIONS)
    sequences = tmp_path / "sequences.txt"
    sequences.write_text("AA\n")
    options = ["--sequences", str(sequences), "--split", str(path), "--test_fraction", "0.2", "--picoseconds", "1"]
    with pytest.raises(SystemExit, match="--test_fraction is of a corpus without --split; leave it out"):
        main(["simulate", *options, "--output", str(tmp_path / "output")])
    assert split_of(tmp_path / "output") == {}


def test_split_mistakes(tmp_path):
    with pytest.raises(ValueError, match="sum to at most 1"):
        split_by_sequence(NAMES, 0.6, 0.6)
    with pytest.raises(ValueError, match="none is left for training"):
        split_by_sequence(["AA", "GG"], 0.5, 0.5)
    path = tmp_path / "split.json"
    with pytest.raises(FileNotFoundError, match=r"no file .*split\.json"):
        read_split(path, ["AA"])
    path.write_text('{"test": ["AA"]}')
    assert read_split(path, ["GG", "AA"]) == {"train": ["GG"], "validation": [], "test": ["AA"]}
    for content, message in [
        ('{"test": ["WW"]}', "puts WW into test, but the corpus has no such sequence"),
        ('{"test": ["AA"], "train": ["AA"]}', "into both"),
        ('{"tests": ["AA"]}', "lists named train, validation, test"),
        ("not json", "split.json is damaged"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_split(path, ["AA", "GG"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sequences"),
        ("# nothing\n\n", "has no sequences"),
        ("AA\nAa\n", "line 2: letter 2 .* is 'a', lowercase; write 'A', or 'dAla'"),
        ("AA\nAXA\n", "line 2: letter 2 .* is 'X', unknown"),
        ("AA\nGG\nAA\n", "line 3: AA stands in line 1 already"),
        ("AA\ndAla-Gly\n", "line 2: dAla-Gly has D-residues"),
    ],
)
def test_sequence_files_with_mistakes(tmp_path, text, message):
    path = tmp_path / "sequences.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sequences(path)


def test_files_of_an_editor_that_marks_utf_8(tmp_path):
    sequences, split = tmp_path / "sequences.txt", tmp_path / "split.json"
    sequences.write_text("AA\nAG\n", encoding="utf-8-sig")
    split.write_text('{"test": ["AG"]}', encoding="utf-8-sig")
    assert read_split(split, read_sequences(sequences)) == {"train": ["AA"], "validation": [], "test": ["AG"]}
    sequences.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="txt is no text in UTF-8; give a text file with one sequence a line"):
        read_sequences(sequences)


def test_a_corpus_is_not_mixed_up_with_another(made, tmp_path):
    with pytest.raises(ValueError, match="corpus with seed 0, not 1"):
        simulate_corpus(["GG", "GA", "AG"], made, seed=1, **OPTIONS)
    with pytest.raises(ValueError, match="holds AG, which is not among the sequences"):
        simulate_corpus(["GG", "GA"], made, **OPTIONS)
    before = (made / "corpus.json").read_text()
    with only_run(made), pytest.raises(OSError, match="another run is at work"):
        simulate_corpus(["GG", "GA", "AG", "AA"], made, **OPTIONS)
    assert (made / "corpus.json").read_text() == before
    with pytest.raises(ValueError, match="no sequences to simulate"):
        simulate_corpus([], tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="the split has no place for GG"):
        simulate_corpus(["GG"], tmp_path, split={"train": []}, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        open_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"parts train, validation, test, not 'dev'"):
        Corpus(made).sequences("dev")
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(ValueError, match=r"corpus\.json cannot be read"):
        Corpus(tmp_path)


@pytest.mark.parametrize("arguments", [[], ["--peptide", "GG", "--sequences", "file"]])
def test_peptide_or_sequences(arguments, tmp_path):
    with pytest.raises(SystemExit, match="error: give one of --peptide, --structure and --sequences"):
        main(["simulate", *arguments, "--picoseconds", "1", "--output", str(tmp_path / "output")])
    assert not (tmp_path / "output").exists()

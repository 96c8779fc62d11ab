"""Corpora: simulations of many peptides in one folder, and readers that stream them for training."""

from molecular.corpus.folder import Corpus, CorpusLayout, open_corpus
from molecular.corpus.make import simulate_corpus
from molecular.corpus.many_peptides import ManyPeptides, pack
from molecular.corpus.memory import CorpusSource
from molecular.corpus.sequences import read_sequences, read_split, split_by_sequence
from molecular.corpus.shards import DamagedShard
from molecular.corpus.stream import ConformationStream, stream

__all__ = [
    "ConformationStream",
    "Corpus",
    "CorpusLayout",
    "CorpusSource",
    "DamagedShard",
    "ManyPeptides",
    "open_corpus",
    "pack",
    "read_sequences",
    "read_split",
    "simulate_corpus",
    "split_by_sequence",
    "stream",
]

"""Corpora: simulations of many peptides in one folder, and readers that stream them for training."""

from molecular.data.corpus.folder import Corpus
from molecular.data.corpus.layout import CorpusLayout
from molecular.data.corpus.make import simulate_corpus
from molecular.data.corpus.many_peptides import ManyPeptides, pack
from molecular.data.corpus.memory import CorpusSource
from molecular.data.corpus.open import open_corpus
from molecular.data.corpus.sequences import read_sequences, read_split, split_by_sequence
from molecular.data.corpus.shards import DamagedShard
from molecular.data.corpus.streaming import ConformationStream, stream

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

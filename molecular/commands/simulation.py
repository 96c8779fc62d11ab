"""Simulation by parallel tempering, of one molecule or a corpus of peptides."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from molecular.commands.options import MoleculeOptions
from molecular.data.corpus import read_sequences, read_split, simulate_corpus
from molecular.data.corpus.folder import split_of
from molecular.dynamics import report_lines
from molecular.dynamics.simulation import Starts
from molecular.dynamics.simulation import simulate as run
from molecular.sampling.starts import EnsembleStarts, FlowStarts
from nflib.command_line import refuse_given

log = logging.getLogger(__name__)


def simulate(
    output: Path,
    molecule: MoleculeOptions,
    sequences: Path | None = None,
    split: Path | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    tar: bool = False,
    flow: Path | None = None,
    flow_draws: int | None = None,
    flow_effective: float | None = None,
    flow_tempered: bool = False,
    ensemble: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    **options: Any,
) -> None:
    """Simulate a molecule, or a corpus of peptides, by parallel tempering in Langevin dynamics; run again, it goes on.

    Args:
        output: folder for frames, topology, settings and report; of a corpus, with one such folder a sequence.
        molecule: which one, by default that of ensemble or flow; of a corpus, temperature and hydrogen mass alone, of
            all its peptides.
        sequences: instead of a molecule, a text file of sequences, one a line, for a corpus.
        split: of a corpus, a JSON file with lists of train, validation and test; sequences it lacks stay where
            an earlier run into the output had them, and new ones are for training.
        validation_fraction: of a corpus without such a file, the share of the sequences, chosen by seed; default 0.1.
        test_fraction: likewise.
        tar: pack the frames of a corpus into tar shards for streaming, in the layout of ManyPeptidesMD.
        flow: folder of a trained flow, from whose weighted draws the replicas start instead of structures of random
            torsions, by default at one temperature and without hot_ps; 5 ps of equilibration_ps will do. Where they are
            worth too few effective samples, a molecule is refused, and a corpus goes on without it.
        flow_draws: how many to draw of it for each molecule; default 10,000.
        flow_effective: how many effective samples these must be worth, by default as many as there are replicas.
        flow_tempered: raise the weights of draws that are worth fewer to the highest power at which they are worth that
            many, instead of refusing the molecule; dynamics has to do the rest, with the defaults of random torsions.
        ensemble: folder of an earlier simulation or corpus, from whose frames the replicas start: more conformations of
            an equilibrium reached before, by default at one temperature and without hot_ps, which would destroy it.
        device: cpu, cuda or mps, of the batched engine and of the flow.
        seed: of the random numbers.
        options: of `molecular.dynamics.simulate`.
    """
    if flow is not None and ensemble is not None:
        raise ValueError("replicas start from --flow or from --ensemble; give one.")
    origin = ensemble or flow
    number = 3 - [molecule.peptide, molecule.structure, sequences].count(None)
    if number > 1 or (number == 0 and origin is None):
        raise ValueError("give one of --peptide, --structure and --sequences.")
    of_flow = {"flow_draws": flow_draws, "flow_effective": flow_effective, "flow_tempered": flow_tempered or None}
    fractions: dict[str, Any] = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    if flow is None:
        refuse_given(of_flow, "goes with --flow")
    if sequences is None:
        refuse_given(fractions | {"split": split, "tar": tar or None}, "goes with --sequences")
    if split is not None:
        refuse_given(fractions, "is of a corpus without --split")
    starts: Starts | None = None
    if flow is not None:
        draws = {} if flow_draws is None else {"num_draws": flow_draws}
        starts = FlowStarts(flow, device=device, min_effective=flow_effective, tempered=flow_tempered, **draws)
    if ensemble is not None:
        starts = EnsembleStarts(ensemble)
    if sequences is None:
        result = run(molecule.build(origin), output, device=device, seed=seed, starts=starts, **options)
        for line in report_lines(result.report):
            log.info("%s", line)
        return
    others = replace(molecule, temperature=None, hydrogen_mass=None)
    others.check_unused("goes with one molecule, not with --sequences")
    names = read_sequences(sequences)
    simulate_corpus(
        names,
        output,
        split=None if split is None else read_split(split, names, split_of(output)),
        **{name: share for name, share in fractions.items() if share is not None},
        temperature=molecule.temperature,
        hydrogen_mass=molecule.hydrogen_mass,
        seed=seed,
        tar=tar,
        starts=starts,
        device=device,
        **options,
    )

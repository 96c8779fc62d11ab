"""Equilibrates peptides for `python -m molecular simulate`, which goes on from there; usage: --help.

`simulate` gives all replicas of a ladder one start structure of random torsions, so a ladder begun with phi > 0 keeps
it until each of them has crossed a barrier. Here every replica has a structure of its own, and first some time at the
highest temperature, where barriers are crossed; swaps then sort the structures. What is written is a checkpoint of
`simulate` at a time before production, for the same options. Sequences that have one are left alone.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from openmm import unit

from molecular.data.corpus import read_sequences
from molecular.data.corpus.sequences import seed_of
from molecular.dynamics import geometric_temperatures, parallel_tempering, relax, start_structures
from molecular.dynamics.checkpoint import CHECKPOINT
from molecular.energy import compile_system
from molecular.molecule.peptide import Peptide

log = logging.getLogger(__name__)

SWAP_PS = 0.1
"""That of `simulate`."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Equilibrate peptides; then run simulate with the same options.")
    parser.add_argument("--sequences", type=Path, required=True, help="a text file, one a line")
    parser.add_argument("--output", type=Path, required=True, help="gets a folder a sequence; systems/ of a corpus")
    parser.add_argument("--hot_ps", type=float, required=True, help="at the highest temperature, before the ladder")
    parser.add_argument("--equilibration_ps", type=float, required=True, help="in the ladder")
    parser.add_argument("--highest_temperature", type=float, required=True, help="K")
    parser.add_argument("--num_temperatures", type=int, required=True)
    parser.add_argument("--num_ladders", type=int, required=True)
    parser.add_argument("--timestep_ps", type=float, required=True)
    parser.add_argument("--hydrogen_mass", type=float, required=True, help="amu")
    parser.add_argument("--save_ps", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for sequence in read_sequences(options.sequences):
        if not (options.output / sequence / CHECKPOINT).exists():
            log.info("Equilibrating %s.", sequence)
            equilibrate(sequence, options)


def equilibrate(sequence: str, options: argparse.Namespace) -> None:
    """Leave the checkpoint of one sequence in its folder."""
    peptide = Peptide(sequence, hydrogen_mass=options.hydrogen_mass)
    energy = compile_system(peptide.system, compile=True)
    masses = [peptide.system.getParticleMass(atom).value_in_unit(unit.dalton) for atom in range(len(peptide.positions))]
    batch = options.num_ladders * options.num_temperatures
    generator = torch.Generator().manual_seed(seed_of(sequence, options.seed))
    structure = torch.as_tensor(peptide.positions, dtype=torch.float32)
    start = start_structures(structure, peptide.topology.bonds, batch, lambda x: relax(energy, x), generator)
    start = start - start.mean(dim=1, keepdim=True)

    def steps(picoseconds: float) -> int:
        return round(picoseconds / options.timestep_ps)

    def dynamics(x: torch.Tensor, temperatures: tuple[float, ...], **lengths: Any) -> Any:
        return parallel_tempering(
            energy,
            torch.tensor(masses),
            x,
            temperatures,
            num_ladders=batch // len(temperatures),
            timestep=options.timestep_ps,
            friction=1.0,
            swap_interval=steps(SWAP_PS),
            recentre=True,
            generator=generator,
            progress=False,
            **lengths,
            checkpoint=(options.output / sequence) if len(temperatures) > 1 else None,
        )

    hot = steps(options.hot_ps)
    frames = dynamics(start, (options.highest_temperature,), num_steps=hot, save_interval=hot).frames
    ladder = geometric_temperatures(peptide.temperature, options.highest_temperature, options.num_temperatures)
    dynamics(
        torch.from_numpy(frames.positions),
        ladder,
        num_steps=0,
        save_interval=steps(options.save_ps),
        equilibration_steps=steps(options.equilibration_ps),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

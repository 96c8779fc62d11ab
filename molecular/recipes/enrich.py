"""Copies a simulation's frames, those of a basin several times more; usage: --help.

A flow trained on them draws more of a rare basin than belongs there, and knows its tails: importance weights put the
share right, and the basin's free energy has a smaller error.
"""

import argparse
import shutil
from pathlib import Path

import torch

from molecular.analysis.free_energy import Basin
from molecular.data.ensembles import load_ensemble
from molecular.dynamics.frames import Frames, FrameWriter
from molecular.molecule.storage import load_molecule, save_molecule
from nflib.io import complete_folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Frames of a simulation, those of a basin several times more.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the simulation")
    parser.add_argument("--basin", required=True, help="as analyse takes it, such as 'phi 1 > 0'")
    parser.add_argument("--times", type=int, required=True, help="so many times more")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    molecule, ensemble = load_molecule(options.data), load_ensemble(options.data)
    inside = Basin.of("basin", options.basin, molecule)(ensemble.positions)
    rows = torch.cat([torch.arange(len(ensemble)), inside.nonzero()[:, 0].repeat(options.times)])
    chosen = ensemble.select(rows)
    frames = Frames(
        positions=chosen.positions.numpy(),
        energies=chosen.energies.numpy(),
        temperature_index=chosen.temperature_index.numpy().astype("int16"),
        replica_group=chosen.replica_group.numpy().astype("int32"),
        time=chosen.time.numpy(),
    )
    with complete_folder(options.output) as folder:  # not there until it is whole
        save_molecule(molecule, folder)
        shutil.copy(options.data / "settings.json", folder)
        writer = FrameWriter(folder)
        writer.add(frames)
        writer.flush()
    print(f"{len(ensemble)} frames, {int(inside.sum())} of them in the basin; {len(rows)} are in {options.output}.")


if __name__ == "__main__":
    main()

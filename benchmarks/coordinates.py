"""What local frames buy: one TARFlow on internal, local-frame and plain Cartesian coordinates of a peptide.

Same transformer, same frames, same wall time each, maximum likelihood alone, in one run. Needs a simulation:

    python -m molecular simulate --peptide Ace-A-Nme --output runs/Ace-A-Nme \\
        --picoseconds 150 --num_ladders 64 --save_ps 0.1
    python benchmarks/coordinates.py --data runs/Ace-A-Nme --seconds 600

A Cartesian flow is a density on all 3n coordinates. It is trained on randomly rotated frames whose centroid is normal
with standard deviation s, and weighted towards exp(-u(x)) N(centroid; 0, s^2), which is exact. Its likelihood is made
comparable by taking off the entropy of the placement, 3/2 log(2 pi e s^2) + log(8 pi^2).
"""

import argparse
import math
from pathlib import Path

import torch
from common import count_parameters, machine, markdown_table
from torch import Tensor

from molecular.data.ensembles import load_ensemble, split_by_ladder
from molecular.energy.reduced import ReducedEnergy
from molecular.energy.symmetries import Symmetries
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.peptide import Peptide
from molecular.sampling.sample import PUBLISHED_TRUNCATION
from molecular.training.fit_molecule import SPLIT, SPLIT_SEED
from nflib.montecarlo import BoltzmannDensity, importance_sample
from nflib.training import TrainingConfig, fit

CENTROID_STD = 0.05
PLACEMENT_ENTROPY = 1.5 * math.log(2 * math.pi * math.e * CENTROID_STD**2) + math.log(8 * math.pi**2)


def place(positions: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each conformation at random about its centroid, and put that at a normal position."""
    quaternion = torch.nn.functional.normalize(torch.randn(len(positions), 4, generator=generator), dim=-1)
    w, vector = quaternion[:, :1, None], quaternion[:, None, 1:].expand(-1, positions.shape[1], -1)
    centred = positions - positions.mean(1, keepdim=True)
    twice = 2 * torch.linalg.cross(vector, centred)
    rotated = centred + w * twice + torch.linalg.cross(vector, twice)
    return rotated + CENTROID_STD * torch.randn(len(positions), 1, 3, generator=generator)


def placed_energy(reduced: ReducedEnergy):
    """``u(x) - log N(centroid; 0, s^2)``, up to a constant."""
    return lambda x: reduced(x) + 0.5 * x.double().mean(1).square().sum(-1) / CENTROID_STD**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder written by `molecular simulate`")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each flow")
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--num-blocks", type=int, default=6)
    parser.add_argument("--layers-per-block", type=int, default=2)
    parser.add_argument("--peptide", default="Ace-A-Nme")
    parser.add_argument("--output", type=Path, default=Path("runs/coordinates"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    peptide = Peptide(arguments.peptide)
    training, validation, test = split_by_ladder(
        load_ensemble(arguments.data, num_atoms=peptide.num_atoms), SPLIT, SPLIT_SEED
    )
    reduced = ReducedEnergy(peptide)
    symmetries = Symmetries(peptide)
    generator = torch.Generator().manual_seed(arguments.seed)
    config = TrainingConfig(
        batch_size=256,
        max_seconds=arguments.seconds,
        learning_rate=1e-3,
        validation_interval=None,
        validation_seconds=arguments.seconds / 10,
        tensorboard=False,
    )
    rows = []
    for coordinates in ("internal", "local_frames", "cartesian"):
        torch.manual_seed(arguments.seed)
        cartesian = coordinates == "cartesian"
        flow = MoleculeFlow.of(
            peptide,
            coordinates=coordinates,
            channels=arguments.channels,
            num_blocks=arguments.num_blocks,
            layers_per_block=arguments.layers_per_block,
        )
        flow.fit_coordinates(place(training.positions, generator) if cartesian else training.positions)
        result = fit(
            flow,
            training.positions,
            place(validation.positions, generator) if cartesian else validation.positions,
            config=config,
            output=arguments.output / coordinates,
            augment=(lambda x, g: place(symmetries(x, g), g)) if cartesian else symmetries,
        )
        held_out = place(test.positions, generator) if cartesian else test.positions
        with torch.no_grad():
            log_prob = torch.cat([flow.log_prob(part) for part in held_out.split(1000)])
        negative = -log_prob.mean().item() - (PLACEMENT_ENTROPY if cartesian else 0.0)
        target = BoltzmannDensity(placed_energy(reduced) if cartesian else reduced)
        samples = importance_sample(flow, target, arguments.num_samples, seed=arguments.seed)
        rows.append(
            [
                coordinates,
                count_parameters(flow),
                result.steps,
                f"{negative:.2f}",
                f"{samples.effective_sample_size_fraction:.4f}",
                f"{samples.truncate(PUBLISHED_TRUNCATION).effective_sample_size_fraction:.4f}",
                samples.num_rejected,
            ]
        )
    print(machine())
    print(f"{peptide.sequence}, {len(training)} training frames, {arguments.seconds:g} s of training each")
    header = [
        "coordinates",
        "parameters",
        "steps",
        "test -log q / nats",
        "ESS",
        "ESS, top 0.2 % removed",
        "rejected",
    ]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()

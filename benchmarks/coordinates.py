"""What local frames buy: one TARFlow on internal, local-frame and plain Cartesian coordinates of a peptide.

Same transformer, same frames, same wall time each, maximum likelihood alone, in one run. Needs a simulation:

    python -m molecular simulate --peptide Ace-A-Nme --output runs/Ace-A-Nme \\
        --picoseconds 150 --num_replica_groups 64 --save_ps 0.1
    python benchmarks/coordinates.py --data runs/Ace-A-Nme --seconds 600

A Cartesian flow is a density on all 3n coordinates. It is trained on frames in random orientations whose centroid is
normal, and weighted towards the Boltzmann density times that of where a conformation was put, which is exact. Its
likelihood is made comparable by taking that known density off.
"""

import math
from pathlib import Path

import torch
from common import argument_parser, count_parameters, markdown_table, prepare, quiet
from torch import Tensor

from molecular.data.ensembles import load_ensemble, split_by_replica_group
from molecular.energy.reduced import ReducedEnergy
from molecular.energy.symmetries import Symmetries
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.flows.rigid_motion import CentroidEnergy, random_rigid_motion
from molecular.molecule.peptide import Peptide
from molecular.sampling.summary import PUBLISHED_TRUNCATION
from molecular.training.fit_molecule import SPLIT, SPLIT_SEED
from nflib.montecarlo import BoltzmannDensity, importance_sample
from nflib.training import fit

CENTROID_STD = 0.05


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder written by `molecular simulate`")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each flow")
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--num-blocks", type=int, default=6)
    parser.add_argument("--layers-per-block", type=int, default=2)
    parser.add_argument("--peptide", default="Ace-A-Nme")
    parser.add_argument("--output", type=Path, default=Path("runs/coordinates"))
    arguments = parser.parse_args()
    prepare(arguments)
    peptide = Peptide(arguments.peptide)
    training, validation, test = split_by_replica_group(
        load_ensemble(arguments.data, num_atoms=peptide.num_atoms), SPLIT, SPLIT_SEED
    )
    reduced = ReducedEnergy(peptide)
    symmetries = Symmetries(peptide)
    generator = torch.Generator().manual_seed(arguments.seed)
    config = quiet(
        arguments.seed,
        batch_size=256,
        max_seconds=arguments.seconds,
        learning_rate=1e-3,
        validation_interval=None,
        validation_seconds=arguments.seconds / 10,
    )
    scale = CENTROID_STD * math.sqrt(peptide.num_atoms)

    def placed(positions: Tensor, generator: torch.Generator) -> Tensor:
        return random_rigid_motion(positions, positions.new_ones(positions.shape[:2]).bool(), scale, generator)

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
        flow.fit_coordinates(placed(training.positions, generator) if cartesian else training.positions)
        result = fit(
            flow,
            training.positions,
            placed(validation.positions, generator) if cartesian else validation.positions,
            config=config,
            output=arguments.output / coordinates,
            augment=(lambda x, g: placed(symmetries(x, g), g)) if cartesian else symmetries,
        )
        held_out = placed(test.positions, generator) if cartesian else test.positions
        with torch.no_grad():
            log_prob = torch.cat([flow.log_prob(part) for part in held_out.split(1000)])
        placing = CentroidEnergy(lambda x: x.new_zeros(len(x)), scale)
        negative = -(log_prob + (placing(held_out) if cartesian else 0.0)).mean().item()
        target = BoltzmannDensity(CentroidEnergy(reduced, scale) if cartesian else reduced)
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

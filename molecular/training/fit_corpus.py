"""Train a transferable flow on a corpus of many peptides, on internal coordinates or on plain positions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from molecular.data.corpus import CorpusLayout, open_corpus
from molecular.data.corpus.folder import Corpus
from molecular.flows.conformations import TransferableFlow
from molecular.flows.internal_prose import InternalProse
from molecular.flows.prose import Prose
from molecular.molecule.canonical_names import Naming
from molecular.molecule.features import atom_mask
from molecular.molecule.orderings import named_residues
from molecular.molecule.topology import Topology
from molecular.training.batches import Rows, Window, training_source, validation_source
from molecular.training.beginnings import check_initial, refuse_another_beginning
from molecular.training.labelled import GROUP, LabelledFrames
from molecular.training.labels import CLIP
from nflib.dtypes import widened
from nflib.io import fingerprint, read_config
from nflib.training import TrainingConfig, TrainingResult, alone, fit
from nflib.training.objectives import huber_location, squared_or_clipped

log = logging.getLogger(__name__)

COORDINATES = ("internal", "cartesian")
VALIDATION_FRAMES = 256
# Batches are split into so many parts of similar size, each padded to its own longest molecule.
NUM_BUCKETS = 4
# Conformations that scales and marginals are fitted to.
FITTED_FRAMES = 60_000


def train_on_corpus(
    data: str | Path,
    output: str | Path,
    config: TrainingConfig,
    *,
    coordinates: str = "internal",
    initial: str | Path | None = None,
    refit_marginals: bool = False,
    energy_weight: float = 0.0,
    **architecture: Any,
) -> TrainingResult:
    """Train one flow for all peptides of a corpus, validated on its validation sequences; run again, it goes on.

    Args:
        data: folder of the corpus (`molecular.data.corpus`).
        output: folder for the model, checkpoints and logs.
        config: of the training.
        coordinates: "internal" (`InternalProse`) or "cartesian" (`Prose`, which learns rigid motion from examples).
        initial: folder of a trained flow to start from; None makes a new one.
        refit_marginals: fit the fixed part of the initial flow anew to this corpus, which may have kinds of atoms that
            those before had few of; the rest then has to learn on.
        energy_weight: of the log-variance of the importance weights beside the likelihood; 0 for likelihood alone.
            Batches then hold groups of one molecule, half of them the flow's own samples, drawn anew every
            `config.refresh_interval` steps (`molecular.training.labelled`).
        architecture: settings of a new flow, such as ``channels``; on internal coordinates it knows one naming of
            equivalent atoms unless canonical_names is False.

    Raises:
        FileNotFoundError: a folder without a corpus, or no initial flow.
        ValueError: an empty corpus, peptides that the flow does not take, settings that do not fit, or a run that was
            begun with other conformations or from another flow.
    """
    if coordinates not in COORDINATES:
        raise ValueError(f"on a corpus, coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}.")
    for name in ("conditional", "num_bins", "neighbours", "local_environment", "canonical_names"):
        if coordinates == "cartesian" and name in architecture:
            raise ValueError(f"{name} is a setting of flows on internal coordinates; leave it out.")
    if coordinates == "cartesian" and refit_marginals:
        # What is fitted of them is a scale that all weights were trained with.
        raise ValueError("refit_marginals is for flows on internal coordinates; those on plain positions have none.")
    check_initial(initial, architecture, refit_marginals)
    corpus = open_corpus(data)
    if energy_weight and not (isinstance(corpus, Corpus) and coordinates == "internal"):
        raise ValueError(
            "energy_weight needs a corpus written by `python -m molecular simulate`, and a flow on internal "
            "coordinates."
        )
    torch.manual_seed(config.seed)
    flow = _new_flow(coordinates, architecture) if initial is None else _initial_flow(initial, coordinates)
    begun = None if initial is None else fingerprint(flow.state_dict().values())
    molecules = [*corpus.sequences("train"), *corpus.sequences("validation")]
    table = symmetry_table(corpus, molecules, flow)
    training = training_source(corpus, flow.context_of, config.seed)
    validation = validation_source(corpus, flow.context_of, len(corpus.sequences("train")), VALIDATION_FRAMES)
    if initial is None or refit_marginals:
        flow = _fitted(flow, training, table, config.seed)
    with alone(output):
        refuse_another_beginning(
            Path(output), corpus.folder, training.fingerprint(), begun, {"energy_weight": energy_weight}
        )
        if not energy_weight:
            objective = LikelihoodPerDimension(table)
            return fit(flow, training, validation, config=config, objective=objective, output=Path(output))
        del training  # the labelled frames are the same ones, read once more
        return fit(
            flow,
            LabelledFrames(cast(Corpus, corpus), flow.context_of, config.seed),
            validation,
            config=config,
            objective=LikelihoodAndEnergies(table, energy_weight, CLIP),
            output=Path(output),
        )


def symmetry_table(corpus: CorpusLayout, sequences: list[str], flow: TransferableFlow) -> Naming:
    """How equivalent atoms of a corpus's peptides are named in training: `TransferableFlow.symmetries`, in this order.

    Raises ValueError for a peptide that is longer than the flow takes, or whose residues it does not know.
    """
    topologies = []
    for sequence in sequences:
        topology = Topology.of(corpus.topology(sequence))
        length = topology.num_atoms
        if length > flow.max_atoms:
            raise ValueError(
                f"{sequence} has {length} atoms, but the flow takes {flow.max_atoms}; raise max_atoms, or "
                "leave the sequence out."
            )
        try:
            named_residues(topology)
        except ValueError as error:
            raise ValueError(f"{sequence} of {corpus.folder} cannot be trained on: {error}") from error
        topologies.append(topology)
    return flow.symmetries(topologies)


class LikelihoodPerDimension:
    """The objective: mean over conformations of ``-log q(x) / dimensions``, so that all molecules weigh alike.

    Each conformation is first turned by a random symmetry (batches name the molecule as "system") and, for a flow on
    plain positions, moved at random as a rigid body. The batch is evaluated in NUM_BUCKETS parts of similar size. Also
    logged: the mean in nats a conformation.

    Args:
        symmetries: of the molecules, as `TransferableFlow.symmetries` gives them.
    """

    def __init__(self, symmetries: Naming):
        self.symmetries = symmetries

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.augmented(flow, batch, generator)
        log_prob = bucketed_log_prob(flow, batch["inputs"], batch["context"])
        loss = -(log_prob / num_dimensions(flow, batch["context"])).mean()
        return loss, {"negative_log_likelihood": -log_prob.detach().mean()}

    def augmented(self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The batch, turned and moved at random."""
        inputs = self.symmetries.turn(batch["inputs"], batch["system"], generator)
        placed = cast(TransferableFlow, flow).placed(inputs, atom_mask(batch["context"]), generator)
        return batch | {"inputs": placed}


class LikelihoodAndEnergies(LikelihoodPerDimension):
    """`LikelihoodPerDimension` of the frames of `LabelledFrames`, and the log-variance of each molecule's group.

    ``[-log q(x) + energy_weight h(log q(x) + u(x) - c)] / dimensions``, the first part for frames alone, the second for
    rows with a label, with h and c, of each group on its own, as in `nflib.training.LogVariance`. Batches without
    energies, as in validation, have their likelihood alone.

    Args:
        symmetries: of the molecules, as `TransferableFlow.symmetries` gives them.
        energy_weight: of the log-variance.
        clip: kT, beyond which a residual of an energy pulls with a bounded force.
    """

    # Groups must stay whole.
    whole_batch: ClassVar[bool] = True

    def __init__(self, symmetries: Naming, energy_weight: float, clip: float):
        super().__init__(symmetries)
        self.energy_weight, self.clip = energy_weight, clip

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if "energy" not in batch:
            return super().__call__(flow, batch, generator)
        batch = self.augmented(flow, batch, generator)
        log_prob = bucketed_log_prob(flow, batch["inputs"], batch["context"])
        is_data = batch["is_data"].to(log_prob.dtype)
        dimensions = num_dimensions(flow, batch["context"])
        labelled = torch.isfinite(batch["energy"])
        energy = torch.where(labelled, batch["energy"], 0.0).to(log_prob.dtype)
        difference = torch.where(labelled, log_prob + energy, 0.0)
        centres = [
            huber_location(values[chosen], self.clip)
            for values, chosen in zip(difference.detach().split(GROUP), labelled.split(GROUP), strict=True)
        ]
        residual = difference - torch.stack(centres).repeat_interleave(GROUP)
        penalty = torch.where(labelled, squared_or_clipped(residual, self.clip), 0.0)
        likelihood = (-log_prob / dimensions * is_data).sum() / is_data.sum()
        variance = (penalty / dimensions).sum() / labelled.sum().clamp(min=1)
        return likelihood + self.energy_weight * variance, {
            "negative_log_likelihood": (-log_prob * is_data).detach().sum() / is_data.sum(),
            "log_variance": penalty.detach().sum() / labelled.sum().clamp(min=1),
            "rejected_energies": 1 - labelled.to(log_prob.dtype).mean(),
        }


def num_dimensions(flow: nn.Module, context: Tensor) -> Tensor:
    """How many numbers each molecule's density is over, ``(B,)``: 3n, or 3n - 6 where rigid motion is removed."""
    atoms = atom_mask(context).sum(-1)
    return 3 * atoms - (0 if flow.places_molecules else 6)


def bucketed_log_prob(flow: nn.Module, inputs: Tensor, context: Tensor, num_buckets: int = NUM_BUCKETS) -> Tensor:
    """log q of a padded batch, ``(B,)``, in parts of similar molecules, each without padding it does not need.

    Args:
        flow: a `TransferableFlow`.
        inputs: positions ``(B, n, 3)``.
        context: ``(B, n, k)``.
        num_buckets: how many parts.
    """
    sizes = atom_mask(context).sum(-1)
    order = sizes.argsort(stable=True)
    parts = []
    for rows in order.chunk(num_buckets):
        longest = int(sizes[rows].max())
        log_prob = flow.log_prob(inputs[rows, :longest], context[rows, :longest])  # type: ignore[operator]
        parts.append(widened(log_prob))
    return torch.cat(parts)[order.argsort()]


def _new_flow(coordinates: str, architecture: dict[str, Any]) -> TransferableFlow:
    if coordinates == "cartesian":
        return Prose(**architecture)
    return InternalProse(**({"canonical_names": True} | architecture))


def _initial_flow(initial: str | Path, coordinates: str) -> TransferableFlow:
    kind: type[TransferableFlow] = Prose if coordinates == "cartesian" else InternalProse
    # Folders that were written before modules were named are read by the class itself.
    kind = kind if read_config(initial).get("architecture") == kind.__name__ else TransferableFlow
    flow = kind.from_pretrained(initial)
    if flow.places_molecules != (coordinates == "cartesian"):
        other = "cartesian" if flow.places_molecules else "internal"
        raise ValueError(f"{initial} holds a flow on {other} coordinates, not {coordinates} ones: set coordinates so.")
    return flow


def _fitted(flow: TransferableFlow, training: Rows | Window, table: Naming, seed: int) -> TransferableFlow:
    """The flow with its fixed part fitted to training conformations."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(training), generator=generator)[:FITTED_FRAMES]
    batches = []
    for indices in chosen.split(4096):
        batch = training.batch(indices)
        batches.append(batch | {"inputs": table.turn(batch["inputs"], batch["system"], generator)})
    torch.manual_seed(seed)
    return flow.fitted(batches)

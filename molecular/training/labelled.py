"""Frames of a corpus and the flow's own samples, with energies, in groups of one molecule each."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from molecular.data.corpus.buckets import Item, collate
from molecular.data.corpus.folder import Corpus
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.storage import load_molecule
from molecular.training.batches import Context
from molecular.training.labels import as_labels

log = logging.getLogger(__name__)

# Rows of a batch that are of one molecule. Their energies are known up to a constant of the molecule, which its rows
# must tell: with few of them it takes up much of what they say.
GROUP = 16
# Molecules that are sampled together.
MOLECULES_AT_ONCE = 8


class LabelledFrames:
    """Groups of GROUP rows of one molecule, half of them frames, half samples of the flow, with reduced energies.

    A `BatchSource`, whose row i is frame i; a batch of B rows is made of the first B / GROUP: each brings the frames
    that follow it in an order drawn once, and as many samples of its molecule. Batches hold "inputs", "context" and
    "system" as those of a corpus, "energy" in kT (infinite where it is no label) and "is_data", 1 for frames and 0 for
    samples. `refresh` draws samples_per_molecule anew for each molecule; before the first, all rows are frames.

    Args:
        corpus: whose training sequences are taken.
        context: makes the context (n, k) int64 of a topology.
        seed: of the order of the frames.
        samples_per_molecule: of the flow.

    Raises:
        ValueError: a corpus without frames, and what `load_molecule` raises.
    """

    def __init__(self, corpus: Corpus, context: Context, seed: int, samples_per_molecule: int = 64):
        self.systems = corpus.sequences("train")
        if not self.systems:
            raise ValueError(f"{corpus.folder} has no finished training sequences; simulate some.")
        self.contexts = [context(corpus.topology(sequence)) for sequence in self.systems]
        self.reduced: list[ReducedEnergy] = []
        self.frames: list[Tensor] = []
        self.energies: list[Tensor] = []
        generator = torch.Generator().manual_seed(seed)
        log.info("Preparing the energies of %d molecules.", len(self.systems))
        for sequence in self.systems:
            reduced = ReducedEnergy(load_molecule(corpus.system(sequence)))
            ensemble = corpus.ensemble(sequence)
            order = torch.randperm(len(ensemble), generator=generator)
            self.reduced.append(reduced)
            self.frames.append(ensemble.positions[order])
            self.energies.append(reduced.of_frames(ensemble.positions, ensemble.energies)[order])
        self.system = torch.repeat_interleave(torch.tensor([len(part) for part in self.frames]))
        self.starts = torch.tensor([0, *(len(part) for part in self.frames)]).cumsum(0)
        self.samples_per_molecule = samples_per_molecule
        self.samples: list[Tensor] = []
        self.sample_energies: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.system)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """GROUP rows of the molecule of each of the first rows in indices (B,); B a multiple of GROUP."""
        if len(indices) % GROUP:
            raise ValueError(f"with energies, batches must be a multiple of {GROUP} conformations, not {len(indices)}.")
        items: list[Item] = []
        energies: list[Tensor] = []
        is_data: list[Tensor] = []
        num_frames = GROUP // 2 if self.samples else GROUP
        for index in indices[: len(indices) // GROUP].tolist():
            system = int(self.system[index])
            first = index - int(self.starts[system])
            rows = (first + torch.arange(num_frames)) % len(self.frames[system])
            positions, energy = self.frames[system][rows], self.energies[system][rows]
            if self.samples:
                own = (first + torch.arange(GROUP - num_frames)) % self.samples_per_molecule
                positions = torch.cat([positions, self.samples[system][own]])
                energy = torch.cat([energy, self.sample_energies[system][own]])
            items += [Item(row, self.contexts[system], system) for row in positions]
            energies.append(energy)
            is_data.append(torch.arange(GROUP) < num_frames)
        return collate(items) | {"energy": torch.cat(energies), "is_data": torch.cat(is_data).float()}

    @torch.no_grad()
    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        """Draw the samples anew; those far above the thermal range, or torn apart, get no label."""
        device = next(flow.parameters()).device
        numbers = sorted(range(len(self.systems)), key=lambda number: len(self.contexts[number]))
        drawn: dict[int, Tensor] = {}
        for first in range(0, len(numbers), MOLECULES_AT_ONCE):
            part = numbers[first : first + MOLECULES_AT_ONCE]
            context = collate([Item(self.frames[n][0], self.contexts[n], n) for n in part])["context"].to(device)
            rows = flow.sample(self.samples_per_molecule, context, generator=generator)  # type: ignore[operator]
            drawn |= {n: row[:, : len(self.contexts[n])].cpu() for n, row in zip(part, rows, strict=True)}
        self.samples, self.sample_energies = [], []
        for number, reduced in enumerate(self.reduced):
            energy = as_labels(reduced(drawn[number]), self.energies[number].median())
            reachable = (energy < torch.inf)[:, None, None]
            self.samples.append(torch.where(reachable, drawn[number], self.frames[number][:1]))
            self.sample_energies.append(energy)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": list(self.samples), "sample_energies": list(self.sample_energies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.sample_energies = list(state["samples"]), list(state["sample_energies"])

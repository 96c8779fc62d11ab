"""What is evaluated, from folders: samples of a flow, and the reference that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.reweighting import reweight_to
from molecular.data.ensembles import Ensemble, load_ensemble
from molecular.molecule.molecule import SAME_TEMPERATURE, Molecule
from molecular.molecule.peptide import Peptide
from molecular.molecule.storage import load_molecule
from molecular.sampling.shipped import reference_positions
from nflib.io import read_json
from nflib.montecarlo import History, WeightedSamples

SAMPLED, SIMULATED = "`python -m molecular sample`", "`python -m molecular simulate` or `import`"


@dataclass(frozen=True)
class SampleFolder:
    """Samples that `python -m molecular sample` wrote into a folder.

    Args:
        path: the folder.
        name: the user's for it, "" for none.
        molecule: what the samples are of.
        samples: with their weights.
        summary: what summary.json holds.
        history: of sequential Monte Carlo; None for importance sampling.
    """

    path: Path
    name: str
    molecule: Molecule
    samples: WeightedSamples
    summary: Mapping[str, Any]
    history: History | None

    @property
    def sequential(self) -> bool:
        """Whether sequential Monte Carlo made the samples."""
        return self.history is not None or self.summary.get("sampler") == "smc"


def read_samples(entry: str) -> SampleFolder:
    """Read the samples in a folder, given as "FOLDER" or "NAME=FOLDER".

    Raises FileNotFoundError where folder or files are missing and ValueError for a damaged file.
    """
    name, equals, place = entry.partition("=")
    if not equals or Path(entry).is_dir():  # a folder's own name may hold the sign
        name, place = "", entry
    folder = Path(place)
    _check_folder(folder, "weights.npz", SAMPLED)
    summary = _read_json(folder, "summary.json", ("temperature_K",), SAMPLED)
    try:
        samples = WeightedSamples.load(folder / "weights.npz")
        history = None if "history" not in summary else History.from_summary(summary["history"])
    except ValueError as error:
        raise ValueError(f"{folder} has a damaged file ({error}); sample again.") from error
    molecule = load_molecule(folder)
    if samples.x.shape[1:] != (molecule.num_atoms, 3):
        raise ValueError(
            f"{folder} holds positions of shape {tuple(samples.x.shape)}, but its molecule has {molecule.num_atoms} "
            "atoms; sample again."
        )
    return SampleFolder(folder, name, molecule, samples, summary, history)


def read_ensemble(
    folder: str | Path, start_ps: float = 0.0, temperature: float | None = None
) -> tuple[WeightedSamples | Ensemble, Molecule]:
    """Read the weighted samples, or the frames of a simulation, in a folder, and their molecule.

    Args:
        folder: that `sample`, `simulate` or `import` wrote.
        start_ps: drop frames before this time, ps.
        temperature: K; of frames, those at the saved temperature nearest to it are read, with the molecule at that one.
            None: those at the lowest.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: a damaged file, or a start time for samples, which have none.
    """
    if (Path(folder) / "weights.npz").is_file():
        if start_ps:
            raise ValueError(f"{folder} holds weighted samples, which have no time; leave out --start_ps.")
        read = read_samples(str(folder))
        return read.samples, read.molecule
    molecule = load_molecule(folder)
    if temperature is None:
        return load_ensemble(folder, num_atoms=molecule.num_atoms, start_ps=start_ps), molecule
    ensemble, simulated = _frames_near(Path(folder), molecule, temperature, start_ps)
    return ensemble, molecule.at(simulated)


def check_same_system(folders: list[SampleFolder]) -> Molecule:
    """The molecule of all samples; raises ValueError unless it is one, in one force field, at one temperature."""
    first = folders[0]
    for other in folders[1:]:
        difference = first.molecule.difference(other.molecule)
        if difference is not None:
            raise ValueError(
                f"{other.path} holds samples of another molecule than {first.path}: {difference}; evaluate one "
                "molecule at a time."
            )
        if abs(other.molecule.temperature - first.molecule.temperature) > SAME_TEMPERATURE:
            raise ValueError(
                f"{other.path} holds samples at {other.molecule.temperature:g} K and {first.path} at "
                f"{first.molecule.temperature:g} K; evaluate one temperature at a time."
            )
    return first.molecule


def name_ensembles(folders: list[SampleFolder]) -> dict[str, WeightedConformations]:
    """What to compare, by name: of importance sampling "proposal" and "reweighted", of sequential Monte Carlo "SMC".

    With the user's name before it, or the folder's where two would otherwise be called the same. Raises ValueError
    where they still are.
    """
    kinds = [folder.sequential for folder in folders]
    named: dict[str, WeightedConformations] = {}
    for folder in folders:
        prefix = folder.name or (folder.path.name if kinds.count(folder.sequential) > 1 else "")
        samples = folder.samples
        weighted = WeightedConformations.of(str(folder.path), samples, folder.molecule)
        parts = {"SMC": weighted}
        if not folder.sequential:
            parts = {"proposal": WeightedConformations(samples.x), "reweighted": weighted}
        for kind, part in parts.items():
            name = f"{prefix} {kind}".strip()
            if name in named:
                raise ValueError(f"two ensembles are called {name!r}; name them, as in --samples mine={folder.path}.")
            named[name] = part
    return named


def read_reference(folder: str | Path | None, molecule: Molecule) -> tuple[WeightedConformations, list[str]]:
    """Read the reference of an evaluation, and what a reader must know of it, in sentences.

    Of frames that were simulated at several temperatures, those nearest to the molecule's are taken, and reweighted to
    it where they are of another.

    Args:
        folder: that `simulate` or `import` wrote; None for the ensemble that is shipped for the molecule.
        molecule: to compare at its temperature.

    Raises:
        FileNotFoundError: there is no reference.
        ValueError: a reference of another molecule.
    """
    temperature = molecule.temperature
    if folder is None:
        positions = reference_positions(molecule)
        if positions is None:
            raise FileNotFoundError(
                f"no reference is shipped for {molecule.name}; name a folder that {SIMULATED} wrote with --reference."
            )
        kept = WeightedConformations(positions)
        # Shipped references are of peptides as they are by default.
        shipped = Peptide(str(molecule.topology.sequence))
        notes = _force_field_notes(molecule, shipped)
        if abs(shipped.temperature - temperature) <= SAME_TEMPERATURE:
            return kept, notes
        weighted, more = _reweighted(kept, shipped, temperature, None)
        return weighted, notes + more
    folder = Path(folder)
    _check_folder(folder, "settings.json", SIMULATED)
    simulated = load_molecule(folder)
    difference = molecule.topology.difference(simulated.topology)
    if difference is not None:
        raise ValueError(
            f"{folder} is a simulation of another molecule than {molecule.name}: {difference}; give a reference of it."
        )
    notes = _force_field_notes(molecule, simulated)
    ensemble, kelvins = _frames_near(folder, simulated, temperature)
    kept = WeightedConformations(ensemble.positions, groups=ensemble.replica_group, time=ensemble.time)
    if abs(kelvins - temperature) <= SAME_TEMPERATURE:
        return kept, notes
    weighted, more = _reweighted(kept, simulated.at(kelvins), temperature, ensemble.energies)
    return weighted, notes + more


def _frames_near(folder: Path, molecule: Molecule, temperature: float, start_ps: float = 0.0) -> tuple[Ensemble, float]:
    """The frames at that of a simulation's saved temperatures which is nearest to the wanted one, and it, K."""
    settings = _read_json(folder, "settings.json", ("temperatures",), SIMULATED)
    ensemble = load_ensemble(folder, temperature_index=None, num_atoms=molecule.num_atoms, start_ps=start_ps)
    saved, temperatures = ensemble.temperature_index.unique().tolist(), settings["temperatures"]
    kelvins = isinstance(temperatures, list) and all(
        isinstance(T, (int, float)) and 0 < T < torch.inf for T in temperatures
    )
    if not kelvins or not 0 <= saved[0] <= saved[-1] < len(temperatures):
        raise ValueError(f"{folder / 'settings.json'} is damaged: its temperatures are not those of the frames.")
    index = min(saved, key=lambda index: abs(temperatures[index] - temperature))
    return ensemble.select(ensemble.temperature_index == index), float(temperatures[index])


def _force_field_notes(molecule: Molecule, simulated: Molecule) -> list[str]:
    if molecule.difference(simulated) is None:
        return []
    return ["The reference was simulated in another force field than that which the samples are weighted to."]


def _reweighted(
    frames: WeightedConformations, simulated: Molecule, temperature: float, energies: torch.Tensor | None
) -> tuple[WeightedConformations, list[str]]:
    """A reference at another temperature, and what a reader must know of it; energies in kJ/mol."""
    found = reweight_to(frames, simulated, simulated.at(temperature), energies)
    note = (
        f"The reference, simulated at {simulated.temperature:g} K, is reweighted to {temperature:g} K; its effective "
        f"sample size is {found.effective_sample_size / len(frames):.3f} of its frames."
    )
    return found.conformations, [note, *([found.warning] if found.warning else [])]


def _check_folder(folder: Path, file: str, command: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give one that {command} wrote.")
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{folder} holds no {file}; give a folder that {command} wrote.")


def _read_json(folder: Path, file: str, names: tuple[str, ...], command: str) -> dict[str, Any]:
    _check_folder(folder, file, command)
    content = read_json(folder / file, f"run {command} again")
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{folder / file} lacks {', '.join(missing)}; run {command} again.")
    return content

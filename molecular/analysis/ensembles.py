"""What can be evaluated: positions, with log-weights and independent groups where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from molecular.data.ensembles import Ensemble
from molecular.molecule.molecule import Molecule
from nflib.dtypes import as_tensor
from nflib.montecarlo import WeightedSamples, normalized_weights
from nflib.montecarlo.genealogy import NONE, Resamplings

# Conformations whose bonds tell the unit of length.
_BONDS_OF = 1000


@dataclass(frozen=True)
class WeightedConformations:
    """N conformations of a molecule, with weights and with what is known of their correlation.

    Attributes:
        positions: (N, n, 3), nm.
        log_weights: (N,), not necessarily normalised; None means equal weights, as for a proposal's own samples.
        groups: (N,) integers. Conformations of one group may be correlated (frames of one replica group, particles of
            one ancestor) and are resampled together; None means that all are independent.
        time: (N,) within a group, in any unit; None for conformations that are not trajectories.
        resamplings: of sequential Monte Carlo, what its resamplings say of the weights that there were before.
    """

    positions: Tensor
    log_weights: Tensor | None = None
    groups: Tensor | None = None
    time: Tensor | None = None
    resamplings: Resamplings = NONE

    @classmethod
    def of(cls, name: str, source: object, molecule: Molecule) -> WeightedConformations:
        """Conformations from anything that `evaluate` takes.

        Args:
            name: of the source, for messages.
            source: positions (N, n, 3) in nm, a tensor or an array, `(positions, log_weights)`, `WeightedSamples`, an
                `Ensemble` of one temperature, or `WeightedConformations`.
            molecule: what it is of.

        Raises:
            ValueError: another kind of object, positions of another shape, plain positions whose bonds are not of the
                molecule's length in nm, or columns of another length.
        """
        num_atoms = molecule.num_atoms
        is_plain = isinstance(source, Tensor | tuple) or hasattr(source, "__array__")
        if isinstance(source, WeightedSamples):
            source = cls(source.x, source.log_weights, groups=source.ancestors, resamplings=source.resamplings)
        elif isinstance(source, Ensemble):
            if len(source.temperature_index.unique()) > 1:
                raise ValueError(f"{name} mixes temperatures; load it with temperature_index=0.")
            source = cls(source.positions, groups=source.replica_group, time=source.time)
        elif is_plain and (not isinstance(source, tuple) or len(source) == 2):
            positions, log_weights = source if isinstance(source, tuple) else (source, None)
            weights = None if log_weights is None else as_tensor(log_weights, f"log_weights of {name}")
            source = cls(as_tensor(positions, f"positions of {name}"), weights)
        if not isinstance(source, WeightedConformations):
            raise ValueError(
                f"{name} is a {type(source).__name__}; pass positions (N, {num_atoms}, 3), (positions, log_weights), "
                "WeightedSamples, an Ensemble, or WeightedConformations."
            )
        source._check(name, num_atoms)
        if is_plain:
            source._check_unit(name, molecule)
        return source._changed(lambda column: column.detach().cpu())

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, index: Tensor) -> WeightedConformations:
        """The conformations of a boolean mask or an index tensor."""
        return self._changed(lambda column: column[index])

    def _changed(self, function: Callable[[Tensor], Tensor]) -> WeightedConformations:
        """With each column changed alike."""
        columns = (self.log_weights, self.groups, self.time)
        log_weights, groups, time = (None if column is None else function(column) for column in columns)
        return WeightedConformations(function(self.positions), log_weights, groups, time, self.resamplings)

    def usable(self) -> WeightedConformations:
        """The conformations that are finite; others carry no weight."""
        finite = torch.isfinite(self.positions).flatten(1).all(dim=1)
        return self if finite.all() else self.select(finite)

    def num_weighted(self) -> int:
        """How many conformations have a weight, however small."""
        return len(self) if self.log_weights is None else int((self.log_weights > -torch.inf).sum())

    def weights(self) -> Tensor:
        """Weights (N,) that sum to one, float64."""
        if self.log_weights is None:
            return torch.full((len(self),), 1.0 / len(self), dtype=torch.float64)
        return normalized_weights(self.log_weights)

    def halves(self) -> tuple[WeightedConformations, WeightedConformations]:
        """Two parts as independent as the data allow: half of the groups each, or the first and the last half."""
        if self.groups is not None and len(self.groups.unique()) > 1:
            names = self.groups.unique()
            first = torch.isin(self.groups, names[: len(names) // 2])
        else:
            first = torch.arange(len(self)) < len(self) // 2
        return self.select(first), self.select(~first)

    def trajectories(self) -> list[Tensor] | None:
        """Indices of each group in the order of time, or None where there is no time."""
        if self.time is None:
            return None
        groups = torch.zeros(len(self), dtype=torch.int64) if self.groups is None else self.groups
        parts = [torch.nonzero(groups == name)[:, 0] for name in groups.unique()]
        return [part[self.time[part].argsort(stable=True)] for part in parts]

    def _check_unit(self, name: str, molecule: Molecule) -> None:
        """Raise ValueError unless bonds are about as long as the molecule's, as they are in nm alone."""
        first, second = torch.tensor(molecule.topology.bonds).T
        sample = self.usable().positions
        sample = sample[:: max(1, len(sample) // _BONDS_OF)].double()
        found, own = (
            (x[:, first] - x[:, second]).norm(dim=-1).median().item()
            for x in (sample, torch.as_tensor(molecule.positions)[None])
        )
        if len(sample) and not 0.5 < found / own < 2.0:
            raise ValueError(
                f"{name} has bonds of {found:.3g}, typically, where those of {molecule.name} have {own:.3g} nm; give "
                "positions in nm."
            )

    def _check(self, name: str, num_atoms: int) -> None:
        shape = tuple(self.positions.shape)
        if len(shape) != 3 or shape[1:] != (num_atoms, 3) or shape[0] < 2:
            raise ValueError(
                f"{name} has positions of shape {shape}; pass (N, {num_atoms}, 3) in nm, N at least 2: does it belong "
                "to this molecule?"
            )
        for label in ("log_weights", "groups", "time"):
            column = getattr(self, label)
            if column is not None and column.shape != (shape[0],):
                raise ValueError(f"{name} has {label} of shape {tuple(column.shape)}; pass ({shape[0]},).")
        if self.log_weights is not None and not (self.log_weights < torch.inf).all():
            raise ValueError(f"{name} has log_weights that are NaN or +inf; give such conformations -inf.")

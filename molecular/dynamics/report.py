"""What a parallel-tempering simulation tells of its own equilibration: figures for JSON, and a short table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from molecular.dynamics.autocorrelation import mixing
from molecular.dynamics.former_names import with_current_names
from molecular.dynamics.frames import list_shards, read_shards
from molecular.molecule.geometry import dihedrals

POSITIVE_PHI = (0.0, np.deg2rad(150.0))
"""The left-handed basin of alanine dipeptide, separated from the rest by its highest barrier, rad."""
HELICAL_PSI = (np.deg2rad(-120.0), np.deg2rad(50.0))

ROTAMERS = tuple((np.deg2rad(low), np.deg2rad(low + 120.0)) for low in (-120.0, 0.0, 120.0))
"""Thirds of the circle about -60, 60 and 180 degrees, for torsions without a basin of their own."""

FALSE_ALARMS = 0.01
"""Chance that a simulation in equilibrium is said to drift in some torsion."""
TEMPERATURE_TOLERANCE = 0.01
LOWEST_SWAP_ACCEPTANCE = 0.1
FEWEST_SAMPLES = 50
FEWEST_REPLICA_GROUPS = 4


def torsion_statistics(
    folder: Path, torsions: Mapping[str, Sequence[int] | NDArray[np.int64]], save_ps: float = 1.0
) -> list[dict[str, Any]]:
    """How well the frames at the lowest temperature mix over each torsion.

    Args:
        folder: of the simulation.
        torsions: name -> four atom indices.
        save_ps: time between saved frames, ps.

    Returns:
        A row for each torsion: the number of frames, the autocorrelation time in ps and the effective sample size
        (`mixing`; None where there are too few frames, or the torsion never moves). For names that begin with phi (or
        psi) also the share of frames in the left-handed (or helical) basin with its standard error over replica groups,
        and jumps between in and out from one saved frame of a group to the next. "drift": what changes most between the
        halves of the simulation, of that basin or of the rotamers (`_drift`).
    """
    angles, group_parts = [], []
    quadruples = torch.tensor(np.array([list(row) for row in torsions.values()], dtype=np.int64).reshape(-1, 4))
    for frames in read_shards(list_shards(folder)):
        lowest = frames.temperature_index == 0
        angles.append(dihedrals(torch.from_numpy(frames.positions[lowest]), quadruples).numpy())
        group_parts.append(frames.replica_group[lowest])
    if not group_parts or not len(quadruples):
        return []
    group = np.concatenate(group_parts)
    lengths = np.unique(group, return_counts=True)[1]
    if len(set(lengths.tolist())) != 1:
        raise ValueError(
            f"{folder} holds {min(lengths)} frames of one replica group and {max(lengths)} of another, though all were "
            "saved together; a shard is damaged or lost: simulate into another folder."
        )
    num_groups = len(lengths)
    # Sorted by replica group and, because the sort is stable and shards are in order, by time inside each.
    order = np.argsort(group, kind="stable")
    series = np.concatenate(angles)[order].reshape(num_groups, -1, len(quadruples))
    rows: list[dict[str, Any]] = []
    for column, name in enumerate(torsions):
        angle = series[..., column]
        mixed = mixing(angle)
        row: dict[str, Any] = {
            "torsion": name,
            "frames": angle.size,
            "autocorrelation_ps": None if mixed is None else mixed.time * save_ps,
            "effective_sample_size": None if mixed is None else mixed.effective_sample_size,
            "resolved": mixed is not None and mixed.resolved,
        }
        if name.startswith(("phi", "psi")):
            basin = POSITIVE_PHI if name.startswith("phi") else HELICAL_PSI
            row |= _basin(angle, basin) | {"drift": _drift(angle, [basin])}
        else:
            row["drift"] = _drift(angle, ROTAMERS)
        rows.append(row)
    return rows


def _drift(angle: NDArray[np.floating], basins: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """The share ``(L, T)`` of angles in a basin over the first and the second half, where these differ the most.

    p_value: how often independent groups differ so much or more without a drift (a t-test of the paired differences),
    in any of the basins; None where there are too few groups or frames to tell.
    """
    groups, length = angle.shape
    if groups < FEWEST_REPLICA_GROUPS or length < 2:
        return None
    found = []
    for low, high in basins:
        inside = (angle - low) % (2 * np.pi) < high - low
        first, second = (half.mean(axis=1) for half in np.array_split(inside, 2, axis=1))
        difference = second - first
        error = difference.std(ddof=1) / np.sqrt(groups)
        change = abs(float(difference.mean()))
        score = change / error if error > 0 else np.inf if change else 0.0
        p_value = min(1.0, len(basins) * 2 * float(special.stdtr(groups - 1, -score)))
        found.append({"first_half": float(first.mean()), "second_half": float(second.mean()), "p_value": p_value})
    return min(found, key=lambda drift: drift["p_value"])


def _basin(angle: NDArray[np.floating], limits: tuple[float, float]) -> dict[str, Any]:
    inside = (angle > limits[0]) & (angle < limits[1])
    shares = inside.mean(axis=1)
    error = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else None
    return {
        "basin_degrees": [float(np.rad2deg(limit)) for limit in limits],
        "share_in_basin": float(inside.mean()),
        "standard_error_over_replica_groups": error,
        "jumps": int((inside[:, 1:] != inside[:, :-1]).sum()),
    }


def concerns(report: Mapping[str, Any]) -> list[str]:
    """What in a simulation's report speaks against equilibrium, in sentences; none where nothing does."""
    sentences = []
    wanted = report["temperatures_K"]
    temperatures = report["kinetic_temperature_K"] or []
    # A single replica group has no error, so nothing can be said.
    errors = report["kinetic_temperature_error_K"] or [np.inf] * len(temperatures)
    for target, measured, error in zip(wanted, temperatures, errors, strict=False):
        if abs(measured - target) > TEMPERATURE_TOLERANCE * target + 3 * error:
            sentences.append(
                f"the replicas at {target:.0f} K have a temperature of {measured:.1f} K; equilibrate for longer, or"
                " shorten the step"
            )
    drifts = report["energy_drift_kJ_per_mol_per_ns"] or []
    errors = report["energy_drift_error_kJ_per_mol_per_ns"] or [np.inf] * len(drifts)
    for target, drift, error in zip(wanted, drifts, errors, strict=False):
        if abs(drift) > 4 * error:
            sentences.append(f"the energy at {target:.0f} K drifts by {drift:.3g} kJ/mol/ns; equilibrate for longer")
    for low, high, share in zip(wanted, wanted[1:], report["swap_acceptance"], strict=False):
        if share is not None and share < LOWEST_SWAP_ACCEPTANCE:
            sentences.append(
                f"only {share:.0%} of swaps between {low:.0f} and {high:.0f} K succeed; use more temperatures"
            )
    for row in report.get("torsions", []):
        size = row["effective_sample_size"]
        if size is not None and (size < FEWEST_SAMPLES or not row["resolved"]):
            known = f"{size:.0f} independent samples" if row["resolved"] else "an unknown number of independent samples"
            sentences.append(f"{row['torsion']} has {known} in {row['frames']} frames; simulate for longer")
    drifts_by_torsion = {row["torsion"]: row["drift"] for row in report.get("torsions", []) if row.get("drift")}
    for name, drift in drifts_by_torsion.items():
        if drift["p_value"] < FALSE_ALARMS / len(drifts_by_torsion):
            sentences.append(
                f"{name} drifts: {drift['first_half']:.1%} of the first half and {drift['second_half']:.1%} of the "
                "second lie in one basin; equilibrate for longer, or leave out the beginning"
            )
    if report["replicas_restarted"]:
        sentences.append(f"{report['replicas_restarted']} replicas blew up and were restarted; shorten the step")
    return sentences


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A simulation's report as a short table for a reader, line by line."""
    report = with_current_names(report)
    seconds, simulated = report["wall_seconds"], report["simulated_ns"]
    temperatures, num_groups = report["temperatures_K"], report["num_replica_groups"]
    yield (
        f"{len(temperatures)} temperatures x {num_groups} replica groups, {simulated:.3g} ns in {seconds:.0f} s"
        + (f" ({1000 * simulated / seconds:.3g} ps a second)." if seconds > 0 else ".")
    )
    if report.get("starts"):
        yield f"Started from {report['starts']}."
    yield f"{'K':>8} {'measured K':>16} {'energy kJ/mol':>16} {'drift kJ/mol/ns':>20} {'swaps':>6}"
    missing = [None] * len(temperatures)
    columns = [
        report[name] or missing
        for name in (
            "kinetic_temperature_K",
            "kinetic_temperature_error_K",
            "energy_mean_kJ_per_mol",
            "energy_drift_kJ_per_mol_per_ns",
            "energy_drift_error_kJ_per_mol_per_ns",
        )
    ]
    swaps = [*report["swap_acceptance"], None]
    for target, kelvin, kelvin_error, energy, drift, drift_error, swap in zip(
        temperatures, *columns, swaps, strict=True
    ):
        yield (
            f"{target:8.1f} {_figure(kelvin, kelvin_error, 1):>16} {_figure(energy, None, 1):>16}"
            f" {_figure(drift, drift_error, 1):>20} {_figure(swap, None, 2):>6}"
        )
    if report.get("torsions"):
        width = max(len(row["torsion"]) for row in report["torsions"])
        yield f"{'torsion':<{width}} {'frames':>8} {'autocorrelation ps':>19} {'effective samples':>18} {'jumps':>7}"
    for row in report.get("torsions", []):
        mark = "" if row["resolved"] or row["autocorrelation_ps"] is None else "?"
        yield (
            f"{row['torsion']:<{width}} {row['frames']:8d} {_figure(row['autocorrelation_ps'], None, 2) + mark:>19}"
            f" {_figure(row['effective_sample_size'], None, 0) + mark:>18} {row.get('jumps', ''):>7}"
        )
    for sentence in concerns(report):
        yield f"Note: {sentence}."


def _figure(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

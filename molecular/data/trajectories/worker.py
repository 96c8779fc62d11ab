"""The process that reads binary trajectories for `files`; run as a script, it needs mdtraj and numpy alone.

Readers in C may write where they should not when a file is damaged: they then end this process and no other.
The request is JSON on standard input: "path", and either "topology", the JSON file for the atoms that the trajectory
tells, or "num_atoms", "atoms" to keep in any order, "stride", "most" frames or null, and "output", the .npz for
positions (N, m, 3) nm, time (N,) ps and, where every frame has one, box (N, 3, 3) nm.
"""

import json
import sys
import warnings
from typing import Any

import mdtraj
import numpy as np

CHUNK = 20_000_000
"""Coordinates that are read at once."""
WRONG_ATOMS, CANNOT_READ = 3, 4
"""Exit codes; standard error then ends with the number of atoms found, or the reason."""


def read(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays asked for."""
    num_atoms, stride, most = request["num_atoms"], request["stride"], request["most"]
    order = np.sort(request["atoms"])
    back = np.searchsorted(order, request["atoms"])
    parts: dict[str, list[np.ndarray]] = {"positions": [], "time": [], "box": []}
    start = 0
    with mdtraj.open(request["path"]) as file:
        arguments = []
        if hasattr(file, "topology"):
            check_atoms(file.topology.n_atoms, num_atoms)
        else:
            # Some readers call another number of atoms a wrong shape, as of a damaged file.
            first = np.asarray(file.read(1)[0])
            if len(first):
                check_atoms(first.shape[1], num_atoms)
            file.seek(0)
            arguments = [anonymous(num_atoms)]
        while most is None or start < most:
            number = max(1, CHUNK // (3 * num_atoms))
            number = number if most is None else min(number, most - start)
            # All atoms at once: selecting them, some readers take indices out of range for granted.
            chunk = file.read_as_traj(*arguments, n_frames=number)
            if not len(chunk):
                break
            check_atoms(chunk.xyz.shape[1], num_atoms)
            rows = slice(-start % stride, None, stride)
            parts["positions"].append(chunk.xyz[rows][:, order][:, back])
            parts["time"].append(np.asarray(chunk.time, dtype=np.float64)[rows])
            if chunk.unitcell_vectors is not None:
                parts["box"].append(np.asarray(chunk.unitcell_vectors, dtype=np.float64)[rows])
            start += len(chunk)
    if len(parts["box"]) != len(parts["positions"]):
        parts["box"] = []
    return {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}


def atoms_of(topology: mdtraj.Topology) -> dict[str, list]:
    """The atoms of a topology as `molecular.molecule.topology.Topology.from_dict` takes them, without bonds.

    An atom whose element is not told gets that of its name's first letter, and "X" if that is none, as a virtual
    site's.
    """
    atoms = list(topology.atoms)
    return {
        "atom_names": [atom.name for atom in atoms],
        "elements": [element_of(atom) for atom in atoms],
        "residues": [[each.name, str(each.resSeq), str(each.chain.index)] for each in topology.residues],
        "residue_indices": [atom.residue.index for atom in atoms],
        "bonds": [],
    }


def element_of(atom: Any) -> str:
    """The symbol of an atom's element."""
    symbol = getattr(atom.element, "symbol", "")
    if symbol not in ("", "VS"):
        return symbol
    letter = atom.name.lstrip("0123456789")[:1].upper()
    return letter if letter in ("H", "C", "N", "O", "S", "P", "F") else "X"


def anonymous(num_atoms: int) -> mdtraj.Topology:
    """So many atoms without a name."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("UNK", topology.add_chain())
    for _ in range(num_atoms):
        topology.add_atom("X", mdtraj.element.virtual, residue)
    return topology


def check_atoms(found: int, wanted: int) -> None:
    """End with `WRONG_ATOMS` unless the file has as many as its topology."""
    if found != wanted:
        print(found, file=sys.stderr)  # noqa: T201
        sys.exit(WRONG_ATOMS)


def main() -> None:
    """Answer one request."""
    warnings.simplefilter("ignore")
    request = json.load(sys.stdin)
    try:
        if "topology" in request:
            content = atoms_of(mdtraj.load_topology(request["path"]))
        else:
            check_header(request)
            arrays = read(request)
    except Exception as error:  # the readers of many formats raise whatever comes
        print("".join(str(error).splitlines()[:1]) or type(error).__name__, file=sys.stderr)  # noqa: T201
        sys.exit(CANNOT_READ)
    if "topology" in request:
        with open(request["topology"], "w", encoding="utf-8") as file:
            json.dump(content, file)
    else:
        np.savez(request["output"], allow_pickle=False, **arrays)


def check_header(request: dict[str, Any]) -> None:
    """The number of atoms in an XTC, which its reader believes before it looks further."""
    if request["path"].lower().endswith(".xtc"):
        with open(request["path"], "rb") as file:
            start = file.read(8)
        if len(start) < 8 or int.from_bytes(start[:4], "big") not in (1995, 2023):
            raise ValueError("it does not begin as an XTC file does")
        check_atoms(int.from_bytes(start[4:], "big"), request["num_atoms"])


if __name__ == "__main__":
    main()

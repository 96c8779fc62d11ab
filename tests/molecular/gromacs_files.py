"""Propane as GROMACS has it."""

from __future__ import annotations

from pathlib import Path

from tests.molecular.small_molecules import build

TOP = """
[ defaults ]
1 2 yes 0.5 0.8333
[ atomtypes ]
c 12.011 0.0 A 0.35 0.28
h 1.008 0.0 A 0.25 0.12
[ moleculetype ]
propane 3
[ atoms ]
1 c 1 MOL C1 1 -0.18 12.011
2 c 1 MOL C2 2 -0.12 12.011
3 c 1 MOL C3 3 -0.18 12.011
4 h 1 MOL H1 4 0.06 1.008
5 h 1 MOL H2 5 0.06 1.008
6 h 1 MOL H3 6 0.06 1.008
7 h 1 MOL H4 7 0.06 1.008
8 h 1 MOL H5 8 0.06 1.008
9 h 1 MOL H6 9 0.06 1.008
10 h 1 MOL H7 10 0.06 1.008
11 h 1 MOL H8 11 0.06 1.008
[ bonds ]
1 2 1 0.153 250000
2 3 1 0.153 250000
1 4 1 0.109 280000
1 5 1 0.109 280000
1 6 1 0.109 280000
2 7 1 0.109 280000
2 8 1 0.109 280000
3 9 1 0.109 280000
3 10 1 0.109 280000
3 11 1 0.109 280000
[ angles ]
1 2 3 1 112.0 400
4 1 2 1 110.0 400
9 3 2 1 110.0 400
[ dihedrals ]
4 1 2 3 9 0.0 0.65 3
9 3 2 1 9 0.0 0.65 3
[ system ]
propane
[ molecules ]
propane 1
"""


def write_gromacs(folder: Path, box: float = 0.0) -> tuple[Path, Path]:
    """propane.top and propane.gro, in a box of so many nm."""
    top, gro = folder / "propane.top", folder / "propane.gro"
    top.write_text(TOP)
    names = ["C1", "C2", "C3", *(f"H{k}" for k in range(1, 9))]
    rows = [
        f"    1MOL  {name:>5}{k:5d}" + "".join(f"{number:8.3f}" for number in x)
        for k, (name, x) in enumerate(zip(names, build("propane")[2], strict=True), start=1)
    ]
    gro.write_text("\n".join(["propane", f"{len(rows):5d}", *rows, f"   {box} {box} {box}"]) + "\n")
    return top, gro

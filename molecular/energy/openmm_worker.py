"""The process in which OpenMM evaluates energies for `OpenMMEnergy`; run as a script, it needs OpenMM and numpy alone.

Requests arrive on standard input and are answered on standard output, each a length (8 bytes), a kind (1 byte) and a
payload. It ends when its input does, so it never outlives the process that started it, however that one ends.
"""

import json
import math
import os
import signal
import struct
import sys
from typing import IO

import numpy as np
import openmm

HEADER = struct.Struct("<Qc")
SETUP, ENERGY, FORCE, RESULT, ERROR = b"S", b"U", b"F", b"R", b"E"


def send(stream: IO[bytes], kind: bytes, payload: bytes) -> None:
    """Writes one message."""
    stream.write(HEADER.pack(len(payload), kind))
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Reads one message (kind, payload); None if the other side is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    length, kind = HEADER.unpack(header)
    payload = stream.read(length)
    return (kind, payload) if len(payload) == length else None


def create_context(settings: dict) -> openmm.Context:
    """A context of the system, platform and platform properties in `settings`."""
    platform = openmm.Platform.getPlatformByName(settings["platform"])
    system = openmm.XmlSerializer.deserialize(settings["system"])
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform, settings["properties"])


def evaluate(context: openmm.Context, x: np.ndarray, with_force: bool) -> np.ndarray:
    """Energies (B, 1), followed by forces (B, 3n) if asked for, of positions x (B, n, 3)."""
    result = np.full((len(x), 1 + with_force * x[0].size), math.nan)
    for row, positions in zip(result, x, strict=True):
        if not np.isfinite(positions).all():
            continue
        try:
            context.setPositions(positions)
            state = context.getState(getEnergy=True, getForces=with_force)
        except openmm.OpenMMException as error:
            # Some platforms refuse what overflows on the way; that concerns this conformation only.
            if "nan" in str(error).lower():
                continue
            raise
        row[0] = state.getPotentialEnergy()._value
        if with_force:
            row[1:] = state.getForces(asNumpy=True)._value.ravel()
    return result


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    context: openmm.Context | None = None
    while (message := receive(requests)) is not None:
        kind, payload = message
        try:
            if kind == SETUP:
                context = create_context(json.loads(payload))
                send(answers, RESULT, b"")
            else:
                assert context is not None
                x = np.frombuffer(payload).reshape(-1, context.getSystem().getNumParticles(), 3)
                send(answers, RESULT, evaluate(context, x, kind == FORCE).tobytes())
        except Exception as error:
            send(answers, ERROR, " ".join(str(error).split()).encode())


if __name__ == "__main__":
    main()

"""OpenMM itself as a potential energy, in worker processes."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

import molecular.energy.openmm_worker as worker
from molecular.energy.potential import PotentialEnergy
from molecular.energy.unsupported import refuse_constraints, refuse_unknown_platform
from nflib.errors import ComputationError


class OpenMMEnergy(PotentialEnergy):
    """Energies and forces by OpenMM: the reference for `CompiledEnergy`, and the fallback for forces it lacks.

    Each worker process evaluates one conformation after the other. They start with the first evaluation and end with
    `close()`, the end of a `with` block, of this object or of this process, whichever comes first.

    Args:
        system: any OpenMM System without constraints and virtual sites; a periodic box stays as it is.
        platform: a platform of this OpenMM: "Reference" (double precision), "CPU", "OpenCL", "CUDA".
        num_workers: processes; by default one a core that this process may use.
        properties: the platform's properties; by default one thread for each worker on "CPU".
        dtype: precision of the results, whatever that of the platform; `.to(...)` changes it, and the device.
        device: that positions must be on, and results are.

    Raises:
        ValueError: an unknown platform, no workers, constraints or virtual sites.
        ComputationError: on evaluation, if OpenMM cannot do it or a worker process was killed.

    Example:
        >>> from molecular import Peptide
        >>> peptide = Peptide("AA")
        >>> x = torch.as_tensor(peptide.positions, dtype=torch.float32)[None]
        >>> with OpenMMEnergy(peptide.system, platform="Reference") as energy:
        ...     potential, force = energy.energy_and_force(x)  # (B, n, 3) nm -> (B,) kJ/mol, (B, n, 3) kJ/mol/nm
        >>> potential.shape, force.shape
        (torch.Size([1]), torch.Size([1, 23, 3]))
    """

    # Conformations sent to a worker at a time.
    share = 64

    def __init__(
        self,
        system: openmm.System,
        platform: str = "CPU",
        num_workers: int | None = None,
        properties: dict[str, str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(system.getNumParticles(), dtype, device)
        refuse_constraints(system)
        refuse_unknown_platform(platform)
        self.num_workers = _available_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; give a positive number of processes.")
        self.platform = platform
        if properties is None:
            properties = {"Threads": "1"} if platform == "CPU" else {}
        settings = {"platform": platform, "properties": properties, "system": openmm.XmlSerializer.serialize(system)}
        self._setup = json.dumps(settings).encode()
        self._pool: _Pool | None = None

    def close(self) -> None:
        """End the worker processes; a later evaluation starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> "OpenMMEnergy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}

    def _evaluate_batch(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        if self._pool is None:
            self._pool = _Pool(self.num_workers, self._setup)
        positions = x.to(device="cpu", dtype=torch.float64).numpy()
        result = np.empty((len(positions), 1 + with_force * 3 * self.num_atoms))
        try:
            self._pool.evaluate(positions, result, self.share, worker.FORCE if with_force else worker.ENERGY)
        except BaseException as error:
            # A worker may be in the middle of an answer: start afresh next time.
            self.close()
            if isinstance(error, _Failure):
                raise ComputationError(f"OpenMM's {self.platform} platform: {error}") from None
            raise
        both = torch.from_numpy(result).to(device=self.device, dtype=self.dtype)
        return both[:, 0], both[:, 1:].reshape(-1, self.num_atoms, 3) if with_force else None


class _Failure(Exception):
    """What a worker reported, in one sentence."""


class _Pool:
    """Worker processes with one context each."""

    def __init__(self, count: int, setup: bytes) -> None:
        command = [sys.executable, "-P", worker.__file__]  # -P: the modules beside the script are not for import
        self.lock = threading.Lock()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _end, self.processes)
        for _ in range(count):
            self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        # Until the first answer all workers set themselves up side by side.
        self.setup: bytes | None = setup

    def close(self) -> None:
        self._finalizer()

    def evaluate(self, x: np.ndarray, result: np.ndarray, share: int, kind: bytes) -> None:
        """Fills the rows of `result` for positions x."""
        with self.lock, ThreadPoolExecutor(len(self.processes)) as threads:
            parts: queue.SimpleQueue[slice] = queue.SimpleQueue()
            # Enough parts that no worker waits long for another one's last.
            size = max(1, min(share, -(-len(x) // (4 * len(self.processes)))))
            for start in range(0, len(x), size):
                parts.put(slice(start, start + size))

            def serve(process: subprocess.Popen[bytes]) -> None:
                if self.setup is not None:
                    _ask(process, worker.SETUP, self.setup)
                while True:
                    try:
                        part = parts.get_nowait()
                    except queue.Empty:
                        return
                    try:
                        answer = _ask(process, kind, np.ascontiguousarray(x[part]).tobytes())
                    except BaseException:
                        _drain(parts)
                        raise
                    result[part] = np.frombuffer(answer).reshape(-1, result.shape[1])

            for served in [threads.submit(serve, process) for process in self.processes]:
                served.result()
            self.setup = None


def _ask(process: subprocess.Popen[bytes], kind: bytes, payload: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    try:
        worker.send(process.stdin, kind, payload)
        answer = worker.receive(process.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise _Failure(f"worker process {process.pid} ended with exit code {process.wait()}; evaluate again.")
    if answer[0] == worker.ERROR:
        raise _Failure(answer[1].decode())
    return answer[1]


def _drain(parts: "queue.SimpleQueue[slice]") -> None:
    while not parts.empty():
        try:
            parts.get_nowait()
        except queue.Empty:
            return


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ends the processes: they leave when their input closes; one that does not is killed."""
    for process in processes:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    for process in processes:
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

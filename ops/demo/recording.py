"""Record the devices' history into their outboxes, in worker processes of their own.

Each worker writes one truth file, and has the same devices whenever it is started again, so that
an interrupted recording goes on where it was.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ops.demo.state import Folder, State
from ops.demo.world import stretches
from simulators.hardware import DeviceSpec
from simulators.history import record_history
from simulators.truth import TruthFile


class Task(NamedTuple):
    """One device's stretch of history."""

    spec: DeviceSpec
    outbox: Path
    start_ms: int
    end_ms: int


class Recording:
    """The recording of all history, running beside the start of everything else."""

    def __init__(self, folder: Folder, state: State) -> None:
        self.workers = min(4, os.cpu_count() or 1)
        groups: list[list[Task]] = [[] for _ in range(self.workers)]
        ranked = sorted(state.places().items(), key=lambda item: -item[1].device.door.median_day)
        for number, (device, place) in enumerate(ranked):
            spec = place.device.spec(device, end_ms=state.until_ms)
            for start_ms, end_ms in stretches(
                place.device, start_ms=state.since_ms, end_ms=state.until_ms
            ):
                groups[number % self.workers].append(
                    Task(spec, folder.outbox(device), start_ms, end_ms)
                )
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=signal.signal,  # a Ctrl-C is for the demo, which stops them
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        self._futures: list[Future[int]] = [
            self._pool.submit(record_group, group, folder.root / f"truth-history-{number}")
            for number, group in enumerate(groups)
        ]

    def wait(self) -> int:
        """Return how many people and presses were recorded, once all are."""
        total = sum(future.result() for future in self._futures)
        self._pool.shutdown()
        return total

    def stop(self) -> None:
        """Give up what has not begun; what is recorded stays."""
        self._pool.shutdown(cancel_futures=True)


def record_group(tasks: Sequence[Task], truth_path: Path) -> int:
    """Record one worker's devices, one after another."""
    total = 0
    with TruthFile(truth_path) as truth:
        for spec, outbox, start_ms, end_ms in tasks:
            total += record_history(spec, outbox, truth=truth, start_ms=start_ms, end_ms=end_ms)
            truth.commit()
    return total


def catch_up(folder: Folder, state: State, truth: TruthFile, *, end_ms: int) -> int:
    """Record what passed while everything was started, up to the live traffic's beginning."""
    total = 0
    for device, place in state.places().items():
        if not place.device.unplugged:
            total += record_history(
                place.device.spec(device, end_ms=state.until_ms),
                folder.outbox(device),
                truth=truth,
                start_ms=state.until_ms,
                end_ms=end_ms,
            )
    return total

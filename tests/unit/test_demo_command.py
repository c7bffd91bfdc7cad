"""How the demo ends when it is stopped."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ops.demo import command


@pytest.fixture(autouse=True)
def _no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_log_to", lambda path: None)


def stopped(
    monkeypatch: pytest.MonkeyPatch, root: Path, number: signal.Signals, *options: str
) -> int:
    """Return the exit code of a demo that gets the signal while it starts."""

    async def start(*_: object) -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    monkeypatch.setattr(command, "_start", start)
    return command.main(["--root", str(root), *options])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_proof_that_is_stopped_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    assert stopped(monkeypatch, tmp_path, number, "--seconds", "60") == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_without_an_end_is_ended_by_a_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    monkeypatch.delenv("DEMO_SECONDS", raising=False)
    assert stopped(monkeypatch, tmp_path, number) == 0

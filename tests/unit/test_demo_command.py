"""How the demo ends when it is stopped."""

import asyncio
import os
import re
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


def test_the_stages_seconds_as_shown_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.04, 2.08, 3.12, 4.16])
    stages = command.Stages(lambda: next(times))
    for name in "abcd":
        with stages.stage(name):
            pass
    shown = re.findall(r"([\d.]+) s$", capsys.readouterr().out, re.MULTILINE)
    assert shown == ["1.0", "1.1", "1.0", "1.1"]
    assert stages.total_s == pytest.approx(sum(map(float, shown)))

"""The check's process, and the root that a device begins with."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import command
from agent.clock import BUILD_MS
from agent.update.agreement import Fault, Refused, class_of
from agent.update.releases import Times
from agent.update.trust import FOLDER, Question, check, install_root
from protocol.update import Class
from tests.releases_world import in_memory

ROOT = b'{"signed": {"_type": "root", "version": 1}, "signatures": []}'


def question(state: Path, envelope: bytes = b"{}") -> Question:
    return Question(envelope, state, ("localhost", 1), "DC2", "0f" * 16, {}, None)


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_agent_itself_never_loads_what_the_check_needs() -> None:
    said = "import sys, agent.agent, agent.command, agent.update.trust; print('tuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


async def test_a_check_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = program(tmp_path / "hangs", "import time\ntime.sleep(600)")
    monkeypatch.setattr(sys, "executable", hangs)
    with pytest.raises(Refused) as caught:
        await check(question(tmp_path), limit_s=-4.7)  # five seconds more are given to it
    assert caught.value.fault is Fault.SLOW


@pytest.mark.parametrize("said", ["", "print('{}')", "print('[1]')", 'print(\'{"refused": "x"}\')'])
async def test_a_check_that_breaks_installs_nothing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    broken = f"import sys\n{said}\nsys.stderr.write('first\\nout of memory\\n')\nsys.exit(3)"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "breaks", broken))
    with pytest.raises(Refused, match="ended with 3: out of memory") as caught:
        await check(question(tmp_path))
    assert caught.value.fault is Fault.INTERNAL
    assert class_of(Fault.INTERNAL) is Class.INTERNAL


async def test_an_envelope_that_is_too_long_starts_no_check(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        await check(question(tmp_path, b"x" * 40_000))
    assert caught.value.fault is Fault.MALFORMED


def test_what_is_not_said_to_be_tried_again_is_a_matter_of_trust() -> None:
    again = {each for each in Fault if class_of(each) in (Class.NETWORK, Class.STORAGE)}
    assert again == {Fault.UNREACHABLE, Fault.SLOW, Fault.STALE, Fault.STORAGE}
    assert class_of(Fault.BELOW_FLOOR) is Class.REFUSED


def test_the_first_root_stays_whatever_comes_later(tmp_path: Path) -> None:
    assert install_root(tmp_path, ROOT)
    other = ROOT.replace(b'"version": 1', b'"version": 9')
    assert not install_root(tmp_path, other)
    kept = tmp_path / FOLDER / "root.json"
    assert kept.read_bytes() == ROOT
    kept.write_bytes(b"rotten")
    assert install_root(tmp_path, other)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"[" * 9_000, ROOT.replace(b"root", b"targets"), ROOT + b" " * 70_000],
)
def test_what_is_no_root_is_not_kept(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="no root of releases"):
        install_root(tmp_path, content)
    assert not (tmp_path / FOLDER).exists()


def test_the_command_keeps_a_root_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path / "state"))
    given = tmp_path / "1.root.json"
    assert command.main(["trust", str(given)]) == command.FAILED
    given.write_bytes(ROOT)
    assert command.main(["trust", str(given)]) == command.OK
    assert command.main(["trust", str(given)]) == command.REFUSED
    assert "stays" in capsys.readouterr().err


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 900),  # what a clock says, in days
            st.integers(-50, 1200),  # when the timestamp says that it was signed
            st.sampled_from(["one", "other"]),  # whose key signed it
        ),
        max_size=12,
    )
)
def test_time_never_runs_back_under_one_key_nor_further_ahead_than_can_be(
    checks: list[tuple[int | None, int, str]],
) -> None:
    """T1 to T3, each check in a process of its own: what lies on disk is all that is kept."""
    day, past = 86_400_000, BUILD_MS + 86_400_000
    with in_memory() as folder:
        kept, signer = 0, ""
        for clock, issued, key in checks:
            given_ms = None if clock is None else past + clock * day
            times = Times(folder / "time.json", now_ms=given_ms, past_ms=past)
            times.under([key])
            floor = kept if key == signer else 0
            assert times.now_ms() == max(floor, times.own_ms())
            most = times.own_ms() + (550 * day if clock is None else day)
            issued_ms = past + issued * day
            if issued_ms > most:
                with pytest.raises(Refused) as caught:
                    times.judge(issued_ms)
                assert caught.value.fault is Fault.TIME_JUMP
                continue
            times.judge(issued_ms)
            times.heard(issued_ms)
            kept, signer = max(floor, issued_ms), key
            assert times.now_ms() == max(kept, times.own_ms())

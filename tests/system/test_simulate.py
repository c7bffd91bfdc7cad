"""`vestibule simulate` as its user runs it: fleets of agents in, a proof out, and it is proved."""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import asyncpg
import pytest

from ops.deployment import deployment
from ops.services.child import vestibule
from ops.services.stack import Stack
from ops.serving import server_running
from ops.simulate import Run, Verdict, judge
from simulators.scenarios import SCENARIOS
from simulators.truth import read

pytestmark = pytest.mark.services
DEVICES = 30
CLOSING = re.compile(
    r"^generated (\d+) stored (\d+) served (\d+) on their way 0 lost 0; "
    r"0 people in gaps or undated; 0 differences$",
    re.MULTILINE,
)


def simulate(stack: Stack, scenario: str, *, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    words = ("--devices", str(DEVICES), "--scenario", scenario, "--duration", str(seconds))
    return subprocess.run(
        vestibule("simulate", *words),
        env={**os.environ, "VESTIBULE_HOME": str(stack.root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def last_run(stack: Stack, scenario: str) -> Run:
    """Return the scenario's last run, as its own files tell of it."""
    state = max((stack.root / "simulate").glob(f"{scenario}-*"))
    return Run(state.name, state, DEVICES, SCENARIOS[scenario], duration_s=0, seed=1)


def devices_of(state: Path) -> list[str]:
    """Return the devices that the truth speaks of."""
    truth = read(state / "truth")
    return sorted({key[0] for key in truth.counts} | {key[0] for key in truth.presses})


@pytest.mark.parametrize(
    ("scenario", "seconds"), [pytest.param("reboots", 15, marks=pytest.mark.long), ("saturday", 10)]
)
def test_every_person_of_a_scenario_is_where_he_was_counted(
    own_stack: Stack, scenario: str, seconds: int
) -> None:
    done = simulate(own_stack, scenario, seconds=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    closing = CLOSING.search(done.stdout)
    assert closing is not None, done.stdout
    generated, stored, served = map(int, closing.groups())
    assert generated == stored == served > 0
    assert f"{DEVICES} of {DEVICES} connected" in done.stdout
    connects = re.search(r"([\d,]+) connects", done.stdout)
    assert connects is not None
    if scenario == "reboots":
        assert int(connects[1]) > DEVICES


async def tampered(run: Run, devices: list[str]) -> tuple[Verdict, Verdict, Verdict, str]:
    """Judge a run: as it is, with one person too many in one row, and put right again."""
    found = deployment()
    async with server_running(found) as base:
        before = await judge(found, run, devices, base=base)
        connection = await asyncpg.connect(found.owner_dsn.reveal())
        try:
            row = await connection.fetchrow(
                "select r.spot, r.boot, r.seq, r.line, n, s.name || ', ' || p.name as place "
                "from readings r join boots b on b.id = r.boot join devices d on d.id = b.device_id"
                " join spots p on p.id = r.spot join sites s on s.id = p.site_id,"
                " generate_subscripts(r.counts, 1) n"
                " where d.device = any($1::text[]) and r.counts[n] > 0 limit 1",
                devices,
            )
            change = (
                "update readings set counts[{n}] = counts[{n}] {by} 1 "
                "where spot = $1 and boot = $2 and seq = $3 and line = $4"
            )
            key = (row["spot"], row["boot"], row["seq"], row["line"])
            await connection.execute(change.format(n=row["n"], by="+"), *key)
            try:
                wrong = await judge(found, run, devices, base=base)
            finally:
                await connection.execute(change.format(n=row["n"], by="-"), *key)
        finally:
            await connection.close()
        return before, wrong, await judge(found, run, devices, base=base), row["place"]


def test_one_person_too_many_fails_the_proof_and_the_place_is_named(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_HOME", str(own_stack.root))
    run = last_run(own_stack, "saturday")
    before, wrong, after, place = asyncio.run(tampered(run, devices_of(run.state)))
    assert before.holds, before.wrong
    assert not wrong.holds
    [named] = wrong.wrong
    assert named.startswith(f"{place} (")
    assert "stored" in named
    assert wrong.proof.lost == -1
    assert after.holds

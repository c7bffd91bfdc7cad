"""The demo's closing line, and that its proof fails, naming the place, when anything is wrong."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import asyncpg
import pytest

from ops.demo.machine import spots_of
from ops.demo.state import PID_FILE, Folder, State
from ops.demo.supervisor import Supervisor
from ops.deployment import embedded
from ops.proof import Presses, Proof, Sources, Spot, compare_minutes, compare_presses, verify
from ops.services.stack import Stack

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
_RUN = "import sys; from ops.command import main; sys.exit(main(['demo', '--days', '1']))"
_TABLES = ("readings", "presses", "rollup_15m", "presses_15m")
_ALL_DIRTY = """
    insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) from
      (select spot, bucket from rollup_15m union select spot, bucket from presses_15m) once
"""  # what was derived of a tampered quarter is derived anew
Tamper = Callable[[asyncpg.Connection], Awaitable[object]]
SPOT = Spot(ref="spot-1", label="Lund, Main entrance", kind="counter", zone="UTC", key="k")


@dataclass(frozen=True)
class Finished:
    """A demo that has run to its end."""

    root: Path
    code: int
    out: str
    err: str
    state: State


@pytest.fixture(scope="module")
def finished() -> Iterator[Finished]:
    """A short demo: one day of history, the broker killed once, one agent rebooted."""
    home = Path(tempfile.mkdtemp(prefix="vestibule-demo-"))
    done = subprocess.run(
        [sys.executable, "-u", "-c", _RUN],
        env={**os.environ, "VESTIBULE_HOME": str(home), "DEMO_SECONDS": "15"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    root = home / "demo-short"
    try:
        state = Folder(root).open(now_ms=0, days=1)
        yield Finished(root, done.returncode, done.stdout, done.stderr, state)
    finally:
        Stack(root).remove()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Again:
    """The finished demo's database and API, up again."""

    dsn: str
    sources: Sources

    async def proof(self) -> Proof:
        return await verify(self.sources)

    async def tampered(self, tamper: Tamper) -> Proof:
        """Return the proof after `tamper`, and put everything back."""
        connection = await asyncpg.connect(self.dsn)
        try:
            before = {table: await connection.fetch(f"select * from {table}") for table in _TABLES}
            await tamper(connection)
            try:
                return await self.proof()
            finally:
                async with connection.transaction():
                    for table, rows in before.items():
                        await connection.execute(f"delete from {table}")
                        await connection.copy_records_to_table(table, records=rows)
                    await connection.execute(_ALL_DIRTY)
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def again(finished: Finished) -> Iterator[tuple[Again, asyncio.Runner]]:
    """Bring database and server up once more, without any device."""
    with asyncio.Runner() as runner:
        stack = Stack(finished.root)
        found = embedded(stack)
        supervisor = Supervisor(
            stack, log=finished.root / "logs/server.log", pid_path=finished.root / "server.pid"
        )
        runner.run(supervisor.start_server(found.settings))
        sources = Sources(
            truths=Folder(finished.root).truths(),
            dsn=stack.endpoints.dsn("maint"),
            api=supervisor.base,
            spots=spots_of(finished.state),
        )
        yield Again(stack.endpoints.dsn("admin"), sources), runner
        runner.run(supervisor.stop())


def test_the_demo_ends_with_one_line_that_adds_up(finished: Finished) -> None:
    assert finished.code == 0, finished.out + finished.err
    lines = re.findall(r"^generated \d+ stored \d+ served .*$", finished.out, re.MULTILINE)
    assert len(lines) == 1
    assert finished.out.rstrip().endswith(lines[0])
    figures = [int(text) for text in re.findall(r"\d+", lines[0])]
    generated, stored, served, waiting, lost = figures
    assert generated == stored == served > 5_000
    assert (waiting, lost) == (0, 0)
    assert "decoder: compiled" in finished.out


def test_the_stages_seconds_add_up_to_the_total(finished: Finished) -> None:
    stages = re.findall(r"^ +(\d) +\S.*?([\d.]+) s$", finished.out, re.MULTILINE)
    [total] = re.findall(r"^ +live after +([\d.]+) s$", finished.out, re.MULTILINE)
    assert [int(number) for number, _ in stages] == list(range(1, len(stages) + 1))
    assert sum(round(float(seconds) * 10) for _, seconds in stages) == round(float(total) * 10)


@pytest.fixture
def empty_home() -> Iterator[Path]:
    """A home that the services' account can reach."""
    home = Path(tempfile.mkdtemp(prefix="vestibule-demo-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


def clean(home: Path) -> None:
    """What `make clean` runs."""
    env = {**os.environ, "VESTIBULE_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "ops.clean"], env=env, check=True, timeout=120)


@pytest.mark.long
def test_clean_stops_a_running_demo_in_order_first(empty_home: Path) -> None:
    env = {**os.environ, "VESTIBULE_HOME": str(empty_home), "DEMO_SECONDS": ""}
    command = [sys.executable, "-u", "-c", _RUN]
    pipe, root = subprocess.PIPE, empty_home / "demo"
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=pipe) as running:
        assert running.stdout is not None
        try:
            assert any(b"the tour:" in line for line in running.stdout)
            daemons = [state.pid for state in Stack(root).status()]
            second = subprocess.run(command, env=env, stderr=pipe, text=True, check=False)
            assert (second.returncode, "already runs" in second.stderr) == (1, True)
            clean(empty_home)
            assert b"stopped" in running.stdout.read()
            assert running.wait(10) == 0
        finally:
            running.kill()
            Stack(root).remove()
    assert not empty_home.exists()
    assert None not in daemons
    assert not any(Path(f"/proc/{pid}").exists() for pid in daemons)


def test_clean_leaves_a_stranger_alone_who_has_a_demos_process_id(empty_home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (empty_home / PID_FILE).write_text(json.dumps({"pid": stranger.pid, "started": 1}))
        clean(empty_home)
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert stranger.returncode == 0
    assert not empty_home.exists()


def test_the_slow_decoders_price_is_named_with_what_to_do() -> None:
    words = subprocess.run(
        [sys.executable, "-c", "from ops.demo.decoder import *; print(decoder_words())"],
        env={**os.environ, "VESTIBULE_NO_EXT": "1", "VESTIBULE_REQUIRE_EXT": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.fullmatch(
        r"the reference in Python, [\d,]+ frames/s here where the compiled one does [\d,]+ "
        r"\([\d,]+ times as many\); unset VESTIBULE_NO_EXT to use it\n",
        words,
    )


def test_the_proof_can_be_repeated(again: tuple[Again, asyncio.Runner]) -> None:
    world, runner = again
    proof = runner.run(world.proof())
    assert proof.holds
    assert proof.presses.generated == proof.presses.stored == proof.presses.served > 0


async def _busiest(connection: asyncpg.Connection) -> asyncpg.Record:
    """Return a reading with people in its first minute."""
    return await connection.fetchrow(
        "select d.device, r.* from readings r join boots b on b.id = r.boot "
        "join devices d on d.id = b.device_id where r.counts[1] > 0 order by r.time, r.spot limit 1"
    )


_ROW = "where spot = $1 and boot = $2 and seq = $3 and line = $4"


def _key(row: asyncpg.Record) -> tuple[int, int, int, int]:
    return row["spot"], row["boot"], row["seq"], row["line"]


@pytest.mark.parametrize("wrong", ["deleted", "doubled", "altered"])
def test_one_wrong_reading_fails_the_proof_and_is_named(
    again: tuple[Again, asyncio.Runner], wrong: str
) -> None:
    world, runner = again
    touched: list[asyncpg.Record] = []

    async def tamper(connection: asyncpg.Connection) -> None:
        row = await _busiest(connection)
        touched.append(row)
        if wrong == "deleted":
            await connection.execute(f"delete from readings {_ROW}", *_key(row))
        elif wrong == "doubled":
            await connection.execute(
                f"insert into readings select * from readings {_ROW}",
                *_key(row),
            )
        else:
            await connection.execute(
                f"update readings set counts[1] = counts[1] + 1 {_ROW}",
                *_key(row),
            )

    proof = runner.run(world.tampered(tamper))
    [row] = touched
    assert not proof.holds
    first = str(proof.differences[0])
    assert row["device"] in first
    assert world.sources.spots[row["device"]].label in first
    assert row["time"].astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") in first
    assert "stored" in first
    if wrong == "altered":
        assert (len(proof.differences), proof.lost) == (1, -1)


def test_one_wrong_sum_that_is_served_fails_the_proof_and_is_named(
    again: tuple[Again, asyncio.Runner],
) -> None:
    world, runner = again
    touched: list[asyncpg.Record] = []

    async def tamper(connection: asyncpg.Connection) -> None:
        row = await connection.fetchrow(
            "update rollup_15m r set in0 = in0 + 1 where (spot, bucket) = "
            "(select spot, bucket from rollup_15m where in0 > 0 order by bucket desc limit 1) "
            "returning (select ref from spots where id = r.spot) as ref, bucket, spot"
        )
        await connection.execute(
            "insert into rollup_dirty (spots, buckets) "
            "values (array[$1::int], array[$2::timestamptz])",
            row["spot"],
            row["bucket"],
        )
        touched.append(row)

    proof = runner.run(world.tampered(tamper))
    assert not proof.holds
    assert proof.generated == proof.stored == proof.served - 1
    [difference] = proof.differences
    assert touched[0]["ref"] in str(difference)
    assert "served" in str(difference)


@pytest.mark.parametrize("wrong", ["deleted", "doubled"])
def test_one_wrong_press_fails_the_proof_and_is_named(
    again: tuple[Again, asyncio.Runner], wrong: str
) -> None:
    world, runner = again
    touched: list[asyncpg.Record] = []

    async def tamper(connection: asyncpg.Connection) -> None:
        row = await connection.fetchrow(
            "select d.device, p.ctid, p.tableoid, p.* from presses p join boots b on b.id = p.boot "
            "join devices d on d.id = b.device_id order by p.time, p.spot limit 1"
        )
        touched.append(row)
        chosen = "where tableoid = $1 and ctid = $2"
        statement = (
            f"delete from presses {chosen}"
            if wrong == "deleted"
            else f"insert into presses select * from presses {chosen}"
        )
        await connection.execute(statement, row["tableoid"], row["ctid"])

    proof = runner.run(world.tampered(tamper))
    [row] = touched
    assert not proof.holds
    [difference] = map(str, proof.differences)
    assert world.sources.spots[row["device"]].label in difference
    assert f"question {row['question']} answer {row['answer']}" in difference
    assert row["time"].astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") in difference
    assert "stored" in difference
    wrongly = -1 if wrong == "deleted" else 1
    presses = proof.presses
    assert presses == Presses(presses.generated, presses.generated + wrongly, presses.generated)


def test_one_press_too_many_that_is_served_fails_the_proof_and_is_named(
    again: tuple[Again, asyncio.Runner],
) -> None:
    world, runner = again
    touched: list[asyncpg.Record] = []

    async def tamper(connection: asyncpg.Connection) -> None:
        row = await connection.fetchrow(
            "update presses_15m r set presses = presses + 1 "
            "where (spot, bucket, question, answer) = (select spot, bucket, question, answer "
            "from presses_15m order by bucket desc, spot, question, answer limit 1) "
            "returning (select ref from spots where id = r.spot) as ref, r.*"
        )
        await connection.execute(
            "insert into rollup_dirty (spots, buckets) "
            "values (array[$1::int], array[$2::timestamptz])",
            row["spot"],
            row["bucket"],
        )
        touched.append(row)

    proof = runner.run(world.tampered(tamper))
    [row] = touched
    assert not proof.holds
    presses = proof.presses
    assert presses.generated == presses.stored == presses.served - 1
    [difference] = map(str, proof.differences)
    assert f"({row['ref']}) question {row['question']} answer {row['answer']}" in difference
    assert "served" in difference


def test_a_lost_press_is_named() -> None:
    key = ("fk-abcdefgh", 29_000_000, 0, 3)
    [found] = compare_presses({key: 2}, {key: 1}, spots={"fk-abcdefgh": SPOT})
    assert str(found) == (
        "Lund, Main entrance (fk-abcdefgh) question 0 answer 3, 2025-02-19 21:20 UTC: "
        "generated 2 presses, stored 1 presses"
    )


def test_a_minute_nobody_generated_is_named() -> None:
    [found] = compare_minutes({}, {("dc-abcdefgh", 0, 29_000_000): (1, 0)}, spots={})
    assert "a device that nobody knows" in str(found)
    assert "generated 0 in 0 out, stored 1 in 0 out" in str(found)


def test_a_press_in_another_minute_is_named_in_both() -> None:
    at, before = ("fk-abcdefgh", 1000, 0, 3), ("fk-abcdefgh", 999, 0, 3)
    found = compare_presses({at: 2}, {at: 1, before: 1}, spots={"fk-abcdefgh": SPOT})
    assert [difference.when for difference in found] == [
        "1970-01-01 16:39 UTC",
        "1970-01-01 16:40 UTC",
    ]

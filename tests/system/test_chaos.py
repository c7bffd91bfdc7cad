"""Chaos in short, and the proof of the proof: whoever alters the database afterwards is found."""

import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from ops.chaos.record import Truth, read
from ops.chaos.run import chaos
from ops.chaos.system import System, blocking
from ops.chaos.torture import Outcome
from ops.chaos.verify import Verdict, verify

SEED = 20261122
AGENTS = 8
SECONDS = 30

pytestmark = [pytest.mark.services, pytest.mark.timeout(420)]


@dataclass(frozen=True, slots=True)
class Aftermath:
    """A tortured system that stands still now: its agents are gone, its numbers are final."""

    system: System
    outcome: Outcome
    truth: Truth

    def verdict(self) -> Verdict:
        return blocking(verify(self.truth, self.system.dsn, api=self.system.api()))

    def execute(self, sql: str) -> None:
        blocking(self._execute(sql))

    def row(self, sql: str) -> asyncpg.Record:
        return blocking(self._row(sql))

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.system.dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _row(self, sql: str) -> asyncpg.Record:
        connection = await asyncpg.connect(self.system.dsn)
        try:
            return await connection.fetchrow(sql)
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def after(system: System) -> Aftermath:
    """Torture the system once for all tests here."""
    outcome = chaos(system, seed=SEED, seconds=SECONDS, agents=AGENTS, say=print)
    for device in system.devices:
        device.agent.kill()
    return Aftermath(system, outcome, read(Path(system.root) / "truth"))


def test_nothing_is_lost_doubled_or_altered_whatever_is_killed(after: Aftermath) -> None:
    outcome = after.outcome
    assert outcome.crashes == ()
    assert outcome.verdict.differences == ()
    assert outcome.converged_s is not None
    assert outcome.verdict.closing().endswith("lost 0 duplicated 0 altered 0")
    assert outcome.verdict.people > 500
    assert outcome.verdict.presses > 50
    assert outcome.done["agent SIGKILL"] >= AGENTS
    for kind in ("broker SIGKILL", "server SIGKILL", "database SIGKILL", "server SIGSTOP"):
        assert outcome.done[kind] >= 1


READING = """
select r.*, d.device, b.boot_id, r.tableoid::regclass as chunk, r.ctid as at
from readings r join boots b on b.id = r.boot join devices d on d.id = b.device_id
where r.counts[1] > 0 order by r.time desc limit 1
"""


PRESS = """
select p.*, d.device
from presses p join boots b on b.id = p.boot join devices d on d.id = b.device_id
where not exists (  -- a visitor may press twice within the tenth of a second that is kept
    select from presses o where (o.boot, o.seq, o.visit, o.question) = (p.boot, p.seq, p.visit,
    p.question) and (o.tableoid, o.ctid) <> (p.tableoid, p.ctid))
order by time desc limit 1
"""


def tampered(after: Aftermath, harm: str, *, undo: str) -> Verdict:
    """Return the verdict while `harm` is done, and make sure that `undo` makes it good."""
    assert after.verdict().proved
    after.execute(harm)
    try:
        return after.verdict()
    finally:
        after.execute(undo)
        assert after.verdict().proved


def values(row: asyncpg.Record, columns: tuple[str, ...]) -> str:
    """Return SQL literals of these columns."""
    return ", ".join(
        f"'{row[c]}'" if not isinstance(row[c], list) else f"array{row[c]}::smallint[]"
        for c in columns
    )


COLUMNS = (
    "time", "spot", "boot", "seq", "digest", "lead_ms", "span_ms", "line", "interval_s", "counts",
)  # fmt: skip


def test_one_row_that_is_deleted_is_missed_in_its_place(after: Aftermath) -> None:
    row = after.row(READING)
    where = f"boot = {row['boot']} and seq = {row['seq']} and line = {row['line']}"
    insert = f"insert into readings ({', '.join(COLUMNS)}) values ({values(row, COLUMNS)})"
    verdict = tampered(after, f"delete from readings where {where}", undo=insert)
    told = verdict.report()
    assert not verdict.proved
    assert re.search(rf"lost \d+: {row['device']} line {row['line']} in", told)
    assert f"{row['boot_id'] & (2**64 - 1):016x}" in told
    assert re.search(r"altered \d+: rollup_15m .* line \d of spot-", told)
    assert re.search(r"altered \d+: the API's day", told)


def test_one_frame_that_is_stored_twice_is_found_in_its_place(after: Aftermath) -> None:
    row = after.row(READING)
    lines = f"boot = {row['boot']} and seq = {row['seq']}"
    names = ", ".join(COLUMNS)
    double = f"insert into readings ({names}) select {names} from readings where {lines}"
    undo = (
        f"delete from readings r where {lines} and exists (select from readings o where "
        "o.boot = r.boot and o.seq = r.seq and o.line = r.line and o.ctid < r.ctid)"
    )
    verdict = tampered(after, double, undo=undo)
    place = f"{row['device']} line {row['line']} at {row['time']:%F %T}"
    assert f"duplicated 1: {place}" in verdict.report()
    assert f"seq {row['seq']}" in verdict.report()


def test_one_count_that_is_altered_by_one_is_found_in_its_place(after: Aftermath) -> None:
    row = after.row(READING)
    where = f"boot = {row['boot']} and seq = {row['seq']} and line = {row['line']}"
    more = f"update readings set counts[1] = counts[1] + 1 where {where}"
    less = f"update readings set counts[1] = counts[1] - 1 where {where}"
    verdict = tampered(after, more, undo=less)
    boot = f"{row['boot_id'] & (2**64 - 1):016x}"
    assert f"{row['device']} line {row['line']} of boot {boot} (totals)" in verdict.report()
    assert re.search(rf"1: {row['device']} line {row['line']} in: expected", verdict.report())
    assert re.search(rf"rollup_15m {row['time']:%F}.* line {row['line']}", verdict.report())


@pytest.mark.parametrize("table", ["rollup_15m", "rollup_hour", "rollup_day"])
def test_one_rollup_that_is_altered_by_one_is_found_in_its_place(
    after: Aftermath, table: str
) -> None:
    key = "day" if table == "rollup_day" else "bucket"
    row = after.row(
        f"select t.{key}::text as key, t.{key} as at, t.spot, p.ref from {table} t "
        f"join spots p on p.id = t.spot where in0 > 0 order by t.{key} desc limit 1"
    )
    where = f"spot = {row['spot']} and {key} = '{row['key']}'"
    verdict = tampered(
        after,
        f"update {table} set in0 = in0 + 1 where {where}",
        undo=f"update {table} set in0 = in0 - 1 where {where}",
    )
    found = [str(each) for each in verdict.differences]
    assert found[0].startswith(f"altered 1: {table} {row['key']} line 0 of {row['ref']} (dc-")


def test_one_press_that_is_deleted_is_missed_in_its_place(after: Aftermath) -> None:
    columns = (
        "time", "questionnaire", "spot", "boot", "seq", "digest", "visit", "question", "answer",
        "source",
    )  # fmt: skip
    row = after.row(PRESS)
    where = " and ".join(f"{c} = '{row[c]}'" for c in ("boot", "seq", "visit", "question", "time"))
    insert = f"insert into presses ({', '.join(columns)}) values ({values(row, columns)})"
    verdict = tampered(after, f"delete from presses where {where}", undo=insert)
    press = f"{row['device']} visit {row['visit']} question {row['question']}"
    assert re.search(rf"lost 1: {press} answer {row['answer']}", verdict.report())
    assert re.search(rf"altered 1: presses_15m .* question {row['question']}", verdict.report())


def test_one_press_that_is_moved_in_time_is_named(after: Aftermath) -> None:
    row = after.row(PRESS)
    where = " and ".join(f"{c} = '{row[c]}'" for c in ("boot", "seq", "visit", "question"))
    away, back = "-+" if row["time"].hour else "+-"  # an update cannot leave a chunk
    verdict = tampered(
        after,
        f"update presses set time = time {away} interval '1 hour' where {where}",
        undo=f"update presses set time = time {back} interval '1 hour' where {where}",
    )
    assert f"{row['device']} visit {row['visit']}" in verdict.report()

"""`vestibule replay` as its user runs it: a counts file in, a proof out, and the proof proved."""

import asyncio
import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ops.services.child import vestibule
from ops.services.stack import Stack
from tests.leeds import Counts, counts_at_hand

ZONE = "Europe/London"


def replay(
    stack: Stack, file: Path, *words: str, organisation: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        vestibule("replay", str(file), "--timezone", ZONE, "--organisation", organisation, *words),
        env={**os.environ, "VESTIBULE_HOME": str(stack.root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def execute(stack: Stack, *statements: str) -> None:
    """Change the database behind the product's back."""

    async def run() -> None:
        connection = await asyncpg.connect(stack.endpoints.dsn("owner"))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def quirky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds every quirk there is a rule for."""
    path = tmp_path_factory.mktemp("counts") / "quirky.csv"
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["Date", "Hour", "LocationName", "InCount"])
        out.writerows(_quirky_rows())
    return path


def _quirky_rows() -> Iterator[tuple[str, object, str, object]]:
    for hour in range(24):  # the clock goes forward: 01 does not exist, and holds people
        yield "25/03/2012", hour, "High Street", 100 + hour
        yield "2012-03-25", hour, "Station", 40 + hour
    for hour in range(24):  # the clock goes back, one row for two passes
        yield "2010-10-31", hour, "High Street", 10 * hour
    for hour in [0, 1, 1, *range(2, 24)]:  # and once with two rows
        yield "2010-10-31", hour, "Station", 7 + hour
    for hour in range(24):  # every row twice, the same
        yield from [("01-Jul-12", hour, "High Street", 5 * hour)] * 2
    for hour in range(24):  # one hour twice, differently
        yield "02/07/2012", hour, "High Street", 3
    yield "02/07/2012", 12, "High Street", 4
    for hour in (9, 10, 15):  # most hours missing
        yield "03/07/2012", hour, "High Street", 11
    yield "04/07/2012", 12, "Arcade", 8  # a place that begins late
    yield "04/07/2012", 13, "Arcade", -1
    yield "04/07/2012", 14, "Arcade", "many"
    yield "04/07/2012", 24, "Arcade", 5
    yield "04/07/2012", 15, "Arcade", 40_000
    yield "31/31/2012", 15, "Arcade", 5


def test_every_quirk_is_listed_and_every_day_is_served_exactly(
    own_stack: Stack, quirky: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.csv"
    done = replay(own_stack, quirky, "--report", str(report), organisation="Quirks")
    assert done.returncode == 1, done.stdout + done.stderr  # a day waits for a policy
    assert "1 days wait for --duplicates" in done.stdout
    assert "0 mismatches" in done.stdout
    with report.open() as stream:
        rows = {(row["location"], row["date"]): row for row in csv.DictReader(stream)}
    forward = rows["High Street", "2012-03-25"]
    assert forward["file_total"] == forward["served_total"] == str(sum(range(100, 124)))
    assert "no-such-hour at 01" in forward["quirks"]
    stopped = rows["High Street", "2012-07-02"]
    assert (stopped["served_total"], stopped["excluded"]) in {("", "76"), ("", "72"), ("0", "76")}
    assert "differing-duplicates" in stopped["quirks"]
    twice = rows["High Street", "2012-07-01"]
    assert twice["served_total"] == str(5 * sum(range(24)))
    for row in rows.values():
        served = int(row["served_total"] or 0)
        assert int(row["file_total"]) - int(row["excluded"]) == served
        if row["excluded"] != "0":
            assert row["quirks"], row


def test_a_policy_releases_the_days_that_waited_for_one(own_stack: Stack, quirky: Path) -> None:
    done = replay(own_stack, quirky, "--duplicates", "last", organisation="Quirks")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 mismatches" in done.stdout


_FIRST = (
    "create table {kept} as select * from readings where spot = (select id from spots "
    "where name = '{place}' limit 1) and 0 < any (counts) order by time limit 1; "
)
_GONE = "delete from readings r using {kept} k where r.time = k.time and r.spot = k.spot"
_PUT_BACK = "insert into readings select * from {kept}"


def tampering(place: str, kept: str, *statements: str) -> str:
    """Return the statements, about a place's first reading with people."""
    return "; ".join(statements).format(place=place, kept=kept)


WRONG = {
    "a row deleted": (
        tampering("Station", "deleted", _FIRST + _GONE),
        tampering("Station", "deleted", _PUT_BACK, "drop table {kept}"),
        "Station on 2010-10-31",
    ),
    "a row doubled": (
        tampering("High Street", "doubled", _FIRST + _PUT_BACK),
        tampering("High Street", "doubled", _GONE, _PUT_BACK, "drop table {kept}"),
        "High Street on 2010-10-31",
    ),
    "a count altered by one": (
        "update rollup_day set in0 = in0 + 1 where day = '2012-03-25' and "
        "spot = (select id from spots where name = 'Station' limit 1)",
        "update rollup_day set in0 = in0 - 1 where day = '2012-03-25' and "
        "spot = (select id from spots where name = 'Station' limit 1)",
        "Station on 2012-03-25",
    ),
}
"""What is done to the database, how it is undone, and the place that the proof is to name."""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(list(WRONG), id="each at its place"),
        *(pytest.param([name], id=f"{name} alone", marks=pytest.mark.long) for name in WRONG),
    ],
)
def test_the_proof_fails_and_names_the_place(
    own_stack: Stack, quirky: Path, names: list[str]
) -> None:
    words = ("--duplicates", "last")
    execute(own_stack, *(WRONG[name][0] for name in names))
    try:
        done = replay(own_stack, quirky, *words, organisation="Quirks")
    finally:
        execute(own_stack, *(WRONG[name][1] for name in names))
    assert done.returncode == 1
    named = re.findall(r"MISMATCH.*?(\w[\w ]*? on \d{4}-\d\d-\d\d)", done.stdout)
    assert set(named) == {WRONG[name][2] for name in names}, done.stdout + done.stderr
    again = replay(own_stack, quirky, *words, organisation="Quirks")
    assert again.returncode == 0, again.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """Counts as a city publishes them."""
    return counts_at_hand(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize(
    ("since", "until", "forward"),
    [("2012-03-01", "2012-03-31", True), ("2010-10-01", "2010-10-31", False)],
    ids=["the clock goes forward", "the clock goes back"],
)
def test_published_counts_are_served_to_the_person(
    own_stack: Stack, published: Counts, since: str, until: str, forward: bool
) -> None:
    done = replay(own_stack, published.path, "--from", since, "--to", until, organisation="Leeds")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 mismatches" in done.stdout
    if forward:
        assert f"{published.of_march_2012:,}" in done.stdout


@pytest.mark.long
def test_a_replay_killed_in_the_middle_goes_on_where_it_was(
    own_stack: Stack, published: Counts
) -> None:
    words = ("--from", "2011-01-01", "--to", "2011-03-31")
    running = subprocess.Popen(
        vestibule(
            *("replay", str(published.path), "--timezone", ZONE, "--organisation", "Killed"), *words
        ),
        env={**os.environ, "VESTIBULE_HOME": str(own_stack.root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its server goes with it
    )
    state = own_stack.root / "replay" / "killed"
    deadline = time.monotonic() + 60
    while not list(state.glob("*.outbox")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = replay(own_stack, published.path, *words, organisation="Killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 mismatches" in done.stdout

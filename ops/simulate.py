"""`vestibule simulate`: a fleet of real agents against the running server, proved at the end.

    vestibule simulate --devices 1000 --scenario saturday --duration 600

Sites, devices and claims are made, each agent enrols as a device does, and people walk through
the doors. The truth is kept in a file outside the product; when the agents have drained it is
compared with what is stored and served. Exit code 0: every person is where he was counted.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
from rich.console import Console

from agent import identity
from agent.enrol import enrol
from agent.link import Identity
from ext.reference import read as read_frame
from ops.deployment import Deployment, database, deployment, home
from ops.proof import Proof, Sources, Spot, verify
from ops.register import add_claimed_devices
from ops.serving import server_running
from ops.words import parser_of
from protocol.counter import Counts
from protocol.frame import read_header
from server.api.keys import create_api_key, revoke_api_key
from simulators.command import Claim, enrol_all, read_claims, simulate
from simulators.scenarios import SCENARIOS, Scenario
from simulators.truth import Truth, TruthFile
from simulators.truth import read as read_truth

ZONE = "Europe/Stockholm"
SPOTS_A_SITE = 10  # nine doors and a kiosk
AT_ONCE = 200  # devices made in one transaction


@dataclass(frozen=True, slots=True)
class Run:
    """One run; its fleet is an organisation of its own, named after it."""

    name: str
    state: Path
    devices: int
    scenario: Scenario
    duration_s: float
    seed: int


def main(argv: list[str]) -> int:
    """Simulate and prove."""
    options = _parser().parse_args(argv)
    name = f"{options.scenario} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run = Run(
        name,
        home() / "simulate" / name.replace(" ", "-").replace(":", ""),
        options.devices,
        SCENARIOS[options.scenario],
        options.duration,
        options.seed,
    )
    run.state.mkdir(parents=True)
    claims = read_claims(options.claims) if options.claims else None
    return asyncio.run(_simulate(run, claims, Console(stderr=True)))


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<14} {each.about}" for name, each in SCENARIOS.items())
    parser = parser_of("simulate", f"{__doc__}\nscenarios:\n{known}")
    parser.add_argument("--devices", type=int, default=20, help="how many (default 20)")
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="saturday",
        metavar="NAME",
        help="one of those above (default saturday)",
    )
    parser.add_argument("--duration", type=float, default=60.0, help="seconds (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="the same gives the same people")
    parser.add_argument(
        "--claims", type=Path, help="enrol with these claims, one a line, instead of making some"
    )
    return parser


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run's proof came to; `held` people are in gaps or undated, `wrong` names places."""

    proof: Proof
    held: int
    wrong: tuple[str, ...]
    exact: bool  # the scenario promises every minute, not sums alone

    @property
    def holds(self) -> bool:
        return not self.wrong and (self.proof.holds or not self.exact)

    def print(self) -> None:
        """Print what differs, and the closing line."""
        for text in self.wrong:
            print(f"DIFFERENT {text}")
        print(
            f"{self.proof.line()}; {self.held:,} people in gaps or undated; "
            f"{len(self.wrong):,} differences"
        )


async def _simulate(run: Run, claims: list[Claim] | None, console: Console) -> int:
    found = deployment()
    async with server_running(found) as base:
        if claims is None:
            console.print(f"making {run.devices:,} devices and their claims")
            claims = await _make_claims(found, run)
        console.print(f"enrolling {len(claims):,} agents")
        disks: dict[str, Path] = {}
        members = [
            replace(member, disk=disks[member.identity.device])
            for member in await enrol_all(claims, _enroller(run.state, disks))
        ]
        console.print(f"{run.scenario.name} for {run.duration_s:.0f} s: {run.scenario.about}")
        truth_path = run.state / "truth"
        with TruthFile(truth_path) as truth:
            outcome = await simulate(
                members,
                scenario=run.scenario,
                duration_s=run.duration_s,
                state=run.state,
                seed=run.seed,
                truth=truth,
            )
        print(outcome.line())
        devices = [member.identity.device for member in members]
        verdict = await judge(
            found, run, devices, base=base, on_their_way=outcome.stats.on_their_way
        )
        verdict.print()
        if not outcome.drained:
            print("not drained: some frames have no receipt yet", file=sys.stderr)
        return 0 if verdict.holds and outcome.drained else 1


def _enroller(state: Path, disks: dict[str, Path]) -> Callable[[Claim], Awaitable[Identity]]:
    number = iter(range(1 << 30))

    async def one(claim: Claim) -> Identity:
        folder = state / f"device-{next(number)}"
        folder.mkdir()
        await asyncio.to_thread(enrol, claim.token, state=folder)
        found = identity.for_link(folder)
        disks[found.device] = folder
        return found

    return one


async def _make_claims(found: Deployment, run: Run) -> list[Claim]:
    """Make the run's sites, spots and devices; every tenth is a kiosk."""
    claims: list[Claim] = []
    async with database(found.owner_dsn.reveal()) as connection:
        for first in range(0, run.devices, AT_ONCE):
            rows = [
                {
                    "organisation": f"Simulation {run.name}",
                    "site": f"Site {number // SPOTS_A_SITE + 1}",
                    "time_zone": ZONE,
                    "spot": f"Spot {number % SPOTS_A_SITE + 1}",
                    "kind": "kiosk" if number % SPOTS_A_SITE == SPOTS_A_SITE - 1 else "counter",
                    "serial": f"{run.name} {number}",
                }
                for number in range(first, min(first + AT_ONCE, run.devices))
            ]
            async with connection.transaction():
                made = await add_claimed_devices(connection, rows, found.settings)
            claims += [
                Claim(text, "kiosk" if row["kind"] == "kiosk" else "counter", ZONE)
                for row, (_, text) in zip(rows, made, strict=True)
            ]
    return claims


async def judge(
    found: Deployment, run: Run, devices: Sequence[str], *, base: str, on_their_way: int = 0
) -> Verdict:
    """Compare the run's truth with the rows and answers of its devices."""
    truth = read_truth(run.state / "truth")
    connection = await asyncpg.connect(found.owner_dsn.reveal())
    try:
        spots = await _spots(connection, devices)
        held = await _held_back(connection, devices)
    finally:
        await connection.close()
    sources = Sources([run.state / "truth"], found.owner_dsn.reveal(), base, spots, only=True)
    try:
        proof = await verify(sources, on_their_way=on_their_way)
    finally:
        await _revoke(found.owner_dsn.reveal(), {spot.key for spot in spots.values()})
    exact = run.scenario.expect.minutes and not run.scenario.expect.conflicts
    wrong = [str(each) for each in proof.differences] if exact else _totals(proof, truth, held)
    return Verdict(proof, held, tuple(wrong), exact)


def _totals(proof: Proof, truth: Truth, held: int) -> list[str]:
    """Return what is wrong where clocks were off or outboxes copied: sums, within what is sure."""
    unsure = sum(entered + left for entered, left in truth.unsure_counts.values())
    found = proof.stored + held
    if proof.generated <= found <= proof.generated + unsure:
        return []
    return [f"all devices: generated {proof.generated} (and {unsure} unsure), found {found}"]


async def _spots(connection: asyncpg.Connection, devices: Sequence[str]) -> Mapping[str, Spot]:
    """Return the devices' spots, with a key that may read them."""
    rows = await connection.fetch(
        "select d.device, d.organisation_id, p.ref, p.name, p.kind, s.name as site, s.time_zone "
        "from devices d join assignments a on a.device_id = d.id join spots p on p.id = a.spot_id "
        "join sites s on s.id = p.site_id where d.device = any($1::text[])",
        devices,
    )
    keys = {
        organisation: await create_api_key(connection, organisation, note="simulate")
        for organisation in {row["organisation_id"] for row in rows}
    }
    return {
        row["device"]: Spot(
            row["ref"],
            f"{row['site']}, {row['name']}",
            row["kind"],
            row["time_zone"],
            keys[row["organisation_id"]],
        )
        for row in rows
    }


async def _revoke(dsn: str, keys: set[str]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for key in keys:
            await revoke_api_key(connection, key.split("_")[1])
    finally:
        await connection.close()


async def _held_back(connection: asyncpg.Connection, devices: Sequence[str]) -> int:
    """Return the people of these devices that are in gaps, or in frames held undated."""
    held: int = await connection.fetchval(
        "select coalesce(sum(c), 0)::bigint from gaps g join devices d on d.id = g.device_id, "
        "unnest(g.counts) c where d.device = any($1::text[]) and g.filled_at is null",
        devices,
    )
    for row in await connection.fetch(
        "select u.frame from undated_frames u join boots b on b.id = u.boot "
        "join devices d on d.id = b.device_id where d.device = any($1::text[])",
        devices,
    ):
        content = read_frame(row["frame"], read_header(row["frame"])).content
        if isinstance(content, Counts):
            held += sum(sum(line.counts) for line in content.lines)
    return held

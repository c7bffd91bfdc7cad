"""`vestibule rollout` on a real database with the real engine, and devices that follow a script."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ops.command import main
from ops.rollout import HOW_IT_ENDED, follow
from ops.services.stack import Stack
from protocol.update import Phase
from server.firmware import acts
from server.firmware.reads import One
from server.firmware.waves import OVER, State
from tests.deployed import deployed
from tests.firmware_world import APPROVER, BAD, GOOD, World, firmware_world
from tests.steering_world import Steered

pytestmark = pytest.mark.services
POLICY: dict[str, Any] = {
    "waves": [{"count": 2}, {}],
    "gate": {"success_pct": 90, "min_sample": 2, "soak_s": 5},
    "guards": {"fail_abs": 2, "fail_pct": 50, "min_sample": 5, "counts": False},
    "ramp": {"base": 600, "top": 600},
    "windows": None,
    "on_halt": "keep",
}


@dataclass
class Shell:
    """Somebody at the command line."""

    world: World
    capfd: pytest.CaptureFixture[str]
    policy: Path

    async def run(self, *words: str, code: int = 0) -> str:
        """Run `vestibule rollout`, which must end so, and return what it printed."""
        self.capfd.readouterr()
        found = await asyncio.to_thread(main, ["rollout", *words])
        out, err = self.capfd.readouterr()
        assert found == code, out + err
        return out or err

    async def told(self, *words: str, code: int = 0) -> Any:
        """Run it with --json."""
        return json.loads(await self.run(*words, "--json", code=code))

    async def planned(self, *words: str) -> str:
        """Plan a rollout and return its name."""
        asked = "plan", "shops", "bundle-2.0.0", "--policy", str(self.policy), *words
        return str((await self.told(*asked))["rollout"])

    async def watched(self, ref: str) -> tuple[One, list[str]]:
        """Follow a rollout while time passes; how it ended, and the states that were shown."""
        shown: list[str] = []

        def show(found: One) -> None:
            shown.append(found.line.state.value)

        given = self.world.owner, self.world.organisation, ref
        ended = await follow(*given, show=show, rest=lambda: self.world.pass_time(10))
        return ended, list(dict.fromkeys(shown))


@pytest.fixture
async def shell(
    stack: Stack,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> AsyncIterator[Shell]:
    """Four devices at four shops, today, and the deployment in the environment."""
    deployed(monkeypatch, stack, database, pki=tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY))
    async with firmware_world(stack, database) as world:
        world.clock.advance((datetime.now(UTC) - world.now).total_seconds())
        await world.fleet(4)
        await world.owner.execute("update device_firmware set reported_at = $1", world.now)
        yield Shell(world, capfd, policy)


async def test_a_rollout_is_planned_approved_watched_and_completed(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "plan", "shops", "bundle-2.0.0", "--policy", str(shell.policy)
    out = await shell.run(*words, "--dry-run")
    assert "4 devices at 4 sites, 4.0 kB in all" in out
    assert "the counts guard would find no loss: the policy wants no guard by counts" in out
    one = f'device = "{await _device(shell)}"'
    assert "1 device at 1 site, 1.0 kB in all" in await shell.run(
        *words, "--dry-run", "--filter", one
    )
    assert await shell.world.owner.fetchval("select count(*) from rollouts") == 0
    ref = await shell.planned("--name", "Agent 2")
    assert "awaiting approval" in await shell.run("submit", ref)
    assert "scheduled" in await shell.run("approve", ref, "--at", "2100-01-01T00:00Z")
    out = await shell.run("explain", await _device(shell), "--rollout", ref)
    assert "The rollout begins 2100-01-01 00:00 UTC." in out
    assert "scheduled" in await shell.run("start", ref)
    shell.world.clock.advance(60)
    ended, shown = await shell.watched(ref)
    assert (ended.line.state, shown) == (State.COMPLETED, ["scheduled", "running", "completed"])
    assert "completed at" in await shell.run("watch", ref)
    with monkeypatch.context() as patched:
        patched.setattr("ops.rollout._console", lambda: Console(force_terminal=True, width=150))
        assert "devices: 4 confirmed" in await shell.run("watch", ref)
    out = await shell.run("show", ref, "--plan", "--history", "--devices")
    for said in ("devices: 4 confirmed", "wave passed", "Agent 2", "soaked at", "4 devices at 4"):
        assert said in out
    (row,) = [line for line in (await shell.run("list", "shops")).splitlines() if ref in line]
    assert "Agent 2" in row
    assert row.split()[-6:-1] == ["4", "4", "0", "0", "command"]
    found = await shell.told("show", ref, "--history")
    assert found["rollout"]["funnel"] == {"confirmed": 4}
    people = [row["actor"] for row in found["history"] if row["event"] in ("planned", "approved")]
    assert {each.split(" ")[0] for each in people} == {"command"}
    assert await shell.told("list", "shops", "--open") == []


async def test_a_halted_rollout_is_shown_resumed_and_taken_back(shell: Shell) -> None:
    for device in shell.world.devices.values():
        device.script = BAD
    shell.policy.write_text(json.dumps({**POLICY, "gate": {"min_sample": 2, "soak_s": 600}}))
    ref = await shell.planned()
    await shell.run("submit", ref)
    await shell.run("approve", ref)
    shell.world.clock.advance(60)
    ended, shown = await shell.watched(ref)
    assert (ended.line.state, shown[-1]) == (State.HALTED, "halted")
    out = await shell.run("watch", ref, code=4)
    assert f"halted: vestibule rollout resume|revert|cancel {ref}" in out
    out = await shell.run("show", ref)
    for said in ("fail_abs: 2 of 2 in wave 1", "halts", "reverted by device", "resume, cancel"):
        assert said in out
    assert "reverted by device" in await shell.run("show", ref, "--state", "reverted by device")
    out = await shell.run("pause", ref, "--reason", "x", code=1)
    assert "it is halted, which this does not follow" in out
    for device in shell.world.devices.values():
        device.script = GOOD
    assert "running" in await shell.run("resume", ref, "--reason", "Those two are known")
    assert "paused" in await shell.run("pause", ref, "--reason", "Lunch")
    assert "running" in await shell.run("resume", ref, "--reason", "Back")
    shell.world.clock.advance(60)
    await shell.world.pass_time(60)
    out = await shell.run("revert", ref, "--reason", "Counts less")
    assert "takes it back" in out
    ended, shown = await shell.watched(ref)
    assert (ended.line.state, shown[-1]) == (State.REVERTED, "reverted")
    assert {device.version for device in shell.world.devices.values()} == {"1.0.0"}
    assert (await shell.told("watch", ref, code=5))["summary"]["state"] == "reverted"


async def test_who_rejected_it_is_counted_and_a_rollout_that_nobody_confirmed_is_no_plain_success(
    shell: Shell,
) -> None:
    for device in shell.world.devices.values():
        device.script = (Phase.REJECTED,)
    shell.policy.write_text(json.dumps({**POLICY, "waves": [{}]}))
    ref = await shell.planned()
    await shell.run("submit", ref)
    await shell.run("approve", ref)
    shell.world.clock.advance(60)
    ended, _ = await shell.watched(ref)
    assert ended.line.state is State.HALTED
    out = await shell.run("resume", ref, "--reason", "They get it by hand")
    assert "0 of 4 confirmed, 0 under way, 0 failed, 0 lost, 4 rejected" in " ".join(out.split())
    ended, _ = await shell.watched(ref)
    assert ended.line.state is State.COMPLETED_WITH_STRAGGLERS
    out = await shell.run("watch", ref, code=3)
    assert "4 devices rejected it, nobody has confirmed it" in out
    (row,) = [line for line in (await shell.run("list", "shops")).splitlines() if ref in line]
    assert row.split()[-6:-1] == ["4", "0", "0", "4", "command"]
    assert (await shell.told("show", ref))["summary"]["rejected"] == 4


async def test_settings_are_rolled_out_from_a_file(shell: Shell, tmp_path: Path) -> None:
    world, change = shell.world, tmp_path / "change.json"
    fleet = Steered(world, tmp_path)
    for row in world.devices:
        await fleet.ask(fleet.agent(row))
    change.write_text('{"values": {"health_s": 300, "log_level": "debug"}}')
    words = "plan", "shops", "--settings", str(change), "--policy", str(shell.policy)
    out = await shell.run(*words, "--dry-run")
    assert "settings: health_s 300, log_level debug (organisation)" in out
    assert "4 devices at 4 sites" in out
    ref = (await shell.told(*words))["rollout"]
    await shell.run("submit", ref)
    await shell.run("approve", ref)
    world.clock.advance(60)
    given = world.owner, world.organisation, ref
    ended = await follow(*given, show=lambda found: None, rest=lambda: fleet.pass_time(10))
    assert ended.line.state is State.COMPLETED
    assert fleet.have("health_s") == [300] * 4
    out = await shell.run("show", ref, "--plan", "--devices")
    assert "health_s 300, log_level debug (organisation)" in out
    out = await shell.run(*words, code=1)
    assert "no device would be reached: 4 already there" in out
    for text, said in (
        ('{"values": {"healt_s": 300}}', "health_s"),
        ('{"values": {"health_s": 3}}', "expected 60 to 1200, got 3"),
        ('{"values": {}}', "name at least one setting"),
        ('{"values": {"health_s": 300}, "scope": "site"}', "name the model or the site"),
        ('{"values": {"health_s": 300}, "scope": "site", "of": "site-x"}', "no such layer"),
        ('{"value": 1}', "value"),
    ):
        change.write_text(text)
        assert said in await shell.run(*words, code=1), text
    assert "one of them" in await shell.run("plan", "shops", code=1)
    shows = "plan", "shops", "--policy", str(shell.policy), "--questionnaire"
    assert "no questionnaire 'none'" in await shell.run(*shows, "none", code=1)
    await world.owner.execute(
        "insert into questionnaires (organisation_id, ref, hash, name, content, definition) "
        "values ($1, 'questionnaire-a', 2, 'A', '{}', '{}')",
        world.organisation,
    )
    out = await shell.run(*shows, "questionnaire-a", code=1)
    assert "no device would be reached: 4 wrong hardware" in out


async def test_above_the_blast_radius_somebody_else_approves(shell: Shell) -> None:
    shell.policy.write_text(json.dumps({**POLICY, "blast_radius": 2}))
    ref = await shell.planned()
    await shell.run("submit", ref)
    assert "somebody else than its author approves" in await shell.run("approve", ref, code=1)
    async with shell.world.act() as connection:
        given = connection, shell.world.organisation, ref
        await acts.approve(*given, actor=APPROVER, now=shell.world.now)
    assert APPROVER in await shell.run("show", ref)
    assert "cancelled" in await shell.run("cancel", ref, "--reason", "Another one comes")
    assert "cancelled at" in await shell.run("watch", ref, code=6)


async def test_what_is_shown_before_is_what_is_kept_and_shown_after(shell: Shell) -> None:
    world = shell.world
    bundle = await world.release("3.0.0", floor="3.0.0")
    await world.owner.execute(
        "update devices set model = 'DC9' where id = (select max(id) from devices)"
    )
    asked = "plan", "shops", bundle, "--policy", str(shell.policy)
    out = await shell.run(*asked, "--dry-run")
    for said in (
        "no way back for 3 devices that run agent 1.0.0: 3.0.0 raises the floor to 3.0.0",
        "its author may not approve it: there is no way back for 3 devices",
        "agent 3.0.0 is approved for DC2, and this is DC9",
    ):
        assert said in out
    made = await shell.told(*asked)
    kept = (await shell.told("show", made["rollout"], "--plan"))["plan"]
    assert kept == made["plan"]
    assert kept["reasons"] == {"wrong hardware": 1}
    await shell.run("submit", made["rollout"])
    assert "no way back" in await shell.run("approve", made["rollout"], code=1)


async def test_what_is_called_wrongly_is_told(shell: Shell) -> None:
    for words, said in (
        (("plan", "nobody", "bundle-2.0.0"), "no organisation 'nobody'"),
        (("plan", "shops", "bundle-none"), "no bundle 'bundle-none'"),
        (("plan", "shops", "bundle-2.0.0", "--filter", "model ="), "expected"),
        (("plan", "shops", "bundle-1.0.0"), "no device would be reached: 4 already there"),
        (("plan", "shops", "bundle-2.0.0", "--policy", "/none.json"), "No such file"),
        (("show", "rollout-none"), "there is no 'rollout-none'"),
        (("explain", "dc-none"), "there is no 'dc-none'"),
        (("explain", await _device(shell)), "was never in a rollout"),
        (("freeze", "end", "freeze-none"), "there is no 'freeze-none'"),
        (("bundle", "A", "agent=9.9.9"), "no release agent 9.9.9"),
        (("bundle", "A", "agent=2.0.0", "agent=1.0.0"), "one version of each component"),
        (("bundle", "bundle-2.0.0", "agent=2.0.0"), "there is a bundle"),
    ):
        assert said in await shell.run(*words, code=1), words
    shell.policy.write_text('{"waves": []}')
    words = "plan", "shops", "bundle-2.0.0", "--policy", str(shell.policy)
    assert "expected 1 to 50 waves, got 0" in await shell.run(*words, code=1)


async def test_bundles_and_freezes_are_made_and_shown(shell: Shell) -> None:
    out = await shell.run("bundle", "Spring", "agent=2.0.0")
    assert "agent 2.0.0" in out
    assert "Spring" in await shell.run("bundles")
    until = datetime.fromtimestamp(shell.world.now.timestamp() + 86_400, UTC).isoformat()
    out = await shell.run(
        "freeze", "add", "shops", "Black Friday", "--until", until, "--reason", "The busiest day"
    )
    assert "Black Friday" in out
    (freeze,) = await shell.told("freeze", "list", "shops")
    assert (freeze["name"], freeze["sites"]) == ("Black Friday", "")
    ref = await shell.planned("--name", "Spring")
    out = await shell.run("explain", await _device(shell), "--rollout", ref)
    assert "Nothing is installed before the end of 'Black Friday'" in out
    assert "command" in await shell.run("freeze", "end", freeze["freeze"])
    assert await shell.told("freeze", "list", "shops") == []
    acts_done = await shell.world.owner.fetch("select act from audit order by id")
    assert [row["act"] for row in acts_done] == [
        *("bundle made", "freeze added", "rollout drafted", "rollout planned", "freeze ended")
    ]


async def test_a_policy_is_printed_as_it_is_read(shell: Shell) -> None:
    whole = json.loads(await shell.run("policy"))
    shell.policy.write_text(json.dumps({**whole, "windows": None}))
    ref = await shell.planned()
    kept = (await shell.told("show", ref))["policy"]
    assert kept == {**whole, "windows": None}


def test_every_end_has_an_exit_code_of_its_own() -> None:
    assert set(HOW_IT_ENDED) == OVER | {State.HALTED}
    assert len(set(HOW_IT_ENDED.values())) == len(HOW_IT_ENDED)
    assert not set(HOW_IT_ENDED.values()) & {1, 2}


async def _device(shell: Shell) -> str:
    found: str = await shell.world.owner.fetchval("select min(device) from devices")
    return found

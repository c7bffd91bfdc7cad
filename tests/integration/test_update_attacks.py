"""Attacks on updates, each against the agent's own check over the server's own repository.

The names are python-tuf's and Uptane's. Who attacks holds what the test gives him, up to every
online key; never enough of the people's.
"""

import itertools
import random
import shutil
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from agent.update.agreement import Fault, Installed, Refused, class_of
from agent.update.trust import check
from ops import drafts
from protocol.assignment import Assignment
from protocol.content import canonical
from protocol.release import Release, version_key
from protocol.update import Class
from server.errors import RefusedError
from server.firmware.repository import Target
from server.pki.authority import Authority
from tests.releases_world import (
    DAY,
    World,
    begun,
    by,
    enrolled,
    fleet,
    item,
    ms,
    stranger,
    world,
)

__all__ = ["begun", "fleet", "world"]

EVIL = "ee" * 32


def evil(targets: Any) -> None:
    """Approve what nobody built for us."""
    release = Release("agent", "6.6.6", "6.6.6", None, ("DC2",))
    path = f"agent/6.6.6/{EVIL}.tar"
    targets.version += 1
    targets.targets[path] = TargetFile(666, {"sha256": EVIL}, path, {"custom": release.custom()})


def evil_target() -> Target:
    release = Release("agent", "6.6.6", "6.6.6", None, ("DC2",))
    return Target(f"agent/6.6.6/{EVIL}.tar", 666, EVIL, release)


# -- what is meant to happen ---------------------------------------------------------------------


def test_what_people_approved_and_the_server_assigned_is_installed(world: World) -> None:
    target = world.target
    assignment = world.assignment(target)
    found = world.ask(assignment)
    assert found.assignment == assignment
    assert found.now_ms == ms(world.now)
    assert world.fleet.listener.asked == [  # and asked again, of what did not change nothing comes
        *("2.root.json", "timestamp.json"),
        *(world.names()["snapshot"], world.names()["targets"]),
    ]
    world.fleet.listener.asked.clear()
    world.ask(assignment)
    assert world.fleet.listener.asked == ["2.root.json", "timestamp.json"]


async def test_the_check_is_a_process_of_its_own(world: World) -> None:
    target = world.target
    assert (await check(world.question(world.assignment(target)))).assignment.bundle[0].version == (
        "1.1.0"
    )
    with pytest.raises(Refused) as caught:
        await check(world.question(world.assignment(target, nonce="00" * 16)))
    assert caught.value.fault is Fault.WRONG_NONCE
    assert caught.value.where == "nonce"


def test_a_bundle_is_installed_whole_or_not_at_all(world: World) -> None:
    agent = world.target
    screen = world.release("2.0.0", component="kiosk")
    found = world.ask(world.assignment(agent, screen))
    assert [each.component for each in found.assignment.bundle] == ["agent", "kiosk"]
    other = replace(screen, sha256=EVIL)
    assert world.fault(world.assignment(agent, other)) is Fault.WRONG_DIGEST


# -- X31: unsigned, by a wrong key, by too few ----------------------------------------------------


@pytest.mark.parametrize("who", ["nobody", "stranger", "one of two", "one twice", "the server"])
def test_x31_what_too_few_approved_is_not_installed(world: World, who: str) -> None:
    signers = {
        "nobody": [],
        "stranger": [stranger(world.top)],
        "one of two": [world.signer("anna")],
        "one twice": [world.signer("anna")],
        "the server": [world.online("snapshot"), world.online("timestamp")],
    }[who]
    forged = world.forge("targets", evil, *signers)
    if who == "one twice":  # the same signature, under another person's name
        twice = Metadata.from_bytes(forged)
        bo = world.public("bo").keyid
        [signature] = twice.signatures.values()
        twice.signatures[bo] = type(signature)(bo, signature.signature)
        forged = world.served[f"{twice.signed.version}.targets.json"] = twice.to_bytes()
    world.follow(forged)  # whoever forges it holds both online keys
    assert world.fault(world.assignment(evil_target())) is Fault.UNSIGNED


# -- X32: rollback -------------------------------------------------------------------------------


def test_x32_an_older_timestamp_is_refused(world: World) -> None:
    old = world.repository.metadata.joinpath("timestamp.json").read_bytes()
    target = world.release("1.2.0")
    world.ask(world.assignment(target))
    world.served["timestamp.json"] = old
    assert world.fault(world.assignment(target)) is Fault.ROLLED_BACK


def test_x32_an_older_snapshot_under_a_newer_timestamp_is_refused(world: World) -> None:
    old = world.names()["snapshot"]
    content = world.repository.metadata.joinpath(old).read_bytes()
    target = world.release("1.2.0")
    world.ask(world.assignment(target))

    def name_old(timestamp: Any) -> None:
        timestamp.version += 1
        version = Metadata.from_bytes(content).signed.version
        timestamp.snapshot_meta = MetaFile.from_data(version, content, ["sha256"])

    world.forge("timestamp", name_old, world.online("timestamp"))
    assert world.fault(world.assignment(target)) is Fault.ROLLED_BACK


def test_x32_older_targets_under_a_newer_snapshot_are_refused(world: World) -> None:
    first = world.target
    old = world.repository.metadata.joinpath(world.names()["targets"]).read_bytes()
    world.folder.remove("agent", "1.1.0", now=world.now)
    world.approve()
    world.publish()
    second = world.release("1.2.0")
    world.ask(world.assignment(second))
    assert world.fault(world.assignment(first)) is Fault.UNKNOWN_TARGET  # it was withdrawn
    world.follow(old)
    assert world.fault(world.assignment(first)) is Fault.ROLLED_BACK


def test_x32_keys_that_a_root_has_taken_away_are_believed_no_longer(world: World) -> None:
    target = world.target
    old = {role: world.online(role) for role in ("snapshot", "timestamp")}
    world.ask(world.assignment(target))
    world.rotate_online()
    world.ask(world.assignment(target))
    world.served["2.root.json"] = lambda handler: handler.send_error(404)  # it is kept already

    def later(signed: Any) -> None:
        signed.version += 100

    world.forge("timestamp", later, old["timestamp"])
    assert world.fault(world.assignment(target)) is Fault.UNSIGNED


def test_x32_no_release_below_the_floor_that_was_committed_is_installed(world: World) -> None:
    old = world.target
    raised = world.release("1.2.0", floor="1.2.0")
    world.installed = {"agent": Installed("1.2.0", "1.2.0")}
    assert world.fault(world.assignment(old)) is Fault.BELOW_FLOOR
    world.ask(world.assignment(raised))
    world.installed = {"agent": Installed("1.2.0", "1.1.0")}  # it was tried, and not committed
    world.ask(world.assignment(old))  # within the range the way back is open


# -- X33: freeze ---------------------------------------------------------------------------------


def test_x33_what_is_served_for_ever_is_stale_after_three_days(world: World) -> None:
    target = world.target
    later = world.now + 3 * DAY - timedelta(minutes=1)
    assignment = world.assignment(target, not_after_ms=ms(world.now + 9 * DAY))
    world.ask(assignment, now_ms=ms(later))
    later += timedelta(minutes=2)
    assert world.fault(assignment, now_ms=ms(later)) is Fault.STALE
    assert class_of(Fault.STALE) is Class.NETWORK  # it may be that the server was away: try again


@pytest.mark.parametrize("role", ["root", "targets"])
def test_x33_what_people_signed_is_stale_in_the_end_whatever_the_server_signs(
    world: World, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = world.target
    expires = {each.type: each.expires for each in world.parts()}
    assert expires["root"] - world.now > expires["targets"] - world.now >= 364 * DAY
    monkeypatch.setattr(drafts, f"{role.upper()}_LIFE", 100 * DAY)
    world.folder.renew(now=world.now)
    world.approve()
    world.publish()
    later = ms(world.now + 101 * DAY)

    def fresh(signed: Any) -> None:
        signed.version += 1
        signed.expires = world.now + 200 * DAY
        if "issued" in signed.unrecognized_fields:
            signed.unrecognized_fields["issued"] = later - 1000

    world.forge("snapshot", fresh, world.online("snapshot"))
    newest = world.repository.metadata.joinpath(world.names()["targets"]).read_bytes()
    world.follow(newest)
    world.forge("timestamp", fresh, world.online("timestamp"))
    assignment = world.assignment(target, not_after_ms=later + 1000)
    assert world.fault(assignment, now_ms=None) is Fault.STALE  # TLS looks at no date then


# -- X34: fast-forward, and back from it ---------------------------------------------------------


def run_ahead(world: World, role: str) -> None:
    """With both online keys: numbers that the server reaches in no lifetime."""

    def far(signed: Any) -> None:
        signed.version = 1 << 50
        if role == "targets":
            signed.meta["targets.json"].version = 1 << 50

    if role == "timestamp":
        world.forge("timestamp", far, world.online("timestamp"))
        return
    snapshot = world.forge("snapshot", far, world.online("snapshot"))

    def name(timestamp: Any) -> None:
        timestamp.version += 1
        timestamp.snapshot_meta = MetaFile.from_data(1 << 50, snapshot, ["sha256"])

    world.forge("timestamp", name, world.online("timestamp"))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_x34_who_ran_ahead_with_the_numbers_is_undone_by_new_online_keys(
    world: World, role: str
) -> None:
    target = world.target
    run_ahead(world, role)
    if role == "targets":
        assert world.fault(world.assignment(target)) is Fault.UNREACHABLE  # no such targets
    else:
        world.ask(world.assignment(target))
    world.served.clear()
    world.now += timedelta(hours=1)
    world.repository.resign(now=world.now)
    assert world.fault(world.assignment(target)) is Fault.ROLLED_BACK
    world.rotate_online()
    world.ask(world.assignment(target))
    newer = world.release("1.2.0")
    world.ask(world.assignment(newer))


def test_x34_the_server_itself_recovers_from_files_that_ran_ahead(world: World) -> None:
    target = world.target
    run_ahead(world, "snapshot")
    for name, content in world.served.items():
        assert isinstance(content, bytes)
        world.repository.metadata.joinpath(name).write_bytes(content)
    world.served.clear()
    world.ask(world.assignment(target))
    world.rotate_online()
    assert world.held("timestamp.json").signed.version < 1 << 40
    world.ask(world.assignment(target))


# -- X35: mix and match --------------------------------------------------------------------------


def test_x35_a_snapshot_of_another_time_is_refused(world: World) -> None:
    old = world.repository.metadata.joinpath(world.names()["snapshot"]).read_bytes()
    target = world.release("1.2.0")
    world.served[world.names()["snapshot"]] = old
    assert world.fault(world.assignment(target)) is Fault.MIXED


def test_x35_targets_of_another_time_are_refused(world: World) -> None:
    old = world.repository.metadata.joinpath(world.names()["targets"]).read_bytes()
    target = world.release("1.2.0")
    world.served[world.names()["targets"]] = old
    assert world.fault(world.assignment(target)) is Fault.MIXED


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_x35_a_file_of_another_role_is_refused(world: World, role: str) -> None:
    target = world.target
    name = "2.root.json" if role == "root" else world.names()[role]
    other = "targets" if role != "targets" else "snapshot"
    world.served[name] = world.repository.metadata.joinpath(world.names()[other]).read_bytes()
    assert world.fault(world.assignment(target)) in (
        *(Fault.UNSIGNED, Fault.BAD_METADATA, Fault.MIXED, Fault.ENDLESS),
    )


# -- X37, X38: the wrong software, by who holds the server ----------------------------------------


def test_x37_a_release_for_another_model_is_refused(world: World) -> None:
    other = world.release("1.2.0", hardware=("DC3",))
    assert world.fault(world.assignment(other)) is Fault.WRONG_MODEL
    assert world.fault(world.assignment(other, hardware="DC3")) is Fault.WRONG_HARDWARE
    assert class_of(Fault.WRONG_MODEL) is class_of(Fault.WRONG_HARDWARE) is Class.HARDWARE


def test_x37_a_stepping_stone_is_not_jumped_over(world: World) -> None:
    target = world.release("1.3.0", requires="1.2.0")
    assert world.fault(world.assignment(target)) is Fault.STEP_MISSING
    world.installed = {"agent": Installed("1.2.0", "1.0.0")}
    world.ask(world.assignment(target))
    world.installed = {"agent": Installed("built by hand", "1.0.0")}
    assert world.fault(world.assignment(target)) is Fault.STEP_MISSING


ALTERED: dict[str, tuple[Any, Fault]] = {
    "device": ("dc-7g6f5e4d3c2b", Fault.WRONG_DEVICE),
    "hardware": ("DC3", Fault.WRONG_HARDWARE),
    "nonce": ("00" * 16, Fault.WRONG_NONCE),
    "not_after_ms": (1, Fault.EXPIRED),
    "component": ("kiosk", Fault.WRONG_COMPONENT),
    "version": ("1.1.1", Fault.WRONG_VERSION),
    "floor": ("0.9.0", Fault.WRONG_FLOOR),
    "target": (f"agent/1.1.0/{EVIL}.tar", Fault.UNKNOWN_TARGET),
    "length": (1, Fault.WRONG_LENGTH),
    "sha256": (EVIL, Fault.WRONG_DIGEST),
}


def test_x38_each_field_that_a_taken_over_service_alters_is_refused_for_what_it_is(
    world: World,
) -> None:
    for name, (value, fault) in ALTERED.items():
        if name in Assignment.__dataclass_fields__:
            altered = world.assignment(world.target, **{name: value})
        else:
            bundle = (item(world.target, **{name: value}),)
            altered = world.assignment(world.target, bundle=bundle)
        assert world.fault(altered) is fault, name
    assert len({fault for _, fault in ALTERED.values()}) == len(ALTERED)


def test_x38_a_field_that_is_altered_without_the_services_key_is_refused(world: World) -> None:
    made = world.assignment(world.target)
    sealed = world.sealed(made)
    world.ask(sealed.content())
    other: dict[str, Any] = {
        "rollout": "ro-7g6f5e4d",
        "execution": "exe-7g6f5e4d",
        "attempt": 2,
        "bundle": (item(world.target, floor="0.9.0"),),
        "window": ((1, 2),),
        "idle_s": 1,
        "delay_s": 1,
        "trial_s": 1,
        "urgent": True,
    }
    for name in Assignment.__dataclass_fields__:
        value = other.get(name) or ALTERED[name][0]
        altered = replace(made, **{name: value})
        assert altered != made
        false = replace(sealed, text=altered.content())
        assert world.fault(false.content()) is Fault.UNTRUSTED, name


@pytest.mark.parametrize("service", ["svc-content", "svc-ingest", "svc-control"])
def test_x38_no_other_service_of_ours_assigns_anything(world: World, service: str) -> None:
    target = world.target
    asked = by(world.fleet, service, world.assignment(target))
    assert world.fault(asked) is Fault.UNTRUSTED


def test_x38_what_is_no_assignment_is_refused(world: World) -> None:
    made = world.sealed(world.assignment(world.target))
    for content in (
        *(b"", b"{}", b"\xff", b"[" * 5_000, b"{" + b" " * 40_000 + b"}"),
        canonical({**made.value(), "assignment": "{}"}),
        canonical({**made.value(), "more": 1}),
    ):
        assert world.fault(content) is Fault.MALFORMED


def test_x38_an_assignment_is_good_for_one_asking_and_one_device(world: World) -> None:
    target = world.target
    recorded = world.envelope(world.assignment(target))
    world.ask(recorded)
    assert world.fault(recorded, nonce="ab" * 16) is Fault.WRONG_NONCE  # it has asked again since
    other = enrolled(world.fleet.authority, world.top / "other", "dc-7g6f5e4d3c2b")
    shutil.copytree(world.state / "update", other / "update")
    assert world.fault(recorded, state=other) is Fault.WRONG_DEVICE
    assert world.fault(recorded, now_ms=ms(world.now + DAY)) is Fault.EXPIRED


# -- keys that were stolen, one role after the other -----------------------------------------------


def test_x38_the_timestamps_key_alone_names_no_other_snapshot(world: World) -> None:
    forged = world.forge("snapshot", lambda signed: None, stranger(world.top))

    def name(timestamp: Any) -> None:
        timestamp.version += 1
        version = Metadata.from_bytes(forged).signed.version
        timestamp.snapshot_meta = MetaFile.from_data(version, forged, ["sha256"])

    world.forge("timestamp", name, world.online("timestamp"))
    assert world.fault(world.assignment(evil_target())) is Fault.UNSIGNED


def test_x38_the_snapshots_key_alone_is_not_named_by_the_timestamp(world: World) -> None:

    def other(snapshot: Any) -> None:
        snapshot.meta["targets.json"].version += 1

    world.forge("snapshot", other, world.online("snapshot"))
    assert world.fault(world.assignment(evil_target())) is Fault.MIXED


def test_x38_one_root_key_names_no_other_keys(world: World) -> None:
    target = world.target

    def name_mine(root: Any) -> None:
        root.version += 1
        key = stranger(world.top).public_key
        for role in ("targets", "snapshot", "timestamp"):
            root.roles[role].keyids = [key.keyid]
            root.roles[role].threshold = 1
        root.keys[key.keyid] = key

    for signers in ([], [world.signer("anna-root")], [stranger(world.top)]):
        world.forge("root", name_mine, *signers)
        assert world.fault(world.assignment(target)) is Fault.UNSIGNED
    world.served.clear()
    world.ask(world.assignment(target))


def test_x38_two_root_keys_of_the_next_root_are_not_enough_without_two_of_the_last(
    world: World,
) -> None:

    def replace_all(root: Any) -> None:
        root.version += 1
        for name in ("eve", "mallory"):
            key = world.public(name)
            root.keys[key.keyid] = key
        root.roles["root"].keyids = [world.public(name).keyid for name in ("eve", "mallory")]

    signers = [world.signer("eve"), world.signer("mallory"), world.signer("anna-root")]
    world.forge("root", replace_all, *signers)
    assert world.fault(world.assignment(evil_target())) is Fault.UNSIGNED


def test_x38_whoever_holds_every_online_key_installs_nothing_that_was_not_approved(
    world: World,
) -> None:
    """Red team: timestamp, snapshot, svc-firmware, the server, its database, the broker.

    Whatever he serves and signs, what comes of it is a refusal, or a release that people approved
    for this hardware and that is not below this device's floor.
    """
    releases = [
        world.target,
        world.release("1.2.0", floor="1.1.0"),
        world.release("1.2.1", floor="1.1.0", hardware=("DC3",)),
        world.release("1.3.0", floor="1.1.0", requires="1.2.0"),
        world.release("0.9.0", floor="0.9.0"),
    ]
    approved = {each.path: each for each in releases}
    rng = random.Random(20_261_122)
    old = {
        path.name: path.read_bytes() for path in world.repository.metadata.glob("*.targets.json")
    }
    world.installed = {"agent": Installed("1.1.0", "1.1.0")}
    served: list[Any] = [*old.values(), *["newest"] * len(old), "evil", "evil by one"]
    trust, new = world.state / "update", world.top / "as installed"
    shutil.copytree(trust, new)
    outcomes: dict[str, int] = {}
    for number in range(24):
        world.served.clear()
        if rng.random() < 0.5:  # else it is a device that has seen what he did before
            shutil.rmtree(trust)
            shutil.copytree(new, trust)
        targets = rng.choice(served)
        if targets == "newest":
            targets = old[world.names()["targets"]]
        elif isinstance(targets, str):
            signers = [world.signer("anna")] if targets == "evil by one" else []
            targets = world.forge("targets", evil, *signers)
        world.follow(targets, ahead=2 * number + 2)
        one, other = rng.choice([*releases, evil_target()]), rng.choice([*releases, evil_target()])
        changes: dict[str, Any] = {}
        fields = ["version", "floor", "target", "length", "sha256"]
        for name in rng.sample(fields, rng.choice([0, 0, 1, 2, 5])):
            changes[name] = getattr(item(other), name)
        said = world.assignment(one, bundle=(item(one, **changes),), attempt=number + 1)
        try:
            [found] = world.ask(said).assignment.bundle
        except Refused as refused:
            outcomes[refused.fault] = outcomes.get(refused.fault, 0) + 1
            continue
        outcomes["installed"] = outcomes.get("installed", 0) + 1
        target = approved[found.target]
        assert (found.sha256, found.length) == (target.sha256, target.length)
        assert found.version == target.release.version
        assert "DC2" in target.release.hardware
        assert version_key(found.version) >= version_key("1.1.0")
        assert target.release.requires is None
    assert {"installed", Fault.UNSIGNED, Fault.ROLLED_BACK} <= outcomes.keys(), outcomes
    assert len(outcomes) >= 7, outcomes


# -- a device's own troubles -----------------------------------------------------------------------


def test_a_device_that_slept_through_rotations_follows_the_chain_of_roots(world: World) -> None:
    target = world.target
    for name, gone in (("dora", "cleo"), ("egon", "bo")):
        world.folder.rotate(
            "root",
            add=[world.public(f"{name}-root")],
            remove=[f"{gone}-root"],
            threshold=None,
            now=world.now,
        )
        world.approve("anna-root", "bo-root", "dora-root")
        world.publish()
    world.rotate_online("anna-root", "dora-root")
    world.ask(world.assignment(target))
    assert world.names()["root"] == "4.root.json"


def test_files_that_rotted_are_fetched_anew(world: World) -> None:
    target = world.target
    world.ask(world.assignment(target))
    trust = world.state / "update" / "trust"
    names = [path for path in trust.rglob("*.json") if path.name != "root.json"]
    assert len(names) >= 5
    for path, content in itertools.product(names, (b"", b"null")):
        path.write_bytes(content)
        world.ask(world.assignment(target))


def test_a_device_that_was_given_no_root_says_so(world: World) -> None:
    target = world.target
    (world.state / "update/trust/root.json").unlink()
    assert world.fault(world.assignment(target)) is Fault.NO_ROOT


def test_a_server_that_is_away_or_of_another_authority_is_no_source(world: World) -> None:
    target = world.target
    assert world.fault(world.assignment(target), server=("localhost", 1)) is Fault.UNREACHABLE
    assert world.fault(world.assignment(target), server=("127.0.0.2", 1)) is Fault.UNREACHABLE
    other = world.top / "stranger"
    bundle = Authority.create(other, now=world.now).bundle()
    state = world.top / "misled"
    shutil.copytree(world.state, state)
    (state / "identity" / "bundle.pem").write_text(bundle)
    assert world.fault(world.assignment(target), state=state) is Fault.UNTRUSTED


# -- what the server refuses to serve --------------------------------------------------------------


def test_x43_a_release_that_one_person_made_alone_is_not_published(world: World) -> None:
    world.draft(Release("agent", "1.2.0", "1.0.0", None, ("DC2",)))
    world.approve("anna")
    with pytest.raises(RefusedError, match="would refuse this"):
        world.publish()
    assert world.folder.to_sign(world.public("anna").keyid) == []  # she can't sign twice
    assert [each.release.version for each in world.repository.targets()] == ["1.1.0"]
    world.approve("cleo")
    world.publish()
    assert [each.release.version for each in world.repository.targets()] == ["1.1.0", "1.2.0"]

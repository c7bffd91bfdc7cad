"""What the server serves of releases: whole or not at all, fresh, and what a device takes."""

import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import prometheus_client
import pytest
from structlog.testing import capture_logs
from tuf.api.metadata import Delegations, Metadata, Targets

from ops.doctor import releases
from protocol.release import Release
from server.clock import ManualClock
from server.errors import RefusedError
from server.firmware import repository as module
from server.firmware.artifacts import ArtifactError
from server.firmware.signing import Signing
from server.pki.files import write
from tests.releases_world import DAY, World, begun, fleet, ms, world

__all__ = ["begun", "fleet", "world"]

HOUR = timedelta(hours=1)


def files(world: World) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in world.repository.metadata.iterdir()}


def refusal(world: World) -> RefusedError:
    """Publish, which must be refused and change nothing."""
    before = files(world)
    with pytest.raises(RefusedError) as caught:
        world.publish()
    assert files(world) == before
    world.ask(world.assignment(world.target))
    return caught.value


# -- publishing ----------------------------------------------------------------------------------


def test_the_same_publication_again_changes_nothing(world: World) -> None:
    before = files(world)
    published = world.publish()
    assert files(world) == before
    assert [each.path for each in published.targets] == [world.target.path]
    assert published.versions["targets"] == 2


class CutError(OSError):
    """The power went."""


@pytest.mark.parametrize("root_too", [False, True])
def test_a_publication_that_is_cut_off_anywhere_changed_nothing_and_is_done_again(
    world: World, root_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = world.draft(Release("agent", "1.2.0", "1.0.0", None, ("DC2",)))
    if root_too:
        world.folder.rotate(
            "root", add=[world.public("dora-root")], remove=[], threshold=None, now=world.now
        )
    world.approve()
    most = 4 if root_too else 3  # perhaps a root, targets, snapshot, timestamp
    for number in range(most + 1):
        shutil.copytree(world.top, world.top.with_name(f"{world.top.name}-{number}"))
        each = World(world.fleet, world.top.with_name(f"{world.top.name}-{number}"))
        left = iter([True] * number + [False])

        def cut(path: Path, content: bytes, left: Iterator[bool] = left) -> None:
            if not next(left):
                path.with_name(path.name + ".partial").write_bytes(content[: len(content) // 2])
                raise CutError("no power")
            write(path, content)

        monkeypatch.setattr(module, "write", cut)
        if number == most:
            each.publish()
        else:
            with pytest.raises(CutError):
                each.publish()
        monkeypatch.setattr(module, "write", write)
        if number < most:
            assert [one.path for one in each.repository.targets()] == [world.target.path]
            each.ask(each.assignment(world.target))
            each.repository.resign(now=each.now + HOUR)  # the worker goes on meanwhile
            each.ask(each.assignment(world.target))
            each.publish()
        each.ask(each.assignment(target))
        shutil.rmtree(each.top)


def test_what_was_never_approved_after_what_is_served_is_refused(world: World) -> None:
    old = world.folder.targets_file()
    world.release("1.2.0")
    newest = world.folder.metadata / "3.targets.json"
    kept = newest.read_bytes()
    newest.unlink()
    assert world.folder.targets_file() == old
    assert refusal(world).code == "release_conflict"
    world.draft(Release("agent", "1.3.0", "1.0.0", None, ("DC2",)))  # another third version
    world.approve()
    assert refusal(world).code == "release_conflict"
    newest.write_bytes(kept)
    world.publish()


def test_roots_that_are_not_the_next_of_ours_are_refused(world: World) -> None:
    world.folder.rotate(
        "root", add=[world.public("dora-root")], remove=[], threshold=None, now=world.now
    )
    world.approve("anna-root")
    assert refusal(world).code == "release_refused"  # signed by one
    world.approve("bo-root")
    second = world.folder.metadata / "2.root.json"
    second.rename(world.folder.metadata / "3.root.json")
    assert refusal(world).code == "release_conflict"  # a gap
    (world.folder.metadata / "3.root.json").rename(second)
    first = world.folder.metadata / "1.root.json"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert refusal(world).code == "release_conflict"  # another first
    first.write_bytes(kept)
    world.publish()
    assert world.names()["root"] == "2.root.json"


def test_a_release_without_its_bytes_is_refused(world: World) -> None:
    target = world.draft(Release("agent", "1.2.0", "1.0.0", None, ("DC2",)))
    world.approve()
    artifact = world.folder.artifact(target.sha256)
    assert artifact is not None
    kept = artifact.read_bytes()
    artifact.unlink()
    assert refusal(world).code == "release_bytes_missing"
    artifact.write_bytes(kept[:-1] + b"x")
    with pytest.raises(ArtifactError):
        world.publish()
    artifact.write_bytes(kept)
    world.publish()
    world.ask(world.assignment(target))


@pytest.mark.parametrize("what", ["custom", "path", "length", "twice", "delegation"])
def test_targets_that_make_no_sense_are_refused_though_enough_signed(
    world: World, what: str
) -> None:
    draft = world.folder.targets()
    draft.signed.version += 1
    [(path, target)] = draft.signed.targets.items()
    match what:
        case "custom":
            del target.unrecognized_fields["custom"]["floor"]
        case "path":
            draft.signed.targets = {path.replace("1.1.0", "1.1.1"): target}
        case "length":
            target.length = 1 << 40
        case "twice":
            copied: Metadata[Targets] = Metadata.from_bytes(draft.to_bytes())
            other = copied.signed.targets[path]
            other.hashes["sha256"] = "ab" * 32
            draft.signed.targets[f"agent/1.1.0/{'ab' * 32}.tar"] = other
        case _:
            draft.signed.delegations = Delegations(keys={}, roles={})
    for number, name in enumerate(("anna", "bo")):
        draft.sign(world.signer(name), append=number > 0)
    (world.folder.metadata / "3.targets.json").write_bytes(draft.to_bytes())
    assert refusal(world).code == "release_malformed"


def test_a_root_that_names_keys_which_the_server_has_not_is_refused(world: World) -> None:
    world.folder.rotate(
        "online",
        add=[world.public("elsewhere-1"), world.public("elsewhere-2")],
        remove=[],
        threshold=None,
        now=world.now,
    )
    world.approve()
    assert refusal(world).code == "release_key_missing"


# -- signing anew --------------------------------------------------------------------------------


def test_the_timestamp_is_signed_each_hour_and_the_snapshot_each_week(world: World) -> None:
    assert world.repository.resign(now=world.now + HOUR - timedelta(seconds=1)) == []
    assert world.repository.resign(now=world.now + HOUR) == ["timestamp"]
    assert world.repository.resign(now=world.now + HOUR) == []
    assert world.repository.resign(now=world.now + 7 * DAY + HOUR) == ["snapshot", "timestamp"]
    world.now += 7 * DAY + HOUR
    world.ask(world.assignment(world.target))
    left = world.repository.left(now=world.now)
    assert left["timestamp"] == module.TIMESTAMP_LIFE
    assert left["snapshot"] == module.SNAPSHOT_LIFE
    assert left["root"] > left["targets"] > 300 * DAY


def test_versions_rise_though_the_clock_runs_back(world: World) -> None:
    world.ask(world.assignment(world.target))
    before = {role: each.version for role, each in zip(world.names(), world.parts(), strict=True)}
    world.now -= timedelta(minutes=30)
    target = world.release("1.2.0")
    after = {role: each.version for role, each in zip(world.names(), world.parts(), strict=True)}
    assert all(after[role] > before[role] for role in ("timestamp", "snapshot", "targets"))
    world.ask(world.assignment(target))


def test_what_was_lost_or_came_from_a_backup_is_followed_by_what_devices_take(
    world: World,
) -> None:
    backup = files(world)
    for _ in range(3):
        world.now += HOUR
        world.repository.resign(now=world.now)
        world.ask(world.assignment(world.target))
    for path in world.repository.metadata.iterdir():
        path.unlink()
    for name, content in backup.items():
        (world.repository.metadata / name).write_bytes(content)
    world.now += HOUR
    world.repository.resign(now=world.now)
    world.ask(world.assignment(world.target))
    (world.repository.metadata / "timestamp.json").unlink()
    assert world.repository.resign(now=world.now) == []
    world.now += HOUR
    world.publish()
    world.ask(world.assignment(world.target))


def test_two_processes_sign_one_after_the_other(world: World) -> None:
    troubles: list[BaseException] = []

    def sign(hours: int) -> None:
        try:
            world.repository.resign(now=world.now + hours * HOUR)
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=sign, args=(hours,)) for hours in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    world.ask(world.assignment(world.target))


# -- the worker, and its alarm -------------------------------------------------------------------


def left_said(role: str) -> float:
    name = "vestibule_firmware_metadata_left_seconds"
    value = prometheus_client.REGISTRY.get_sample_value(name, {"role": role})
    assert value is not None
    return value


def test_a_server_that_cannot_sign_raises_an_alarm_once_and_says_when_it_can_again(
    world: World,
) -> None:
    clock = ManualClock(ms(world.now))
    worker = Signing(world.repository, clock)
    key = next(world.repository.keys.glob("timestamp-*.pem"))
    kept = key.read_bytes()
    with capture_logs() as logs:
        worker.look()
        assert left_said("timestamp") == module.TIMESTAMP_LIFE.total_seconds()
        key.unlink()
        for _ in range(30):
            clock.advance(3600)
            worker.look()
        assert left_said("timestamp") == (module.TIMESTAMP_LIFE - 30 * HOUR).total_seconds()
        key.write_bytes(kept)
        worker.look()
    told = [(each["log_level"], each["event"]) for each in logs if each["log_level"] != "debug"]
    assert told == [
        ("error", "releases cannot be signed: devices will install nothing"),
        ("error", "releases run out: devices will install nothing"),
        ("info", "releases can be signed again"),
    ]
    assert left_said("timestamp") == module.TIMESTAMP_LIFE.total_seconds()


def test_the_people_are_told_a_month_before_what_they_signed_runs_out(world: World) -> None:
    clock = ManualClock(ms(world.now))
    worker = Signing(world.repository, clock)
    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(112 * 86_400)
            worker.look()
    said = [each for each in logs if each["log_level"] == "error"]
    assert [(each["role"], each["hours"]) for each in said] == [("targets", 29 * 24)]


async def test_a_server_without_releases_has_nothing_to_sign(world: World, tmp_path: Path) -> None:
    empty = module.Repository(tmp_path / "firmware")
    with capture_logs() as logs:
        await Signing(empty, ManualClock(ms(world.now))).turn()
    assert logs == []
    assert empty.first_trust() is None
    assert empty.targets() == ()


async def test_the_doctor_says_what_would_keep_devices_from_installing(world: World) -> None:
    folder, now = world.repository.folder, datetime.now(UTC)
    found = await releases(folder, now=now)
    assert (found.well, found.found) == (True, "1 approved, keys and bytes are here")
    assert (await releases(folder.with_name("nowhere"), now=now)).well
    late = await releases(folder, now=now + timedelta(days=2))
    assert (late.well, "timestamp ends in 0 days" in late.found) == (False, True)
    (path,) = [world.repository.store.path(each.sha256) for each in world.repository.targets()]
    path.unlink()
    lost = await releases(folder, now=now)
    assert (lost.well, lost.found.startswith("the bytes of 1 of 1 are not")) == (False, True)
    for key in world.repository.keys.glob("timestamp-*.pem"):
        key.unlink()
    gone = await releases(folder, now=now)
    assert (gone.well, "is the root's for timestamp" in gone.found) == (False, True)
    next(world.repository.metadata.glob("*.snapshot.json")).write_bytes(b"{")
    assert not (await releases(folder, now=now)).well

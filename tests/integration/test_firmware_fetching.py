"""What devices fetch at the real listener: metadata, and artifacts that are theirs to fetch."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest

from server import metrics
from server.firmware import fetching
from server.firmware.artifacts import BURST_S, CHUNK
from server.firmware.policy import Caps, Policy
from tests.integration.firmware_world import Release, Scripted, Updates
from tests.integration.firmware_world import updates as updates

pytestmark = pytest.mark.services
SLOW = Policy(windows=None, caps=Caps(site_bytes_per_s=100_000))
FREE = Policy(windows=None, caps=Caps(site_bytes_per_s=None))


async def offered(
    updates: Updates, device: Scripted, *releases: Release, policy: Policy = FREE, **more: Any
) -> None:
    """Let releases be under way of a device."""
    await updates.rollout(*releases, devices=(device,), policy=policy, **more)
    await updates.owner.execute(
        "update executions set state = 'downloading', offered_at = now(), accepted_at = now() "
        "where device_id = $1",
        device.row,
    )


async def test_a_device_fetches_what_is_under_way_of_it_whole(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await offered(updates, device, release)
    before = metrics.ARTIFACT_BYTES._value.get()
    status, body, headers = await device.fetches(release)
    assert (status, hashlib.sha256(body).hexdigest()) == (200, release.sha256)
    assert headers["ETag"] == f'"{release.sha256}"'
    assert headers["Content-Length"] == str(len(release.content))
    assert metrics.ARTIFACT_BYTES._value.get() - before == len(release.content)
    status, body, _ = await device.fetches(release, If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")


async def test_what_was_cut_off_is_taken_up_where_it_ended(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await offered(updates, device, release)
    size, tag = len(release.content), f'"{release.sha256}"'
    found = b""
    for start, end in ((0, 99_999), (100_000, 250_000), (250_001, size + 5_000)):
        status, body, headers = await device.fetches(
            release, Range=f"bytes={start}-{end}", If_Range=tag
        )
        assert status == 206
        assert headers["Content-Range"] == f"bytes {start}-{min(end, size - 1)}/{size}"
        found += body
    assert found == release.content
    status, body, _ = await device.fetches(release, Range="bytes=-1000")
    assert (status, body) == (206, release.content[-1000:])


async def test_a_range_of_other_bytes_is_all_of_these_and_one_beyond_the_end_is_refused(
    updates: Updates,
) -> None:
    device, release = await updates.device(), await updates.release("1.1.0", size=1_000)
    await offered(updates, device, release)
    status, body, _ = await device.fetches(release, Range="bytes=10-", If_Range='"another"')
    assert (status, body) == (200, release.content)
    status, _, headers = await device.fetches(release, Range="bytes=1000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */1000")


async def test_x41_bytes_that_are_not_under_way_of_this_device_are_not_there(
    updates: Updates,
) -> None:
    device, other = await updates.device(), await updates.device()
    release, else_where = await updates.release("1.1.0"), await updates.release("1.2.0")
    nobodys = await updates.owner.fetchval(
        "insert into organisations (ref, name) values ('other', 'Other') returning id"
    )
    site = await updates.place("site-other", nobodys)
    stranger = await updates.device(site=site, organisation=nobodys)
    await offered(updates, device, release)
    await offered(updates, stranger, else_where, organisation=nobodys, site=site)

    async def status(who: Scripted, what: Release | str) -> int:
        return (await who.fetches(what))[0]

    assert await status(device, release) == 200
    assert await status(stranger, else_where) == 200
    for who, what in (
        (device, else_where),  # of another organisation's rollout
        (stranger, release),
        (other, release),  # of a neighbour's
        (device, "0" * 64),
        (device, "..%2f..%2fpki%2fsvc-firmware.key"),
    ):
        assert await status(who, what) == 404
    # a device that changed hands has nothing of its last owner's any more
    await updates.owner.execute("delete from assignments where device_id = $1", device.row)
    await updates.owner.execute(
        "update devices set organisation_id = $2 where id = $1", device.row, nobodys
    )
    assert await status(device, release) == 404


@pytest.mark.parametrize(
    "change",
    [
        "update executions set state = 'confirmed', ended_at = now()",
        "update executions set state = 'planned'",
        "update rollouts set state = 'reverting'",
        "update rollouts set state = 'cancelling'",
        "update releases set withdrawn_at = now()",
    ],
)
async def test_bytes_that_are_wanted_no_more_are_not_there(updates: Updates, change: str) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await offered(updates, device, release)
    await updates.owner.execute(change)
    assert (await device.fetches(release))[0] == 404


async def test_bytes_that_were_published_and_are_lost_are_told_to_come_back_for(
    updates: Updates,
) -> None:
    device, release = await updates.device(), await updates.release("1.1.0", stored=False)
    await offered(updates, device, release)
    before = metrics.ARTIFACTS_MISSING._value.get()
    status, _, headers = await device.fetches(release)
    assert (status, headers["Retry-After"]) == (503, "10")
    assert metrics.ARTIFACTS_MISSING._value.get() == before + 1


async def test_a_sites_devices_share_its_rate_and_who_comes_too_much_is_told_when(
    updates: Updates,
) -> None:
    rate = 100_000
    one, two = await updates.device(), await updates.device()
    far = await updates.place("site-south")
    away = await updates.device(site=far)
    release = await updates.release("1.1.0", size=round(rate * (BURST_S + 5)))
    for device in (one, two, away):
        await offered(updates, device, release, policy=SLOW)
    began_s = updates.counted.at_s
    status, body, _ = await one.fetches(release)
    assert (status, body == release.content) == (200, True)
    took_s = updates.counted.at_s - began_s
    assert took_s >= (len(release.content) - rate * BURST_S) / rate  # by the world's clock
    status, body, headers = await two.fetches(release)
    assert status == 429
    assert b"site_busy" in body
    assert 1 <= int(headers["Retry-After"]) <= 2
    assert (await away.fetches(release, Range="bytes=0-9"))[0] == 206  # its site's is another
    updates.counted.at_s += int(headers["Retry-After"])
    assert (await two.fetches(release, Range="bytes=0-9"))[0] == 206


async def test_two_of_a_site_that_fetch_at_once_get_no_more_than_one_alone(
    updates: Updates,
) -> None:
    rate = 100_000
    devices = [await updates.device() for _ in range(2)]
    release = await updates.release("1.1.0", size=800_000)
    for device in devices:
        await offered(updates, device, release, policy=SLOW)
    began_s = updates.counted.at_s
    got = await asyncio.gather(*(device.fetches(release) for device in devices))
    sent = sum(len(body) for status, body, _ in got if status == 200)
    assert sent >= len(release.content)
    assert sent <= rate * (BURST_S + updates.counted.at_s - began_s) + CHUNK


async def test_who_reads_too_slowly_is_cut_off_and_goes_on_where_it_was(
    updates: Updates, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = asyncio.Event()
    noted = Mock()
    noted.info.side_effect = lambda *_, **__: cut.set()
    monkeypatch.setattr(fetching, "SEND_S", 0.05)
    monkeypatch.setattr(fetching, "log", noted)
    device, release = await updates.device(), await updates.release("1.1.0", size=24 << 20)
    await offered(updates, device, release)
    reader, writer = await asyncio.open_connection("127.0.0.1", updates.port, ssl=device.tls)
    path = f"/v1/update/artifacts/{release.sha256}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(30):
        await cut.wait()  # nobody has read: what the line holds is full
    had = bytearray()
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 20):
            had += chunk
    writer.close()
    had = had[had.index(b"\r\n\r\n") + 4 :]
    assert 0 < len(had) < len(release.content)
    monkeypatch.setattr(fetching, "SEND_S", 60)
    status, rest, _ = await device.fetches(
        release, Range=f"bytes={len(had)}-", If_Range=f'"{release.sha256}"'
    )
    assert (status, bytes(had) + rest == release.content) == (206, True)


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "artifacts/" + "0" * 64])
async def test_who_is_suspended_or_revoked_fetches_nothing(updates: Updates, path: str) -> None:
    device = await updates.device()
    updates.metadata("timestamp", {"signed": {}})
    await updates.owner.execute("update devices set state = 'suspended'")
    status, body, _ = await device.asks("GET", f"/v1/update/{path}")
    assert (status, b"device_not_admitted" in body) == (403, True)
    await updates.owner.execute("update devices set state = 'in service'")
    await updates.owner.execute("update certificates set revoked_at = now(), state = 'revoked'")
    status, body, _ = await device.asks("GET", f"/v1/update/{path}")
    assert (status, b"certificate_revoked" in body) == (403, True)


async def test_metadata_is_served_as_it_was_published_and_nothing_beside_it(
    updates: Updates,
) -> None:
    device = await updates.device()
    content = updates.metadata("timestamp", {"signed": {"version": 7}})
    updates.metadata("12.root", {"signed": {}})
    updates.metadata("1795380942.snapshot", {"signed": {}})  # numbered by the second
    (updates.folder / "metadata" / "keys.json").write_text("secret")
    (updates.folder / "secret.json").write_text("secret")
    status, body, headers = await device.asks("GET", "/v1/update/metadata/timestamp.json")
    assert (status, body) == (200, content)
    again = {"If-None-Match": headers["ETag"]}
    status, body, _ = await device.asks("GET", "/v1/update/metadata/timestamp.json", headers=again)
    assert (status, body) == (304, b"")
    for name in ("12.root", "1795380942.snapshot"):
        assert (await device.asks("GET", f"/v1/update/metadata/{name}.json"))[0] == 200
    for name in ("13.root", "keys", "0.root", "..%2fsecret", "%2e%2e%2fsecret", "1.timestamp"):
        assert (await device.asks("GET", f"/v1/update/metadata/{name}.json"))[0] == 404, name

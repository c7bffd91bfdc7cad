"""The agent's own check and download, against the real listener and what people have approved.

That an agent then replaces itself, and goes back, is in `tests/system/test_update.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent import identity
from agent.identity import Enrolled
from agent.link import tls_context
from agent.update.agreement import Fault, Installed, Refused
from agent.update.download import Source, download
from agent.update.trust import Question, decide, install_root
from ops import archive
from ops.drafts import Folder
from protocol.release import Release as Approved
from server.firmware.keys import make_key, read_public, read_signer
from server.firmware.releases import find, note_published
from server.firmware.repository import Repository, read_targets
from server.pki.authority import Authority
from tests.integration.firmware_world import Release, Scripted, Updates
from tests.integration.firmware_world import updates as updates

pytestmark = pytest.mark.services
PEOPLE = ("anna-root", "bo-root", "anna", "bo")


async def approved(updates: Updates, top: Path, version: str) -> Release:
    """Build a release, have two people approve it, and publish it."""
    folder, repository = Folder(top / "approvals"), Repository(updates.folder)
    for name in PEOPLE:
        make_key(top / f"{name}.pem", password=None)
    public = {name: read_public(top / f"{name}.pub") for name in PEOPLE}
    snapshot, timestamp = map(read_public, repository.make_keys())
    now = datetime.now(UTC)
    folder.begin(
        root=[public[name] for name in PEOPLE[:2]],
        targets=[public[name] for name in PEOPLE[2:]],
        snapshot=snapshot,
        timestamp=timestamp,
        threshold=2,
        now=now,
    )
    for package in ("agent", "protocol"):
        (top / "tree" / package).mkdir(parents=True)
        (top / "tree" / package / "__init__.py").write_text(f"{'#' * 100_000}\n")
    out = top / "agent.tar"
    archive.build(top / "tree", out, component="agent", version=version)
    folder.add(out, Approved("agent", version, "1.0.0", None, ("DC2",)), now=now)
    for name in PEOPLE:
        signer = read_signer(top / f"{name}.pem", password=None)
        folder.sign(folder.to_sign(public[name].keyid), signer)
    async with updates.owner.transaction():
        targets = read_targets(folder.targets().signed)
        await note_published(updates.owner, targets, actor="test", now=now)
    repository.publish(folder.roots(), folder.targets_file(), artifact=folder.artifact, now=now)
    row = await find(updates.owner, "agent", version)
    return Release(row.id, "agent", version, out.read_bytes())


def state_of(updates: Updates, device: Scripted, top: Path) -> Path:
    """Return the folder of an agent that is this device, with the first root of releases."""
    state = top / "state"
    pem = device.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity.put(state / "pending", pem, mode=0o600)
    endpoints = updates.stack.endpoints
    who = Enrolled(
        *(device.name, "counter", "127.0.0.1", endpoints.broker_device_port, "claim"),
        *("127.0.0.1", updates.port),
    )
    chain = (updates.folder.parent / "clients" / f"{device.name}.pem").read_text()
    chain = chain[chain.index("-----BEGIN CERTIFICATE") :]
    bundle = Authority.load(endpoints.pki).bundle()
    identity.write(state, who, key=state / "pending", chain=chain, bundle=bundle)
    trust = Repository(updates.folder).first_trust()
    assert trust is not None
    assert install_root(state, trust)
    return state


async def test_the_agent_takes_what_is_approved_and_assigned_and_takes_up_what_was_cut(
    updates: Updates, tmp_path: Path
) -> None:
    release = await approved(updates, tmp_path, "1.1.0")
    device = await updates.device()
    state = state_of(updates, device, tmp_path)
    await updates.rollout(release, devices=(device,))
    answer = await device.says()
    assert answer.assignment is not None
    question = Question(
        envelope=answer.assignment,
        state=state,
        server=("127.0.0.1", updates.port),
        hardware="DC2",
        nonce=device.nonce,
        installed={"agent": Installed("1.0.0", "1.0.0")},
        now_ms=round(datetime.now(UTC).timestamp() * 1000),
    )
    verified = await asyncio.to_thread(decide, question)
    (item,) = verified.assignment.bundle
    assert (item.version, item.sha256) == ("1.1.0", release.sha256)

    def connect() -> HTTPSConnection:
        context = tls_context(identity.for_link(state), timeless=False)
        return HTTPSConnection("127.0.0.1", updates.port, timeout=20, context=context)

    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / f"{item.sha256}.part").write_bytes(release.content[:70_000])  # it was cut there
    came: list[int] = []
    path = await asyncio.to_thread(download, item, downloads, Source(connect), told=came.append)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.sha256
    assert 70_000 < came[0] <= 70_000 + 65_536
    await device.says()  # and asks with another nonce: what was said before is over
    with pytest.raises(Refused) as refused:
        await asyncio.to_thread(decide, replace(question, nonce=device.nonce))
    assert refused.value.fault is Fault.WRONG_NONCE

"""Who signs what devices install: how long a stolen key of `svc-firmware` is good, what ends it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from agent.content import vouched
from protocol.assignment import SIGNED, SIGNER, Envelope
from protocol.content import ContentError
from server.firmware.assignments import AssignmentSigner
from server.pki import rollover
from server.pki.authority import Authority
from server.pki.files import Files
from server.pki.profile import LEAF_LIFE

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)
PASSWORD = b"a long enough password"


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "pki", now=NOW, password=PASSWORD)
    authority.ensure_services(now=NOW)
    return tmp_path / "pki"


def signed(pki: Path) -> Envelope:
    """Return what the firmware service signs now: for the check of its signer anything will do."""
    signer = AssignmentSigner.load(pki)
    return Envelope(b"{}", signer.signed(SIGNED + b"{}"), signer.chain)


def roots(pki: Path) -> list[x509.Certificate]:
    """Return what a device holds that has just renewed."""
    return x509.load_pem_x509_certificates((pki / "bundle.pem").read_bytes())


def test_a_signer_is_good_until_its_certificate_ends_and_no_day_longer(pki: Path) -> None:
    stolen = signed(pki)
    vouched(stolen, roots=roots(pki), now=SOON, signer=SIGNER)
    vouched(stolen, roots=roots(pki), now=NOW + LEAF_LIFE - timedelta(days=2), signer=SIGNER)
    with pytest.raises(ContentError, match="ended on"):
        vouched(stolen, roots=roots(pki), now=NOW + LEAF_LIFE, signer=SIGNER)


def test_another_key_on_the_server_does_not_end_the_stolen_one(pki: Path) -> None:
    stolen = signed(pki)
    for name in ("svc-firmware.key", "svc-firmware.pem"):
        (pki / name).unlink()
    assert Authority.load(pki).ensure_services(now=SOON) == ["svc-firmware"]
    assert signed(pki).chain != stolen.chain
    for each in (signed(pki), stolen):
        vouched(each, roots=roots(pki), now=SOON + timedelta(hours=1), signer=SIGNER)


def test_the_next_root_ends_a_stolen_signer_where_a_device_has_renewed(pki: Path) -> None:
    stolen, before = signed(pki), roots(pki)
    rollover.begin_rollover(Files.read(pki), keys=pki / "offline", password=PASSWORD, now=NOW)
    rollover.switch(Files.read(pki), now=SOON)
    rollover.finish(Files.read(pki), now=SOON)
    now = SOON + timedelta(hours=1)
    with pytest.raises(ContentError, match="no root that we hold"):
        vouched(stolen, roots=roots(pki), now=now, signer=SIGNER)
    vouched(signed(pki), roots=roots(pki), now=now, signer=SIGNER)
    vouched(stolen, roots=before, now=now, signer=SIGNER)  # who has not renewed takes it still

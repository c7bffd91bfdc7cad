"""No revocation list is installed that would lock the fleet out, or let the revoked in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from server.pki.authority import Authority
from server.pki.files import Files
from server.pki.revocations import (
    CRL_LIFE,
    CrlError,
    build_crl,
    listed_serials,
    split_crls,
    valid_until,
    verify_crl,
    verify_crls,
)
from server.pki.signer import FileSigner

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SERIALS = {7, 1 << 127}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> FileSigner:
    return made(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> FileSigner:
    """An authority of the same name with another key."""
    return made(tmp_path_factory.mktemp("stranger"))


def made(folder: Path) -> FileSigner:
    Authority.create(folder / "pki", now=NOW)
    return Files.read(folder / "pki").signer("device-1")


def rule_broken(pem: bytes, issuer: x509.Certificate, *, now: datetime = NOW) -> int:
    with pytest.raises(CrlError) as refused:
        verify_crl(pem, issuer, SERIALS, now)
    return refused.value.rule


def test_what_is_built_is_fit_to_be_installed(signer: FileSigner) -> None:
    pem = build_crl(signer, SERIALS, NOW)
    verify_crl(pem, signer.certificate, SERIALS, NOW)
    verify_crl(pem, signer.certificate, (), NOW)
    assert listed_serials(pem) == SERIALS
    assert valid_until(pem) == NOW + CRL_LIFE


@pytest.mark.parametrize("rot", [b"", b"\x00", b"junk", b"-----BEGIN X509 CRL-----\nAAAA\n"])
def test_1_what_is_no_list_is_refused(signer: FileSigner, rot: bytes) -> None:
    assert rule_broken(rot, signer.certificate) == 1


def test_1_a_list_with_a_byte_missing_or_changed_is_refused(signer: FileSigner) -> None:
    pem = build_crl(signer, SERIALS, NOW)
    for at in range(len(pem)):
        changed = pem[:at] + bytes([pem[at] ^ 1]) + pem[at + 1 :]
        with pytest.raises(CrlError):
            verify_crl(pem[:at], signer.certificate, SERIALS, NOW)
        if changed.strip() != pem.strip():
            assert rule_broken(changed, signer.certificate) in (1, 2, 3)


def test_2_a_foreign_list_is_refused(signer: FileSigner, stranger: FileSigner) -> None:
    assert rule_broken(build_crl(stranger, SERIALS, NOW), signer.certificate) == 2


def test_3_a_list_that_only_names_our_key_is_refused(
    signer: FileSigner, stranger: FileSigner
) -> None:
    forged = FileSigner(signer.certificate, stranger.key)

    class Liar:
        certificate = signer.certificate

        def sign(self, content: bytes) -> bytes:
            return forged.sign(content)

    with pytest.raises(Exception, match="not its own"):
        build_crl(Liar(), SERIALS, NOW)  # our own code does not even put it together


@pytest.mark.parametrize(
    ("built", "life"),
    [
        (NOW - timedelta(days=8), CRL_LIFE),
        (NOW, timedelta(days=5)),
        (NOW - timedelta(days=2), CRL_LIFE),
        (NOW + timedelta(hours=1), CRL_LIFE),
    ],
    ids=["expired", "too short", "half-used", "of the future"],
)
def test_4_a_list_that_is_not_valid_for_six_days_from_now_is_refused(
    signer: FileSigner, built: datetime, life: timedelta
) -> None:
    pem = build_crl(signer, SERIALS, built, life=life)
    assert rule_broken(pem, signer.certificate) == 4


def test_5_a_list_that_forgot_someone_is_refused(signer: FileSigner) -> None:
    assert rule_broken(build_crl(signer, {7}, NOW), signer.certificate) == 5
    assert rule_broken(build_crl(signer, (), NOW), signer.certificate) == 5


def test_6_an_older_list_is_refused_and_numbers_rise_when_time_stands_still(
    signer: FileSigner,
) -> None:
    before = build_crl(signer, SERIALS, NOW)
    after = build_crl(signer, SERIALS, NOW, previous=before)
    verify_crl(after, signer.certificate, SERIALS, NOW, previous=before)
    for older in (before, build_crl(signer, SERIALS, NOW)):
        with pytest.raises(CrlError, match="number"):
            verify_crl(older, signer.certificate, SERIALS, NOW, previous=before)


def test_a_file_holds_one_list_of_each_authority(signer: FileSigner, tmp_path: Path) -> None:
    other = made(tmp_path)
    ours, theirs = build_crl(signer, SERIALS, NOW), build_crl(other, SERIALS, NOW)
    issuers = [signer.certificate]
    verify_crls(ours, issuers, SERIALS, NOW)
    for wrong in (ours + theirs, ours + ours, theirs, ours + b"# a note\n"):
        with pytest.raises(CrlError):
            verify_crls(wrong, issuers, SERIALS, NOW)
    assert split_crls(ours + theirs) == [ours, theirs]

"""Services that sign: each by its own key, which no other service's word is taken for."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import assignment, codes, content, plan, update
from server.feedback.plans import ContentSigner
from server.firmware.assignments import AssignmentSigner
from server.pki.authority import CLIENTS, Authority
from server.pki.files import AuthorityError
from server.pki.service import ServiceSigner

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNERS: tuple[type[ServiceSigner], ...] = (ContentSigner, AssignmentSigner)
EXPECTED = {ContentSigner: content.SIGNER, AssignmentSigner: assignment.SIGNER}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signers") / "pki"
    Authority.create(folder, now=NOW).ensure_services(now=NOW)
    return folder


@pytest.mark.parametrize("kind", SIGNERS)
def test_each_signs_by_the_one_name_that_devices_look_for(
    pki: Path, kind: type[ServiceSigner]
) -> None:
    signer = kind.load(pki)
    leaf = x509.load_pem_x509_certificates(signer.chain.encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [EXPECTED[kind]]
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signer.signed(b"a word"), b"a word", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(signer.signed(b"a word"), b"another", ec.ECDSA(hashes.SHA256()))


def test_no_two_share_a_key_a_name_or_what_stands_before_the_signed() -> None:
    prefixes = {assignment.SIGNED, codes.SIGNED, plan.SIGNED, update.SIGNED}
    assert len({kind.SERVICE for kind in SIGNERS}) == len(SIGNERS)
    assert len(prefixes) == 4
    assert all(each.endswith(b"\n") for each in prefixes)  # so none begins another
    assert {kind.SERVICE for kind in SIGNERS} <= set(CLIENTS)


@pytest.mark.parametrize("kind", SIGNERS)
def test_a_key_of_another_service_is_not_opened_as_this_ones(
    pki: Path, tmp_path: Path, kind: type[ServiceSigner]
) -> None:
    mixed = tmp_path / "pki"
    mixed.mkdir()
    shutil.copy(pki / f"{kind.SERVICE}.pem", mixed / f"{kind.SERVICE}.pem")
    with pytest.raises(AuthorityError, match="cannot be opened"):
        kind.load(mixed)
    shutil.copy(pki / "svc-ingest.key", mixed / f"{kind.SERVICE}.key")
    with pytest.raises(AuthorityError, match="does not belong"):
        kind.load(mixed)


def test_a_signers_key_stands_in_no_log(pki: Path) -> None:
    assert "key=" not in repr(AssignmentSigner.load(pki))

"""Keys elsewhere: what an HSM signs is the same certificate, and its mistakes go nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from server.pki import profile
from server.pki.authority import Authority
from server.pki.files import Files
from server.pki.signer import FileSigner, SigningError, finish_certificate, sign_with

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Module:
    """A security module: it signs, and nobody reads its key."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    broken: bool = False
    signed: list[bytes] = field(default_factory=list)

    def sign(self, content: bytes) -> bytes:
        self.signed.append(content)
        return sign_with(self._key, content + (b"!" if self.broken else b""))


@pytest.fixture
def module(tmp_path: Path) -> Module:
    Authority.create(tmp_path / "pki", now=NOW)
    files = Files.read(tmp_path / "pki")
    kept = files.signer("device-1")
    files.path("device-1.key").unlink()
    return Module(kept.certificate, kept.key)


def csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    key = ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_an_authority_whose_key_is_in_a_module_signs_devices_and_revocations(
    tmp_path: Path, module: Module
) -> None:
    authority = Authority(Files.read(tmp_path / "pki"), devices=module)
    issued = authority.issue_device(csr(), device="door-4f9a21", now=NOW)
    leaf, issuer = x509.load_pem_x509_certificates(issued.chain_pem)
    leaf.verify_directly_issued_by(issuer)
    assert issuer == module.certificate
    authority.verify_crl(authority.crl([7], now=NOW), [7], now=NOW)
    assert module.signed[0] == leaf.tbs_certificate_bytes
    assert authority.current() is authority


def test_a_signature_that_is_not_the_signers_is_never_handed_out(
    tmp_path: Path, module: Module
) -> None:
    module.broken = True
    authority = Authority(Files.read(tmp_path / "pki"), devices=module)
    with pytest.raises(SigningError):
        authority.issue_device(csr(), device="door-4f9a21", now=NOW)
    with pytest.raises(SigningError):
        authority.crl([7], now=NOW)


def test_a_key_does_not_show(tmp_path: Path) -> None:
    Authority.create(tmp_path / "pki", now=NOW)
    assert "key=" not in repr(Files.read(tmp_path / "pki").signer("device-1"))


@given(count=st.integers(0, 400))
def test_what_is_put_together_is_what_the_library_signs(count: int) -> None:
    key = profile.new_key()
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 7)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(f"{n}.example.org") for n in range(count)]),
            critical=False,
        )
    )
    ours = finish_certificate(
        builder, sign=lambda content: sign_with(key, content), key=key.public_key()
    )
    assert ours == builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    assert FileSigner(ours, key).sign(b"x") == FileSigner(ours, key).sign(b"x")

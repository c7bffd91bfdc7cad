"""The authority signs proven P-256 keys, and takes nothing else from a request."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.pki.authority import Authority, AuthorityError, RequestRefusedError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEVICE = "door-4f9a21"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("pki") / "pki", now=NOW)


def request(
    key: CertificateIssuerPrivateKeyTypes | None = None,
    *,
    name: str = "whatever",
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    signer = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer, algorithm)


def pem(csr: x509.CertificateSigningRequest) -> bytes:
    return csr.public_bytes(Encoding.PEM)


def issue(authority: Authority, csr: bytes, *, device: str = DEVICE) -> x509.Certificate:
    issued = authority.issue_device(csr, device=device, now=NOW)
    return x509.load_pem_x509_certificates(issued.chain_pem)[0]


def test_a_device_certificate_follows_the_profile(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue(authority, pem(request(key)))
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == f"CN={DEVICE}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"urn:vestibule:device:{DEVICE}"
    ]
    assert constraints.critical
    assert not constraints.value.ca
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=365)
    assert certificate.serial_number.bit_length() == 128


def test_the_chain_leads_to_the_root_that_devices_trust(authority: Authority) -> None:
    issued = authority.issue_device(pem(request()), device=DEVICE, now=NOW)
    leaf, *between = x509.load_pem_x509_certificates(issued.chain_pem)
    bundle = (authority.directory / "bundle.pem").read_bytes()
    roots = x509.load_pem_x509_certificates(bundle)
    assert len(roots) == 2, "the next root is trusted from the start"
    verifier = PolicyBuilder().store(Store(roots)).time(NOW).build_client_verifier()
    verified = verifier.verify(leaf, between)
    assert verified.chain[-1] == roots[0]


def test_a_device_certificate_cannot_serve(authority: Authority) -> None:
    issued = authority.issue_device(pem(request()), device=DEVICE, now=NOW)
    leaf, *between = x509.load_pem_x509_certificates(issued.chain_pem)
    root = x509.load_pem_x509_certificate((authority.directory / "root.pem").read_bytes())
    policy = PolicyBuilder().store(Store([root])).time(NOW)
    verifier = policy.build_server_verifier(x509.DNSName("localhost"))
    with pytest.raises(VerificationError):
        verifier.verify(leaf, between)


def test_nothing_but_the_key_is_taken_from_a_request(authority: Authority) -> None:
    wishes = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("localhost")]),
    )
    certificate = issue(authority, pem(request(name="svc-control", extensions=wishes)))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert certificate.subject.rfc4514_string() == f"CN={DEVICE}"
    assert names.get_values_for_type(x509.DNSName) == []
    assert not constraints.ca


def test_a_request_for_another_ones_key_is_refused(authority: Authority) -> None:
    thief, victim = request(), request()
    stolen = thief.public_bytes(Encoding.DER).replace(_point(thief), _point(victim))
    with pytest.raises(RequestRefusedError, match="not signed by its own key"):
        issue(authority, _as_pem(stolen))


def _point(csr: x509.CertificateSigningRequest) -> bytes:
    key = csr.public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _as_pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "secp256k1", "Ed25519", "RSA"],
)
def test_keys_off_p256_are_refused(
    authority: Authority, key: CertificateIssuerPrivateKeyTypes
) -> None:
    with pytest.raises(RequestRefusedError, match="P-256"):
        issue(authority, pem(request(key)))


@pytest.mark.parametrize(
    "csr",
    [b"", b"\x00" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 100_000],
    ids=["empty", "zeros", "cut off", "huge"],
)
def test_what_is_no_request_is_refused(authority: Authority, csr: bytes) -> None:
    with pytest.raises(RequestRefusedError):
        issue(authority, csr)


def test_a_truncated_request_is_refused(authority: Authority) -> None:
    whole = request().public_bytes(Encoding.DER)
    for length in range(len(whole)):
        with pytest.raises(RequestRefusedError):
            issue(authority, _as_pem(whole[:length]))


@pytest.mark.parametrize(
    "device", ["+", "#", "a/b", "x\x00y", "A" * 300, "", "Door-4F9A21", "svc-ingest", "svc-door"]
)
def test_ids_that_the_server_would_not_make_are_refused(authority: Authority, device: str) -> None:
    with pytest.raises(ValueError):
        issue(authority, pem(request()), device=device)


def test_keys_are_closed_and_an_authority_is_made_once(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    authority.ensure_services(now=NOW)
    keys = sorted((tmp_path / "pki").glob("*.key"))
    assert len(keys) == 9
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    with pytest.raises(AuthorityError, match="already"):
        Authority.create(tmp_path / "pki", now=NOW)


def test_an_authority_loads_without_the_roots_keys(tmp_path: Path) -> None:
    Authority.create(tmp_path / "pki", now=NOW)
    for name in ("root.key", "root-next.key"):
        (tmp_path / "pki" / name).unlink()
    issue(Authority.load(tmp_path / "pki"), pem(request()))


def test_a_key_that_does_not_fit_its_certificate_is_noticed(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    Authority.create(pki, now=NOW)
    (pki / "device-ca.key").write_bytes((pki / "service-ca.key").read_bytes())
    with pytest.raises(AuthorityError, match="does not belong"):
        Authority.load(pki)


def test_services_are_certified_anew_when_two_thirds_of_their_life_are_over(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    authority.ensure_services(now=NOW)
    path = tmp_path / "pki/broker.pem"
    first = path.read_bytes()
    authority.ensure_services(now=NOW + timedelta(days=240))
    assert path.read_bytes() == first
    authority.ensure_services(now=NOW + timedelta(days=250))
    assert path.read_bytes() != first


def test_the_revocation_list_is_signed_and_keeps_its_serials_when_refreshed(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    path = tmp_path / "pki/device.crl"
    path.write_bytes(authority.crl([7, 11], now=NOW))
    authority.refresh_crl(now=NOW + timedelta(days=6))
    listed = x509.load_pem_x509_crl(path.read_bytes())
    issuer = x509.load_pem_x509_certificate((tmp_path / "pki/device-ca.pem").read_bytes())
    assert listed.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    assert [entry.serial_number for entry in listed] == [7, 11]
    assert listed.next_update_utc == NOW + timedelta(days=13)

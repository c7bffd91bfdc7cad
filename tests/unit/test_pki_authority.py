"""The authority signs proven P-256 keys, and takes nothing else from a request."""

from __future__ import annotations

import json
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.pki.authority import Authority, AuthorityError
from server.pki.revocations import CrlError, listed_serials, valid_until, verify_crl

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


@pytest.mark.parametrize(
    "device", ["+", "#", "a/b", "x\x00y", "A" * 300, "", "Door-4F9A21", "svc-ingest", "svc-door"]
)
def test_ids_that_the_server_would_not_make_are_refused(authority: Authority, device: str) -> None:
    with pytest.raises(ValueError):
        issue(authority, pem(request()), device=device)


def test_keys_are_closed_and_an_authority_is_made_once(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    authority.ensure_services(now=NOW)
    keys = sorted((tmp_path / "pki").rglob("*.key"))
    assert len(keys) == 10
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    with pytest.raises(AuthorityError, match="already"):
        Authority.create(tmp_path / "pki", now=NOW)


def test_a_root_key_that_nobody_can_protect_is_forgotten(tmp_path: Path) -> None:
    Authority.create(tmp_path / "pki", now=NOW)
    assert not list((tmp_path / "pki").rglob("root*.key"))
    issue(Authority.load(tmp_path / "pki"), pem(request()))


def test_a_key_that_does_not_fit_its_certificate_is_noticed(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    Authority.create(pki, now=NOW)
    stranger = (pki / "authorities/service-1.key").read_bytes()
    (pki / "authorities/device-1.key").write_bytes(stranger)
    with pytest.raises(AuthorityError, match="does not belong"):
        Authority.load(pki)


def test_every_signature_of_an_authority_is_recorded_before_it_is_made(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    authority.ensure_services(now=NOW)
    log = tmp_path / "pki/issuance.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["recorded", "signed"] * (len(lines) // 2)
    for recorded, signed in zip(lines[::2], lines[1::2], strict=True):
        assert {**recorded, "event": "signed"} == signed
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    logged = {line["serial"] for line in lines}
    files = [*(tmp_path / "pki").rglob("*.pem")]
    made = [c for f in files for c in x509.load_pem_x509_certificates(f.read_bytes())]
    assert {f"{certificate.serial_number:x}" for certificate in made} == logged


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
    issuer = x509.load_pem_x509_certificate(
        (tmp_path / "pki/authorities/device-1.pem").read_bytes()
    )
    verify_crl(path.read_bytes(), issuer, {7, 11}, NOW + timedelta(days=6))
    assert valid_until(path.read_bytes()) == NOW + timedelta(days=13)


@pytest.mark.parametrize("rot", [b"", b"junk", b"foreign"])
def test_an_unreadable_revocation_list_gives_way_to_the_one_installed_before(
    tmp_path: Path, rot: bytes
) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    path, installed = tmp_path / "pki/device.crl", tmp_path / "installed.crl"
    installed.write_bytes(authority.crl([7], now=NOW))
    foreign = Authority.create(tmp_path / "foreign", now=NOW).crl([9], now=NOW)
    path.write_bytes(foreign if rot == b"foreign" else rot)
    with pytest.raises(CrlError):
        authority.refresh_crl(now=NOW)
    authority.refresh_crl(now=NOW, fallback=installed)
    assert listed_serials(path.read_bytes()) == {7}


def test_the_files_of_0_1_come_to_their_places(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    Authority.create(pki, now=NOW)
    issued = issue(Authority.load(pki), pem(request()))
    _as_of_0_1(pki)
    authority = Authority.load(pki)
    authority.ensure_services(now=NOW)
    assert issue(authority, pem(request())).issuer == issued.issuer
    assert len(x509.load_pem_x509_certificates((pki / "bundle.pem").read_bytes())) == 2
    assert authority.listed() == set()


def _as_of_0_1(pki: Path) -> None:
    files = pki / "authorities"
    (pki / "authorities.json").unlink()
    (files / "root-1.pem").replace(pki / "root.pem")
    (files / "root-2.pem").replace(pki / "root-next.pem")
    for kind in ("device", "service"):
        (files / f"{kind}-1.pem").replace(pki / f"{kind}-ca.pem")
        (files / f"{kind}-1.key").replace(pki / f"{kind}-ca.key")
        (files / f"{kind}-1.anchor.pem").replace(pki / f"{kind}-anchor.pem")
    shutil.rmtree(files)

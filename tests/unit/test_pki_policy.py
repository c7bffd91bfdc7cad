"""A request gets the certificate of the profile or none: hostile ones, and thousands mutated."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from server.pki.authority import Authority
from server.pki.policy import Fault, Proof, RequestRefusedError, proof
from server.pki.signer import sign_with

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEVICE = "door-4f9a21"
KEY = ec.generate_private_key(ec.SECP256R1())
ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
P256, P192 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030101")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("pki") / "pki", now=NOW)


def request(
    key: CertificateIssuerPrivateKeyTypes = KEY,
    *,
    names: tuple[tuple[x509.ObjectIdentifier, str], ...] = (),
    wishes: tuple[x509.ExtensionType, ...] = (),
    password: bytes | None = None,
) -> bytes:
    attributes = [x509.NameAttribute(oid, text, _validate=False) for oid, text in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    for wish in wishes:
        builder = builder.add_extension(wish, critical=True)
    if password is not None:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, password)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def as_pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"-----END CERTIFICATE REQUEST-----\n"


def cn(*texts: str) -> tuple[tuple[x509.ObjectIdentifier, str], ...]:
    return tuple((NameOID.COMMON_NAME, text) for text in texts)


def fault_of(authority: Authority, csr_pem: bytes) -> Fault:
    with pytest.raises(RequestRefusedError) as refused:
        authority.issue_device(csr_pem, device=DEVICE, now=NOW)
    return refused.value.fault


def usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


URI = x509.UniformResourceIdentifier
OWN_NAME = x509.SubjectAlternativeName([URI(f"urn:vestibule:device:{DEVICE}")])


@pytest.mark.parametrize(
    "wish",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        usage(sign=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.SubjectAlternativeName([x509.DNSName("localhost")]),
        x509.SubjectAlternativeName([URI("urn:vestibule:device:door-bbbb02")]),
        x509.SubjectAlternativeName([*OWN_NAME, x509.DNSName("broker")]),
        x509.NameConstraints([x509.DNSName("example.org")], None),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
    ids=lambda wish: type(wish).__name__,
)
def test_x22_a_request_that_asks_for_more_than_a_device_gets_is_refused(
    authority: Authority, wish: x509.ExtensionType
) -> None:
    csr = as_pem(request(wishes=(wish,)))
    assert fault_of(authority, csr) is Fault.ASKS_TOO_MUCH


@pytest.mark.parametrize(
    "names",
    [
        cn("+"),
        cn("#"),
        cn("a/b"),
        cn("door\x00svc-control"),
        cn("A" * 300),
        cn(DEVICE, "svc-control"),
        cn(""),
        cn("dörr"),
        ((NameOID.ORGANIZATION_NAME, "Vestibule"),),
        (*cn(DEVICE), (NameOID.ORGANIZATION_NAME, "Vestibule")),
    ],
    ids=["+", "#", "slash", "NUL", "300", "two", "empty", "non-ASCII", "O", "CN and O"],
)
def test_x05_a_strange_subject_is_refused(
    authority: Authority, names: tuple[tuple[x509.ObjectIdentifier, str], ...]
) -> None:
    assert fault_of(authority, as_pem(request(names=names))) in (Fault.BAD_NAME, Fault.UNREADABLE)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "secp256k1", "Ed25519", "RSA 1024", "RSA 2048"],
)
def test_x21_keys_off_p256_are_refused(
    authority: Authority, key: CertificateIssuerPrivateKeyTypes
) -> None:
    assert fault_of(authority, as_pem(request(key))) is Fault.WRONG_KEY


def test_a_key_that_claims_to_be_on_p192_is_refused(authority: Authority) -> None:
    csr = as_pem(request().replace(P256, P192))
    assert fault_of(authority, csr) is Fault.WRONG_KEY


def test_a_request_for_another_ones_key_is_refused(authority: Authority) -> None:
    victim = ec.generate_private_key(ec.SECP256R1())
    stolen = request().replace(_point(KEY), _point(victim))
    assert fault_of(authority, as_pem(stolen)) is Fault.NOT_PROVEN


def test_nobody_makes_a_proof_without_a_request() -> None:
    proved = proof(as_pem(request()))
    assert proved.key == KEY.public_key()
    with pytest.raises(TypeError):
        Proof(proved.key, proved.spki_sha256, None)
    with pytest.raises(TypeError):
        replace(proved, spki_sha256=b"another's", verified=True)


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("csr", "fault"),
    [
        (b"", Fault.UNREADABLE),
        (b"\x00" * 100, Fault.UNREADABLE),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", Fault.UNREADABLE),
        (as_pem(request()) * 2, Fault.UNREADABLE),
        (b"Bag Attributes\n" + as_pem(request()), Fault.UNREADABLE),
        (b"x" * 100_000, Fault.TOO_LARGE),
        (as_pem(request(password=b"x" * 9_000)), Fault.TOO_LARGE),
    ],
    ids=["empty", "zeros", "cut off", "two", "preamble", "huge", "huge attribute"],
)
def test_what_is_no_request_is_refused(authority: Authority, csr: bytes, fault: Fault) -> None:
    assert fault_of(authority, csr) is fault


def test_a_truncated_request_is_refused(authority: Authority) -> None:
    whole = request()
    for length in range(len(whole)):
        with pytest.raises(RequestRefusedError):
            authority.issue_device(as_pem(whole[:length]), device=DEVICE, now=NOW)


@pytest.mark.parametrize(
    "csr",
    [
        request(),
        request(names=cn("front door 2")),
        request(password=b"once"),
        request(wishes=(x509.BasicConstraints(ca=False, path_length=None), usage(sign=False))),
        request(wishes=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), OWN_NAME)),
    ],
    ids=["bare", "a name", "challenge", "usage", "own name"],
)
def test_a_modest_request_gets_the_profile(authority: Authority, csr: bytes) -> None:
    check(authority, as_pem(csr), KEY.public_key())


def test_a_name_is_nobodys_own_before_the_device_is_known() -> None:
    with pytest.raises(RequestRefusedError):
        proof(as_pem(request(wishes=(OWN_NAME,))))


def check(authority: Authority, csr_pem: bytes, key: ec.EllipticCurvePublicKey) -> None:
    """Hold what is issued against the profile, read here in words of its own."""
    issued = authority.issue_device(csr_pem, device=DEVICE, now=NOW)
    leaf, issuer = x509.load_pem_x509_certificates(issued.chain_pem)
    leaf.verify_directly_issued_by(issuer)
    assert leaf.version is x509.Version.v3
    assert leaf.public_key() == key
    assert leaf.subject.rfc4514_string() == f"CN={DEVICE}"
    assert leaf.serial_number.bit_length() == 128
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == NOW + timedelta(days=365)
    identifier = x509.SubjectKeyIdentifier.from_public_key
    assert {e.oid: (e.critical, e.value) for e in leaf.extensions} == {
        ExtensionOID.BASIC_CONSTRAINTS: (True, x509.BasicConstraints(ca=False, path_length=None)),
        ExtensionOID.KEY_USAGE: (True, usage(sign=False)),
        ExtensionOID.EXTENDED_KEY_USAGE: (
            False,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        ),
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: (False, OWN_NAME),
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: (False, identifier(key)),
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: (
            False,
            x509.AuthorityKeyIdentifier(identifier(issuer.public_key()).digest, None, None),
        ),
    }


RICH = request(names=cn("door"), wishes=(usage(sign=False), OWN_NAME), password=b"once")
CONTENTS = [x509.load_der_x509_csr(der).tbs_certrequest_bytes for der in (request(), RICH)]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request's content with bytes changed, cut, repeated or put in, signed by its key again."""
    content = bytearray(draw(st.sampled_from(CONTENTS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at : at + draw(st.integers(1, 8))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 40))]
            case _:
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
        if len(content) < 8:
            break
    signature = sign_with(KEY, bytes(content))
    body = bytes(content) + ECDSA_WITH_SHA256 + _der(0x03, b"\x00" + signature)
    return _der(0x30, body)


def _der(tag: int, content: bytes) -> bytes:
    digits = len(content).to_bytes(2)
    return bytes([tag, 0x82]) + digits + content if len(content) > 127 else (
        bytes([tag, len(content)]) + content
    )  # fmt: skip


@given(csr=mutated())
@settings(max_examples=1500, deadline=None)
def test_a_mutated_request_gets_the_certificate_of_the_profile_or_none(
    authority: Authority, csr: bytes
) -> None:
    try:
        key = proof(as_pem(csr), device=DEVICE).key
    except RequestRefusedError:
        return
    assert key == KEY.public_key(), "whoever changed the key could not have signed for it"
    check(authority, as_pem(csr), key)

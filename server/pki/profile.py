"""What each kind of certificate says. Pure: keys and times come in, certificates go out.

Profile (RFC 5280): P-256 with SHA-256, 128-bit random serials, validity from five minutes ago,
subject and authority key identifiers everywhere. Authorities may sign leaves only (path length 0).
A leaf's extended key usage is always one purpose, so that no device can pose as a server.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.pki.signer import Sign, Signer, finish_certificate, finish_list

__all__ = [
    "CA_LIFE",
    "LEAF_LIFE",
    "ROOT_LIFE",
    "certify",
    "new_key",
    "revocation_list",
    "self_signed",
    "service_names",
    "signing_authority",
]

ROOT_LIFE = timedelta(days=20 * 365)
CA_LIFE = timedelta(days=10 * 365)
LEAF_LIFE = timedelta(days=365)
_BACKDATE = timedelta(minutes=5)  # a device's clock may lag ours


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_serial() -> int:
    """Return a fresh 128-bit serial; who records before signing draws it first."""
    return secrets.randbits(127) | (1 << 127)


def self_signed(
    name: str,
    *,
    key: ec.EllipticCurvePublicKey,
    sign: Sign,
    path_length: int,
    now: datetime,
    life: timedelta,
    serial: int | None = None,
) -> x509.Certificate:
    """Return a certificate that vouches for itself: a root, or the anchor of an authority."""
    builder = _builder(_name(name), key=key, now=now, life=life, serial=serial)
    builder = _as_authority(builder.issuer_name(_name(name)), path_length=path_length)
    return finish_certificate(_with_identifiers(builder, key, issuer=key), sign=sign, key=key)


def signing_authority(
    name: str,
    *,
    key: ec.EllipticCurvePublicKey,
    root: Signer,
    now: datetime,
    path_length: int = 0,
    life: timedelta = CA_LIFE,
    serial: int | None = None,
) -> x509.Certificate:
    """Return the certificate of an authority below `root`; path length 0: it signs leaves only."""
    builder = _builder(_name(name), key=key, now=now, life=life, serial=serial)
    builder = _as_authority(builder.issuer_name(root.certificate.subject), path_length=path_length)
    return _signed(builder, key, signer=root)


def certify(
    name: str,
    *,
    key: ec.EllipticCurvePublicKey,
    names: Iterable[x509.GeneralName],
    server: bool,
    signer: Signer,
    now: datetime,
    serial: int | None = None,
) -> x509.Certificate:
    """Return a leaf for one purpose: to serve, or to connect as a client."""
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(_name(name), key=key, now=now, life=LEAF_LIFE, serial=serial)
    builder = (
        builder.issuer_name(signer.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return _signed(builder, key, signer=signer)


def service_names(*, dns: Iterable[str], ips: Iterable[str]) -> list[x509.GeneralName]:
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ips]
    return [*(x509.DNSName(text) for text in dns), *addresses]


def revocation_list(
    serials: Iterable[int], *, signer: Signer, now: datetime, life: timedelta, number: int
) -> x509.CertificateRevocationList:
    """Return a signed list of revoked serials; an empty one is valid too."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now - _BACKDATE)
        .next_update(now + life)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key_of(signer)),
            critical=False,
        )
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(revoked.build())
    return finish_list(builder, sign=signer.sign, key=key_of(signer))


def key_of(signer: Signer) -> ec.EllipticCurvePublicKey:
    """Return the public key of an authority; ours are all on P-256."""
    key = signer.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, *, signer: Signer
) -> x509.Certificate:
    issuer = key_of(signer)
    builder = _with_identifiers(builder, key, issuer=issuer)
    return finish_certificate(builder, sign=signer.sign, key=issuer)


def _builder(
    subject: x509.Name,
    *,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(new_serial() if serial is None else serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
    )


def _as_authority(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    ).add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)


def _with_identifiers(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    *,
    issuer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

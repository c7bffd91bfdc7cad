"""The fleet's authority: a root, and below it one authority for devices and one for services.

Files of its directory (keys 0600):

    root.pem, root-next.pem         the root and its successor; their keys may go offline
    bundle.pem                      both roots: what devices and services trust, now and later
    device-ca.pem, service-ca.pem   signed by the root, sent along with what they signed
    device-anchor.pem, service-...  the same two, self-signed: what one listener trusts alone
    broker.pem, https.pem, svc-...  services, each followed by the service authority
    device.crl                      revoked device certificates

The anchors are there because both authorities stand below one root: a listener that trusted the
root would admit services where only devices belong, and devices where only services do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from protocol.identity import device_id
from server.pki import profile
from server.pki.profile import Signer

__all__ = [
    "Authority",
    "AuthorityError",
    "IssuedCertificate",
    "RequestRefusedError",
    "device_uri",
    "proven_key",
]

CRL_LIFE = timedelta(days=7)
MAX_REQUEST_BYTES = 8192  # a P-256 request has some 400; room for extensions that we ignore
SERVICE_PREFIX = "svc-"
_LOCAL_DNS = ("localhost",)
_LOCAL_IPS = ("127.0.0.1", "::1")


class AuthorityError(Exception):
    """The authority's directory is not what it should be."""


class RequestRefusedError(ValueError):
    """A certificate request that the authority does not sign, with the reason."""

    code = "bad_request_for_certificate"


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A signed certificate; `chain_pem` holds it and then its authority."""

    chain_pem: bytes
    serial: int
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Described:
    """An authority as the database knows it."""

    name: str
    pem: str
    spki_sha256: bytes
    not_after: datetime


class Authority:
    """Signs devices and services with the keys in one directory."""

    def __init__(self, directory: Path, *, devices: Signer, services: Signer) -> None:
        self.directory = directory
        self._devices = devices
        self._services = services

    @classmethod
    def create(cls, directory: Path, *, now: datetime | None = None) -> Authority:
        """Make new roots and authorities. Raises AuthorityError where there are some already."""
        moment = now or datetime.now(UTC)
        if (directory / "root.pem").exists():
            raise AuthorityError(f"{directory} already holds an authority")
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        roots = [_new_root(partial, name, now=moment) for name in ("root", "root-next")]
        _write(partial / "bundle.pem", b"".join(_pem(root.certificate) for root in roots))
        devices = _new_authority(partial, "device", root=roots[0], now=moment)
        services = _new_authority(partial, "service", root=roots[0], now=moment)
        authority = cls(directory, devices=devices, services=services)
        _write(partial / "device.crl", authority.crl(now=moment))
        partial.rename(directory)  # whole or not at all; an empty directory gives way
        return authority

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Open an existing authority; the roots' keys need not be there. Raises AuthorityError."""
        return cls(
            directory,
            devices=_load_signer(directory, "device-ca"),
            services=_load_signer(directory, "service-ca"),
        )

    def current(self) -> Authority:
        """Return the authority as its directory says now."""
        return self

    @property
    def device_authority(self) -> Described:
        """Who signs devices now."""
        certificate = self._devices.certificate
        der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Described(
            certificate.subject.rfc4514_string().removeprefix("CN="),
            _pem(certificate).decode(),
            hashlib.sha256(der).digest(),
            certificate.not_valid_after_utc,
        )

    def issue_device(
        self, csr_pem: bytes, *, device: str, now: datetime, serial: int | None = None
    ) -> IssuedCertificate:
        """Sign a device's key, under `serial` if one was recorded already.

        Raises RequestRefusedError; ValueError for an impossible id.

        1. The id is one that the server makes, and none of a service.
        2. The request is of bounded size and parses.
        3. Its key is on P-256.
        4. Its signature proves possession of the private key.
        5. Nothing but the key is taken from it: subject, names and extensions are ours.
        """
        identity = device_id(device)  # 1
        if identity.startswith(SERVICE_PREFIX):
            raise ValueError(f"ids that begin with {SERVICE_PREFIX!r} belong to services")
        key = proven_key(csr_pem)  # 2-4
        certificate = profile.certify(  # 5
            identity,
            key=key,
            names=[x509.UniformResourceIdentifier(device_uri(identity))],
            server=False,
            signer=self._devices,
            now=now,
            serial=serial,
        )
        return _issued(certificate, signer=self._devices)

    def issue_service(
        self,
        name: str,
        *,
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
        server: bool = False,
        now: datetime | None = None,
    ) -> IssuedCertificate:
        """Make a key and a certificate for one of our services, as <name>.key and <name>.pem."""
        key = profile.new_key()
        names = profile.service_names(dns=dns, ips=ips)
        if not names:
            names = [x509.UniformResourceIdentifier(f"urn:vestibule:service:{name}")]
        certificate = profile.certify(
            name,
            key=key.public_key(),
            names=names,
            server=server,
            signer=self._services,
            now=now or datetime.now(UTC),
        )
        issued = _issued(certificate, signer=self._services)
        _write(self.directory / f"{name}.key", _key_pem(key), mode=0o600)
        _write(self.directory / f"{name}.pem", issued.chain_pem)
        return issued

    def ensure_services(
        self,
        *,
        now: datetime,
        dns: Iterable[str] = _LOCAL_DNS,
        ips: Iterable[str] = _LOCAL_IPS,
    ) -> None:
        """Issue what the broker, the device HTTPS listener and our MQTT clients lack or outlive.

        A certificate is replaced when two thirds of its life are over.
        """
        names, addresses = tuple(dns), tuple(ips)
        for name in ("broker", "https"):
            if self._is_due(name, now=now):
                self.issue_service(name, dns=names, ips=addresses, server=True, now=now)
        for name in ("svc-ingest", "svc-downlink", "svc-control"):
            if self._is_due(name, now=now):
                self.issue_service(name, now=now)

    def crl(
        self,
        serials: Iterable[int] = (),
        *,
        now: datetime | None = None,
        life: timedelta = CRL_LIFE,
    ) -> bytes:
        """Return the signed list (PEM) of revoked device certificates."""
        moment = now or datetime.now(UTC)
        revoked = profile.revocation_list(serials, signer=self._devices, now=moment, life=life)
        return revoked.public_bytes(Encoding.PEM)

    def refresh_crl(self, *, now: datetime, life: timedelta = CRL_LIFE) -> None:
        """Sign device.crl anew with the same serials, valid for `life` from now."""
        path = self.directory / "device.crl"
        current = x509.load_pem_x509_crl(path.read_bytes())
        _write(path, self.crl([entry.serial_number for entry in current], now=now, life=life))

    def _is_due(self, name: str, *, now: datetime) -> bool:
        path = self.directory / f"{name}.pem"
        if not path.exists() or not (self.directory / f"{name}.key").exists():
            return True
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now > certificate.not_valid_before_utc + life * 2 / 3


def device_uri(device: str) -> str:
    """Return the name of a device in its certificate."""
    return f"urn:vestibule:device:{device}"


def proven_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a request whose sender holds it. Raises RequestRefusedError."""
    if len(csr_pem) > MAX_REQUEST_BYTES:
        raise RequestRefusedError(f"the request has {len(csr_pem)} bytes, over {MAX_REQUEST_BYTES}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestRefusedError("the request is no PKCS#10 in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefusedError("the request's key is not on P-256")
    try:
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestRefusedError("the request's signature is of an unknown kind") from error
    if not proven:
        raise RequestRefusedError("the request is not signed by its own key")
    return key


def _new_root(directory: Path, name: str, *, now: datetime) -> Signer:
    key = profile.new_key()
    certificate = profile.self_signed(
        f"Vestibule {name}", key=key, path_length=1, now=now, life=profile.ROOT_LIFE
    )
    signer = Signer(certificate=certificate, key=key)
    _write_signer(directory, name, signer)
    return signer


def _new_authority(directory: Path, kind: str, *, root: Signer, now: datetime) -> Signer:
    key = profile.new_key()
    name = f"Vestibule {kind} authority"
    anchor = profile.self_signed(name, key=key, path_length=0, now=now, life=profile.CA_LIFE)
    _write(directory / f"{kind}-anchor.pem", _pem(anchor))
    certificate = profile.signing_authority(name, key=key, root=root, now=now)
    signer = Signer(certificate=certificate, key=key)
    _write_signer(directory, f"{kind}-ca", signer)
    return signer


def _load_signer(directory: Path, name: str) -> Signer:
    try:
        certificate = x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
        key = load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise AuthorityError(f"{directory} holds no readable {name}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{directory / name}.key is not an elliptic-curve key")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{directory / name}.key does not belong to its certificate")
    return Signer(certificate=certificate, key=key)


def _write_signer(directory: Path, name: str, signer: Signer) -> None:
    _write(directory / f"{name}.key", _key_pem(signer.key), mode=0o600)
    _write(directory / f"{name}.pem", _pem(signer.certificate))


def _issued(certificate: x509.Certificate, *, signer: Signer) -> IssuedCertificate:
    return IssuedCertificate(
        chain_pem=_pem(certificate) + _pem(signer.certificate),
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file as a whole; it never exists with a wider mode than `mode`."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

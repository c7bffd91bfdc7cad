"""The fleet's authority: roots, and below them one authority for devices and one for services.

`server.pki.files` says which files that is. The roots' keys are not among those that run the
fleet: they sign authorities, a few times in twenty years, and are kept away from the machine.

Each broker listener trusts self-signed anchors of one kind of authority only: a listener that
trusted the root would admit services where only devices belong, and devices where only services do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography import x509

from protocol.identity import device_id
from server.pki import profile
from server.pki.files import FORGOTTEN, AuthorityError, Files, key_pem, logged, pem, write
from server.pki.generations import Kind, first, of, signing
from server.pki.policy import Proof, RequestRefusedError, device_uri, proof, spki_sha256
from server.pki.revocations import (
    CRL_LIFE,
    CrlError,
    build_crl,
    own_serials,
    split_crls,
    verify_crls,
)
from server.pki.roots import new_authority, new_root
from server.pki.signer import Signer

__all__ = [
    "Authority",
    "AuthorityError",
    "Described",
    "IssuedCertificate",
    "Proof",
    "RequestRefusedError",
    "device_uri",
    "proof",
    "spki_sha256",
]

SERVICE_PREFIX = "svc-"
SERVERS = ("broker", "https")
CLIENTS = (
    *("svc-ingest", "svc-downlink", "svc-control", "svc-canary"),
    *("svc-content", "svc-firmware"),  # these sign what devices take, and connect nowhere
)
_LOCAL_DNS = ("localhost",)
_LOCAL_IPS = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A signed certificate; `chain_pem` holds it and then its authority."""

    chain_pem: bytes
    serial: int
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Described:
    """A root or an authority as the database knows it."""

    name: str
    kind: str
    state: str
    pem: str
    spki_sha256: bytes
    not_after: datetime


class Authority:
    """Signs devices and services with the keys in one directory, as it was when it was loaded.

    `devices` and `services` are the signers; whoever keeps the keys elsewhere gives others.
    """

    def __init__(
        self, files: Files, *, devices: Signer | None = None, services: Signer | None = None
    ) -> None:
        self.files = files
        self.directory = files.directory
        self._device = signing(files.generations, Kind.DEVICE)
        self._service = signing(files.generations, Kind.SERVICE)
        self._devices = devices or files.signer(self._device.name)
        self._services = services or files.signer(self._service.name)
        self.device_authority = self._described(self._device.name)
        """Who signs devices."""
        self._given = (devices, services)
        self._stamp = files.stamp()

    @classmethod
    def create(
        cls, directory: Path, *, now: datetime | None = None, password: bytes | None = None
    ) -> Authority:
        """Make roots and authorities. Raises AuthorityError where there are some already.

        The roots' keys are kept in `offline/` under the password. Without one they are forgotten
        once the authorities are signed: a key that nobody holds cannot be stolen, and nobody
        could move such a fleet to its next root.
        """
        moment = now or datetime.now(UTC)
        if (directory / "root.pem").exists():
            raise AuthorityError(f"{directory} already holds an authority")
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for folder in (partial, partial / "authorities"):
            folder.mkdir(mode=0o700)
        files = Files(partial, first())
        keep = None if password is None else partial / "offline"
        root = new_root(files, "root-1", keys=keep, password=password, now=moment)
        new_root(files, "root-2", keys=keep, password=password, now=moment, bridge_from=root)
        for kind in (Kind.DEVICE, Kind.SERVICE):
            new_authority(files, f"{kind}-1", root=root, now=moment)
        made = cls(files.write_list(first()))
        made.files.derive()
        write(partial / "device.crl", made.crl(now=moment))
        if password is None:
            write(partial / FORGOTTEN, b"no root's key was kept: no `vestibule ca init`\n")
        partial.rename(directory)  # whole or not at all; an empty directory gives way
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Open an existing authority; the roots' keys need not be there. Raises AuthorityError."""
        return cls(Files.read(directory))

    def current(self) -> Authority:
        """Return the authority as its directory says now: a rollover needs no restart."""
        if self.files.stamp() == self._stamp:
            return self
        devices, services = self._given
        return Authority(Files.read(self.directory), devices=devices, services=services)

    def described(self) -> Sequence[Described]:
        """Return every root and authority that there ever was here."""
        return self._all

    @cached_property
    def _all(self) -> tuple[Described, ...]:
        return tuple(self._described(generation.name) for generation in self.files.generations)

    def spki_of(self, name: str) -> bytes:
        """Return the SHA-256 of a root's or an authority's key."""
        return self._described(name).spki_sha256

    def bundle(self) -> str:
        """Return the roots that devices are to trust, as they are now."""
        return (self.directory / "bundle.pem").read_text()

    def issue_device(
        self, request: bytes | Proof, *, device: str, now: datetime, serial: int | None = None
    ) -> IssuedCertificate:
        """Sign a device's key, under `serial` if one was recorded already.

        `request`: in PEM, or what it has proved. Raises RequestRefusedError; ValueError for an
        impossible id.

        1. The id is one that the server makes, and none of a service.
        2. The request is one that we sign (`server.pki.policy`); it proves its key.
        3. Nothing but the key is taken from it: subject, names and extensions are ours.
        """
        identity = device_id(device)  # 1
        if identity.startswith(SERVICE_PREFIX):
            raise ValueError(f"ids that begin with {SERVICE_PREFIX!r} belong to services")
        if not isinstance(request, Proof):
            request = proof(request, device=identity)  # 2
        certificate = profile.certify(  # 3
            identity,
            key=request.key,
            names=[x509.UniformResourceIdentifier(device_uri(identity))],
            server=False,
            signer=self._devices,
            now=now,
            serial=serial,
        )
        return _issued(certificate, above=pem(self._devices.certificate))

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
        key, serial, moment = profile.new_key(), profile.new_serial(), now or datetime.now(UTC)
        names = profile.service_names(dns=dns, ips=ips)
        if not names:
            names = [x509.UniformResourceIdentifier(f"urn:vestibule:service:{name}")]
        with logged(
            self.directory, serial=serial, subject=name, authority=self._service.name, now=moment
        ):
            certificate = profile.certify(
                name,
                key=key.public_key(),
                names=names,
                server=server,
                signer=self._services,
                now=moment,
                serial=serial,
            )
        issued = _issued(certificate, above=self.files.chain_above(self._service))
        write(self.directory / f"{name}.key", key_pem(key), mode=0o600)
        write(self.directory / f"{name}.pem", issued.chain_pem)
        return issued

    def ensure_services(
        self,
        *,
        now: datetime,
        dns: Iterable[str] = _LOCAL_DNS,
        ips: Iterable[str] = _LOCAL_IPS,
    ) -> list[str]:
        """Issue what the broker, the device HTTPS listener and our MQTT clients lack or outlive.

        A certificate is replaced when two thirds of its life are over, or when another authority
        signs now; it keeps its names. Returns whose were issued.
        """
        due = [name for name in (*SERVERS, *CLIENTS) if self._is_due(name, now=now)]
        for name in due:
            if name in CLIENTS:
                self.issue_service(name, now=now)
            else:
                own_dns, own_ips = self._names_of(name) or (tuple(dns), tuple(ips))
                self.issue_service(name, dns=own_dns, ips=own_ips, server=True, now=now)
        return due

    def crl(
        self,
        serials: Iterable[int] = (),
        *,
        now: datetime | None = None,
        life: timedelta = CRL_LIFE,
    ) -> bytes:
        """Return the verified list file (PEM) of revoked device certificates.

        One list of each device authority that the broker trusts, all serials on each: it refuses
        every device of an authority whose list is not there.
        """
        moment, revoked = now or datetime.now(UTC), sorted(set(serials))
        signers = self._device_signers()
        lists = [
            build_crl(signer, revoked, moment, life=life, previous=self._list_before(signer))
            for signer in signers
        ]
        verify_crls(b"".join(lists), [s.certificate for s in signers], revoked, moment)
        return b"".join(lists)

    def refresh_crl(
        self, *, now: datetime, life: timedelta = CRL_LIFE, fallback: Path | None = None
    ) -> None:
        """Sign device.crl anew with the same serials, valid for `life` from now.

        `fallback`: a copy that was installed before, for when device.crl is not ours to read.
        Raises CrlError if neither is: an empty list would let revoked devices back in.
        """
        serials = self.listed(fallback=fallback)
        write(self.directory / "device.crl", self.crl(serials, now=now, life=life))

    def verify_crl(self, content: bytes, serials: Iterable[int], *, now: datetime) -> None:
        """Raise CrlError unless this file may be installed for the device listener."""
        issuers = [signer.certificate for signer in self._device_signers()]
        verify_crls(content, issuers, set(serials), now)

    def listed(self, *, fallback: Path | None = None) -> set[int]:
        """Return the serials of device.crl, or of an earlier copy. Raises CrlError."""
        path = self.directory / "device.crl"
        issuers = [signer.certificate for signer in self._device_signers()]
        try:
            return own_serials(path.read_bytes(), issuers)
        except (OSError, CrlError) as error:
            if fallback is None or not fallback.exists():
                raise CrlError(1, f"{path} cannot be trusted: {error}") from error
            return own_serials(fallback.read_bytes(), issuers)

    def _list_before(self, signer: Signer) -> bytes | None:
        """Return the authority's list in device.crl, whose number the next one has to pass."""
        try:
            blocks = split_crls((self.directory / "device.crl").read_bytes())
            parsed = [(x509.load_pem_x509_crl(block), block) for block in blocks]
        except (OSError, ValueError):
            return None
        key = profile.key_of(signer)
        return next((block for crl, block in parsed if crl.is_signature_valid(key)), None)

    def _device_signers(self) -> list[Signer]:
        return [
            self._devices if generation == self._device else self.files.signer(generation.name)
            for generation in of(self.files.generations, Kind.DEVICE)
        ]

    def _described(self, name: str) -> Described:
        (generation,) = [g for g in self.files.generations if g.name == name]
        certificate = self.files.certificate(name)
        digest = spki_sha256(certificate.public_key())
        return Described(
            f"{name} {digest.hex()[:8]}",
            generation.kind,
            generation.state,
            pem(certificate).decode(),
            digest,
            certificate.not_valid_after_utc,
        )

    def _is_due(self, name: str, *, now: datetime) -> bool:
        path = self.directory / f"{name}.pem"
        if not path.exists() or not (self.directory / f"{name}.key").exists():
            return True
        chain = path.read_bytes()
        if not chain.endswith(self.files.chain_above(self._service)):
            return True
        certificate = x509.load_pem_x509_certificate(chain)
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now > certificate.not_valid_before_utc + life * 2 / 3

    def _names_of(self, name: str) -> tuple[list[str], list[str]] | None:
        path = self.directory / f"{name}.pem"
        if not path.exists():
            return None
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = names.get_values_for_type(x509.IPAddress)
        return names.get_values_for_type(x509.DNSName), [str(address) for address in addresses]


def _issued(certificate: x509.Certificate, *, above: bytes) -> IssuedCertificate:
    return IssuedCertificate(
        chain_pem=pem(certificate) + above,
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )

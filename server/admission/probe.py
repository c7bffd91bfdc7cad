"""Proof at the devices' own listener: who is denied is inert there, and who is admitted is not.

Two devices of ours that stand in no register: one is always on the deny-list, the other never. A
subscription tells them apart: the broker refuses it to the one, and grants it to the other, whom
the access list knows. Neither publishes, so ingest hears nothing of them.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paho.mqtt.reasoncodes import ReasonCode

from protocol.identity import device_id
from protocol.topics import Leg, topic
from server.pki.authority import Authority
from server.pki.files import write

ADMITTED: Final = device_id("probe-admitted")
DENIED: Final = device_id("probe-denied")
TIMEOUT_S = 5.0
_REFUSED: Final = frozenset({0x86, 0x87, 0x8A})  # MQTT 5, 2.4: bad name, not authorised, banned


class ProbeError(Exception):
    """The broker does not do to a probe what it should; the text says what it did."""


@dataclass(frozen=True, slots=True)
class Listener:
    """The devices' listener, and the folder with the authority and the probes' certificates."""

    host: str
    port: int
    pki: Path


def due(listener: Listener, *, now: datetime) -> Sequence[str]:
    """Return the probes that have no certificate of today's authority, or one that ends soon."""
    authority = Authority.load(listener.pki)
    return [name for name in (ADMITTED, DENIED) if not _serves(authority, name, now=now)]


def certify(listener: Listener, name: str, *, serial: int, now: datetime) -> None:
    """Sign a probe's certificate under a serial that was recorded, and keep it with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = Authority.load(listener.pki).issue_device(
        request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=name,
        now=now,
        serial=serial,
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write(_path(listener, name), private + issued.chain_pem, mode=0o600)


async def prove(listener: Listener) -> None:
    """Return if the broker admits the one probe and makes the other inert. Raises ProbeError."""
    try:
        admitted = await _subscribes(listener, ADMITTED)
    except aiomqtt.MqttError as error:
        raise ProbeError(f"a device that is admitted cannot connect: {error}") from error
    if not admitted:
        raise ProbeError("a device that is admitted is refused by the broker")
    try:
        denied = not await _subscribes(listener, DENIED)
    except aiomqtt.MqttError as error:
        if not (isinstance(error, aiomqtt.MqttCodeError) and _refuses(error.rc)):
            raise ProbeError(f"a device on the deny-list got no answer: {error}") from error
        denied = True  # not even let in
    if not denied:
        raise ProbeError("a device on the deny-list is not refused by the broker")


async def _subscribes(listener: Listener, name: str) -> bool:
    """Connect and subscribe; return whether that was granted.

    Raises MqttError; ProbeError if the subscription fails for another reason than a refusal.
    """
    own = device_id(name)
    try:
        tls = ssl.create_default_context(cafile=listener.pki / "bundle.pem")
        tls.load_cert_chain(_path(listener, name))
    except OSError as error:  # ssl.SSLError is one
        raise ProbeError(f"{_path(listener, name)}: {error}") from error
    async with aiomqtt.Client(
        listener.host,
        listener.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        identifier=own,
        tls_context=tls,
        timeout=TIMEOUT_S,
    ) as client:
        codes = await client.subscribe(topic(own, Leg.DOWN), qos=1)
    failures = [code for code in codes if isinstance(code, ReasonCode) and code.is_failure]
    if not all(map(_refuses, failures)):
        raise ProbeError(f"{own}: its subscription fails: {', '.join(map(str, failures))}")
    return not failures


def _refuses(code: object) -> bool:
    """True for an answer that says "not you", and not "not now"."""
    return isinstance(code, ReasonCode) and code.value in _REFUSED


def _serves(authority: Authority, name: str, *, now: datetime) -> bool:
    try:
        chain = (authority.directory / f"{name}.pem").read_bytes()
        certificate = x509.load_pem_x509_certificate(chain)
    except (OSError, ValueError):
        return False
    begins = certificate.not_valid_before_utc
    life = certificate.not_valid_after_utc - begins
    signer = authority.device_authority.pem.encode().strip()
    return signer in chain and begins <= now < begins + life * 2 / 3


def _path(listener: Listener, name: str) -> Path:
    return listener.pki / f"{name}.pem"

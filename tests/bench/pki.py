"""Certificates issued a second, each recorded before it is signed, beside bare signing.

    python -m tests.bench.pki

Ours is `server.provisioning.issuing.issue` on PostgreSQL with fsync: two transactions a device, the
request checked, the signature checked. Bare is what `cryptography` needs to build and sign the same
certificate with a key at hand, on one core, remembering nothing. A fleet of 100,000 renews at 0.3 a
minute; what counts is how fast a fleet comes back after a change of authorities.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import asyncpg
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.pki import profile
from server.pki.authority import Authority
from server.pki.files import Files
from server.pki.policy import device_uri
from server.pki.signer import FileSigner
from server.provisioning.issuing import issue, proved
from tests.bench.writer import database
from tests.ingest_world import Fleet, register

DEVICES = 2_000
AT_ONCE = 16
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, which was measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None
    limit_name: str


def run() -> list[Row]:
    """Measure both; AssertionError if a device did not get its one certificate."""
    return uvloop.run(_run())


async def _run() -> list[Row]:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(DEVICES)]
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        authority = Authority.create(Path(folder) / "pki")
        signer = Files.read(authority.directory).signer("device-1")
        async with database() as (owner, dsn):
            fleet = await register(owner, DEVICES, prefix="dc-bench")
            async with asyncpg.create_pool(dsn, min_size=AT_ONCE, max_size=AT_ONCE) as pool:
                ours = DEVICES / await _issue(pool, authority, fleet, keys)
            active = "select count(distinct device_id) from certificates where state = 'active'"
            assert await owner.fetchval(active) == DEVICES
        bare = DEVICES / _sign(signer, fleet, keys)
    return [
        Row(
            name="pki.issue.ours",
            value=round(ours),
            unit="certificates/s",
            limit=round(bare),
            ratio=round(ours / bare, 3),
            limit_name="bare signing, nothing recorded",
        ),
        Row(
            name="pki.sign.bare",
            value=round(bare),
            unit="certificates/s",
            limit=None,
            ratio=None,
            limit_name="",
        ),
    ]


async def _issue(
    pool: asyncpg.Pool, authority: Authority, fleet: Fleet, keys: list[ec.EllipticCurvePrivateKey]
) -> float:
    asked = [(index, _request(key)) for index, key in enumerate(keys)]
    asked.reverse()
    start = time.perf_counter()

    async def worker() -> None:
        while asked:
            index, csr = asked.pop()
            await issue(
                pool,
                authority,
                device_row=fleet.rows[index],
                device=fleet.devices[index],
                organisation=fleet.organisation,
                key=proved(csr),
                reason="enrolment",
                now=NOW,
                stage=False,
            )

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return time.perf_counter() - start


def _request(key: ec.EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _sign(signer: FileSigner, fleet: Fleet, keys: list[ec.EllipticCurvePrivateKey]) -> float:
    """Build and sign the same certificates with the library alone."""
    pattern = profile.certify(
        fleet.devices[0],
        key=keys[0].public_key(),
        names=[x509.UniformResourceIdentifier(device_uri(fleet.devices[0]))],
        server=False,
        signer=signer,
        now=NOW,
    )
    same = [
        extension
        for extension in pattern.extensions
        if not isinstance(extension.value, x509.SubjectKeyIdentifier | x509.SubjectAlternativeName)
    ]
    start = time.perf_counter()
    for device, key in zip(fleet.devices, keys, strict=True):
        public = key.public_key()
        builder = x509.CertificateBuilder(
            pattern.issuer,
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)]),
            public,
            profile.new_serial(),
            pattern.not_valid_before_utc,
            pattern.not_valid_after_utc,
        )
        uri = x509.UniformResourceIdentifier(device_uri(device))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        builder = builder.add_extension(identifier, critical=False)
        for extension in same:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return time.perf_counter() - start


def main() -> int:
    """Print the rows."""
    for row in run():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f} of {row['limit_name']}"
        sys.stdout.write(f"{row['name']:28} {row['value']:>12,.0f} {row['unit']} {ratio}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

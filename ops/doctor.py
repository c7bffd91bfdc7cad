"""`vestibule doctor`: look at this installation and say what to do about what is wrong."""

import argparse
import asyncio
import shutil
import ssl
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from cryptography import x509

import ext
from ops.deployment import Deployment, deployment
from server.db.migrate import SchemaMismatch, check_schema
from server.errors import VestibuleError
from server.firmware.repository import Repository
from server.firmware.signing import ALARM

DISK_LOW_BYTES = 2 << 30
CERTIFICATE_LOW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `remedy` says what to do where it is not well."""

    what: str
    well: bool
    found: str
    remedy: str = ""


def main(argv: list[str]) -> int:
    """Print each finding; exit code 1 if something is not well."""
    argparse.ArgumentParser(prog="vestibule doctor", description=__doc__).parse_args(argv)
    findings = asyncio.run(examine(deployment(start=False)))
    for finding in findings:
        print(f"{'ok ' if finding.well else 'BAD'}  {finding.what}: {finding.found}")
        if finding.remedy and not finding.well:
            print(f"     {finding.remedy}")
    return 0 if all(finding.well for finding in findings) else 1


async def examine(found: Deployment) -> list[Finding]:
    """Look at the decoder, the disk, certificates, releases, the database and the server."""
    checks: list[Callable[[], Awaitable[Finding]]] = [
        _decoder,
        _disk,
        lambda: _certificates(found.settings.pki),
        lambda: releases(found.settings.firmware, now=datetime.now(UTC)),
        lambda: _database(found),
        lambda: _server(found),
    ]
    return [await check() for check in checks]


async def _decoder() -> Finding:
    return Finding(
        "decoder",
        ext.COMPILED,
        "compiled" if ext.COMPILED else "reference (Python), some 100 times slower",
        "install gcc and python3-dev, then: REQUIRE_EXT=1 pip install --editable .",
    )


async def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding(
        "disk",
        free > DISK_LOW_BYTES,
        f"{free >> 20:,} MiB free",
        "free some: at 0 the database stops, and devices keep their counts until it is back",
    )


async def _certificates(pki: Path) -> Finding:
    lives: dict[str, int] = {}
    for path in pki.glob("*.pem"):
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            left = certificate.not_valid_after_utc - datetime.now(UTC)
            lives[path.name] = min(left.days, lives.get(path.name, left.days))
    if not lives:
        return Finding("certificates", False, f"none in {pki}", "run `vestibule ca init`")
    name, days = min(lives.items(), key=lambda item: item[1])
    return Finding(
        "certificates",
        days > CERTIFICATE_LOW_DAYS,
        f"{len(lives)} files, the first to end is {name} in {days} days",
        "service certificates renew at `vestibule services up`",
    )


async def releases(folder: Path, *, now: datetime) -> Finding:
    """Look at whether devices could install what is approved: metadata, keys and bytes."""
    repository, sign = Repository(folder), "see ops/RELEASING.md; what devices run goes on"
    try:
        left = await asyncio.to_thread(repository.left, now=now)
        if not left:
            return Finding("releases", True, f"none published in {folder}")
        await asyncio.to_thread(repository.demand_keys)
        targets = await asyncio.to_thread(repository.targets)
        missing = repository.store.missing(each.sha256 for each in targets)
    except (OSError, VestibuleError) as error:
        return Finding("releases", False, str(error), sign)
    short = {role: time for role, time in left.items() if time < ALARM[role]}
    if short:
        said = ", ".join(f"{role} ends in {time.days} days" for role, time in short.items())
        return Finding("releases", False, said, f"is the role `firmware` running? Else {sign}")
    if missing:
        said = f"the bytes of {len(missing)} of {len(targets)} are not in {repository.store.folder}"
        return Finding("releases", False, said, "publish them again: `vestibule release publish`")
    return Finding("releases", True, f"{len(targets)} approved, keys and bytes are here")


async def _database(found: Deployment) -> Finding:
    try:
        connection = await asyncpg.connect(found.settings.dsn_ingest.reveal(), timeout=5)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        return Finding("database", False, str(error), "run `vestibule services up`")
    try:
        await check_schema(connection)
        unsafe = [
            name
            for name in ("fsync", "full_page_writes", "synchronous_commit")
            if await connection.fetchval("select current_setting($1)", name) == "off"
        ]
    except SchemaMismatch as error:
        return Finding("database", False, str(error), "run `vestibule migrate`")
    finally:
        await connection.close()
    if unsafe:
        return Finding("database", False, f"{', '.join(unsafe)} off", "a crash may lose counts")
    return Finding("database", True, "answers, schema fits, durable")


async def _server(found: Deployment) -> Finding:
    url = f"http://{found.settings.http_host}:{found.settings.http_port}/readyz"

    def ask() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body.decode()

    try:
        return Finding("server", True, await asyncio.to_thread(ask))
    except (OSError, ssl.SSLError) as error:
        return Finding("server", False, f"{url}: {error}", "run `vestibule serve`")

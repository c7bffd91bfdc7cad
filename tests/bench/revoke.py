"""Some of many connected devices thrown out at once: how long until each is closed and inert.

    python -m tests.bench.revoke --devices 1000 --out 20

From the order's commit to the moment the device sees its connection closed; then each of them tries
again and is inert, and each of the others speaks on the connection that it has had all along.
"""

import argparse
import asyncio
import os
import random
import ssl
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import asyncpg

from ops.services.stack import Stack
from server.admission.orders import Moved
from server.fleet.lifecycle import State
from server.pki.authority import Authority
from tests.admission_world import Session, admitting, certify, connected, done, order, speaks
from tests.ingest_world import owning, register

PROMISED_S = 2.0


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut has shown; times in seconds, sorted."""

    devices: int
    took_s: list[float]
    inert: int
    undisturbed: int
    back: int

    @property
    def passed(self) -> bool:
        """True if all were out and inert, all others undisturbed, and all came back."""
        out = len(self.took_s)
        return (self.inert, self.undisturbed, self.back) == (out, self.devices - out, out)

    def line(self) -> str:
        """Return the closing line."""
        out = len(self.took_s)
        p50, p99 = self.took_s[out // 2], self.took_s[min(out - 1, out * 99 // 100)]
        return (
            f"revoke: {out} of {self.devices} out, closed p50 {p50 * 1000:.0f} ms, "
            f"p99 {p99 * 1000:.0f} ms; inert {self.inert}, undisturbed {self.undisturbed}, "
            f"reinstated and back {self.back}"
        )


async def cut(
    owner: asyncpg.Connection, stack: Stack, dsn: str, *, folder: Path, count: int, out: int
) -> Cut:
    """Connect `count` devices, throw `out` of them out, let them in again."""
    fleet = await register(owner, count, prefix="dc-cut")
    authority = Authority.load(stack.endpoints.pki)
    tls = [
        (await certify(owner, stack, fleet, i, folder=folder, authority=authority)).tls
        for i in range(count)
    ]
    context: dict[str, ssl.SSLContext] = dict(zip(fleet.devices, tls, strict=True))
    loop = asyncio.get_running_loop()
    async with (
        connected(stack, fleet.devices, tls) as sessions,
        asyncpg.create_pool(dsn, min_size=4, max_size=4) as pool,
    ):
        chosen = random.Random(1).sample(sessions, out)
        others = [session for session in sessions if session not in chosen]

        async def throw_out(session: Session) -> float:
            async with pool.acquire() as connection:
                moved.append(await order(connection, session.device, State.SUSPENDED))
            committed = loop.time()
            await session.ended()
            assert session.ended_at is not None
            return session.ended_at - committed

        moved: list[Moved] = []
        async with asyncio.timeout(60):
            took_s = sorted(await asyncio.gather(*map(throw_out, chosen)))
        await done(owner, *moved)
        spoke = [await speaks(stack, s.device, context[s.device]) for s in chosen]
        undisturbed = [await _speaks_on(session) for session in others]
        moved = [await order(owner, session.device, None) for session in chosen]
        await done(owner, *moved)
        back = [await speaks(stack, s.device, context[s.device]) for s in chosen]
        return Cut(count, took_s, spoke.count(False), undisturbed.count(True), back.count(True))


async def _speaks_on(session: Session) -> bool:
    try:
        await session.publish(b"still here")
    except aiomqtt.MqttError:
        return False
    return session.ended_at is None


async def _main(devices: int, out: int) -> int:
    with tempfile.TemporaryDirectory(prefix="vestibule-revoke-") as work:
        Path(work).chmod(0o755)
        stack = Stack(Path(work) / "stack", role="bench")
        try:
            await asyncio.to_thread(stack.up)
            await asyncio.to_thread(stack.postgres.create_database, "revoke")
            async with owning(stack, "revoke") as owner, admitting(stack, "revoke"):
                dsn = stack.endpoints.dsn("owner", "revoke")
                result = await cut(owner, stack, dsn, folder=Path(work), count=devices, out=out)
        finally:
            await asyncio.to_thread(stack.remove)
    print(result.line())
    return 0 if result.passed and result.took_s[-1] < PROMISED_S else 1


def main() -> int:
    """Measure, and judge by what is promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=int(os.environ.get("DEVICES", "1000")))
    parser.add_argument("--out", type=int, default=20)
    options = parser.parse_args()
    return asyncio.run(_main(options.devices, options.out))


if __name__ == "__main__":
    sys.exit(main())

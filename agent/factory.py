"""What the factory has given a device, and a technician has left on it: by this it enrols itself.

The settings name server, root fingerprint, serial and set-up secret. `enrol.json` in the state
folder goes over them, as written onto a memory card or by hand: {"voucher", "spot"}, or any of
{"server", "root_sha256", "serial", "setup_secret"}, or {"token": "vst1.…"} instead of all. It is
taken away once the device is enrolled.
"""

import asyncio
import json
import random
from pathlib import Path

import structlog

from agent import identity
from agent.clock import Clock
from agent.config import AgentConfig, ConfigError
from agent.enrol import (
    USELESS_KEY,
    EnrolError,
    Labelled,
    Then,
    Ticket,
    TokenError,
    enrol_by,
    parse_server,
    parse_token,
    pause_s,
)
from agent.identity import Enrolled, NotEnrolledError
from agent.notify import Notifier
from protocol.frame import Quality
from protocol.label import LabelError, label, typed

FILE = "enrol.json"
MAX_FILE = 16_384
BEAT_S = 10.0  # how often the service manager hears of us while we wait
_KNOWN = ("server", "root_sha256", "serial", "setup_secret", "voucher", "spot", "token")

log = structlog.get_logger(__name__)


def ticket(config: AgentConfig) -> Ticket | None:
    """Return what this device can enrol by, or None; ConfigError if it can't be read."""
    given = {
        "server": config.server,
        "root_sha256": config.root_sha256,
        "serial": config.serial,
        "setup_secret": config.setup_secret,
    } | left(config.state)
    try:
        if given.get("token"):
            return parse_token(given["token"])
        if not all(given[name] for name in ("server", "root_sha256", "serial", "setup_secret")):
            return None
        return labelled(
            given["server"],
            given["root_sha256"],
            serial=given["serial"],
            secret=given["setup_secret"],
            voucher=given.get("voucher", ""),
            spot=given.get("spot", ""),
        )
    except (TokenError, LabelError) as error:
        raise ConfigError(f"this device can't be enrolled: {error}") from error


def labelled(
    server: str, root_sha256: str, *, serial: str, secret: str, voucher: str = "", spot: str = ""
) -> Labelled:
    """Return what a label shows, its secret with or without check character.

    Raises TokenError (the server), LabelError (the label).
    """
    try:
        found = label(serial, secret)
    except LabelError:
        found = typed(serial, secret)
    return Labelled(
        *parse_server(server, root_sha256), found.serial, found.secret, voucher.strip(), spot
    )


def left(state: Path) -> dict[str, str]:
    """Return what `enrol.json` says; nothing, and a warning, if it can't be read."""
    path = state / FILE
    try:
        with path.open("rb") as file:
            got = json.loads(file.read(MAX_FILE))
        if not isinstance(got, dict) or not all(
            name in _KNOWN and isinstance(text, str) for name, text in got.items()
        ):
            raise ValueError(f"expected texts named {', '.join(_KNOWN)}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("enrol.json is passed over", path=str(path), error=str(error))
        return {}
    return got


async def enrolled(
    config: AgentConfig, *, clock: Clock, rng: random.Random, notifier: Notifier
) -> Enrolled:
    """Return who we are; a device that can enrol by itself asks until it is let in.

    Raises NotEnrolledError if there is nothing to enrol by, EnrolError if asking can never help.
    """
    try:
        done = identity.read(config.state)
    except NotEnrolledError:
        if ticket(config) is None:
            raise
        beating = asyncio.create_task(_beat(clock, notifier), name="beat")
        try:
            done = await _until_let_in(config, clock=clock, rng=rng)
        finally:
            beating.cancel()
    (config.state / FILE).unlink(missing_ok=True)  # it may hold secrets
    return done


async def _until_let_in(config: AgentConfig, *, clock: Clock, rng: random.Random) -> Enrolled:
    """Ask, and wait as `pause_s` says; `enrol.json` is read each time, it may have been renewed."""
    began_ms = clock.monotonic_ms()
    said = ""
    while True:
        shown = ticket(config)
        if shown is None:
            raise NotEnrolledError("not enrolled, and enrol.json is gone")
        timeless = clock.offset()[0] is Quality.NONE
        try:
            done = await asyncio.to_thread(enrol_by, shown, state=config.state, timeless=timeless)
        except EnrolError as error:
            if error.then is Then.GIVE_UP and error.code not in USELESS_KEY:
                raise
            waited_s = (clock.monotonic_ms() - began_ms) / 1000
            wait_s = pause_s(error, waited_s=waited_s, dice=rng.random())
            if str(error) != said:
                said = str(error)
                log.warning("not enrolled yet", why=said, then=error.then.value)
            log.debug("asking again", wait_s=round(wait_s))
            await clock.sleep(wait_s)
        else:
            log.info("enrolled", device=done.device)
            return done


async def _beat(clock: Clock, notifier: Notifier) -> None:
    """Tell the service manager that we live: waiting is all there is to do."""
    notifier.tell("READY=1\nSTATUS=waiting to be enrolled")
    while True:
        notifier.tell("WATCHDOG=1")
        await clock.sleep(BEAT_S)

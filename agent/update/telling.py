"""What a device says of its updates: what runs on it, signed; and what it is offered for that."""

from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent import identity, keys
from agent.update.hands import item_of
from agent.update.slots import Held, Slots
from agent.update.states import Stage, Update, attempt_of
from protocol.assignment import Assignment, read_assignment, read_envelope
from protocol.update import (
    Attempt,
    Component,
    Report,
    signed_message,
    write_report,
)

FRESH_MS = 86_400_000


def on_trial(update: Update) -> Attempt | None:
    """Return the attempt whose code is on trial; None if none is."""
    return update.attempt if update.stage in (Stage.TRIAL, Stage.COMMIT) else None


def screen_of(update: Update, slots: Slots) -> Held:
    """Return the screen that is to be up: on trial, the one that is tried."""
    place = next((each for each in update.places if each.component == "kiosk"), None)
    if place is not None and update.job is not None and on_trial(update):
        item = item_of(update.job, place)
        return Held(place.new, item.version, item.sha256, item.floor)
    return slots.committed("kiosk")


def components(slots: Slots, version: str, screen: Held | None) -> dict[str, Component]:
    """Return what runs, with the floors that were committed; `version` is the agent's.

    A device without a screen has no `screen`; one that came with the agent has its version.
    """
    floors = slots.floors()
    found = {"agent": Component(version, slots.running().sha256, floors["agent"])}
    if screen is not None:
        found["kiosk"] = Component(screen.version or version, screen.sha256, floors["kiosk"])
    return found


def signed(report: Report, state: Path) -> bytes:
    """Return a report as it travels, signed with the key of the device in `state`."""
    key = keys.read(identity.files(state).key)
    return write_report(report, key.sign(signed_message(report), ec.ECDSA(hashes.SHA256())))


def offered(envelope: bytes) -> Assignment:
    """Return what an answer's envelope offers; nothing of it is checked. Raises ContentError."""
    return read_assignment(read_envelope(envelope).text)


def same_offer(job: Assignment, offer: Assignment, *, now_ms: int) -> bool:
    """Whether an offer is what is under way, on the same terms, and these hold for a while."""
    terms = [
        (each.bundle, each.window, each.idle_s, each.delay_s, each.trial_s, each.urgent)
        for each in (job, offer)
    ]
    same = attempt_of(job) == attempt_of(offer) and terms[0] == terms[1]
    return same and job.not_after_ms - now_ms > FRESH_MS

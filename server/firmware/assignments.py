"""Assignments as the server makes them: signed by `svc-firmware`, and by nobody else.

The service's certificate is one of its own, as the content service's is: whoever took over the one
service cannot speak for the other, and neither can approve code (`protocol.assignment`).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from protocol.assignment import SIGNED, Assignment, Envelope, Item
from protocol.release import Component
from protocol.update import Attempt, Report
from server.firmware.policy import OnDevice
from server.pki.service import ServiceSigner

LIFE = timedelta(days=3)
"""An assignment is renewed at each asking; who asks no more for so long begins nothing."""


class AssignmentSigner(ServiceSigner):
    """Signs what one device is to install."""

    __slots__ = ()
    SERVICE = "svc-firmware"

    def sealed(self, assignment: Assignment) -> Envelope:
        """Return a signed envelope; the same assignment gets the same signature."""
        content = assignment.content()
        return Envelope(content, self.signed(SIGNED + content), self.chain)


@dataclass(frozen=True, slots=True)
class Offered:
    """A release as it is offered; one that was withdrawn is not."""

    component: Component
    version: str
    floor: str
    target: str
    length: int
    sha256: str
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of one device; `windows` in UTC ms, empty: at any time."""

    rollout: str
    attempt: Attempt
    model: str
    releases: tuple[Offered, ...]
    windows: tuple[tuple[int, int], ...]
    device: OnDevice
    urgent: bool = False


def assignment_of(report: Report, order: Order, *, now: datetime) -> Assignment:
    """Return the assignment that answers a report: for its device and its nonce alone.

    The hardware is what the register says the device is, where it says so.
    """
    return Assignment(
        device=report.device,
        hardware=order.model or report.hardware,
        rollout=order.rollout,
        execution=order.attempt.execution,
        attempt=order.attempt.number,
        bundle=tuple(
            Item(each.component, each.version, each.floor, each.target, each.length, each.sha256)
            for each in order.releases
        ),
        nonce=report.nonce,
        not_after_ms=round((now + LIFE).timestamp() * 1000),
        window=order.windows,
        idle_s=order.device.idle_s,
        delay_s=order.device.delay_s,
        trial_s=order.device.trial_s,
        urgent=order.urgent,
    )

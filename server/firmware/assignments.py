"""Assignments as the server makes them: signed by `svc-firmware`, and by nobody else.

The service's certificate is one of its own, as the content service's is: whoever took over the one
service cannot speak for the other, and neither can approve code (`protocol.assignment`).
"""

from protocol.assignment import SIGNED, Assignment, Envelope
from server.pki.service import ServiceSigner


class AssignmentSigner(ServiceSigner):
    """Signs what one device is to install."""

    __slots__ = ()
    SERVICE = "svc-firmware"

    def sealed(self, assignment: Assignment) -> Envelope:
        """Return a signed envelope; the same assignment gets the same signature."""
        content = assignment.content()
        return Envelope(content, self.signed(SIGNED + content), self.chain)

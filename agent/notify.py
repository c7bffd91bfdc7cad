"""Tell systemd that we are ready, alive or stopping (sd_notify(3)); silent where there is none."""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """The service manager's socket, if it gave us one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = int(environ.get("WATCHDOG_USEC", "0") or 0) / 1e6

    def tell(self, state: str) -> None:
        """Send a state such as 'READY=1'; a manager that does not listen is no reason to fail."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(state.encode(), self._address)
            except OSError:
                return

"""Why the embedded services could not be had. Each message ends with what to do."""

from __future__ import annotations

__all__ = [
    "AccountError",
    "AddressError",
    "DiskShortError",
    "NotOursError",
    "OfflineError",
    "PlatformError",
    "PortTakenError",
    "ServiceFailedError",
    "ServicesError",
]


class ServicesError(Exception):
    """The embedded services cannot do what was asked."""


class OfflineError(ServicesError):
    """The Debian mirror cannot be reached, or refuses, and the cache is empty."""


class PlatformError(ServicesError):
    """This machine has no Debian packages to unpack."""


class PortTakenError(ServicesError):
    """Another program listens on a port that this stack remembers as its own."""


class DiskShortError(ServicesError):
    """Too little space is left for packages or data."""


class AccountError(ServicesError):
    """Running as root, and no unprivileged account can be used for the services."""


class NotOursError(ServicesError):
    """A configured service was to be killed, or its URL cannot be used."""


class AddressError(ServicesError):
    """This machine cannot be reached at the address that was given."""


class ServiceFailedError(ServicesError):
    """A service did not start, did not become ready or refused a statement."""

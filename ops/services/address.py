"""The address at which devices and phones reach this machine, and the certificates that say so.

An address is checked before anything is changed: it is in claims, and so on devices, for years. A
certificate gets the names that it lacks and keeps those it has, so that devices that know this
machine by an earlier one are still let in.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from datetime import datetime

from cryptography import x509

from ops.services.errors import AddressError
from server.pki.authority import Authority

__all__ = ["demand_own", "name_server"]

_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")


def demand_own(address: str) -> None:
    """Raise AddressError unless it is an IPv4 address of this machine, or a name of one."""
    if ":" in address or not _NAME.fullmatch(address):
        raise AddressError(f"{address!r} is no IPv4 address and no host name; give one of those.")
    try:
        found = socket.getaddrinfo(address, None, socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise AddressError(
            f"{address} cannot be looked up here; give this machine's IPv4 address."
        ) from error
    for *_, where in found:
        if ipaddress.ip_address(where[0]).is_unspecified:
            raise AddressError(f"{address} is every address; give the one that devices can reach.")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((where[0], 0))
            except OSError as error:
                raise AddressError(
                    f"{address} is no address of this machine; `ip address` lists those."
                ) from error


def name_server(authority: Authority, server: str, names: Iterable[str], *, now: datetime) -> bool:
    """Certify `server` (broker or https) anew if its certificate lacks a name; return whether."""
    path = authority.directory / f"{server}.pem"
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = held.get_values_for_type(x509.DNSName)
    ips = [str(each) for each in held.get_values_for_type(x509.IPAddress)]
    missing = [name for name in dict.fromkeys(names) if name not in (*dns, *ips)]
    if not missing:
        return False
    authority.issue_service(
        server,
        dns=[*dns, *(name for name in missing if not _is_ip(name))],
        ips=[*ips, *(name for name in missing if _is_ip(name))],
        server=True,
        now=now,
    )
    return True


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

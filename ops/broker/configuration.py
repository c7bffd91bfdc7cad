"""Mosquitto's configuration, access list and service roles, as text. Pure.

The broker is a disposable pipe: it keeps no sessions, no messages, nothing retained. A device is
what its certificate says (name and client id alike), and may write and read exactly its own
topics. Services have one identity per duty. Only the deny-list outlives a restart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ops.services.errors import ServicesError
from server.admission.denylist import REVOKED_ROLE, REVOKED_RULES

__all__ = [
    "ACCESS_LIST",
    "MAX_PAYLOAD_BYTES",
    "REVOKED_ROLE",
    "BrokerFiles",
    "dynamic_security",
    "mosquitto_conf",
]

MAX_PAYLOAD_BYTES = 65536
_HEADER_ROOM = 1024  # topic and properties beside the payload

ACCESS_LIST = """\
# %u is the name in the client's certificate, forced on it by the listener.
pattern write v1/+/%u/up
pattern read v1/+/%u/down
pattern read v1/+/%u/receipt
"""

# service -> (topics it may publish to, topics it may subscribe to and receive)
_SERVICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "svc-ingest": (("v1/+/+/receipt",), ("v1/+/+/up",)),
    "svc-downlink": (("v1/+/+/down",), ()),
    "svc-canary": (("v1/+/svc-canary/up",), ()),
    "svc-control": (
        ("$CONTROL/dynamic-security/#",),
        ("$CONTROL/dynamic-security/#", "$SYS/broker/#"),
    ),
}


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """Where the broker finds its files; all are readable by its own account only."""

    folder: Path
    plugin: Path

    def path(self, name: str) -> Path:
        return self.folder / name


def mosquitto_conf(files: BrokerFiles, *, bind: str, device_port: int, service_port: int) -> str:
    """Return mosquitto.conf: devices on `bind`, services on loopback."""
    return f"""\
persistence false
retain_available false
allow_anonymous false
set_tcp_nodelay true
# 0 disconnects a client whose publish is denied (2.0.21)
max_queued_messages 100000
max_queued_bytes 268435456
# a client's own receive maximum bounds it further
max_inflight_messages 2000
# whole packets: message_size_limit would answer QoS 1 with a protocol error and QoS 0 not at all
max_packet_size {MAX_PAYLOAD_BYTES + _HEADER_ROOM}
max_keepalive 600
log_dest stderr
log_type error
log_type warning
log_type notice
log_timestamp_format %Y-%m-%dT%H:%M:%S
acl_file {files.path("acl")}
plugin {files.plugin}
plugin_opt_config_file {files.path("dynamic-security.json")}

# devices
listener {device_port} {bind}
cafile {files.path("device-anchor.pem")}
certfile {files.path("broker.pem")}
keyfile {files.path("broker.key")}
crlfile {files.path("device.crl")}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2

# services
listener {service_port} 127.0.0.1
cafile {files.path("service-anchor.pem")}
certfile {files.path("broker.pem")}
keyfile {files.path("broker.key")}
require_certificate true
use_identity_as_username true
tls_version tlsv1.3
"""


def dynamic_security(previous: str | None) -> str:
    """Return the plugin's file: our services and roles, and who stood on the deny-list before."""
    document = {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [
            *({"username": name, "roles": [{"rolename": name}]} for name in _SERVICES),
            *_denied(previous),
        ],
        "groups": [],
        "roles": [
            *(_service_role(name) for name in _SERVICES),
            {"rolename": REVOKED_ROLE, "acls": list(REVOKED_RULES)},
        ],
    }
    return json.dumps(document, indent=1)


def _denied(previous: str | None) -> list[dict[str, object]]:
    """Return the deny-list's entries in an earlier file.

    Raises ServicesError if it cannot be read: an empty list would let revoked devices back in.
    """
    try:
        clients = json.loads(previous or "{}").get("clients", [])
    except ValueError as error:
        raise ServicesError(
            "the broker's deny-list cannot be read, so the broker is not started: restore "
            "broker/dynamic-security.json, or delete it if no device was ever revoked"
        ) from error
    names = [
        client["username"]
        for client in clients
        if any(role.get("rolename") == REVOKED_ROLE for role in client.get("roles", []))
    ]
    return [
        {"username": name, "disabled": True, "roles": [{"rolename": REVOKED_ROLE}]}
        for name in names
    ]


def _service_role(name: str) -> dict[str, object]:
    writes, reads = _SERVICES[name]
    rules = [_rule("publishClientSend", topic, allow=True) for topic in writes]
    for topic in reads:
        rules.append(_rule("publishClientReceive", topic, allow=True))
        rules.append(_rule("subscribePattern", topic, allow=True))
    return {"rolename": name, "acls": rules}


def _rule(kind: str, topic: str, *, allow: bool) -> dict[str, object]:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": allow}

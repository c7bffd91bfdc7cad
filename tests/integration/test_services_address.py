"""`serve --address`: devices and phones elsewhere reach this machine, and its certificates say so.

127.0.0.2 stands in for an address in a shop's network: every Linux machine has it.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from ops import serve
from ops.deployment import HOME, deployment
from ops.services.address import demand_own
from ops.services.endpoints import LOOPBACK
from ops.services.errors import AddressError
from ops.services.stack import Stack
from server.config import SettingsError

pytestmark = pytest.mark.services
ELSEWHERE = "127.0.0.2"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """The services of this directory, that no other test uses."""
    with tempfile.TemporaryDirectory(prefix="vestibule-address-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="test")
        monkeypatch.setenv(HOME, str(stack.root))
        try:
            yield stack
        finally:
            stack.remove()


def greets(stack: Stack, host: str, port: int) -> bool:
    """Whether somebody answers there with a certificate for that address."""
    trusting = ssl.create_default_context(cafile=stack.endpoints.pki / "bundle.pem")
    try:
        with (
            socket.create_connection((host, port), 10) as raw,
            trusting.wrap_socket(raw, server_hostname=host),
        ):
            return True
    except ConnectionRefusedError:
        return False


def names(stack: Stack, server: str) -> set[str]:
    certificate = x509.load_pem_x509_certificate(
        (stack.endpoints.pki / f"{server}.pem").read_bytes()
    )
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ips = {str(each) for each in held.get_values_for_type(x509.IPAddress)}
    return ips | set(held.get_values_for_type(x509.DNSName))


def test_the_database_alone_makes_no_authority(own: Stack) -> None:
    settings = deployment(database_alone=True).settings
    assert not settings.pki.exists()
    own = Stack(own.root)
    assert own.postgres.execute("select 1").strip() == "1"
    assert [(each.name, each.running) for each in own.status()] == [
        ("postgres", True),
        ("broker", False),
    ]
    whole = deployment().settings  # who needs the broker finds the same database
    assert (settings.pki / "root.pem").exists()
    assert repr(whole) == repr(settings)
    assert all(each.running for each in own.status())


def test_devices_reach_the_broker_at_the_address_and_services_do_not(own: Stack) -> None:
    before = deployment().settings
    own = Stack(own.root)
    port = before.device_broker_port
    assert greets(own, LOOPBACK, port)
    assert not greets(own, ELSEWHERE, port)
    assert (before.http_host, before.public_url, before.enrol_url) == (LOOPBACK, "", "")

    settings = deployment(address=ELSEWHERE).settings
    assert greets(own, ELSEWHERE, port)
    assert greets(own, LOOPBACK, port)  # devices that were enrolled so go on
    assert not greets(own, ELSEWHERE, settings.broker_service_port)
    assert (settings.device_broker_host, settings.device_broker_port) == (ELSEWHERE, port)
    assert settings.pages_url == f"http://{ELSEWHERE}:{before.http_port}"
    assert settings.enrolment_url == f"https://{ELSEWHERE}:{before.https_port}"
    assert (settings.http_host, settings.https_host) == ("0.0.0.0", "0.0.0.0")
    assert ELSEWHERE in names(own, "https")

    pid = own.broker.pid
    assert repr(deployment().settings) == repr(settings)  # it is remembered
    assert repr(deployment(address=ELSEWHERE).settings) == repr(settings)
    assert Stack(own.root).broker.pid == pid

    assert repr(deployment(address=LOOPBACK).settings) == repr(before)
    assert not greets(own, ELSEWHERE, port)
    assert names(own, "broker") >= {LOOPBACK, ELSEWHERE}  # it keeps the names that it has


def test_the_documented_settings_go_before_what_was_chosen(
    own: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_HTTP_HOST", ELSEWHERE)
    monkeypatch.setenv("VESTIBULE_HTTP_PORT", "8181")
    monkeypatch.setenv("VESTIBULE_PUBLIC_URL", "https://pages.example")
    monkeypatch.setenv("VESTIBULE_ENROL_URL", "https://enrol.example:444")
    settings = deployment().settings
    assert (settings.http_host, settings.http_port) == (ELSEWHERE, 8181)
    assert settings.pages_url == "https://pages.example"
    assert settings.enrolment_url == "https://enrol.example:444"
    assert "enrol.example" in names(Stack(own.root), "https")
    monkeypatch.setenv("VESTIBULE_HTTP_PORT", "many")
    with pytest.raises(SettingsError, match="VESTIBULE_HTTP_PORT"):
        deployment(start=False)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "every address"),
        ("198.51.100.7", "no address of this machine"),
        ("::1", "no IPv4 address"),
        ("https://host", "no IPv4 address and no host name"),
        ("-host", "no IPv4 address and no host name"),
    ],
)
def test_what_is_no_address_of_ours_is_refused_before_anything_is_changed(
    own: Stack, address: str, why: str
) -> None:
    with pytest.raises(AddressError, match=why):
        deployment(address=address)
    assert not own.root.exists()


def test_this_machines_own_names_are_taken() -> None:
    for address in (LOOPBACK, ELSEWHERE, "localhost"):
        demand_own(address)


def test_an_address_for_services_of_ones_own_is_called_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIBULE_DSN_INGEST", "postgresql://elsewhere/")
    with pytest.raises(SystemExit) as ended:
        serve.main(["--address", ELSEWHERE])
    assert ended.value.code == 2
    assert "VESTIBULE_HTTP_HOST" in capsys.readouterr().err

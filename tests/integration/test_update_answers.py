"""What a server may answer to a device that looks for releases: without end, slowly, cut off."""

import http.server
import time
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile

from agent.update.agreement import Fault, Refused, class_of
from agent.update.trust import check
from protocol.update import Class
from tests.releases_world import (
    World,
    begun,
    fleet,
    world,
)

__all__ = ["begun", "fleet", "world"]


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65_536)


def dribbled_body(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def dribbled_head(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # until the device hangs up


SLOWER = (dribbled_head, silent)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_x36_data_without_end_is_refused_at_its_cap(world: World, role: str) -> None:
    target = world.target
    world.served["2.root.json" if role == "root" else world.names()[role]] = endless
    assert world.fault(world.assignment(target)) is Fault.ENDLESS
    world.served.clear()
    world.ask(world.assignment(target))  # and nothing of it stays


def test_x36_who_signs_that_a_file_is_endless_is_believed_up_to_the_cap(world: World) -> None:
    sent = 0

    def counted(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while True:
            sent += handler.wfile.write(b"x" * 65_536)

    def long(snapshot: Any) -> None:
        snapshot.meta["targets.json"].length = 1 << 60

    newest = world.repository.metadata.joinpath(world.names()["targets"]).read_bytes()
    world.forge("snapshot", long, world.online("snapshot"))
    world.follow(newest)
    forged = world.names()["snapshot"]
    world.forge("snapshot", long, world.online("snapshot"), name=forged)

    def name(timestamp: Any) -> None:
        content = world.served[forged]
        assert isinstance(content, bytes)
        version = Metadata.from_bytes(content).signed.version
        timestamp.snapshot_meta = MetaFile.from_data(version, content, ["sha256"])

    world.forge("timestamp", name, world.online("timestamp"))
    world.served[world.names()["targets"]] = counted
    assert world.fault(world.assignment(world.target)) is Fault.ENDLESS
    assert sent < 8 << 20  # two megabytes, and what was under way


@pytest.mark.parametrize(
    "slow", [dribbled_body, *(pytest.param(s, marks=pytest.mark.long) for s in SLOWER)]
)
async def test_x36_a_byte_now_and_then_is_refused_in_time(world: World, slow: Any) -> None:
    target = world.target
    world.served["timestamp.json"] = slow
    with pytest.raises(Refused) as caught:
        await check(world.question(world.assignment(target)), limit_s=1.2)
    assert caught.value.fault is Fault.SLOW
    assert class_of(Fault.SLOW) is Class.NETWORK


def test_all_files_come_over_one_connection_and_over_another_where_the_server_hung_up(
    world: World,
) -> None:
    world.ask(world.assignment(world.target))
    listener = world.fleet.listener
    assert (len(listener.asked), listener.connections) == (4, 1)

    target = world.release("1.2.0")
    content = world.repository.metadata.joinpath(world.names()["snapshot"]).read_bytes()
    hung_up: list[bool] = []

    def once(handler: http.server.BaseHTTPRequestHandler) -> None:
        """Hang up before the first answer; whoever asks anew gets it."""
        if not hung_up:
            hung_up.append(True)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    world.served[world.names()["snapshot"]] = once
    world.ask(world.assignment(target))
    assert hung_up


def test_an_answer_that_is_cut_off_is_the_networks_fault_and_tried_again(world: World) -> None:
    def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{" * 100)

    for name in world.names().values():
        world.served[name if name != "1.root.json" else "2.root.json"] = cut
        assert world.fault(world.assignment(world.target)) is Fault.UNREACHABLE
        world.served.clear()
    world.ask(world.assignment(world.target))
    assert class_of(Fault.UNREACHABLE) is Class.NETWORK

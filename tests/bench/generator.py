"""Thousands of devices in one light process: real TLS sessions, frames made beforehand.

Not the agent: it keeps no outbox and sends nothing again. It answers commands on standard input
with one JSON line each, so that the measured server has a core to itself as far as there is one:

    frames N        make N frames for each device (untimed)
    receipted W     send all, at most W on their way per device, until each is receipted
    acknowledged W  the same, but the broker's acknowledgement is enough
    reboot          begin new boots: what was sent so far counts no more
    totals          the people counted so far, by device
"""

from __future__ import annotations

import json
import random
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from protocol.identity import DeviceId
from protocol.topics import Leg, topic
from tests.ingest_world import DAY, NOON, Agent

IDLE_S = 60.0


@dataclass(slots=True)
class Device:
    """One connection and its frames."""

    agent: Agent
    sock: ssl.SSLSocket
    head: bytes
    frames: list[bytes] = field(default_factory=list)
    sent: int = 0
    done: int = 0
    first_seq: int = 0
    rest: bytes = b""


def main() -> int:
    """Connect the devices that the file named in argv[1] lists, then take commands."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    rng = random.Random(spec["seed"])
    devices: dict[int, Device] = {}
    poller = select.epoll()
    for name in spec["devices"]:
        agent = Agent(DeviceId(name), rng.getrandbits(64), booted_ms=NOON - DAY, now_ms=NOON - DAY)
        sock = _connect(spec, name)
        head = _head(topic(agent.device, Leg.UP))
        devices[sock.fileno()] = Device(agent, sock, head)
        poller.register(sock.fileno(), select.EPOLLIN)
    _say({"connected": len(devices)})
    for line in sys.stdin:
        command, _, value = line.strip().partition(" ")
        if command == "frames":
            for device in devices.values():
                _make(device, int(value), rng)
            _say({"frames": int(value)})
        elif command in ("receipted", "acknowledged"):
            _say({"seconds": _run(devices, poller, int(value), receipts=command == "receipted")})
        elif command == "reboot":
            for device in devices.values():
                agent = device.agent
                agent.boot_id, agent.seq, agent.totals = rng.getrandbits(64), 0, [0] * 8
            _say({"boots": len(devices)})
        elif command == "totals":
            _say({d.agent.device: [d.agent.totals[:4], d.agent.seq] for d in devices.values()})
    return 0


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _connect(spec: dict[str, str], name: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(spec["cafile"])
    context.load_cert_chain(f"{spec['folder']}/{name}.pem")
    raw = socket.create_connection(("127.0.0.1", int(spec["port"])), timeout=30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = context.wrap_socket(raw, server_hostname="127.0.0.1")
    client = name.encode()
    receipt = topic(DeviceId(name), Leg.RECEIPT).encode()
    sock.sendall(
        _packet(0x10, b"\0\4MQTT\5\2" + (300).to_bytes(2, "big") + b"\0" + _text(client))
        + _packet(0x82, b"\0\1\0" + _text(receipt) + b"\0")
    )
    answer = b""
    while len(answer) < 4 or len(answer) < 4 + answer[1]:
        answer += sock.recv(1024)
    if answer[3] != 0:
        raise SystemExit(f"{name} refused: {answer.hex()}")
    sock.setblocking(False)
    return sock


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _packet(command: int, body: bytes) -> bytes:
    length = len(body)
    if length < 128:
        return bytes((command, length)) + body
    return bytes((command, length & 127 | 128, length >> 7)) + body


def _head(name: str) -> bytes:
    return _text(name.encode())


def _make(device: Device, count: int, rng: random.Random) -> None:
    """Make frames of realistic sparse minutes, as whole publishes with packet ids 1, 2 ..."""
    agent = device.agent
    device.first_seq = agent.seq
    device.sent = device.done = 0
    device.frames = []
    for number in range(1, count + 1):
        counts = [[rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 7)) for _ in range(10)] for _ in range(2)]
        body = device.head + number.to_bytes(2, "big") + b"\0" + agent.counter(counts)
        device.frames.append(_packet(0x32, body))


def _run(devices: dict[int, Device], poller: select.epoll, window: int, *, receipts: bool) -> float:
    """Send all frames; return the seconds until the last is answered."""
    left = sum(len(device.frames) for device in devices.values())
    start = time.perf_counter()
    for device in devices.values():
        _send(device, window)
    while left:
        ready = poller.poll(IDLE_S)
        if not ready:
            raise SystemExit(f"{left} frames are not answered")
        for number, _ in ready:
            device = devices[number]
            before = device.done
            _read(device, receipts=receipts)
            if device.done != before:
                left -= device.done - before
                if device.sent < len(device.frames):
                    _send(device, window)
    return time.perf_counter() - start


def _send(device: Device, window: int) -> None:
    upto = min(len(device.frames), device.done + window)
    if upto > device.sent:
        device.sock.sendall(b"".join(device.frames[device.sent : upto]))
        device.sent = upto


def _read(device: Device, *, receipts: bool) -> None:
    """Count what was answered: receipts by their cursor, acknowledgements one by one."""
    try:
        data = device.rest + device.sock.recv(16_384)
    except (ssl.SSLWantReadError, BlockingIOError):
        return
    if not data:
        raise SystemExit(f"{device.agent.device} was disconnected: {device.rest.hex()}")
    at = 0
    while len(data) - at >= 2:
        command, length, start = data[at], data[at + 1], at + 2
        if length & 128:
            if len(data) - at < 3:
                break
            length, start = length & 127 | data[at + 2] << 7, at + 3
        if start + length > len(data):
            break
        at = start + length
        if command == 0x40:
            if not receipts:
                device.done += 1
        elif command == 0x30 and receipts:
            seq = int.from_bytes(data[at - 40 : at - 36], "little")  # of a 56-byte receipt
            device.done = max(device.done, seq - device.first_seq)
    device.rest = data[at:]


if __name__ == "__main__":
    sys.exit(main())

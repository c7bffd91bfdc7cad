"""A process of ours: started, killed, started again, ready."""

import signal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ops.services.child import Child, is_ready, python, wait_ready
from ops.services.errors import ServiceFailedError

NOWHERE = "http://127.0.0.1:9"
_WAITS = "import time; print('up', flush=True); time.sleep(600)"


def test_a_child_is_killed_and_started_again(tmp_path: Path) -> None:
    child = Child("sleeper", python("-c", _WAITS), tmp_path / "log")
    for _ in range(2):
        child.start()
        assert child.running
        child.kill()
        assert not child.running
    assert child.end() is None


def test_a_child_that_is_frozen_ends_all_the_same(tmp_path: Path) -> None:
    child = Child("sleeper", python("-c", _WAITS), tmp_path / "log", own_session=True)
    child.start()
    child.freeze()
    assert child.end() == -signal.SIGTERM


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = Child("server", python("-c", "print('no disk'); exit(3)"), tmp_path / "log")
    child.start()
    with pytest.raises(ServiceFailedError, match="server is not ready:\nno disk"):
        wait_ready(child, NOWHERE)
    assert child.exit_code == 3


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_a_server_is_ready_when_it_says_so(
    monkeypatch: pytest.MonkeyPatch, status: int, ready: bool
) -> None:
    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

    monkeypatch.setenv("http_proxy", NOWHERE)
    server = HTTPServer(("127.0.0.1", 0), Says)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert is_ready(f"http://127.0.0.1:{server.server_port}") is ready
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not is_ready(NOWHERE)

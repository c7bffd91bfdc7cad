"""A whole running system for each module of system tests, on services of the worker's own.

`own_stack` may be killed at will: no other worker shares it. `system` is a server process on it
with a fresh database; `system.enrol(n)` gives devices whose agents are started by
`device.agent.start()` and fed by `device.feed(...)`. All of it ends by its own process ids.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.chaos.system import System, running
from ops.services.stack import Stack


@pytest.fixture(scope="session")
def own_stack() -> Iterator[Stack]:
    """PostgreSQL and the broker of this worker alone; a test that kills them starts them again."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "one")
    root = Path(tempfile.mkdtemp(prefix=f"vestibule-system-{worker}-"))
    root.chmod(0o755)  # the services may run as another account
    stack = Stack(root / "stack", role="test")
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def system(own_stack: Stack) -> Iterator[System]:
    """A server with a fresh database on `own_stack`, ready; dropped when the module is done."""
    root = Path(tempfile.mkdtemp(prefix="vestibule-run-"))
    try:
        with running(own_stack, root=root) as made:
            yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)

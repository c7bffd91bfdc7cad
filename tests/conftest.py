"""The embedded services for tests: one stack per worker, an empty database for each that asks."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from ops.services.stack import Stack
from server.db.migrate import migrate
from tests.emptying import Emptied, copied, left_empty, left_for_good

# a machine that does other work besides is slow, and no property is about time
settings.register_profile("patient", parent=settings(), deadline=None)
settings.load_profile("patient")

_STARTED_BY_TESTS = "started-by-tests"
_TEMPORARY = f"vestibule-test-{os.geteuid()}-"


_FIRST = ("system", "browser", "integration")
"""The folders whose files take the longest, so that no worker begins with one at the very end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage while tests run, not while they are read: what modules make lasts."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(5_000)  # each tenth of the tenth looks through all that is kept


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and before them those that look at a demo; their order stays."""
    rank = {name: place for place, name in enumerate(_FIRST, 1)}
    here = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[int, bool]:
        if _of_demo(item.path):  # the tour's proofs come before what others add to the demo
            return 0, "tour" not in item.path.name
        return rank.get(item.path.relative_to(here).parts[0], len(rank) + 1), False

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Give a worker a file at once, and one worker all files that look at a demo."""
    return _ByDemoOrFile(config, log)


class _ByDemoOrFile(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "demo" if _of_demo(Path(__file__).parents[1] / file) else file


@cache
def _of_demo(file: Path) -> bool:
    return file.parent.name == "browser" and "demo: Demo" in file.read_text()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """PostgreSQL and the broker, running; one stack per pytest worker.

    VESTIBULE_TEST_STACK names a directory to share with other runs too. Whoever leaves last stops
    what tests have started; a stack that already ran is left running.
    """
    root, temporary = _stack_root()
    _clear_abandoned()
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(root.name + ".users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while the last user of before is stopping it
        shared = Stack(root, role="test")
        with _turn(root):
            ran_before = all(state.running for state in shared.status()) and shared.status() != []
            shared.up()
            if not ran_before:
                (root / _STARTED_BY_TESTS).touch()
        try:
            yield shared
        finally:
            _leave(shared, users, temporary=temporary)


@pytest.fixture(scope="session")
def migrated(stack: Stack) -> Iterator[str]:
    """The name of a migrated database to copy: four times as fast as migrating each."""
    with _database(stack) as name:
        asyncio.run(migrate(stack.endpoints.dsn("owner", name)))
        stack.postgres.close_database(name)
        yield name


@pytest.fixture(scope="session")
def spare(stack: Stack, migrated: str) -> Iterator[list[Emptied]]:
    """Databases that a test has left, emptied; one whose schema it changed is not among them."""
    databases: list[Emptied] = []
    yield databases
    for left in databases:
        left_for_good(stack, left.name)


@pytest.fixture
def database(stack: Stack, migrated: str, spare: list[Emptied]) -> Iterator[str]:
    """The name of a database with this release's schema and no rows, for this test alone."""
    had = spare.pop() if spare else asyncio.run(copied(stack, migrated))
    yield had.name
    if asyncio.run(left_empty(stack, had)):
        spare.append(had)
    else:
        stack.postgres.drop_database(had.name)


@contextmanager
def _database(stack: Stack) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    stack.postgres.create_database(name)
    try:
        yield name
    finally:
        left_for_good(stack, name)


def _stack_root() -> tuple[Path, bool]:
    """Return where the stack lives, and whether it is only for this run.

    Not pytest's own temporary directory: it is closed to the services' account. Each worker has
    its own, since a broker has one ingest at a time.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "stack")
    configured = os.environ.get("VESTIBULE_TEST_STACK")
    if configured:
        return Path(configured).absolute() / worker, False
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return Path(tempfile.gettempdir()) / f"{_TEMPORARY}{run[:16]}-{worker}" / "stack", True


def _clear_abandoned() -> None:
    """Remove the stacks of runs that were killed: nobody holds their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        users = folder / "stack.users"
        if not users.exists() or time.time() - users.stat().st_mtime < 60:
            continue  # it may just be starting
        with users.open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Stack(folder / "stack").remove()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _turn(root: Path) -> Iterator[None]:
    with root.with_name(root.name + ".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _leave(shared: Stack, users: IO[str], *, temporary: bool) -> None:
    """Stop the stack if tests started it and nobody else uses it any more."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    marker = shared.root / _STARTED_BY_TESTS
    if marker.exists():
        marker.unlink()
        shared.down()
    if temporary:
        shared.remove()
        shutil.rmtree(shared.root.parent, ignore_errors=True)

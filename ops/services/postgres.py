"""The private PostgreSQL with TimescaleDB: initialised once, tuned, with our five roles.

Invariants: fsync, full_page_writes and synchronous_commit are on, here and in tests; it listens on
loopback only; every login needs a password (scram-sha-256).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ops.services.account import Account, data_directory, require_space
from ops.services.endpoints import ADMIN, DATABASE, ROLES, Endpoints
from ops.services.errors import ServiceFailedError
from ops.services.packages import Progress
from ops.services.process import (
    demand_free_port,
    log_tail,
    spawn,
    wait_until,
)
from ops.services.service import Configured, Service

__all__ = ["ConfiguredPostgres", "Postgres", "PostgresPrograms", "host_postgres"]

_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "reserved_connections": "40",  # for our own roles, however many BI logins there are
    "password_encryption": "scram-sha-256",
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    # one launcher and one scheduler per database, and test runs make many databases
    "timescaledb.max_background_workers": "16",
    "max_worker_processes": "27",  # 16 of TimescaleDB + 8 parallel + 3 of PostgreSQL
    "max_parallel_workers": "8",
    "max_parallel_workers_per_gather": "2",
    "max_locks_per_transaction": "256",  # a query over a year of chunks locks each of them
    "jit": "off",  # LLVM is not unpacked
    "shared_buffers": "512MB",
    "effective_cache_size": "8GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "wal_buffers": "16MB",
    "max_wal_size": "4GB",
    "min_wal_size": "256MB",
    "wal_compression": "lz4",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "random_page_cost": "1.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_lock_waits": "on",
    "log_min_duration_statement": "2s",
    "log_parameter_max_length": "200",
    "log_parameter_max_length_on_error": "0",
}
_NO_LOCKS = """
do $$
declare f regprocedure;
begin
    for f in select oid from pg_proc where pronamespace = 'pg_catalog'::regnamespace
        and proname ~ '^pg_(try_)?advisory_(xact_)?lock'  -- pools let go of all by unlock_all
    loop
        execute format('revoke execute on function %s from public', f);
        execute format('grant execute on function %s to '
            'vestibule_owner, vestibule_ingest, vestibule_desk, vestibule_maint', f);
    end loop;
end $$;
"""


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """Where `postgres`, `initdb` and `psql` lie."""

    folder: Path

    @property
    def postgres(self) -> str:
        return str(self.folder / "postgres")

    @property
    def initdb(self) -> str:
        return str(self.folder / "initdb")

    @property
    def psql(self) -> str:
        return str(self.folder / "psql")


def host_postgres() -> PostgresPrograms | None:
    """Return the host's own PostgreSQL 17 or later if TimescaleDB is installed with it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    return next((PostgresPrograms(folder) for folder in folders if _is_complete(folder)), None)


def _is_complete(folder: Path) -> bool:
    if not all((folder / name).exists() for name in ("postgres", "initdb", "psql")):
        return False
    version = _output([str(folder / "postgres"), "--version"])
    major = re.search(r"\b(\d+)(?:\.\d+)?", version)
    if major is None or int(major[1]) < 17:
        return False
    shares = (
        Path("/usr/share/postgresql") / major[1],
        folder.parent / "share",
        folder.parent / "share/postgresql",
    )
    return any((share / "extension/timescaledb.control").exists() for share in shares)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class Postgres(Service):
    """One PostgreSQL cluster below a stack's root.

    `programs` is asked only when one is to run: looking and stopping fetch nothing.
    """

    name = "postgres"
    title = "PostgreSQL"
    ends_on = signal.SIGINT  # open transactions are rolled back, and a checkpoint written
    patience_s = 60

    def __init__(
        self,
        root: Path,
        *,
        programs: Callable[[], PostgresPrograms],
        account: Account,
        endpoints: Endpoints,
    ) -> None:
        super().__init__(root, account)
        self.port = endpoints.pg_port
        self._programs = programs
        self._endpoints = endpoints

    def start(self, progress: Progress = lambda text: None) -> None:
        """Start the cluster, making it first if there is none; a running one is left alone."""
        if self.running:
            return
        demand_free_port(
            "127.0.0.1",
            self.port,
            service="PostgreSQL",
            remembered_in=self._root / "endpoints.json",
        )
        home = data_directory(self._root, "postgres", account=self._account)
        data = home / "data"
        if not data.exists():
            progress("making the database cluster")
            self._initialise(home)
        self._write_settings(data)
        progress("starting PostgreSQL")
        daemon = spawn(
            [self._programs().postgres, "-D", str(data)],
            account=self._account,
            log=self.log_path,
            env=self._env(home),
            cwd=home,
        )
        daemon.remember(self._pid_path)

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Run statements as the superuser; return psql's unaligned output."""
        done = self._psql(sql, database=database)
        if done.returncode != 0:
            raise ServiceFailedError(f"PostgreSQL refused a statement: {done.stderr.strip()}")
        return done.stdout

    def prepare(self) -> None:
        """Make the roles, the main database and its extension, as far as they are missing."""
        existing = set(self.execute("select rolname from pg_roles").split())
        for role, name in ROLES.items():
            verb = "alter" if name in existing else "create"
            rights = "createdb" if role == "owner" else "nocreatedb"
            self.execute(
                f"{verb} role {name} login nosuperuser nobypassrls nocreaterole {rights} "
                f"password '{self._endpoints.passwords[role]}'; "
                f"grant pg_use_reserved_connections to {name}"
            )
        if not self._has_database(DATABASE):
            self.create_database(DATABASE)

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Make a database with TimescaleDB that vestibule_owner owns: empty, or as `template` is.

        The API's role gets no advisory lock: it could keep the deriver from its own. Only a
        superuser can take them away, so no migration does.
        """
        others = ", ".join(name for role, name in ROLES.items() if role != "owner")
        like = "" if template is None else f" template {_name(template)}"
        self.execute(f"create database {_name(name)} owner {ROLES['owner']}{like}")
        self.execute(
            f"revoke all on database {_name(name)} from public; "
            f"grant connect, temporary on database {_name(name)} to {others}"
        )
        if template is None:
            self.execute(f"create extension timescaledb; {_NO_LOCKS}", database=name)

    def close_database(self, name: str) -> None:
        """Let nobody connect any more, so that it may be a template."""
        self.execute(f"alter database {_name(name)} with allow_connections false")
        others = f"from pg_stat_activity where datname = '{_name(name)}'"
        self.execute(f"select pg_terminate_backend(pid) {others}")

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the connections to it; none by that name is fine."""
        self.execute(f"drop database if exists {_name(name)} with (force)")

    def _has_database(self, name: str) -> bool:
        return name in self.execute("select datname from pg_database").split()

    def _answers(self) -> bool:
        return self._psql("select 1", database="postgres").returncode == 0

    def _psql(self, sql: str, *, database: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(self._programs().psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"),
                self._endpoints.dsn("admin", database),
            ],
            input=f"set client_min_messages = error;\n{sql}",
            env={**os.environ, "PGCONNECT_TIMEOUT": "5", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )

    def _initialise(self, home: Path) -> None:
        require_space(home, megabytes=1500, purpose="The database")
        partial = home / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        password = home / "password"
        password.write_text(self._endpoints.passwords["admin"])
        self._account.own(password)
        log = self.log_path
        done = spawn(
            [
                *(self._programs().initdb, "-D", str(partial), "--username", ADMIN),
                *("--pwfile", str(password), "--auth", "scram-sha-256", "--data-checksums"),
                *("--encoding", "UTF8", "--locale", "C"),
                *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            ],
            account=self._account,
            log=log,
            env=self._env(home),
            cwd=home,
        )
        finished = wait_until(lambda: not done.alive, timeout_s=300)
        password.unlink()
        if not finished or not (partial / "global/pg_control").exists():
            raise ServiceFailedError(f"initdb failed: {log_tail(log)}")
        with (partial / "postgresql.conf").open("a") as file:
            file.write("include = 'vestibule.conf'\n")
        partial.rename(home / "data")

    def _write_settings(self, data: Path) -> None:
        settings = {**_SETTINGS, "port": str(self.port)}
        path = data / "vestibule.conf"
        path.write_text("".join(f"{key} = '{value}'\n" for key, value in settings.items()))
        self._account.own(path)

    def _env(self, home: Path) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LC_ALL": "C"}


class ConfiguredPostgres(Configured, Postgres):
    """A PostgreSQL that somebody else runs."""

    setting = "VESTIBULE_DATABASE_URL"


def _name(name: str) -> str:
    """Return a database name fit for SQL; ours are plain, so that nothing needs quoting."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ValueError(f"a database name is a-z, 0-9 and _; got {name!r}")
    return name

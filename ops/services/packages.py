"""Debian packages unpacked beside the host's own, without root.

Decided here: an apt of our own (sources, state and cache in a temporary directory, an empty dpkg
status) reads the mirror and the keyring from the host, so that no mirror is written down; packages
are unpacked, never installed; and every ELF program that we start gets the unpacked dynamic linker
and library path. Only what programs need at run time is fetched (no perl, locales, LLVM).

Invariants: a directory in the cache is complete (it arrives by rename) and never changes. Its name
is a digest of the package list, so a changed list makes a new directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.services.account import Account, cache_directory, require_space
from ops.services.errors import OfflineError, PlatformError, ServicesError

__all__ = ["Bundle", "Progress", "library_folder", "locked", "unpacked"]

Progress = Callable[[str], None]

SUITE = "trixie"
_RECIPE = 3  # raise when the way of unpacking changes
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
_NO_DEBIAN = (
    "This machine has no Debian packages; install PostgreSQL 17 with TimescaleDB and "
    "Mosquitto 2 with its dynamic security plugin, or use Debian 12 or 13."
)
_ELF = b"\x7fELF"
_TRANSPORT = re.compile(r"^Acquire::(https?|ftp|socks|Retries)\b.*")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A list of packages that is unpacked as one directory.

    `keep` says which of the resolved dependencies are unpacked too, `programs` (glob patterns)
    which files are started directly and so need the unpacked linker and libraries.
    """

    name: str
    packages: tuple[str, ...]
    keep: str
    drop: str
    programs: tuple[str, ...]
    library_folders: tuple[str, ...] = ()
    megabytes: int = 600

    def key(self, architecture: str) -> str:
        """Return the name of this bundle's directory in the cache."""
        text = repr((self, architecture, SUITE, _RECIPE))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def unpacked(bundle: Bundle, *, account: Account, progress: Progress) -> Path:
    """Return the directory that holds the bundle, fetching it first where it is not cached.

    Raises PlatformError, OfflineError, DiskShortError.
    """
    cache = cache_directory(account)
    target = cache / bundle.key(_architecture())
    if target.exists():
        return target
    with locked(cache / f"{target.name}.lock"):
        if not target.exists():  # another process may have unpacked it while we waited
            require_space(cache, megabytes=bundle.megabytes, purpose=f"Unpacking {bundle.name}")
            _fetch_and_unpack(bundle, target=target, progress=progress)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel releases it if we die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_and_unpack(bundle: Bundle, *, target: Path, progress: Progress) -> None:
    prefix = f".partial-{target.name}-"
    for abandoned in target.parent.glob(f"{prefix}*"):  # we hold the lock: its owner has died
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as work:
        partial = Path(work)
        apt = _Apt(partial / "apt")
        progress(f"reading the package lists of {SUITE}")
        apt.update()
        chosen = [
            package
            for package in apt.resolve(bundle.packages)
            if package in bundle.packages
            or (re.search(bundle.keep, package) and not re.search(bundle.drop, package))
        ]
        progress(f"fetching {len(chosen)} packages for {bundle.name}")
        archives = apt.download(chosen)
        progress(f"unpacking {bundle.name}")
        tree = partial / "tree"
        tree.mkdir(mode=0o755)
        for archive in archives:
            _run(["dpkg-deb", "-x", str(archive), str(tree)])
        tree.chmod(0o755)
        _link_programs(tree, bundle=bundle, final=target)
        tree.rename(target)


class _Apt:
    """An apt that shares nothing with the host's but mirror, proxy settings and keyring."""

    def __init__(self, home: Path) -> None:
        self._home = home
        for folder in ("state/lists/partial", "cache/archives/partial", "archives"):
            (home / folder).mkdir(parents=True)
        (home / "state/status").touch()
        (home / "apt.conf").write_text(self._configuration())
        self._env = {**os.environ, "APT_CONFIG": str(home / "apt.conf"), "LC_ALL": "C"}

    def update(self) -> None:
        """Fetch the package lists from the first of the host's mirrors that has our suite."""
        failure = "the host's apt names no mirror"
        archives = _archives()
        security = [uri for uri, label in archives if label == "Debian Debian-Security"]
        mirrors = [uri for uri, label in archives if label == "Debian Debian"]
        for mirror in mirrors or [uri for uri, _ in archives]:
            for beside in ([*security, f"{mirror}-security"][:1], []):
                (self._home / "sources.list").write_text(_sources(mirror, beside))
                try:
                    self._apt("update", "-o", "APT::Update::Error-Mode=any")
                except OfflineError as error:
                    failure = str(error)
                else:
                    return
        raise OfflineError(
            f"No mirror of this host serves Debian {SUITE} ({failure}); connect to the network "
            "once, or install PostgreSQL 17 with TimescaleDB and Mosquitto 2 yourself."
        )

    def resolve(self, packages: Sequence[str]) -> list[str]:
        """Return the names of the packages and all they depend on."""
        text = self._apt("install", "--simulate", *packages)
        return [line.split()[1] for line in text.splitlines() if line.startswith("Inst ")]

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Fetch packages, verified against the signed lists."""
        folder = self._home / "archives"
        self._apt("download", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["apt-get", "-q", "-y", *arguments]
        done = subprocess.run(
            command, env=self._env, cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OfflineError(_last_line(done.stderr) or f"apt-get {arguments[0]} failed")
        return done.stdout

    def _configuration(self) -> str:
        home = self._home
        lines = [
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::parts "/dev/null";',
            f'Dir::Etc::sourcelist "{home}/sources.list";',
            'Dir::Etc::sourceparts "/dev/null";',
            'Dir::Etc::preferences "/dev/null";',
            'Dir::Etc::preferencesparts "/dev/null";',
            f'Dir::State "{home}/state";',
            f'Dir::State::status "{home}/state/status";',
            f'Dir::Cache "{home}/cache";',
            f'Dir::Log "{home}";',
            'APT::Sandbox::User "root";',  # the sandbox account cannot write in a person's cache
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
            'Acquire::Retries "3";',
            'Acquire::http::Timeout "20";',
            *_transport_settings(),
        ]
        return "\n".join(lines) + "\n"


def _transport_settings() -> list[str]:
    """Return the host's proxy and certificate settings, without its hooks."""
    dump = _run(["apt-config", "dump"])
    return [line for line in dump.splitlines() if _TRANSPORT.match(line)]


def _archives() -> list[tuple[str, str]]:
    """Return the archives the host's apt uses, each with its origin and label.

    Before the host's first `apt-get update` these are not known yet.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PlatformError(_NO_DEBIAN)
    text = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"])
    found = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys((uri.rstrip("/"), label) for uri, _, label in found))


def _sources(mirror: str, security: list[str]) -> str:
    """Return the source list for one mirror, with updates if there is a security archive."""
    keyring = next((path for path in _KEYRINGS if Path(path).exists()), None)
    if keyring is None:
        raise PlatformError(
            "Debian's archive keyring is missing; install the package debian-archive-keyring."
        )
    lines = [f"{mirror} {SUITE}"]
    if security:
        lines += [f"{mirror} {SUITE}-updates", f"{security[0]} {SUITE}-security"]
    return "".join(f"deb [signed-by={keyring}] {line} main\n" for line in lines)


def _architecture() -> str:
    """Return dpkg's name of this machine's architecture."""
    if shutil.which("dpkg") is None:
        raise PlatformError(_NO_DEBIAN)
    return _run(["dpkg", "--print-architecture"]).strip()


def library_folder(tree: Path) -> Path:
    """Return the folder of shared libraries in an unpacked tree (usr/lib/<multiarch name>)."""
    return _dynamic_linker(tree).parent


def _link_programs(tree: Path, *, bundle: Bundle, final: Path) -> None:
    """Make programs use the unpacked dynamic linker and libraries, wherever they are started."""
    linker = final / _dynamic_linker(tree).relative_to(tree)
    libraries = linker.parent
    rpath = ":".join(str(libraries / name) for name in ("", *bundle.library_folders))
    for pattern in bundle.programs:
        for program in sorted(tree.glob(pattern)):
            if program.is_symlink() or not _is_program(program):
                continue
            # DT_RPATH and not RUNPATH: it also serves what loaded modules need
            _run(
                [
                    *(_patchelf(), "--set-interpreter", str(linker)),
                    *("--force-rpath", "--set-rpath", rpath),
                    str(program),
                ]
            )


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ELF


def _dynamic_linker(tree: Path) -> Path:
    found = sorted(tree.glob("usr/lib/*/ld-linux*.so.*"))
    if not found:
        raise ServicesError(f"{tree} holds no dynamic linker; delete it, it is fetched again.")
    return found[0]


def _patchelf() -> str:
    beside = Path(sys.executable).with_name("patchelf")
    if beside.exists():
        return str(beside)
    found = shutil.which("patchelf")
    if found is None:
        raise ServicesError("patchelf is missing; install Vestibule's server requirements.")
    return found


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServicesError(f"{command[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line]
    return lines[-1] if lines else ""

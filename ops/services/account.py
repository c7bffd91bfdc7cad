"""Who runs the services, and where that account can reach.

PostgreSQL refuses to run as root. Started by root, the services run as `nobody` (or the account
named by VESTIBULE_SERVICE_USER); started by anyone else, they run as that person. An account that
is not root cannot pass a closed directory such as /root, so what it must reach moves below
/var/cache and /var/lib in that case.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from ops.services.errors import AccountError, DiskShortError

__all__ = [
    "Account",
    "cache_directory",
    "data_directory",
    "reachable_home",
    "require_space",
    "service_account",
]


@dataclass(frozen=True, slots=True)
class Account:
    """The account that runs the services; `switch` says whether we have to become it."""

    uid: int
    gid: int
    switch: bool

    def own(self, path: Path) -> None:
        """Hand a file or directory over to this account."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_reach(self, path: Path) -> bool:
        """Whether this account may pass every existing directory on the way to `path`."""
        if not self.switch:
            return True
        absolute = path.absolute()
        return all(self._may_pass(step) for step in (absolute, *absolute.parents) if step.exists())

    def _may_pass(self, directory: Path) -> bool:
        info = directory.stat()
        if info.st_uid == self.uid:
            return bool(info.st_mode & stat.S_IXUSR)
        return bool(info.st_mode & stat.S_IXOTH)


def service_account() -> Account:
    """Return the account for the services. Raises AccountError."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), switch=False)
    name = os.environ.get("VESTIBULE_SERVICE_USER", "nobody")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise AccountError(
            f"The account {name!r} for the services does not exist; "
            "name an existing one in VESTIBULE_SERVICE_USER, or do not run as root."
        ) from None
    if entry.pw_uid == 0:
        raise AccountError(
            f"The account {name!r} is root, which PostgreSQL refuses; "
            "name another one in VESTIBULE_SERVICE_USER."
        )
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, switch=True)


def cache_directory(account: Account) -> Path:
    """Return the person's cache directory, or /var/cache where the services cannot reach it."""
    configured = os.environ.get("XDG_CACHE_HOME")
    base = Path(configured) if configured else Path.home() / ".cache"
    wanted = base / "vestibule"
    chosen = wanted if account.can_reach(wanted) else Path("/var/cache/vestibule")
    chosen.mkdir(parents=True, exist_ok=True, mode=0o755)
    return chosen


def data_directory(root: Path, name: str, *, account: Account) -> Path:
    """Create and return the directory `name` of a stack, owned by the services' account.

    It is `root/name`, a symbolic link to /var/lib/vestibule where the account cannot reach `root`.
    """
    place = root / name
    if not account.can_reach(root):
        real = reachable_home(root) / name
        real.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not place.is_symlink():
            place.symlink_to(real)
        place = real
    place.mkdir(parents=True, exist_ok=True)
    account.own(place)
    place.chmod(0o700)
    return place


def reachable_home(root: Path) -> Path:
    """Return where the data of a stack goes that the services' account cannot reach."""
    digest = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]
    return Path("/var/lib/vestibule") / digest


def require_space(place: Path, *, megabytes: int, purpose: str) -> None:
    """Raise DiskShortError unless `megabytes` are free where `place` lies."""
    free = shutil.disk_usage(place).free // 1_000_000
    if free < megabytes:
        raise DiskShortError(
            f"{purpose} needs {megabytes} MB in {place}, {free} MB are free; make room there, "
            "or point XDG_CACHE_HOME at a larger disk."
        )

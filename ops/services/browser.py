"""Debian's Chromium for browser tests, unpacked as the services are."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ops.services.account import cache_directory, service_account
from ops.services.packages import Bundle, Progress, library_folder, locked, unpacked

__all__ = ["Browser", "chromium"]

CHROMIUM = Bundle(
    name="chromium",
    packages=("chromium", "fontconfig-config", "fonts-dejavu-core", "fonts-dejavu-mono"),
    keep=r"^(lib|zlib1g|chromium-common)",
    drop=r"^lib(llvm|z3|perl|.*-perl|c-bin|c-l10n|pam|debconf|semanage|sepol|.*-data$)",
    programs=("usr/lib/chromium/chromium", "usr/lib/chromium/chrome_crashpad_handler"),
    library_folders=("pulseaudio", "nss"),
    megabytes=1500,
)

_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{tree}/usr/share/fonts</dir>
  <cachedir>{cache}</cachedir>
  <alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>serif</family><prefer><family>DejaVu Serif</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


@dataclass(frozen=True, slots=True)
class Browser:
    """A Chromium to start; `env` is the whole environment that it needs."""

    executable: Path
    env: dict[str, str] = field(repr=False)


def chromium(progress: Progress = lambda text: None) -> Browser:
    """Return the host's Chromium, or Debian's from the cache. Raises ServicesError."""
    found = shutil.which("chromium")
    if found is not None:
        return Browser(executable=Path(found), env=dict(os.environ))
    account = service_account()
    tree = unpacked(CHROMIUM, account=account, progress=progress)
    fonts = cache_directory(account) / f"{tree.name}-fonts"
    libraries = library_folder(tree)
    search = (libraries, *(libraries / name for name in CHROMIUM.library_folders))
    return Browser(
        executable=tree / "usr/lib/chromium/chromium",
        env={
            **os.environ,
            # libraries with a path of their own do not inherit the program's
            "LD_LIBRARY_PATH": os.pathsep.join(str(folder) for folder in search),
            "FONTCONFIG_FILE": str(_font_settings(tree, folder=fonts)),
        },
    )


def _font_settings(tree: Path, *, folder: Path) -> Path:
    """Write the font configuration once; it must name where the tree lies."""
    settings = folder / "fonts.conf"
    if not settings.exists():
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock"):
            partial = folder / "fonts.conf.partial"
            partial.write_text(_FONTS.format(tree=tree, cache=folder / "cache"))
            partial.replace(settings)
    return settings

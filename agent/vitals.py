"""How the machine is: memory, disk, processor, temperature, radio. Read where Linux tells it.

What a machine does not tell is left out, never made up. Names and units: `agent/README.md`.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_OWN = Path("/proc/self/statm")
_RADIO = Path("/proc/net/wireless")
_HEAT = Path("/sys/class/thermal/thermal_zone0/temp")


def vitals(state: Path) -> dict[str, float]:
    """Return the machine's health by name; `state` lies on the disk that counts are kept on."""
    values: dict[str, float] = {}
    with suppress(OSError):
        values["disk.free"] = float(shutil.disk_usage(state).free)
        values["cpu.load"] = os.getloadavg()[0]
    with suppress(OSError, ValueError):
        values["cpu.celsius"] = int(_HEAT.read_text()) / 1000
    with suppress(OSError, ValueError, IndexError):
        values["memory.used"] = float(int(_OWN.read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
    with suppress(OSError):
        values |= memory(_MEMORY.read_text())
    with suppress(OSError):
        values |= radio(_RADIO.read_text())
    return values


def memory(text: str) -> dict[str, float]:
    """Return what /proc/meminfo says is available to whoever wants more, in bytes."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        size = rest.split()
        if name == "MemAvailable" and size and size[0].isdigit():
            return {"memory.available": float(size[0]) * 1024}
    return {}


def radio(text: str) -> dict[str, float]:
    """Return the first interface's link quality and signal (dBm) of /proc/net/wireless."""
    for line in text.splitlines()[2:]:
        fields = line.partition(":")[2].split()
        try:
            quality, signal = float(fields[1].rstrip(".")), float(fields[2].rstrip("."))
        except (IndexError, ValueError):
            continue
        found = {"wireless.quality": quality}
        if signal < 0:  # else the driver gives no dBm
            found["wireless.dbm"] = signal
        return found
    return {}

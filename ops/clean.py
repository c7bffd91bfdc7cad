"""Stop what runs in this directory, in order, and delete what it kept: `make clean`."""

import argparse
import shutil
import signal
from pathlib import Path

from ops.demo.state import PID_FILE
from ops.deployment import home
from ops.services.process import Daemon, wait_until
from ops.services.stack import Stack

STOP_S = 60.0  # a demo stops its devices, its server, then the services


def main() -> None:
    """Stop each demo, remove every stack below the home directory, then the directory itself."""
    argparse.ArgumentParser(prog="python -m ops.clean", description=__doc__).parse_args()
    root = home()
    for noted in [*root.glob(PID_FILE), *root.glob(f"*/{PID_FILE}")]:
        stop(noted)
    for endpoints in [*root.glob("endpoints.json"), *root.glob("*/endpoints.json")]:
        Stack(Path(endpoints).parent).remove()
    shutil.rmtree(root, ignore_errors=True)


def stop(noted: Path) -> None:
    """End the process that noted itself there, as a Ctrl-C would; a stranger is left alone."""
    demo = Daemon.remembered(noted)  # by id and start time
    if demo is None:
        return
    print(f"stopping the demo, process {demo.pid}", flush=True)
    demo.signal(signal.SIGTERM)
    if not wait_until(lambda: not demo.alive, timeout_s=STOP_S):
        demo.kill_with_children()


if __name__ == "__main__":
    main()

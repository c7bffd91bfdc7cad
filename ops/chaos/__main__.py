"""`python -m ops.chaos`: seeded SIGKILLs under load, then the proof; exit code 0 only if it holds.

It brings up a private database and broker in a temporary directory, starts the server and at least
twenty agents as processes, feeds them people from a process of its own, kills and freezes all of
them at random, stops, waits until all is stored, and compares every number with every other.
"""

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from ops.chaos.run import chaos, closing
from ops.chaos.system import running
from ops.chaos.torture import ChaosError
from ops.services.errors import ServicesError
from ops.services.stack import Stack


def main(argv: list[str]) -> int:
    """Run it and print the closing line."""
    parser = argparse.ArgumentParser(prog="ops.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long the faults last")
    parser.add_argument("--seed", type=int, help="repeat the faults and people of an earlier run")
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--rate", type=float, default=4.0, help="events a second and agent")
    parser.add_argument("--keep", action="store_true", help="leave logs and truth for a look")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    root = Path(tempfile.mkdtemp(prefix="vestibule-chaos-"))
    root.chmod(0o755)  # the services may run as another account
    stack = Stack(root / "stack", role="chaos")
    proved = False
    try:
        print(f"seed {seed}", flush=True)
        stack.up(say)
        with running(stack, root=root) as system:
            outcome = chaos(system, seed=seed, seconds=options.seconds, agents=options.agents,
                            rate=options.rate, say=say)  # fmt: skip
        print(closing(outcome), flush=True)
        proved = outcome.proved
    except (ChaosError, ServicesError) as error:
        print(f"nothing proved: {error}", file=sys.stderr)
    finally:
        stack.remove()
        if options.keep or not proved:
            print(f"logs and truth are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    return 0 if proved else 1


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`vestibule`: the one command. Each subcommand's module is imported only when it is called."""

import gc
import importlib
import sys
from typing import NamedTuple

try:
    import asyncpg
except ModuleNotFoundError as error:  # on a device, where only the agent's packages are
    raise SystemExit(
        f"vestibule: {error.name} is not installed. This is the server's command: "
        "`pip install 'vestibule[server]'`; a device has `vestibule-agent`."
    ) from error

from ops.services.errors import ServicesError
from server.errors import VestibuleError


class Subcommand(NamedTuple):
    """Where a subcommand lives: `module.main(argv) -> exit code`."""

    module: str
    summary: str


SUBCOMMANDS = {
    "demo": Subcommand("ops.demo.command", "show the main job with everything real, live"),
    "serve": Subcommand("ops.serve", "run the server"),
    "migrate": Subcommand("ops.migrate", "bring the database to this release's schema"),
    "services": Subcommand("ops.services.command", "private PostgreSQL and broker"),
    "ca": Subcommand("ops.ca", "roots, authorities and the fleet's trust in them"),
    "site": Subcommand("ops.register", "add or list sites and spots, take them in from files"),
    "device": Subcommand("ops.register", "add and import devices, make their claims and labels"),
    "config": Subcommand(
        "ops.desired", "settings of devices: why they are so, what became of them"
    ),
    "command": Subcommand("ops.desired", "tell devices to restart, examine themselves, send logs"),
    "key": Subcommand("ops.keys", "make, rotate and end an organisation's API keys"),
    "bi": Subcommand("ops.bi", "logins for BI tools, one organisation each"),
    "release": Subcommand("ops.release", "approve, sign and publish what devices may run"),
    "rollout": Subcommand("ops.rollout", "bring something new to devices in waves, watch it, act"),
    "contact": Subcommand("ops.contacts", "who is told by mail of what is wrong"),
    "user": Subcommand("ops.people", "invite people, give them roles, shut them out"),
    "audit": Subcommand("ops.audit", "show who did what, and prove that nobody changed it"),
    "import": Subcommand("ops.imports", "import sales, rosters, campaigns, rates of exchange"),
    "quarantine": Subcommand("ops.quarantine", "list, explain and re-drive refused frames"),
    "simulate": Subcommand("ops.simulate", "drive a fleet of real agents, proved"),
    "replay": Subcommand("ops.replay", "send real counts through real agents, proved"),
    "doctor": Subcommand("ops.doctor", "check this installation and say what to do"),
    "bench": Subcommand("ops.bench", "measure, each figure beside its limit"),
}

EXIT_USAGE = 2


def usage() -> str:
    """Return the overview that bare `vestibule` prints."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {sub.summary}" for name, sub in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: vestibule COMMAND [options]",
            "",
            "The fleet server for the devices in a shop's entrance.",
            "",
            *lines,
            "",
            "vestibule COMMAND --help says more. Exit codes: 0 done, 1 not done (with the reason),",
            "2 called wrongly.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name = words[0]
    if name not in SUBCOMMANDS:
        print(f"vestibule: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return EXIT_USAGE
    gc.disable()  # what modules make lasts: to look for garbage takes an eighth of their time
    try:
        module = importlib.import_module(SUBCOMMANDS[name].module)
    finally:
        gc.enable()
    takes_name = SUBCOMMANDS[name].module in ("ops.register", "ops.desired")
    try:
        code: int = module.main(words if takes_name else words[1:])
    except (VestibuleError, ServicesError) as error:
        print(f"vestibule {name}: {error}", file=sys.stderr)
        return 1
    except (asyncpg.PostgresError, OSError) as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
            said = f"{error.filename}: {error.strerror}"
        print(f"vestibule {name}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code

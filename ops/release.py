"""`vestibule release`: which code devices may run, approved by people with keys of their own.

People sign in a folder that travels between them; the server never has their keys. Each makes a key
(`key`), one of them begins (`init`), and from then on: `build` a release, `add` it, two `sign`, and
`publish` takes it to the server. ops/RELEASING.md goes through it, and through what to do when a
key is lost or stolen.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import SSlibKey

from ops import archive
from ops.deployment import acting, deployment
from ops.drafts import ONLINE, Draft, Folder, Standing
from ops.passwords import password
from ops.words import Verbs, parser_of
from protocol.content import ContentError
from protocol.release import COMPONENTS, Component, Release, component_of, version_key
from server.errors import RefusedError
from server.firmware.keys import make_key, name_of, read_public, read_signer
from server.firmware.releases import Row, listed, note_published, withdraw
from server.firmware.repository import Repository, read_targets

PASSWORD_FILE = "VESTIBULE_RELEASE_PASSWORD_FILE"  # noqa: S105 - a name
Action = Callable[[argparse.Namespace], int]
_MIN_PASSWORD = 16  # PKCS#8 stretches a password little


def main(argv: list[str]) -> int:
    """Run the subcommand; returns its exit code: 1 is not done, with the reason."""
    options = _parser().parse_args(argv)
    action: Action = options.action
    try:
        return action(options)
    except ContentError as error:
        print(f"vestibule release: {error}", file=sys.stderr)
        return 1


# -- keys, and the folder ----------------------------------------------------------------------


def key(options: argparse.Namespace) -> int:
    if options.online == bool(options.files):
        raise RefusedError("release_key", "name files for your keys, or --online for the server's")
    if options.online:
        made = _repository().make_keys()
        print("The server signs snapshot and timestamp with keys that stay here. Public halves:")
        for path in made:
            print(f"  {path}")
        return 0
    given = _password(new=True)
    if len(given) < _MIN_PASSWORD:
        raise RefusedError("release_key", f"a password has at least {_MIN_PASSWORD} characters")
    for path in options.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        made_key = make_key(path, password=given)
        print(f"{path} is a key of yours, encrypted: keep it, and give it to nobody.")
        print(f"{path.with_suffix('.pub')} is for who begins; it is {made_key.keyid[:16]}.")
    return 0


def init(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    folder.begin(
        root=_publics(options.root),
        targets=_publics(options.targets),
        snapshot=read_public(options.snapshot),
        timestamp=read_public(options.timestamp),
        threshold=options.threshold,
        now=_now(),
    )
    _print_standings(folder)
    return 0


def rotate(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    folder.rotate(
        options.role,
        add=_publics(options.add),
        remove=options.remove,
        threshold=options.threshold,
        now=_now(),
    )
    print("\n".join(folder.words(folder.root())))
    _print_standings(folder)
    return 0


def renew(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    folder.renew(now=_now())
    _print_standings(folder)
    return 0


# -- a release ---------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> int:
    made = archive.build(
        options.source, options.out, component=options.component, version=options.version
    )
    print(f"{options.out}: {made.component} {made.version}, {made.files} files")
    print(f"  {made.length:,} bytes, SHA-256 {made.sha256}")
    return 0


def add(options: argparse.Namespace) -> int:
    folder, made = Folder(options.folder), archive.inspect(options.file)
    release = Release(
        made.component,
        made.version,
        options.floor or _highest_floor(folder, made.component),
        options.requires,
        tuple(options.hardware),
        options.notes,
    )
    folder.add(options.file, release, now=_now())
    print("\n".join(folder.words(folder.targets())))
    _print_standings(folder)
    return 0


def sign(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    public = read_public(options.key.with_suffix(".pub"))
    drafts = folder.to_sign(public.keyid)
    if not drafts:
        raise RefusedError("release_nothing", f"{name_of(public)} has nothing to sign here")
    for draft in drafts:
        print("\n".join(folder.words(draft)))
    _demand_yes(f"Sign as {name_of(public)}? (yes/no) ", options)
    folder.sign(drafts, read_signer(options.key, password=_password()))
    print(f"Signed by {name_of(public)}.")
    _print_standings(folder)
    return 0


def show(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    drafts: tuple[Draft, Draft] = (folder.root(), folder.targets())
    for draft, standing in zip(drafts, folder.standings(), strict=True):
        print("\n".join(folder.words(draft)))
        print(f"  {_words(standing)}")
    return 0


def publish(options: argparse.Namespace) -> int:
    folder = Folder(options.folder)
    incomplete = [_words(each) for each in folder.standings() if not each.complete]
    if incomplete:
        raise RefusedError("release_unsigned", f"not signed by enough: {'; '.join(incomplete)}")
    asyncio.run(_publish(folder))
    return 0


async def _publish(folder: Folder) -> None:
    found, now = deployment(), _now()
    repository = Repository(found.settings.firmware)
    targets = read_targets(folder.targets().signed)
    async with acting(found.owner_dsn.reveal()) as connection:
        added, gone = await note_published(connection, targets, actor="command", now=now)
        published = await asyncio.to_thread(
            repository.publish,
            folder.roots(),
            folder.targets_file(),
            artifact=folder.artifact,
            now=now,
        )
    for what, names in (("published", added), ("withdrawn", gone)):
        for each in names:
            print(f"{what}: {each}")
    versions = ", ".join(f"{role} {number}" for role, number in sorted(published.versions.items()))
    print(f"Devices are served: {versions}.")


def take_back(options: argparse.Namespace) -> int:
    component, version = _named(options.release)
    if options.folder is not None:
        folder = Folder(options.folder)
        folder.remove(component, version, now=_now())
        print("\n".join(folder.words(folder.targets())))
        _print_standings(folder)
        return 0
    asyncio.run(_withdraw(component, version))
    print(f"{component} {version} is offered to nobody any more. Devices that have it keep it;")
    print("to have it refused for good, sign its target away: --folder.")
    return 0


async def _withdraw(component: str, version: str) -> None:
    async with acting(deployment(database_alone=True).owner_dsn.reveal()) as connection:
        await withdraw(connection, component, version, actor="command", now=_now())


def listing(_: argparse.Namespace) -> int:
    found = deployment(database_alone=True)
    rows = asyncio.run(_listed(found.owner_dsn.reveal()))
    for row in rows:
        print("\t".join(_row_words(row)))
    for role, left in Repository(found.settings.firmware).left(now=_now()).items():
        print(f"{role}: good for {left.days} days", file=sys.stderr)
    return 0


async def _listed(dsn: str) -> list[Row]:
    async with acting(dsn) as connection:
        return await listed(connection)


# -- words and files ---------------------------------------------------------------------------


def _row_words(row: Row) -> list[str]:
    release = row.target.release
    words = [f"floor {release.floor}", f"published {row.published_at:%Y-%m-%d %H:%M}"]
    if release.requires:
        words.insert(1, f"from {release.requires} on")
    if row.withdrawn_at is not None:
        words.append(f"withdrawn {row.withdrawn_at:%Y-%m-%d %H:%M}")
    name = f"{release.component} {release.version}"
    return [row.ref, name, ",".join(release.hardware), ", ".join(words), release.notes]


def _words(standing: Standing) -> str:
    who = f"{standing.role} {standing.version}: "
    who += f"signed by {', '.join(standing.signed)}" if standing.signed else "signed by nobody"
    if standing.complete:
        return f"{who}; complete"
    return f"{who}; {standing.missing} more of {', '.join(standing.may_sign)}"


def _print_standings(folder: Folder) -> None:
    for each in folder.standings():
        print(_words(each))


def _highest_floor(folder: Folder, component: Component) -> str:
    floors = [e.release for e in folder.approved() if e.release.component == component]
    return max((each.floor for each in floors), key=version_key, default="0.0.0")


def _named(text: str) -> tuple[Component, str]:
    component, _, version = text.partition("/")
    return component_of(component, "component"), version


def _publics(paths: Sequence[Path]) -> list[SSlibKey]:
    return [read_public(path) for path in paths]


def _password(*, new: bool = False) -> bytes:
    return password("your key's password", variable=PASSWORD_FILE, new=new)


def _demand_yes(question: str, options: argparse.Namespace) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("release_unread", "nobody is here to read this: say --yes")
    if input(question).strip() != "yes":
        raise RefusedError("release_unsigned", "not signed")


def _repository() -> Repository:
    return Repository(deployment(start=False).settings.firmware)


def _now() -> datetime:
    return datetime.now(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "release",
        __doc__,
        epilog=f"{PASSWORD_FILE}: a file with your key's password, where there is no terminal.",
    )
    verbs = Verbs[Action](parser, "COMMAND")
    _keys(verbs)
    _approval(verbs)
    _upkeep(verbs)
    return parser


def _keys(verbs: Verbs[Action]) -> None:
    made = verbs.add("key", "make keys: yours, or with --online the server's two", key)
    made.add_argument("files", type=Path, nargs="*", help="anna.pem; beside it comes anna.pub")
    made.add_argument("--online", action="store_true", help="on the server: its two keys")

    made = verbs.add("init", "begin: a first root that names everybody's keys", init)
    _within(made)
    for name, text in (("root", "who names keys"), ("targets", "who approves releases")):
        made.add_argument(
            f"--{name}", type=Path, action="append", required=True, metavar="PUB", help=text
        )
    for name in ("snapshot", "timestamp"):
        made.add_argument(f"--{name}", type=Path, required=True, metavar="PUB", help="the server's")
    made.add_argument("--threshold", type=int, default=2, help="so many must sign (default: 2)")


def _approval(verbs: Verbs[Action]) -> None:
    made = verbs.add("build", "pack a tree: the same bytes from the same files", build)
    made.add_argument("source", type=Path, help="of agent: the folder with agent/ and protocol/")
    made.add_argument("--component", choices=COMPONENTS, required=True, help="what it is")
    made.add_argument("--version", required=True, help="1.2.3")
    made.add_argument("-o", "--out", type=Path, required=True, help="where to: x.tar")

    made = verbs.add("add", "draft the approval of a release", add)
    _within(made)
    made.add_argument("file", type=Path, help="as `build` made it")
    made.add_argument("--hardware", action="append", required=True, help="a model that may run it")
    made.add_argument("--floor", help="devices that have it never go below (default: as before)")
    made.add_argument("--requires", help="the least version from which it is installed")
    made.add_argument("--notes", default="", help="one line about it")

    made = verbs.add("sign", "read what is drafted, and sign it", sign)
    _within(made)
    made.add_argument("--key", type=Path, required=True, help="your key; its .pub beside it")
    made.add_argument("--yes", action="store_true", help="it was read")

    _within(verbs.add("show", "what is drafted, and who has signed", show))
    _within(verbs.add("publish", "on the server: give devices what enough have signed", publish))


def _upkeep(verbs: Verbs[Action]) -> None:
    made = verbs.add("rotate", "draft a root that names other keys", rotate)
    _within(made)
    made.add_argument("role", choices=("root", "targets", ONLINE), help="whose keys")
    for name, kind, text in (("add", Path, "a key more"), ("remove", str, "a key less, by name")):
        made.add_argument(f"--{name}", type=kind, action="append", default=[], help=text)
    made.add_argument("--threshold", type=int, help="so many must sign")

    _within(verbs.add("renew", "draft root and targets that are good for longer", renew))
    verbs.add("list", "on the server: every release that there was", listing)
    made = verbs.add(
        "withdraw", "offer a release to nobody; with --folder refuse it for good", take_back
    )
    made.add_argument("release", help="agent/1.2.3")
    made.add_argument("--folder", type=Path, help="draft that it is approved no longer")


def _within(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", type=Path, help="the folder in which releases are approved")

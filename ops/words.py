"""How a command of `vestibule` reads its words: the parser of its help, and its verbs."""

import argparse
from typing import Generic, TypeVar

Act = TypeVar("Act")


def parser_of(
    command: str, about: str | None, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of `vestibule COMMAND`; its help is `about`, as it is laid out."""
    return argparse.ArgumentParser(
        prog=f"vestibule {command}".rstrip(),
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )


class Verbs(Generic[Act]):
    """What can be done with a command; the options of each have its `action`."""

    def __init__(
        self, parser: argparse.ArgumentParser, words: str, *, required: bool = True
    ) -> None:
        """`words` stands for them where the command's usage is said."""
        self._verbs = parser.add_subparsers(required=required, metavar=words)

    def add(self, name: str, summary: str, action: Act | None = None) -> argparse.ArgumentParser:
        """Return the parser of one more; without an action it has verbs of its own."""
        made = self._verbs.add_parser(name, help=summary, description=summary)
        if action is not None:
            made.set_defaults(action=action)
        return made

"""`--help` says something of every sub-command and every option."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from agent import command as agent
from ops import command


class _ParserSeen(Exception):
    """Carries the parser out of a command that would go on."""


def unsaid(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            if not action.help:
                yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}"
            continue
        said = {choice.dest for choice in action._choices_actions if choice.help}
        for name, inner in action.choices.items():
            alias = not inner.prog.endswith(name)
            if name not in said and not alias:
                yield inner.prog
            yield from unsaid(inner)


@pytest.mark.parametrize("name", command.SUBCOMMANDS)
def test_every_option_of_the_command_has_a_help_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(parser: argparse.ArgumentParser, _: object = None) -> None:
        raise _ParserSeen(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", seen)
    with pytest.raises(_ParserSeen) as caught:
        command.main([name, "--help"])
    assert list(unsaid(caught.value.args[0])) == []


def test_every_option_of_the_agents_command_has_a_help_text() -> None:
    assert list(unsaid(agent._parser())) == []

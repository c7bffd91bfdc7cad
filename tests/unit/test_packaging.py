"""The import names are ours, and this checkout's."""

import importlib
import importlib.metadata
import os
from pathlib import Path

import pytest

import ext

ROOT = Path(__file__).parents[2]
NAMES = ("protocol", "ext", "agent", "server", "simulators", "ops")


@pytest.mark.parametrize("name", NAMES)
def test_an_import_name_resolves_to_this_checkout(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / name


def test_no_other_distribution_provides_our_names() -> None:
    provided = importlib.metadata.packages_distributions()
    for name in NAMES:
        assert set(provided.get(name, [])) <= {"vestibule"}, name


def test_the_compiled_decoder_is_in_use_unless_the_reference_is_asked_for() -> None:
    assert (os.environ.get("VESTIBULE_NO_EXT") != "1") == ext.COMPILED

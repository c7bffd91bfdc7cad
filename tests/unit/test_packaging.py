"""The import names are ours, and this checkout's."""

import importlib
import importlib.metadata
import os
from pathlib import Path

import pytest

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


def test_ci_runs_the_compiled_decoder() -> None:
    if os.environ.get("VESTIBULE_REQUIRE_EXT") != "1":
        pytest.skip("the compiled decoder is not required in this run")
    import ext

    assert ext.COMPILED

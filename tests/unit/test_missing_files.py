"""A file that a command was given and cannot read is named, with why, and nothing else is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.command import main

REPLAY = ["replay", "--timezone", "Europe/London"]


def test_a_file_of_counts_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.csv"
    assert main([*REPLAY, str(path)]) == 1
    assert capsys.readouterr().err == f"vestibule replay: {path}: No such file or directory\n"


def test_a_file_of_counts_that_is_no_gzip_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts.gz"
    path.write_text("Date,Hour,LocationName,InCount\n")
    assert main([*REPLAY, str(path)]) == 1
    assert f"vestibule replay: {path}: Not a gzipped file" in capsys.readouterr().err

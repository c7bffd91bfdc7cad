"""The mark of what reads Leeds' real counts, which stand apart from this project."""

import pytest

from ops.evaluations.leeds import LEEDS

needs_leeds = pytest.mark.skipif(
    not LEEDS.exists(),
    reason="the city of Leeds' file of counts is not here; on generated files "
    "test_simulators_counts_file, test_simulators_replay and test_replay prove the same rules",
)

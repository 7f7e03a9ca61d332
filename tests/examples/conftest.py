"""Where the examples run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.harness import Flower, flower_in


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    """Give Flower a home and ports of its own."""
    with flower_in(tmp_path) as started:
        yield started

"""A few seconds of the fuzzer; the long run is tests/bench/fuzz_decode.py."""

import importlib.util
import random
import re
import subprocess
import sys

import pytest

from tests.bench.fuzz_decode import mutate, run_mutation, seeds


def test_thousands_of_mutated_frames_do_no_harm() -> None:
    """Mutated frames of every codec give DecodeError or their tensor."""
    counts = run_mutation(runs=20_000, seed=20, seconds=4)
    assert counts.total() >= 1000
    # Some must reach the codecs and decode, or the fuzzer tests the header only.
    assert counts["decoded"] > 0.05 * counts.total()


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="needs atheris (the bench extra)",
)
def test_coverage_guided_inputs_do_no_harm() -> None:
    """Inputs bred for new coverage give DecodeError or a tensor, for some seconds."""
    module = "tests.bench.fuzz_decode"
    run = subprocess.run(
        [sys.executable, "-m", module, "--engine", "atheris", "--seconds", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (executed,) = re.findall(r"number_of_executed_units: (\d+)", run.stderr)
    assert int(executed) > 1000


def test_mutation_follows_its_seed() -> None:
    """What broke once can be had again."""
    frame, other = seeds()[0], seeds()[-1]
    first, second = (mutate(frame, other, random.Random(3)) for _ in range(2))
    assert first == second

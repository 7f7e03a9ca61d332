"""Which commit a benchmark measured."""

import subprocess


def head() -> str:
    """Return the short name of the commit that is checked out."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

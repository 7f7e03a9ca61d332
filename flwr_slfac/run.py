"""``flwr run``, with an exit status that tells whether the run succeeded.

Usage: ``python -m flwr_slfac.run APP [SUPERLINK] [options of flwr run]``

Flower's own command exits with 0 even for a run that raised. This one streams the same
log, asks ``flwr list`` how the run ended, and exits with 1 unless it completed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMPLETED = "finished:completed"
_STARTED = re.compile(r"started run (\d+)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a Flower App and return 0 if it completed, else 1.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments as on the command line; ``sys.argv[1:]`` by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flwr_slfac.run",
        description="flwr run, with an exit status that tells how the run ended",
        epilog="All other options go to `flwr run`.",
    )
    parser.add_argument("app", help="folder of the Flower App")
    parser.add_argument(
        "superlink", nargs="?", help="name of a SuperLink in Flower's configuration"
    )
    known, options = parser.parse_known_args(argv)
    where = [known.superlink] if known.superlink else []
    run_id = _run([known.app, *where, "--stream", *options])
    if run_id is None:
        print("flwr run did not start a run", file=sys.stderr)
        return 1
    status = _status(run_id, where)
    if status != COMPLETED:
        print(f"run {run_id} ended as {status}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: list[str]) -> str | None:
    """Stream ``flwr run`` to standard output; return the id of the run it started."""
    run_id = None
    command = ["flwr", "run", *arguments]
    with subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            started = _STARTED.search(line)
            if started and run_id is None:
                run_id = started.group(1)
    return run_id


def _status(run_id: str, where: list[str]) -> str:
    """Return how a run ended, in Flower's words."""
    command = ["flwr", "list", *where, "--run-id", run_id, "--format", "json"]
    listing = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False
    ).stdout
    try:
        return str(json.loads(listing)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown ({listing.strip()[:200]})"


def _environment() -> dict[str, str]:
    """Return the environment with this Python's commands first on the path."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": here + os.pathsep + os.environ.get("PATH", "")}


if __name__ == "__main__":
    sys.exit(main())

"""The page of a run: ``python -m flwr_slfac.report RUN-FOLDER``.

Reads what ``SplitFed.write(folder)`` left there and writes ``report.html`` beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flwr_slfac.errors import SlfacError
from flwr_slfac.report.page import write_page
from flwr_slfac.report.run_page import run_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a run's page; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flwr_slfac.report",
        description="Write report.html for a folder that SplitFed.write has filled.",
    )
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="the file; FOLDER/report.html")
    given = parser.parse_args(arguments)
    path = given.output or given.folder / "report.html"
    try:
        write_page(path, run_page(given.folder))
    except SlfacError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

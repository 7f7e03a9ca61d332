"""What somebody sees of a round while it runs: a bar, or lines in a log."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from flwr_slfac.status import RunStatus

logger = logging.getLogger("flwr")

LINE_EVERY_S = 10.0


@contextmanager
def step_progress(
    label: str, status: RunStatus
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (steps done, steps in all), which also tells the status."""
    if not sys.stderr.isatty():
        yield status.stepped
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    with bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            status.stepped(done, total)
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def lines_of(status: RunStatus, every_s: float = LINE_EVERY_S) -> Iterator[None]:
    """Log how the run stands every few seconds, where no terminal shows a bar."""
    if sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(every_s):
            logger.info("%s", status.now().line())

    teller = threading.Thread(target=tell, name="slfac-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()

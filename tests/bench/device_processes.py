"""Devices as processes of their own, for benches of streams."""

import multiprocessing
from collections.abc import Callable, Iterable

from flwr_slfac.split import Lost
from flwr_slfac.transport.stream import Opening


class ProcessOpener:
    """Runs each device in a process.

    Parameters
    ----------
    be_device : callable
        What the process does: given the opening, then the arguments.
    *arguments
        As they are pickled.
    """

    def __init__(self, be_device: Callable[..., None], *arguments: object) -> None:
        self._be_device, self._arguments = be_device, arguments
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def open(self, opening: Opening) -> int:
        """Start the device."""
        spawn = multiprocessing.get_context("spawn")
        arguments = (opening, *self._arguments)
        process = spawn.Process(target=self._be_device, args=arguments)
        process.start()
        self._processes.append(process)
        return 0

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return nothing: they stay."""
        return {}

    def join(self) -> None:
        """Wait until all have ended."""
        for process in self._processes:
            process.join()

"""A deployment that outlives its runs: parts of it are killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Flower, free_ports

_EXAMPLE = Path(__file__).parents[2] / "examples" / "deployment"
_NAME, _HOST = "deployed", "127.0.0.1"
# On a busy machine a deployment of four processes takes most of a minute to begin.
_LIMIT_S = 600.0


class Run:
    """One ``flwr run`` that goes on in the background.

    Parameters
    ----------
    child : Popen
        The command.
    folder : Path
        What the app writes.
    log : Path
        What the command prints.
    """

    def __init__(
        self, child: "subprocess.Popen[bytes]", folder: Path, log: Path
    ) -> None:
        self._child, self.folder, self._log = child, folder, log

    @property
    def log(self) -> str:
        """What was printed up to now."""
        return self._log.read_text(errors="replace")

    @property
    def is_over(self) -> bool:
        """Whether the command has ended."""
        return self._child.poll() is not None

    @property
    def results(self) -> dict[str, Any]:
        """What the app came to, by job."""
        path = self.folder / "results.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file that devices wrote."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def leave(self) -> None:
        """End the command; what runs in the SuperLink goes on."""
        if not self.is_over:
            self._child.kill()
        self._child.wait()


class Deployed(Flower):
    """A SuperLink with TLS, known nodes and a database, and SuperNodes.

    Parameters
    ----------
    folder : Path
        Empty.
    num_devices : int
        SuperNodes.
    """

    def __init__(self, folder: Path, num_devices: int = 2) -> None:
        super().__init__(folder)
        self._link, *self._nodes = free_ports(1 + num_devices)
        self.link: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        subprocess.run(
            [sys.executable, "certificates.py", str(folder), "--host", _HOST,
             "--nodes", str(num_devices)], cwd=_EXAMPLE, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_NAME}"\n[superlink.{_NAME}]\n'
            f'address = "{_HOST}:{self._link}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )

    def start(self) -> None:
        """Start everything."""
        self.start_link()
        for partition in range(len(self._nodes)):
            key = self.folder / f"node{partition}.pub"
            self._command("flwr", "supernode", "register", str(key), _NAME)
            self.start_node(partition)

    def start_link(self) -> None:
        """Start the SuperLink; return when it answers."""
        at = self.folder
        self.link = self._start(
            *("flower-superlink", "--host", _HOST, "--port", str(self._link)),
            *("--ssl-ca-certfile", str(at / "ca.crt")),
            *("--ssl-certfile", str(at / "server.pem")),
            *("--ssl-keyfile", str(at / "server.key")),
            *("--enable-supernode-auth", "--database", str(at / "link.db")),
        )
        self._wait_for(self._link)

    def start_node(self, partition: int) -> None:
        """Start a SuperNode."""
        at, port = self.folder, str(self._nodes[partition])
        self.nodes[partition] = self._start(
            *("flower-supernode", "--root-certificates", str(at / "ca.crt")),
            *("--superlink", f"{_HOST}:{self._link}", "--host", _HOST, "--port", port),
            *("--auth-supernode-private-key", str(at / f"node{partition}")),
            *("--node-config",),
            f"partition-id={partition} num-partitions={len(self._nodes)}",
        )

    def begin(self, job: Job) -> Run:
        """Begin a run of one job."""
        self._num_runs += 1
        folder = self.folder / f"run{self._num_runs}"
        folder.mkdir()
        (folder / "jobs.json").write_text(json.dumps([asdict(job)]))
        config = f'folder="{folder}" num-devices={len(self._nodes)}'
        command = ("flwr", "run", str(self._app), _NAME, "--stream")
        child = self._start(*command, "--run-config", config, log=f"{folder.name}.log")
        return Run(child, folder, self.folder / f"{folder.name}.log")

    def apps(self, which: str) -> list[int]:
        """Return the processes of a ``flwr-serverapp`` or ``flwr-clientapp``."""
        found = self.processes().items()
        return sorted(pid for pid, command in found if which in command.split(" --")[0])


def kill(process: "subprocess.Popen[bytes] | int | None") -> bool:
    """Kill a process at once; return whether it was there."""
    if process is None:
        return False
    if isinstance(process, int):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            return True
        return False
    was_there = process.poll() is None
    process.kill()
    process.wait()
    return was_there


def wait_until(found: Any, limit_s: float = _LIMIT_S) -> Any:
    """Wait until something is found; return it.

    Raises
    ------
    TimeoutError
        If it is not.
    """
    deadline = time.monotonic() + limit_s
    while not (it := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not found within {limit_s:g} s")
        time.sleep(0.05)
    return it

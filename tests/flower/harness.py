"""Starts Flower for a test in a home and on ports of its own, and ends all of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.flower.app.splitapp.task import Job

APP = Path(__file__).parent / "app"
_MARK = "FLWR_SLFAC_TEST"  # in the environment of every process that a test starts
_RUN_LIMIT_S = 600  # the longest takes three minutes on an idle machine


@dataclass
class Outcome:
    """What a run came to: Flower's status, its log, and what the app wrote."""

    status: str
    log: str
    results: dict[str, Any]
    folder: Path
    seconds: float

    def lines(self, name: str) -> list[str]:
        """Return the lines that the app's devices wrote to a file."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


class Flower:
    """Flower's commands, and every process that they leave behind.

    Parameters
    ----------
    folder : Path
        Empty; holds FLWR_HOME, the app and what runs write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._app = folder / "app"
        shutil.copytree(APP, self._app, ignore=shutil.ignore_patterns("__pycache__"))
        self._ports = free_ports(2)
        self._num_runs = 0
        self._children: list[subprocess.Popen[bytes]] = []

    def simulate(
        self, jobs: Sequence[Job], *, num_devices: int = 4, num_actors: int = 2
    ) -> Outcome:
        """Train jobs in one simulation."""
        return self._run(
            jobs,
            num_devices,
            "--federation-config",
            f"num-supernodes={num_devices} client-resources-num-cpus=1 "
            f"init-args-num-cpus={num_actors}",
        )

    def deploy(self, jobs: Sequence[Job], *, num_devices: int = 2) -> Outcome:
        """Train jobs on a SuperLink and SuperNodes of their own, on loopback."""
        link, *nodes = free_ports(1 + num_devices)
        on_loopback = ("--insecure", "--host", "127.0.0.1", "--port")
        self._start("flower-superlink", *on_loopback, str(link))
        self._wait_for(link)
        for partition, port in enumerate(nodes):
            self._start(
                *("flower-supernode", "--superlink", f"127.0.0.1:{link}"),
                *(*on_loopback, str(port)),
                "--node-config",
                f"partition-id={partition} num-partitions={num_devices}",
            )
        config = self.folder / "home" / "config.toml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(
            f'[superlink]\ndefault = "test"\n[superlink.test]\n'
            f'address = "127.0.0.1:{link}"\ninsecure = true\n'
        )
        return self._run(jobs, num_devices)

    def stop(self) -> list[str]:
        """End every process that was started here; return those that would not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 20
            while (alive := self.processes()) and time.monotonic() < deadline:
                for pid in alive:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.5)
        for child in self._children:
            child.wait(timeout=20)
        return list(self.processes().values())

    def processes(self) -> dict[int, str]:
        """Return pid and command of every live process that was started here."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes()
                    found[int(folder.name)] = command.replace(b"\0", b" ").decode()
        return found

    def _run(self, jobs: Sequence[Job], num_devices: int, *arguments: str) -> Outcome:
        self._num_runs += 1
        folder = self.folder / f"run{self._num_runs}"
        folder.mkdir()
        (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
        start = time.monotonic()
        done = self._command(
            *("flwr", "run", str(self._app), "--stream"),
            *("--run-config", f'folder="{folder}" num-devices={num_devices}'),
            *arguments,
        )
        seconds = time.monotonic() - start
        listed = json.loads(self._command("flwr", "list", "--format", "json"))
        status = listed["runs"][0]["status"] if listed["runs"] else "never started"
        path = folder / "results.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        return Outcome(status, done, results, folder, seconds)

    def _command(self, *words: str) -> str:
        """Run one of Flower's commands to its end; return what it printed."""
        done = subprocess.run(
            words, env=self.environment(), cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_RUN_LIMIT_S,
        )  # fmt: skip
        return done.stdout

    def _start(self, *words: str, log: str = "") -> "subprocess.Popen[bytes]":
        path = self.folder / (log or f"{words[0]}.log")
        with path.open("a") as file:
            child = subprocess.Popen(
                words, env=self.environment(), cwd=self.folder, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._children.append(child)
        return child

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.2)
        raise TimeoutError(f"nothing listens on port {port}; see {self.folder}")

    def environment(self) -> Mapping[str, str]:
        """Return what a process needs to find this Flower and no other."""
        bin_folder = str(Path(sys.executable).parent)
        repository = str(Path(__file__).parents[2])
        return {
            **os.environ,
            _MARK: self._mark,
            "PATH": bin_folder + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": repository,
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(self._ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(self._ports[1]),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def flower_in(folder: Path) -> Iterator[Flower]:
    """Give a Flower, and fail if a process of it cannot be ended."""
    flower = Flower(folder)
    try:
        yield flower
    finally:
        left = flower.stop()
    assert not left, f"still alive: {left}"

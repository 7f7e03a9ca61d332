"""Run the quickstart in a real deployment on this machine: TLS, known nodes, streams.

Usage: python examples/deployment/run.py [--supernodes 2] [--run-config "num-rounds=3"]

Starts a SuperLink with TLS, node authentication and a database, and SuperNodes that it
knows, each on a port of the loopback; then ``flwr run`` of the quickstart. At the end,
or on Ctrl-C, every process that was started is stopped. What they said is in the folder
that is printed.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from certificates import write_certificates

QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
NAME, HOST = "deployment", "127.0.0.1"
# A SuperLink imports for some seconds; Raspberry Pis take their time.
_START_LIMIT_S, _STOP_LIMIT_S = 120.0, 20.0


class Deployment:
    """A SuperLink and SuperNodes on the loopback, until `stop`.

    Parameters
    ----------
    folder : Path
        For keys, the database, Flower's own files and logs.
    num_nodes : int
        SuperNodes.
    node_config : callable, optional
        From a node's number to more of its ``--node-config``.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int,
        node_config: Callable[[int], str] = lambda number: "",
    ) -> None:
        self.folder, self._node_config = folder, node_config
        self._link, *self._nodes = free_ports(1 + num_nodes)
        self._children: list[subprocess.Popen[bytes]] = []
        write_certificates(folder, [HOST, "localhost"], num_nodes)
        home = folder / "flower"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\n'
            f'address = "{HOST}:{self._link}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )
        binaries = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            # The app needs flwr-slfac, which is installed here, and no other.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def start(self) -> None:
        """Start everything; return when the SuperLink answers."""
        files = {
            n: str(self.folder / n) for n in ("ca.crt", "server.pem", "server.key")
        }
        self._start(
            "superlink",
            *("flower-superlink", "--host", HOST, "--port", str(self._link)),
            *("--ssl-ca-certfile", files["ca.crt"]),
            *("--ssl-certfile", files["server.pem"]),
            *("--ssl-keyfile", files["server.key"]),
            *("--enable-supernode-auth", "--database", str(self.folder / "link.db")),
        )
        self._wait()
        for number, port in enumerate(self._nodes):
            key = self.folder / f"node{number}"
            known = self.flwr("supernode", "register", f"{key}.pub", NAME)
            if known.returncode:
                raise SystemExit(f"node {number} was not registered:\n{known.stdout}")
            self._start(
                f"supernode{number}",
                *("flower-supernode", "--root-certificates", files["ca.crt"]),
                *("--superlink", f"{HOST}:{self._link}"),
                *("--host", HOST, "--port", str(port)),
                *("--auth-supernode-private-key", str(key), "--node-config"),
                f"partition-id={number} num-partitions={len(self._nodes)} "
                f"{self._node_config(number)}".strip(),
            )

    def flwr(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run one of Flower's commands to its end."""
        return subprocess.run(
            ("flwr", *words), env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def run(self, app: Path, config: str) -> str:
        """Run an app, showing what it says; return how it ended."""
        words = ["flwr", "run", str(app), NAME, "--stream"]
        words += ["--run-config", config] if config else []
        subprocess.run(words, env=self.environment, cwd=self.folder, check=False)
        runs = json.loads(self.flwr("list", "--format", "json").stdout)["runs"]
        return str(runs[0]["status"]) if runs else "never started"

    def stop(self) -> None:
        """Stop what was started, SuperNodes first."""
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            try:
                child.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                words, env=self.environment, cwd=self.folder, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this script alone
            )  # fmt: skip
        self._children.append(child)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            if self._children[0].poll() is not None:
                break
            try:
                socket.create_connection((HOST, self._link), 1).close()
                return
            except OSError:
                time.sleep(0.2)
        log = (self.folder / "superlink.log").read_text()[-2000:]
        raise SystemExit(f"the SuperLink does not answer; it said:\n{log}")


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploy, run, stop."""
    parser = argparse.ArgumentParser(description="The quickstart in a deployment")
    parser.add_argument("--supernodes", type=int, default=2)
    parser.add_argument("--run-config", default="", help="as flwr run's")
    parser.add_argument("--app", type=Path, default=QUICKSTART)
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    options = parser.parse_args(arguments)
    if options.supernodes < 2:
        parser.error("--supernodes must be 2 or more, which FedAvg waits for")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="deployment-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty; give another --folder")
    print(f"Keys, database and logs: {folder}", flush=True)
    deployment = Deployment(folder.resolve(), options.supernodes)
    start = time.monotonic()
    try:
        deployment.start()
        status = deployment.run(options.app.resolve(), options.run_config)
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        deployment.stop()
    print(f"{status} after {time.monotonic() - start:.0f} s")
    raise SystemExit(0 if status == "finished:completed" else 1)


if __name__ == "__main__":
    main()

"""A Ray cluster of two nodes on the loopback, in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1)
print("at", cluster.address, cluster.head_node.get_session_dir_path(), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def two_nodes() -> Iterator[tuple[str, Path]]:
    """Give address and folder of logs of a cluster; its first node has no core."""
    # Ray notes a cluster where its files are, and whoever starts it there without an
    # address joins: other runs must not find this one. Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        script = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert script.stdin is not None
        assert script.stdout is not None
        with script:
            try:
                lines = (line.split() for line in script.stdout)
                address, session = next(w[1:] for w in lines if w[:1] == ["at"])
                assert Path(session).is_relative_to(Path(folder).resolve())
                yield address, Path(session) / "logs"
            finally:
                script.stdin.close()
                script.wait(60)

"""A process that holds streams may fork, where its environment says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from flwr_slfac.split import Smashed, TrainReply, TrainRequest
from tests.transport.loopback import linked

def load(request):
    batches = DataLoader(TensorDataset(torch.ones(8)), 4, num_workers=WORKERS)
    total = sum(float(batch.sum()) for (batch,) in batches)
    return TrainReply(0, 99, Smashed(b"x", str(total).encode(), 1))

with linked({0: load}) as (link, _):
    for step in range(3):
        load(None)
        ((_, answer),) = link.train_each([(1000, TrainRequest(step))])
        print("total", answer.smashed.targets)
"""


def forked(workers: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run devices whose data are loaded by so many workers."""
    plain = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("WORKERS", str(workers))],
        env={**plain, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_data_loaders_with_workers_run_beside_streams() -> None:
    """With gRPC's fork handlers off, server and device fork and nobody is hurt."""
    done = forked(2, GRPC_ENABLE_FORK_SUPPORT="0")
    assert done.stdout.count("total b'8.0'") == 3, done.stderr[-2000:]
    assert "GRPC_ENABLE_FORK_SUPPORT" not in done.stdout + done.stderr


@pytest.mark.parametrize(("workers", "warns"), [(2, True), (0, False)])
def test_a_fork_that_grpc_would_end_is_warned_of(workers: int, warns: bool) -> None:
    """The warning names the remedy, and comes only where a process forks."""
    done = forked(workers)
    said = "GRPC_ENABLE_FORK_SUPPORT=0" in done.stdout + done.stderr
    assert said is warns, done.stderr[-2000:]

"""How much memory a device's step takes with activations kept in 8 bits.

Usage: python tests/bench/saved_memory.py [--batch 64] [--width 64]

For a VGG-19-BN front (cut after the second pooling) and a ResNet-18 front (cut after
layer1) on 32x32 images, one process a case, so that peaks are its own. Prints in MB:
the bytes that the graph holds; the process's resident memory between forward and
backward, while a device waits for the server; and its peak during the step. Both are
above what the process had before the step. glibc is told to map large blocks, each on
its own: on its heap freed blocks stay resident between others, which hides what is
being measured.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch

from flwr_slfac.cutting import cut
from flwr_slfac.lightweight.activations import saved_in_8_bits, without_values
from tests import models

FRONTS = {
    "vgg19_bn": (models.vgg19_bn, "features.13"),
    "resnet18": (models.resnet18, "layer1"),
}


def main() -> None:
    """Print a line a case, or measure one case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--case", nargs=2, help="measure one case in this process")
    options = parser.parse_args()
    if options.case:
        measure(*options.case, options.batch, options.width)
        return
    print("front     activations  held MB  waiting MB  peak MB", flush=True)
    for front in FRONTS:
        for kind in ("float32", "8-bit"):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", front, kind]
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
            subprocess.run(command, check=True, env=environment)


def measure(name: str, kind: str, batch: int, width: int) -> None:
    """Run a step in this process and print its memory."""
    torch.set_num_threads(1)
    build, at = FRONTS[name]
    front = cut(build(width=width), at=at).front.train()
    step(front, 2, kind == "8-bit")
    before = resident()
    # Resets the peak that the kernel keeps.
    Path("/proc/self/clear_refs").write_text("5")
    held, waiting = step(front, batch, kind == "8-bit")
    figures = (held, waiting - before, status("VmHWM") - before)
    print(f"{name:9s} {kind:11s}" + "".join(f"{f / 1e6:10.1f}" for f in figures))


def step(front: torch.nn.Module, batch: int, coded: bool) -> tuple[int, int]:
    """Return the bytes that the graph held, and resident memory between halves."""
    inputs = torch.randn(batch, 3, 32, 32)
    with saved_in_8_bits(front, enabled=coded) as saved:
        out = front(inputs)
    shape = out.shape
    graph = without_values(out) if coded else out
    del inputs, out
    waiting = resident()
    graph.backward(torch.randn(shape))
    return saved.num_bytes, waiting


def resident() -> int:
    """Return resident memory, after freed memory went back to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def status(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()

"""MB/s of encode and decode on one core, beside memcpy, SZ3 and zfp in the same run.

Run it from the root of the repository::

    OMP_NUM_THREADS=1 SLFAC_DATA_DIR=... python -m tests.bench.codec_speed

Tensors are activations of a random convolution, batch norm and ReLU stack on CIFAR-10
images, and tokens of a random transformer layer on patches of them; without
SLFAC_DATA_DIR the images are seeded smooth noise; SLFAC_KERNELS=reference measures the
codecs as they are without the extension. The methods take turns in every
repeat, and CPU time is counted, since other work shares the machine's cores. Memory is
measured apart: a fresh process encodes or decodes one tensor, and the growth of its
peak resident size over that before the call is divided by the tensor's size.
"""

import argparse
import ctypes
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysz
import torch
import zfpy

from flwr_slfac.codec import Memory, decode, encode, parse_codec
from flwr_slfac.codec.kernels import kernels
from tests.bench.datasets import load_dataset
from tests.bench.revision import head

CODECS = (
    "slfac",
    "waterfill(nrmse=0.1)",
    "uniform",
    "topk",
    "splitfc",
)
SIZES = (2**16, 2**20, 2**23, 50 * 2**20)
PEAK_SIZES = (2**20, 2**23)
_WAYS = ("encode", "decode")
_IN_A_STREAM = " in a stream"
RESULTS = Path(__file__).parent / "results" / "codec_speed.md"


@dataclass(frozen=True)
class Method:
    """A pair of functions to time, and the bytes that the first one makes."""

    name: str
    encode: Callable[[], object]
    decode: Callable[[], object]
    num_bytes: int


def main() -> None:
    """Measure every size and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--peak", nargs=3, metavar=("CODEC", "WAY", "BYTES"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        codec, way, size = options.peak
        return print(peak_growth(codec, way, int(size)))
    lines = [*heading(options.repeats)]
    for size in options.sizes:
        lines += [*table(smashed(size), options.codecs, options.repeats)]
    lines += table(tokens(200), options.codecs, options.repeats)
    lines += memory_table(options.codecs)
    print("\n".join(lines))
    path = RESULTS
    if kernels().name == "reference":
        path = RESULTS.with_name("codec_speed_reference.md")
    path.write_text("\n".join(lines) + "\n")
    return None


def smashed(num_bytes: int) -> torch.Tensor:
    """Return about so many bytes of activations (N, 32, 32, 32), or (N, 16, 16, 16)."""
    side = 16 if num_bytes < 2**18 else 32
    num_images = max(1, num_bytes // (4 * side**3))
    torch.manual_seed(0)
    stack = torch.nn.Sequential(
        torch.nn.Conv2d(3, side, 3, padding=1, bias=False, stride=32 // side),
        torch.nn.BatchNorm2d(side),
        torch.nn.ReLU(),
        torch.nn.Conv2d(side, side, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(side),
        torch.nn.ReLU(),
    ).train()
    with torch.no_grad():
        return torch.cat([stack(part) for part in images(num_images).split(64)])


def tokens(num_images: int) -> torch.Tensor:
    """Return the tokens (N, 64, 192) of a transformer layer."""
    torch.manual_seed(0)
    embed = torch.nn.Conv2d(3, 192, 4, stride=4)
    layer = torch.nn.TransformerEncoderLayer(192, 3, 384, 0.0, batch_first=True)
    with torch.no_grad():
        x = embed(images(num_images)).flatten(2).transpose(1, 2)
        return torch.cat([layer(part) for part in x.split(50)])


def images(num_images: int) -> torch.Tensor:
    """Return CIFAR-10 images, or smooth noise of their shape."""
    folder = os.environ.get("SLFAC_DATA_DIR")
    if folder:
        return load_dataset(Path(folder), "cifar10").train_x[:num_images]
    noise = torch.randn(num_images, 3, 8, 8)
    return torch.nn.functional.interpolate(noise, scale_factor=4.0, mode="bilinear")


def methods(x: torch.Tensor, codecs: Sequence[str]) -> list[Method]:
    """Return memcpy, every codec and the outside references on one tensor."""
    copy = torch.empty_like(x)
    found = [Method("memcpy", lambda: copy.copy_(x), lambda: copy.copy_(x), x.nbytes)]
    for text in codecs:
        codec = parse_codec(text)
        data = encode(x, codec)
        found.append(
            Method(
                text,
                lambda codec=codec: encode(x, codec),  # type: ignore[misc]
                lambda data=data: decode(data),  # type: ignore[misc]
                len(data),
            )
        )
        if text.startswith("waterfill"):
            found.append(in_a_stream(text, x))
    return found + references(x)


def in_a_stream(text: str, x: torch.Tensor) -> Method:
    """Return a codec that keeps, on both sides, what it learned of the step before."""
    codec = parse_codec(text)
    mine: Memory = {}
    theirs: Memory = {}
    decode(encode(x, codec, memory=mine), memory=theirs)
    data = encode(x, codec, memory=mine)
    return Method(
        f"{text} in a stream",
        lambda: encode(x, codec, memory=mine),
        lambda: decode(data, memory=theirs),
        len(data),
    )


def references(x: torch.Tensor) -> list[Method]:
    """Return SZ3 and zfp at about a relative error of 0.1."""
    array = np.ascontiguousarray(x.numpy())
    rms = float(np.sqrt(np.mean(np.square(array))))
    # A uniform error within +-t has a deviation of t / sqrt(3).
    bound = 0.1 * rms * 3**0.5
    config = pysz.szConfig()
    config.errorBoundMode = pysz.szErrorBoundMode.ABS
    config.absErrorBound = bound
    sz_data, _ = pysz.sz.compress(array, config)
    zfp_data = zfpy.compress_numpy(array, tolerance=2 * bound)
    return [
        Method(
            "SZ3",
            lambda: pysz.sz.compress(array, config),
            lambda: pysz.sz.decompress(sz_data, array.dtype, array.shape),
            len(sz_data),
        ),
        Method(
            "zfp",
            lambda: zfpy.compress_numpy(array, tolerance=2 * bound),
            lambda: zfpy.decompress_numpy(zfp_data),
            len(zfp_data),
        ),
    ]


def table(x: torch.Tensor, codecs: Sequence[str], repeats: int) -> list[str]:
    """Time all methods in turn; return a table of medians and quartiles."""
    found = methods(x, codecs)
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for method in found:
            for way, work in (("encode", method.encode), ("decode", method.decode)):
                start = time.process_time()
                work()
                spent = time.process_time() - start
                times.setdefault((method.name, way), []).append(spent)
    lines = [
        f"## {x.nbytes / 1e6:.2f} MB, {' x '.join(map(str, x.shape))}",
        "",
        "| method | bits per value | encode MB/s | quartiles | ms | "
        "decode MB/s | quartiles | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in found:
        cells = [f"`{method.name}`", f"{8 * method.num_bytes / x.numel():.2f}"]
        for way in _WAYS:
            low, median, high = statistics.quantiles(times[method.name, way], n=4)
            speeds = [x.nbytes / seconds / 1e6 for seconds in (median, high, low)]
            cells += [
                f"{speeds[0]:.0f}",
                f"{speeds[1]:.0f} - {speeds[2]:.0f}",
                f"{1e3 * median:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def peak_growth(text: str, way: str, num_bytes: int) -> float:
    """Return the growth of this process's peak over one call, in tensor sizes."""
    codec, x = parse_codec(text.removesuffix(_IN_A_STREAM)), smashed(num_bytes)
    mine: Memory | None = {} if text.endswith(_IN_A_STREAM) else None
    theirs: Memory | None = None if mine is None else {}
    # Loaded code, caches and thread pools are not the tensor's memory.
    for _ in range(2):
        data = encode(x, codec, memory=mine)
        decode(data, memory=theirs)
    # Freed memory that the allocator keeps would be reused without growth.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak()
    before = peak_bytes("VmRSS")
    if way == "decode":
        result: object = decode(data, memory=theirs)
    else:
        result = encode(x, codec, memory=mine)
    growth = peak_bytes("VmHWM") - before
    del result
    return growth / x.nbytes


def reset_peak() -> None:
    """Let the kernel count the peak resident size from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(field: str) -> int:
    """Return a resident size of this process, from Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the kernel tells no {field}")


def memory_table(codecs: Sequence[str]) -> list[str]:
    """Measure the peak of each codec and size in a process of its own."""
    names = [f"{way} {s / 1e6:.1f} MB" for s in PEAK_SIZES for way in _WAYS]
    lines = [
        "## Peak extra memory, in sizes of the tensor",
        "",
        "Growth of the peak resident size over one call, its result included.",
        "",
        "| method | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    # Smooth noise: the images' own loading would leave freed memory to be reused.
    env = {k: v for k, v in os.environ.items() if k != "SLFAC_DATA_DIR"}
    module = [sys.executable, "-m", "tests.bench.codec_speed", "--peak"]
    streams = [text + _IN_A_STREAM for text in codecs if text.startswith("waterfill")]
    for text in sorted([*codecs, *streams]):
        cells = []
        for size, way in itertools.product(PEAK_SIZES, _WAYS):
            command = [*module, text, way, str(size)]
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, check=True
            )
            cells.append(f"{float(done.stdout):.2f}")
        lines.append(f"| `{text}` | " + " | ".join(cells) + " |")
    return lines


def heading(repeats: int) -> list[str]:
    """Say what was measured, where and how."""
    commit = head()
    kind = "CIFAR-10 images" if os.environ.get("SLFAC_DATA_DIR") else "smooth noise"
    return [
        "# Speed of the codecs",
        "",
        f"`OMP_NUM_THREADS=1 python -m tests.bench.codec_speed --repeats {repeats}`",
        "",
        f"Machine: {os.cpu_count()} cores, {platform.machine().replace('_', '-')}, CPU "
        f"only, shared with other work. On top of commit {commit}, torch "
        f"{torch.__version__}, one thread, {kernels().name} kernels.",
        "",
        "MB/s count the float32 bytes of the tensor (1 MB = 10^6 bytes): activations "
        f"of two convolutions, batch norm and ReLU on {kind}. Times are CPU seconds of "
        "the process, which waiting for a core does not lengthen. Median and quartiles "
        f"of {repeats} repeats, in which all methods take turns.",
        "",
    ]


if __name__ == "__main__":
    main()

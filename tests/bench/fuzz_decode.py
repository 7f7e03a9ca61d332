"""Fuzz `decode`: any bytes give DecodeError or the declared tensor, nothing else.

Run it from the root of the repository::

    python -m tests.bench.fuzz_decode --runs 10000000

With atheris (``pip install atheris``) mutation is guided by the coverage of
``flwr_slfac.codec``; without it, or with ``--engine mutation``, known frames are
mutated blindly. Either way each input is tried as it is and repaired: the last section
as long as it is, the last four bytes the checksum. Else few would reach a codec.
"""

import argparse
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

MAX_ELEMENTS = 4096
_HEAD_BYTES = 9
_U32 = struct.Struct("<I")


def seeds(without: Collection[str] = ()) -> list[bytes]:
    """Return small valid frames: every other codec's, over shapes and dtypes."""
    from flwr_slfac.errors import SettingError
    from tests.codec.cases import CASES

    shapes = [(), (0, 3), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 4)]
    frames = []
    for case in CASES:
        if case.codec.codec_id in without:
            continue
        for shape in shapes:
            for dtype in (torch.float32, torch.float16, torch.float64, torch.int64):
                if dtype in case.codec.dtypes:
                    x = torch.arange(max(1, torch.Size(shape).numel())).sin() * 9
                    x = x[: torch.Size(shape).numel()].reshape(shape).to(dtype)
                    # A wavelet refuses sizes that it cannot halve.
                    with suppress(SettingError):
                        frames.append(case.encode(x))
    return frames


def check(data: bytes) -> str:
    """Decode bytes; raise if the law is broken, else say what came of them."""
    from flwr_slfac.codec import decode
    from flwr_slfac.codec.wire import unpack_frame
    from flwr_slfac.errors import DecodeError

    try:
        tensor = decode(data, max_elements=MAX_ELEMENTS)
    except DecodeError:
        return "refused"
    frame = unpack_frame(data, max_elements=MAX_ELEMENTS)
    if (tensor.dtype, tuple(tensor.shape)) != (frame.dtype, frame.shape):
        raise AssertionError(f"{tensor.shape} {tensor.dtype} decoded from {frame}")
    return "decoded"


def repair(data: bytes) -> bytes:
    """Return bytes whose last section's length and checksum are what a frame needs."""
    body = bytearray(data[:-4])
    if len(body) > _HEAD_BYTES:
        num_dims, id_length, num_sections = body[_HEAD_BYTES - 3 : _HEAD_BYTES]
        lengths_at = _HEAD_BYTES + id_length + 4 * num_dims
        start = lengths_at + 4 * num_sections
        if num_sections and start <= len(body):
            lengths = struct.unpack_from(f"<{num_sections}I", body, lengths_at)
            rest = len(body) - start - sum(lengths[:-1])
            if rest >= 0:
                _U32.pack_into(body, start - 4, rest)
    return bytes(body) + _U32.pack(zlib.crc32(body))


def check_both(data: bytes) -> str:
    """Check bytes as they are and repaired."""
    check(data)
    return check(repair(data))


def mutate(frame: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return a frame with bytes changed, cut, repeated or another's spliced in."""
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if kind <= 3 and data:
            data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 4 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 5:
            del data[place : place + rng.randrange(1, 9)]
        elif kind == 6:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            start = rng.randrange(len(other))
            piece = other[start : start + rng.randrange(1, 40)]
            data[place : place + len(piece)] = piece
    return bytes(data)


def run_mutation(
    runs: int,
    seed: int,
    seconds: float = float("inf"),
    without: Collection[str] = (),
) -> Counter[str]:
    """Mutate blindly; return how many inputs were refused and how many decoded."""
    rng = random.Random(seed)
    frames = seeds(without)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while counts.total() < runs and time.monotonic() < end:
        data = mutate(rng.choice(frames), rng.choice(frames), rng)
        try:
            counts[check_both(data)] += 1
        except Exception:
            print(f"broken by {data.hex()}", file=sys.stderr)
            raise
    return counts


def run_atheris(runs: int, seed: int, seconds: int, without: Collection[str]) -> None:
    """Fuzz with coverage from this package; atheris ends the process."""
    import atheris

    # Modules that are imported already would run without coverage.
    with atheris.instrument_imports(include=["flwr_slfac.codec"]):
        import_module("tests.codec.cases")

    counts: Counter[str] = Counter()
    report = _reporter(counts)

    def target(data: bytes) -> None:
        counts[check_both(data)] += 1
        if counts.total() % 100_000 == 0 or counts.total() == runs:
            report()

    frames = seeds(without)

    def vary(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        # A valid frame with few changes decodes more often than one of the corpus.
        frame = data if kind < 0.6 else rng.choice(frames)
        return repair(mutate(frame, rng.choice(frames), rng))[:max_size]

    options = [f"-runs={runs}", f"-seed={seed}", f"-max_total_time={seconds}"]
    # No leak check or memory limit of libFuzzer's: torch's own pools upset them.
    limits = ["-max_len=1000", "-rss_limit_mb=4096", "-detect_leaks=0"]
    files = [f"-artifact_prefix={tempfile.gettempdir()}/", "-print_final_stats=1"]
    argv = [sys.argv[0], *options, *limits, *files]
    atheris.Setup(argv, target, custom_mutator=vary)
    atheris.Fuzz()


def _reporter(counts: Counter[str]) -> Callable[[], None]:
    start = time.monotonic()

    def report() -> None:
        seconds = time.monotonic() - start
        total = counts.total()
        print(
            f"{total} inputs, each as it is and repaired: "
            f"{counts['refused']} refused, {counts['decoded']} decoded, nothing else; "
            f"{seconds:.0f} s, {total / max(seconds, 1e-9):.0f} a second",
            flush=True,
        )

    return report


def main() -> None:
    """Fuzz as told on the command line, and print the count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10**6)
    parser.add_argument(
        "--engine", choices=["auto", "atheris", "mutation"], default="auto"
    )
    parser.add_argument(
        "--without", nargs="*", default=(), help="codec ids that no seed is coded by"
    )
    args: Any = parser.parse_args()
    torch.set_num_threads(1)
    if args.engine != "mutation":
        try:
            return run_atheris(args.runs, args.seed, args.seconds, args.without)
        except ImportError as error:
            if args.engine == "atheris":
                raise
            print(f"no atheris ({error}); mutating without coverage")
    counts: Counter[str] = Counter()
    report = _reporter(counts)
    counts.update(run_mutation(args.runs, args.seed, args.seconds, args.without))
    return report()


if __name__ == "__main__":
    main()

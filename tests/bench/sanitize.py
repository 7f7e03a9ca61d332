"""Fuzz the decoders with the extension under AddressSanitizer and UBSan.

Run it from the root of the repository, with gcc and its sanitizers installed::

    python -m tests.bench.sanitize --seconds 300

A copy of the package gets an extension with both sanitizers, which end the process at
the first report. The tests of the kernels run with it, then the blind fuzzer.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path("flwr_slfac/codec/kernels")
FLAGS = (
    "-O1",
    "-g",
    "-ffp-contract=off",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-shared",
    "-fPIC",
)


def build(folder: Path) -> dict[str, str]:
    """Copy what is needed to a folder, compile there; return the environment."""
    names = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for part in ("flwr_slfac", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=names)
    shutil.copy(ROOT / "pyproject.toml", folder)
    target = folder / FOLDER / "compiled.abi3.so"
    sources = sorted(map(str, (folder / FOLDER).glob("*.c")))
    include = sysconfig.get_paths()["include"]
    command = ["gcc", *FLAGS, f"-I{include}", *sources, "-o", str(target)]
    subprocess.run(command, check=True)
    # Python itself is not instrumented: the runtime has to be there before it.
    runtimes = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        # What Python and torch never free is no concern here.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(folder),
        "SLFAC_KERNELS": "compiled",
        "OMP_NUM_THREADS": "1",
    }


def main() -> None:
    """Build, test and fuzz; a report of a sanitizer is an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = build(folder)
        python = [sys.executable, "-m"]
        names = (
            "test_kernels.py",
            "test_spectra_kernels.py",
            "test_frame_kernels.py",
            "test_plane_kernels.py",
            "test_streams.py",
            "test_trellis.py",
            "test_trials.py",
        )
        tests = [f"tests/codec/{name}" for name in names]
        fuzz = ["tests.bench.fuzz_decode", "--engine", "mutation", "--runs", "1000000"]
        limits = ["--seconds", str(args.seconds), "--seed", str(args.seed)]
        for command in (["pytest", "-q", *tests], [*fuzz, *limits]):
            subprocess.run([*python, *command], cwd=folder, env=env, check=True)


if __name__ == "__main__":
    main()

"""What a thousand registered devices cost when twenty are sampled per round.

Usage: python -m tests.bench.many_devices [--devices 1000] [--sampled 20] [--rounds 3]

Runs the tests' tiny split model through `flwr run` on two Ray actors, with seeded
sampling, and prints seconds per round, how many devices were ever built, and the memory
of all processes at its peak beside that of a run with as many devices as are sampled.
"""

import argparse
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Flower, Outcome, flower_in


def main() -> None:
    """Print both runs side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--sampled", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| registered | sampled | seconds per round | built | peak MB | run s |")
    print("|---|---|---|---|---|---|")
    for registered in (options.sampled, options.devices):
        share = options.sampled / registered
        job = Job(
            "many",
            num_rounds=options.rounds,
            strategy_settings={
                "fraction_train": share,
                "fraction_evaluate": share,
                "min_available_nodes": registered,
            },
        )
        outcome, built, peak_mb = run(job, registered)
        result = outcome.results[job.name]
        if "error" in result:
            raise SystemExit(result["traceback"])
        seconds = ", ".join(f"{r['train_s']:.1f}" for r in result["reports"])
        print(
            f"| {registered} | {options.sampled} | {seconds} | {built} | {peak_mb:.0f} "
            f"| {result['seconds']:.1f} |",
            flush=True,
        )


def run(job: Job, num_devices: int) -> tuple[Outcome, int, float]:
    """Run a job; return what came out, devices built, and the peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder, flower_in(Path(folder)) as flower:
        watch = Watch(flower)
        watch.start()
        outcome = flower.simulate([job], num_devices=num_devices)
        watch.over.set()
        watch.join()
        built = len({line.split()[-2] for line in outcome.lines("built.txt")})
        return outcome, built, watch.peak_bytes / 1e6


class Watch(threading.Thread):
    """Notes the largest sum of proportional set sizes of a Flower's processes."""

    def __init__(self, flower: Flower) -> None:
        super().__init__(daemon=True)
        self._flower = flower
        self.over = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        """Look twice a second."""
        while not self.over.is_set():
            total = 0
            for pid in self._flower.processes():
                with suppress(OSError):
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    total += sum(
                        1024 * int(line.split()[1])
                        for line in lines
                        if line.startswith("Pss:")
                    )
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.5)


if __name__ == "__main__":
    main()

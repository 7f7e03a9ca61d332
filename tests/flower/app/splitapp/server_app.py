"""Trains the jobs of the run's folder one after the other and writes what came out."""

import dataclasses
import json
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from flwr_slfac import SplitFed, StreamTransport, cut
from flwr_slfac.codec import Identity, register
from flwr_slfac.flower_parts import chain
from splitapp.counting import CountingGrid
from splitapp.killer import Killer
from splitapp.strategies import build_strategy
from splitapp.task import (
    Job,
    build_cuts,
    build_model,
    build_setting,
    build_test_set,
    fingerprint,
    write_whole,
)

app = ServerApp()
DP = {"noise_multiplier": 0.1, "clipping_norm": 0.5, "num_sampled_clients": 4}


@dataclasses.dataclass(frozen=True)
class ServerOnly(Identity):
    """A codec that no device has heard of."""

    codec_id = "server-only"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all jobs; raise what the last one that failed raised."""
    torch.set_num_threads(1)
    folder = Path(str(context.run_config["folder"]))
    while len(list(grid.get_node_ids())) < int(context.run_config["num-devices"]):
        time.sleep(0.1)
    results: dict[str, Any] = {}
    failure: Exception | None = None
    for fields in json.loads((folder / "jobs.json").read_text()):
        job = Job.from_json(json.dumps(fields))
        write_whole(folder / "job.json", job.to_json())
        results[job.name] = {}
        try:
            train(job, grid, folder, results[job.name])
        except Exception as error:
            failure = error
            results[job.name]["error"] = f"{type(error).__name__}: {error}"
            results[job.name]["traceback"] = traceback.format_exc()
            if "reports" in results[job.name]:
                time.sleep(1.0)  # what is still under way to devices arrives
        write_whole(folder / "results.json", json.dumps(results))
    (folder / "over").touch()
    if failure is not None:
        raise failure


def train(job: Job, grid: Grid, folder: Path, result: dict[str, Any]) -> None:
    """Train one job and enter what came out, also if it fails."""
    start = time.perf_counter()
    halves = cut(build_model(job.seed), at="front")
    if job.bad == "codec":
        register(ServerOnly)
    inner = build_strategy(job.strategy, job.strategy_settings)
    split = SplitFed(
        inner,
        back=halves.back,
        loss=nan_loss if job.bad == "nan" else CrossEntropyLoss(),
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
        scheme=job.scheme,  # type: ignore[arg-type]
        up=ServerOnly() if job.bad == "codec" else job.up,
        down=job.down,
        seed=job.seed,
        step_timeout_s=job.step_timeout_s,
        evaluate_bytes=job.evaluate_bytes,
        pipeline_depth=job.pipeline_depth,
        on_device_error=job.on_device_error,  # type: ignore[arg-type]
        lightweight=build_setting(job),
        cuts=build_cuts(job),
        checkpoint=job.checkpoint,
        resume=job.resume,
        callbacks=[Killer(job.killed, 2)] if job.killed else [],
        transport=job.transport  # type: ignore[arg-type]
        if isinstance(job.transport, str)
        else StreamTransport(**job.transport),
    )
    num_devices = len(list(grid.get_node_ids()))
    fronts: list[ArrayRecord] = []

    def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        # After the last test on the server nothing may change the models any more.
        fronts.append(arrays)
        back = split.back_state()
        result["hash-by-round"].append(fingerprint(arrays.to_torch_state_dict(), back))
        model = halves.load(arrays, back).eval()
        x, y = (
            torch.cat([build_test_set(i).tensors[j] for i in range(num_devices)])
            for j in (0, 1)
        )
        with torch.no_grad():
            scores = model(x)
        hits = (scores.argmax(1) == y).double().mean()
        loss = CrossEntropyLoss()(scores.double(), y)
        return MetricRecord({"accuracy": float(hits), "loss": float(loss)})

    counting = CountingGrid(grid)
    result["hash-by-round"] = []
    first = ArrayRecord(halves.front.state_dict())
    try:
        outer = split
        if job.around:
            outer = build_strategy(job.around, {"strategy": split, **DP})
        configs = {
            name: ConfigRecord(value) if name.endswith("config") else value
            for name, value in job.start.items()
        }
        outcome = outer.start(
            counting, first, num_rounds=job.num_rounds, evaluate_fn=central, **configs
        )
        result["hash"] = fingerprint(
            outcome.arrays.to_torch_state_dict(), split.back_state()
        )
        result["front-hash"] = fingerprint(outcome.arrays.to_torch_state_dict())
        for phase in ("train", "evaluate"):
            metrics = getattr(outcome, f"{phase}_metrics_clientapp")
            result[f"{phase}-metrics"] = {k: dict(v) for k, v in metrics.items()}
        central_metrics = outcome.evaluate_metrics_serverapp
        result["central-metrics"] = {k: dict(v) for k, v in central_metrics.items()}
    finally:
        if split.arrays is not None:
            kept = split.arrays.to_torch_state_dict()
            result["kept-hash"] = fingerprint(kept, split.back_state())
            values = [*kept.values(), *split.back_state().values()]
            result["finite"] = all(bool(torch.isfinite(v).all()) for v in values)
        for each in chain(inner):
            result["seen"] = getattr(each, "seen", result.get("seen", []))
        result["reports"] = [dataclasses.asdict(r) for r in split.reports]
        result["costs"] = [dataclasses.asdict(c) for c in split.costs]
        result["partitions"] = counting.partitions
        result["counted"] = counting.num_bytes
        result["traffic"] = [dataclasses.asdict(c) for c in split.traffic.rows()]
        split.traffic.write(folder / f"traffic-{job.name}")
        result["seconds"] = time.perf_counter() - start


def nan_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that becomes NaN where the fourth class is scored."""
    loss = CrossEntropyLoss()(outputs, targets)
    return loss * torch.where((targets == 3).any(), torch.nan, 1.0)

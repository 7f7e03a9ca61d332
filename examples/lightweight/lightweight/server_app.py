"""The server: the back, and what it asks of the devices."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Lightweight, SplitFed, accuracy, cut
from lightweight.task import build_model, central_test_set

app = ServerApp()


def setting(run: Mapping[str, Any]) -> Lightweight:
    """Read what makes training lighter from the run configuration."""
    prune = run["prune"]
    if run["prune-schedule"]:
        prune = [float(share) for share in run["prune-schedule"].split()]
    if run["prune-weak"] >= 0:
        shares = {True: run["prune-weak"], False: run["prune"]}

        def prune(server_round, profile):
            return shares[profile["weak"]]

    return Lightweight(
        prune=prune,
        structured=run["structured"],
        criterion=run["criterion"],
        scope=run["scope"],
        at_cut=run["at-cut"],
        remask_every=run["remask-every"],
        gradient_bits=run["gradient-bits"],
        update_bits=run["update-bits"],
        error_feedback=run["error-feedback"],
        saved_bits=run["saved-bits"],
        activation_dropout=run["activation-dropout"],
        dropout_unit=run["dropout-unit"] or None,
        aggregate_every=run["aggregate-every"],
        period=run["period"],
    )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, test the joined model on images that no device has seen, report."""
    run = context.run_config
    torch.set_num_threads(run["threads"])
    images, labels = central_test_set(run).tensors
    # Given an example, cut proves that the halves compute what the model does.
    halves = cut(build_model(run), at=run["cut"], example=images[:8])
    strategy = SplitFed(
        FedAvg(fraction_train=run["fraction-train"]),
        back=halves.back,
        loss=CrossEntropyLoss(),
        optimizer=partial(SGD, lr=run["learning-rate"], momentum=0.9),
        scheduler=partial(CosineAnnealingLR, T_max=run["num-rounds"]),
        scheme=run["scheme"],
        up=run["codec-up"],
        down=run["codec-down"],
        seed=run["seed"],
        lightweight=setting(run),
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = halves.load(arrays, strategy.back_state()).eval()
        with torch.no_grad():
            scores = torch.cat([model(part) for part in images.split(256)])
        return MetricRecord({"accuracy": accuracy(scores, labels)})

    strategy.start(
        grid,
        ArrayRecord(halves.front.state_dict()),
        num_rounds=run["num-rounds"],
        evaluate_fn=evaluate,
    )
    report(strategy)
    if run["output-folder"]:
        strategy.write(run["output-folder"])


def report(strategy: SplitFed) -> None:
    """Print what the last round cost each device, beside the plain cost."""
    print("device  MFLOP/step   of plain  activations   of plain  front up   of plain")
    for cost in strategy.costs:
        if cost.server_round != strategy.costs[-1].server_round:
            continue
        step = cost.step
        flops = step.forward_flops + step.backward_flops
        plain = step.plain_forward_flops + step.plain_backward_flops
        held = step.activation_bytes / max(step.plain_activation_bytes, 1)
        sent = cost.model_up_bytes / cost.plain_model_bytes
        print(
            f"{cost.device:6d}  {flops / 1e6:10.1f}  {flops / plain:9.2f}  "
            f"{step.activation_bytes / 1e6:8.2f} MB  {held:9.2f}  "
            f"{cost.model_up_bytes / 1e3:5.1f} kB  {sent:9.2f}"
        )

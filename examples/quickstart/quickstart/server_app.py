"""The server: the back, the loss, and a Flower strategy for the fronts."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import SplitFed, StatusPage, StreamTransport, accuracy, cut
from quickstart.task import build_model, central_test_set

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, test the joined model on images that no device has seen, report."""
    run = context.run_config
    torch.set_num_threads(run["threads"])
    images, labels = central_test_set(run["seed"]).tensors
    # Given an example, cut proves that the halves compute what the model does.
    halves = cut(build_model(run["seed"]), at=run["cut"], example=images[:8])
    strategy = SplitFed(
        FedAvg(fraction_train=run["fraction-train"]),
        back=halves.back,
        loss=CrossEntropyLoss(),
        optimizer=partial(SGD, lr=run["learning-rate"], momentum=0.9),
        scheduler=partial(CosineAnnealingLR, T_max=run["num-rounds"]),
        scheme=run["scheme"],
        up=run["codec-up"],
        down=run["codec-down"],
        transport=_transport(run["listen"], run["advertise"]),
        pipeline_depth=run["pipeline-depth"],
        seed=run["seed"],
        checkpoint=run["checkpoint"] or None,
        resume=run["resume"],
        callbacks=[StatusPage(run["status-port"])] if run["status-port"] else [],
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = halves.load(arrays, strategy.back_state()).eval()
        with torch.no_grad():
            return MetricRecord({"accuracy": accuracy(model(images), labels)})

    strategy.start(
        grid,
        ArrayRecord(halves.front.state_dict()),
        num_rounds=run["num-rounds"],
        evaluate_fn=evaluate,
    )
    if run["output-folder"]:
        strategy.write(run["output-folder"])


def _transport(listen: str, advertise: str) -> StreamTransport | str:
    """Return how steps travel: by itself, or over streams to an address."""
    return StreamTransport(listen, advertise or None) if listen else "auto"

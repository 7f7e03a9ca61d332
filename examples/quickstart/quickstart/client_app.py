"""The device: a front, its data, and how it trains."""

from functools import partial

import torch
from flwr.app import Context
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Device, client_app, cut
from quickstart.task import build_model, load_partition


def device(context: Context) -> Device:
    """Build this node's device from the run's and the node's configuration."""
    run, node = context.run_config, context.node_config
    torch.set_num_threads(run["threads"])
    train, test = load_partition(
        node["partition-id"], node["num-partitions"], run["alpha"], run["seed"]
    )
    return Device(
        front=cut(build_model(run["seed"]), at=run["cut"]).front,
        optimizer=partial(SGD, lr=run["learning-rate"], momentum=0.9),
        train_set=train,
        test_set=test,
        batch_size=run["batch-size"],
        scheduler=partial(CosineAnnealingLR, T_max=run["num-rounds"]),
        epochs=run["epochs"],
        drop_last=len(train) > run["batch-size"],
    )


app = client_app(device)

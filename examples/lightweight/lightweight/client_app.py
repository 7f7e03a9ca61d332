"""The device: a front, its data, and what it says of itself."""

from functools import partial

import torch
from flwr.app import Context
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Device, client_app, cut
from lightweight.task import build_model, load_partition


def device(context: Context) -> Device:
    """Build this node's device from the run's and the node's configuration."""
    run, node = context.run_config, context.node_config
    torch.set_num_threads(run["threads"])
    train, test = load_partition(run, node["partition-id"], node["num-partitions"])
    return Device(
        front=cut(build_model(run), at=run["cut"]).front,
        optimizer=partial(SGD, lr=run["learning-rate"], momentum=0.9),
        train_set=train,
        test_set=test,
        batch_size=run["batch-size"],
        scheduler=partial(CosineAnnealingLR, T_max=run["num-rounds"]),
        epochs=run["epochs"],
        drop_last=True,
        profile={"weak": node["partition-id"] % 2 == 1},
    )


app = client_app(device)

"""FedAvg on the whole model, without a cut: what a front's bytes are compared with."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from flwr_slfac.states import State, weighted_average


def train_whole(
    model: nn.Module,
    parts: Sequence[TensorDataset],
    *,
    optimizer: Callable[..., Any],
    scheduler: Callable[..., Any],
    batch_size: int,
    max_steps: int,
    num_rounds: int,
    seed: int,
) -> list[tuple[State, float, int]]:
    """Train; return, after each round, the mean, the training loss and all steps.

    Devices begin each round with the mean and a new optimizer, at that round's rate.
    """
    mean: State = {n: t.clone() for n, t in model.state_dict().items()}
    noise = torch.Generator().manual_seed(seed)
    # The rate of a round is that of a scheduler that stepped once a round.
    rate = optimizer([nn.Parameter(torch.zeros(1))])
    rates = scheduler(rate)
    rounds = []
    for _ in range(num_rounds):
        states, weights, losses = [], [], []
        for part in parts:
            own = copy.deepcopy(model)
            own.load_state_dict(dict(mean))
            steps = optimizer(own.parameters())
            steps.param_groups[0]["lr"] = rates.get_last_lr()[0]
            own.train()
            order = torch.randperm(len(part), generator=noise)
            batches = [b for b in order.split(batch_size) if len(b) == batch_size]
            for batch in batches[:max_steps]:
                images, labels = part[batch]
                steps.zero_grad()
                loss = nn.functional.cross_entropy(own(images), labels)
                loss.backward()
                steps.step()
                losses.append(float(loss.detach()))
            states.append(own.state_dict())
            weights.append(batch_size * min(len(batches), max_steps))
        mean = weighted_average(states, weights)
        rate.step()
        rates.step()
        num_steps = sum(weights) // batch_size
        rounds.append((mean, sum(losses) / len(losses), num_steps))
    return rounds

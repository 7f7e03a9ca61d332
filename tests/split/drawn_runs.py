"""Runs drawn with a model: loss, optimizer, schedule, scheme, sizes; trained twice.

`train_split` is the package's; `train_unsplit` is a loop over the whole model, written
from what the docs promise.
"""

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from flwr_slfac import CutError, DeviceError, DivergedError, cut, legal_cuts
from flwr_slfac.split import (
    Device,
    DeviceHalf,
    LocalLink,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.device import has_batch_norm
from flwr_slfac.split.place import seed_for, seeded
from flwr_slfac.split.protocol import TrainAnswer
from flwr_slfac.transport.packing import pack_state, unpack_state
from flwr_slfac.transport.snapshots import pack_snapshot, unpack_snapshot
from tests.split.drawn_models import NUM_CLASSES, NUM_WORDS, Sequence, draw_model

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=0.05),
    "momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": partial(optim.SGD, lr=0.02, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=1e-3),
    "amsgrad": partial(optim.Adam, lr=1e-3, amsgrad=True),
    "adamw": partial(optim.AdamW, lr=1e-3, weight_decay=0.1),
    "rmsprop": partial(optim.RMSprop, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.01),
    "adadelta": partial(optim.Adadelta, lr=0.5),
    "adamax": partial(optim.Adamax, lr=1e-3),
    "nadam": partial(optim.NAdam, lr=1e-3),
    "radam": partial(optim.RAdam, lr=1e-3),
    "rprop": partial(optim.Rprop, lr=1e-3),
    "asgd": partial(optim.ASGD, lr=0.01),
}
SCHEDULERS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "step": partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "exponential": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=7),
    "lambda": partial(lr_scheduler.LambdaLR, lr_lambda=lambda n: 1 / (1 + n)),
    "warmup": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=5),
}


@dataclass
class Run:
    """A model with data, and how it is trained."""

    model: nn.Module
    data: TensorDataset
    loss: Callable[[Any, Tensor], Tensor]
    settings: dict[str, Any]
    server: dict[str, Any]
    optimizer: Callable[..., optim.Optimizer]
    scheduler: Callable[..., Any] | None
    num_rounds: int
    at: str = ""


def over_places(
    loss: Callable[..., Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    """Apply a loss of (N, C) and (N,) at every place of a sequence."""
    return loss(outputs.flatten(0, 1), targets.flatten())


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy as log-softmax and its negative log-likelihood."""
    return functional.nll_loss(functional.log_softmax(outputs, -1), targets)


def distilled(outputs: Tensor, targets: Tensor) -> Tensor:
    """Divergence from soft targets."""
    logs = functional.log_softmax(outputs, -1)
    return functional.kl_div(logs, targets.softmax(-1), reduction="batchmean")


def draw_loss(
    draw: random.Random, num: int, kind: Any, num_classes: int
) -> tuple[Callable[[Any, Tensor], Tensor], Tensor]:
    """Draw a loss and targets that it takes."""
    places = (kind.length,) if isinstance(kind, Sequence) else ()
    weight = torch.linspace(0.5, 2.0, num_classes)
    by_class = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=weight),
        nn.CrossEntropyLoss(reduction="sum"),
        log_likelihood,
        nn.MultiMarginLoss(),
    ]
    by_value = [
        nn.MSELoss(),
        nn.SmoothL1Loss(),
        nn.L1Loss(),
        nn.HuberLoss(reduction="sum"),
        distilled,
    ]
    which = draw.choice(["class", "class", "value", "labels"])
    if which == "class":
        targets = torch.randint(0, num_classes, (num, *places))
        loss: Any = draw.choice(by_class)
        if not places:
            return loss, targets
        if draw.random() < 0.5:
            targets[:, 0] = -100
            loss = nn.CrossEntropyLoss(weight=weight)
        return partial(over_places, loss), targets
    shape = (num, *places, num_classes)
    if which == "labels":
        return nn.BCEWithLogitsLoss(), torch.randint(0, 2, shape).float()
    return draw.choice(by_value), torch.randn(shape)


def draw_run(seed: int) -> Run:
    """Draw everything but the cut."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model, inputs, kind, words = draw_model(draw)
    num_classes = NUM_WORDS if words else NUM_CLASSES
    batch_size = draw.choice([2, 4, 5, 8])
    num = draw.choice([7, 12, 16, 21])
    # A batch of one is more than BatchNorm takes, of this model or of no model.
    drop_last = num % batch_size == 1 and has_batch_norm(model)
    loss, targets = draw_loss(draw, num, kind, num_classes)
    shared = {
        "scheduler_per": draw.choice(["round", "step"]),
        "clip_norm": draw.choice([None, None, 0.5]),
    }
    if draw.random() < 0.15:
        model, inputs, targets, loss = in_double(model, inputs, targets, loss)
    settings = {
        "batch_size": batch_size,
        "drop_last": drop_last,
        "epochs": draw.choice([1, 1, 2]),
        "max_steps": draw.choice([None, None, 3]),
        "shuffle": draw.random() < 0.8,
        "keep_optimizer": draw.random() < 0.5,
        **shared,
    }
    return Run(
        model,
        TensorDataset(inputs[:num], targets),
        loss,
        settings,
        {"scheme": draw.choice(["sequential", "sflv1", "sflv2", "parallel"]), **shared},
        draw.choice(list(OPTIMIZERS.values())),
        draw.choice(list(SCHEDULERS.values())),
        draw.choice([1, 1, 2, 3]),
    )


def in_double(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: Any
) -> tuple[nn.Module, Tensor, Tensor, Any]:
    """Return the same in float64."""
    inputs, targets = (
        t.double() if t.is_floating_point() else t for t in (inputs, targets)
    )
    inner = loss.args[0] if isinstance(loss, partial) else loss
    if isinstance(inner, nn.Module):
        inner.double()
    return model.double(), inputs, targets, loss


def choose_cut(run: Run, seed: int) -> tuple[Any, str]:
    """Cut a run's model at one of its legal places.

    Returns
    -------
    halves : Halves or None
        None where no cut is possible.
    why : str
        Then, what the first refusal says.
    """
    example = run.data.tensors[0][:2]
    try:
        if points := legal_cuts(run.model, example):
            run.at = random.Random(~seed).choice(points).name
            return cut(copy.deepcopy(run.model), at=run.at, example=example), ""
        cut(run.model, at="piece0")
    except CutError as error:
        return None, str(error)
    return None, "no cut is legal"


def train_split(
    run: Run, halves: Any, link: type[LocalLink] = LocalLink
) -> dict[str, Tensor]:
    """Return the state of the model after training through the split."""
    schedule = {"scheduler": run.scheduler}
    device = Device(halves.front, run.optimizer, run.data, **run.settings, **schedule)
    server = ServerHalf(halves.back, run.loss, run.optimizer, **run.server, **schedule)
    result = train_locally(
        [device],
        halves.front.state_dict(),
        server,
        num_rounds=run.num_rounds,
        evaluate=False,
        make_link=link,
    )
    return dict(halves.load(result.front, server.back.state_dict()).state_dict())


def train_unsplit(run: Run, of_front: set[str]) -> dict[str, Tensor]:
    """Return the state of the whole model after the same training.

    Parameters
    ----------
    run : Run
        What is trained; not changed.
    of_front : set of str
        Names of the parameters before the cut: the device's optimizer starts afresh in
        each round unless it is kept, the server's only under sflv1.
    """
    model = copy.deepcopy(run.model)
    noise = 0 if run.server["scheme"] != "parallel" else -1
    where: dict[str, int] = {}
    model.get_submodule(run.at).register_forward_hook(
        lambda *_: reseed(seed_for(0, where["round"], noise, where["step"], "back"))
    )
    named = list(model.named_parameters())
    sides = [
        [p for n, p in named if (n in of_front) is front] for front in (True, False)
    ]
    keeps = [run.settings["keep_optimizer"], run.server["scheme"] != "sflv1"]
    tunings = [tune(run, side) for side in sides]
    order = partial(
        Device(model, run.optimizer, run.data, **run.settings).batches, 0, device=0
    )
    model.train()
    for server_round in range(1, run.num_rounds + 1):
        where["round"] = server_round
        for (optimizer, _), keep in zip(tunings, keeps, strict=True):
            if optimizer is not None and not keep:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
        batches = order(server_round)
        for step in range(batches.num_steps):
            where["step"] = step
            chosen = [int(i) for i in batches.indices(step)]
            inputs, targets = (t[chosen] for t in run.data.tensors)
            model.zero_grad()
            with seeded(seed_for(0, server_round, 0, step, "forward"), CPU):
                outputs = model(inputs)
                run.loss(outputs, targets).backward()
            for side, (optimizer, scheduler) in zip(sides, tunings, strict=True):
                update(run, side, optimizer, scheduler)
        if run.settings["scheduler_per"] == "round":
            for _, scheduler in tunings:
                if scheduler is not None:
                    scheduler.step()
    return dict(model.state_dict())


def tune(run: Run, side: list[nn.Parameter]) -> tuple[Any, Any]:
    """Return optimizer and scheduler of one side of the cut; None for neither."""
    trained = [p for p in side if p.requires_grad]
    if not trained:
        return None, None
    optimizer = run.optimizer(trained)
    return optimizer, run.scheduler(optimizer) if run.scheduler else None


def update(run: Run, side: list[nn.Parameter], optimizer: Any, scheduler: Any) -> None:
    """Take one step of one side."""
    if optimizer is None:
        return
    if run.settings["clip_norm"]:
        nn.utils.clip_grad_norm_(side, run.settings["clip_norm"])
    optimizer.step()
    if scheduler is not None and run.settings["scheduler_per"] == "step":
        scheduler.step()


def reseed(seed: int) -> None:
    """Seed what noise in a CPU model is drawn from."""
    torch.default_generator.manual_seed(seed)


def compare(seed: int) -> str:
    """Train a drawn run both ways.

    Returns
    -------
    str
        Empty if the bits are equal, ``refused: ...``, or what differs.
    """
    run = draw_run(seed)
    halves, why = choose_cut(run, seed)
    if halves is None:
        return f"refused: {why}"
    names = {n for n, _ in run.model.named_parameters()}
    try:
        expected = train_unsplit(run, names & set(halves.front.state_dict()))
    except RuntimeError as error:  # in place, where a gradient needs what was before
        return f"refused: the model itself fails: {error}"
    try:
        got = train_split(run, halves)
    except DivergedError as error:
        if all(bool(value.isfinite().all()) for value in expected.values()):
            raise
        return f"refused: the model itself fails: {error}"
    except DeviceError as error:
        # Behind a frozen front nobody asked for this gradient, and the server does.
        if "modified by an inplace operation" not in str(error):
            raise
        return f"refused: the back cannot give its input a gradient: {error}"
    return unlike(run, expected, got)


def unlike(run: Run, expected: dict[str, Tensor], got: dict[str, Tensor]) -> str:
    """Name the tensors that differ; empty if none does."""
    names = [n for n in expected if not same_bits(expected[n], got[n])]
    return f"cut at {run.at}: {', '.join(names)} differ" if names else ""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal, NaN equal to NaN."""
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    )


class Forgetful(LocalLink):
    """Answers each request by a device that was built anew from stored bytes."""

    def __init__(self, halves: list[DeviceHalf]) -> None:
        super().__init__(halves)
        self._device, self._stored = halves[0].device, (b"", b"")

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Train on a copy of the device as it was before the first request."""
        half = DeviceHalf(copy.deepcopy(self._device), 0)
        kept, snapshot = self._stored
        half.kept = unpack_state(kept) if kept else None
        half.restore(unpack_snapshot(snapshot) if snapshot else None)
        self._halves = {0: half}
        answers = super().train(requests)
        now = half.snapshot()
        self._stored = (
            b"" if half.kept is None else pack_state(half.kept),
            b"" if now is None else pack_snapshot(now),
        )
        return answers


def compare_engines(seed: int) -> str:
    """Train a drawn run on a device that lives on, and on one that never does.

    Returns
    -------
    str
        As `compare`.
    """
    run = draw_run(seed)
    halves, why = choose_cut(run, seed)
    if halves is None:
        return f"refused: {why}"
    try:
        expected = train_split(run, copy.deepcopy(halves))
    except RuntimeError as error:
        return f"refused: the model itself fails: {error}"
    return unlike(run, expected, train_split(run, halves, Forgetful))

"""What each round of a run came to: accuracy, and what crossed and was computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import TensorDataset

from flwr_slfac import Halves, load_checkpoint
from flwr_slfac.lightweight import step_cost
from flwr_slfac.split import LocalLink, TrainRequest
from flwr_slfac.split.local_run import LocalResult
from flwr_slfac.split.protocol import TrainAnswer, TrainReply
from flwr_slfac.states import State
from tests.bench.datasets import Images
from tests.bench.whole_model import train_whole

# After each round; after the last one, all are tested, too.
NUM_TESTED = 2000


class CountingLink(LocalLink):
    """Counts the bytes of whole fronts and masks, by round.

    The ledger leaves whole fronts to transports, and enters masks with fronts.
    """

    crossed: ClassVar[dict[int, dict[str, int]]] = {}
    _round = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Count fronts both ways."""
        begun = [r.begin.server_round for r in requests.values() if r.begin]
        self._round = max(begun, default=self._round)
        own = self.crossed.setdefault(self._round, {"down": 0, "up": 0, "masks": 0})
        for request in requests.values():
            if request.begin:
                own["down"] += _num_bytes(request.begin.front)
                own["masks"] += len(request.begin.mask)
            own["down"] += _num_bytes(request.front)
        answers = super().train(requests)
        replies = [a for a in answers.values() if isinstance(a, TrainReply)]
        own["up"] += sum(_num_bytes(r.front) for r in replies)
        return answers


def _num_bytes(front: State | None) -> int:
    return sum(t.nbytes for t in front.values()) if front else 0


def accuracy(model: nn.Module, data: Images, most: int | None = None) -> float:
    """Return the test accuracy in percent, on the first images or on all."""
    model.eval()
    images, labels = data.test_x[:most], data.test_y[:most]
    with torch.no_grad():
        scores = torch.cat([model(x) for x in images.split(256)])
    return 100 * float((scores.argmax(1) == labels).double().mean())


def curve(
    result: LocalResult,
    link: type[CountingLink],
    batch_size: int,
    halves: Halves,
    data: Images,
    saved: Path | None,
) -> list[dict[str, float]]:
    """Return what each round came to, of all devices.

    Accuracy only where checkpoints were saved. FLOPs count steps of full batches.
    """
    rows = []
    for number, outcome in enumerate(result.rounds, start=1):
        sent = result.traffic.rows(server_round=number, directions=["up"])
        moved = {
            d: result.traffic.num_bytes(server_round=number, directions=[d])
            for d in ("up", "down", "targets", "model-up", "model-down")
        }
        own = link.crossed[number]
        row = {
            "loss": outcome.loss,
            "front_up": own["up"] + moved["model-up"],
            "front_down": own["down"] + moved["model-down"] - own["masks"],
            "masks": own["masks"],
            "smashed_up": moved["up"] + moved["targets"],
            "smashed_down": moved["down"],
            "smashed_raw": sum(c.raw_bytes for c in sent),
            "device_flops": sum(
                (r.cost.forward_flops + r.cost.backward_flops) * r.num_examples
                for r in outcome.finished.values()
                if r.cost is not None
            )
            // batch_size,
        }
        if saved is not None:
            at = load_checkpoint(saved / f"round-{number:06d}")
            model = halves.load(at.front, at.back)
            row["accuracy"] = accuracy(model, data, NUM_TESTED)
        rows.append(row)
    return rows


def whole_curve(
    model: nn.Module,
    parts: Sequence[TensorDataset],
    data: Images,
    *,
    batch_size: int,
    **settings: Any,
) -> dict[str, Any]:
    """Train the whole model by FedAvg; return a row like that of split training."""
    batch = parts[0].tensors[0][:batch_size]
    cost = step_cost(model, model, batch, saved_bits=32)
    size = len(parts) * _num_bytes(model.state_dict())
    rows = []
    for state, loss, num_steps in train_whole(
        model, parts, batch_size=batch_size, **settings
    ):
        model.load_state_dict(dict(state))
        rows.append(
            {
                "loss": loss,
                "front_up": size,
                "front_down": size,
                "masks": 0,
                "smashed_up": 0,
                "smashed_down": 0,
                "smashed_raw": 0,
                "device_flops": num_steps * (cost.forward_flops + cost.backward_flops),
                "accuracy": accuracy(model, data, NUM_TESTED),
            }
        )
    total = sum(r["front_up"] for r in rows)
    return {
        "accuracy": accuracy(model, data),
        "loss": rows[-1]["loss"],
        "front_up": total,
        "front_down": total,
        "smashed_up": 0,
        "smashed_down": 0,
        "rounds": rows,
    }

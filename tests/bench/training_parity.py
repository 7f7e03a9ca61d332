"""What compression costs in accuracy: split training under each codec, three seeds.

Usage: python -m tests.bench.training_parity [--datasets mnist ham10000 cifar10]
       [--seeds 0 1 2] [--arms identity waterfill ...] [--validation] [--out FILE]

Quarter-width ResNet-18 cut after `layer1`, five IID devices in one process, scheme
`parallel`; images come from SLFAC_DATA_DIR. The accuracy of a run is that after its
last round, on test images (balanced accuracy on HAM10000, and beside it that of all
images): of the joined model, and with activations coded on their way. The loss is the
joined model's mean cross-entropy on these images. Bytes are those of the
training frames, up and down, headers included. With --validation, accuracy is that on
training images that a run did not train on: settings are chosen so. Every finished run
is appended to FILE as JSON.
"""

import argparse
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from flwr_slfac import Device, Halves, cut
from flwr_slfac.codec import Codec, decode, encode, parse_codec
from flwr_slfac.split import ServerHalf, train_locally
from tests.bench.datasets import load_dataset
from tests.models import resnet18

NUM_DEVICES, BATCH, WIDTH = 5, 16, 16
# Up and down, as they are written in a run's configuration.
ARMS = {
    "identity": ("identity", "identity"),
    "slfac": ("slfac(theta=0.9)", "slfac(theta=0.9)"),
    "slfac, sum": ("slfac(theta=0.9, energy='sum')", "slfac(theta=0.9, energy='sum')"),
    "waterfill 0.4/0.36 bits": ("waterfill(bits=0.4)", "waterfill(bits=0.36)"),
    "waterfill 0.52/0.24 bits": ("waterfill(bits=0.52)", "waterfill(bits=0.24)"),
    "waterfill 0.1/0.4": ("waterfill(nrmse=0.1)", "waterfill(nrmse=0.4)"),
    "waterfill 0.15/0.5": ("waterfill(nrmse=0.15)", "waterfill(nrmse=0.5)"),
    "waterfill 0.2/0.6": ("waterfill(nrmse=0.2)", "waterfill(nrmse=0.6)"),
    "waterfill 0.3/0.7": ("waterfill(nrmse=0.3)", "waterfill(nrmse=0.7)"),
    "noise 0.1 up": ("waterfill(noise=0.1)", "identity"),
    "noise 0.1 down": ("identity", "waterfill(noise=0.1)"),
    "noise 0.02": ("waterfill(noise=0.02)", "waterfill(noise=0.02)"),
    "noise 0.02/0.1": ("waterfill(noise=0.02)", "waterfill(noise=0.1)"),
    "bits 0.45/0.18": ("waterfill(bits=0.45)", "waterfill(bits=0.18)"),
    "noise 0.05": ("waterfill(noise=0.05)", "waterfill(noise=0.05)"),
    "noise 0.1": ("waterfill(noise=0.1)", "waterfill(noise=0.1)"),
    "noise 0.2": ("waterfill(noise=0.2)", "waterfill(noise=0.2)"),
    "noise 0.4": ("waterfill(noise=0.4)", "waterfill(noise=0.4)"),
    # The defaults of SplitFed, and with a memory of samples half their bits.
    "default": (
        "waterfill(noise=0.001, bits=0.45)",
        "waterfill(noise=0.005, bits=0.18)",
    ),
    "noise 0.01/0.05, bits 0.45/0.18": (
        "waterfill(noise=0.01, bits=0.45)",
        "waterfill(noise=0.05, bits=0.18)",
    ),
    "temporal, bits 0.22/0.09": (
        "temporal(inner=waterfill(noise=0.001, bits=0.22))",
        "waterfill(noise=0.005, bits=0.09)",
    ),
    "temporal noise 0.1": (
        "temporal(inner=waterfill(noise=0.1))",
        "waterfill(noise=0.1)",
    ),
    "topk 10%": ("topk(fraction=0.1)", "topk(fraction=0.1)"),
    "uniform 4": ("uniform(bits=4)", "uniform(bits=4)"),
}
# Images that settings are chosen by.
_MOST_VALIDATION = 6000
# Training images and rounds.
PLAN = {"mnist": (2000, 4), "ham10000": (5000, 10), "cifar10": (4000, 8)}


def main() -> None:
    """Train every arm on every dataset with every seed; print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--datasets", nargs="+", default=list(PLAN))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("training_parity.jsonl"))
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = [json.loads(line) for line in _lines(options.out)]
    for seed in options.seeds:
        for dataset in options.datasets:
            for arm in options.arms:
                key = {"dataset": dataset, "arm": arm, "seed": seed}
                if any(key.items() <= row.items() for row in done):
                    continue
                row = {**key, **train(dataset, arm, seed, options.validation)}
                print(json.dumps(row), flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                done.append(row)
    print(table(done))


def train(
    dataset: str, arm: str, seed: int, validates: bool = False
) -> dict[str, float]:
    """Train once; return accuracy, bytes, ratio and seconds."""
    num_images, num_rounds = PLAN[dataset]
    data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), dataset)
    order, rest = torch.randperm(
        len(data.train_y), generator=torch.Generator().manual_seed(seed)
    ).split([num_images, len(data.train_y) - num_images])
    test_x, test_y = data.test_x, data.test_y
    if validates:
        test_x, test_y = (
            data.train_x[rest[:_MOST_VALIDATION]],
            data.train_y[rest[:_MOST_VALIDATION]],
        )
    torch.manual_seed(seed)
    model = resnet18(
        num_classes=data.num_classes, in_channels=data.train_x.shape[1], width=WIDTH
    )
    halves = cut(model, at="layer1")
    optimizer = partial(SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = partial(CosineAnnealingLR, T_max=num_rounds)
    devices = [
        Device(
            cut(model, at="layer1").front,
            optimizer=optimizer,
            scheduler=scheduler,
            train_set=TensorDataset(data.train_x[part], data.train_y[part]),
            batch_size=BATCH,
        )
        for part in order.chunk(NUM_DEVICES)
    ]
    server = ServerHalf(
        halves.back,
        CrossEntropyLoss(_class_weights(data.train_y[order], data.num_classes)),
        optimizer,
        scheme="parallel",
        scheduler=scheduler,
    )
    up, down = map(parse_codec, ARMS[arm])
    start = time.perf_counter()
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=num_rounds,
        seed=seed,
        up=up,
        down=down,
        evaluate=False,
    )
    seconds = time.perf_counter() - start
    whole = halves.load(result.front, server.snapshot()).eval()
    with torch.no_grad():
        scores = torch.cat([whole(x) for x in test_x.split(256)])
        split = cut(whole, at="layer1")
        coded = torch.cat([_through(split, x, up) for x in test_x.split(BATCH)])
    crossed = [r for r in result.traffic.rows() if r.direction in ("up", "down")]
    num_bytes = sum(r.num_bytes for r in crossed)
    return {
        "accuracy": score(scores, test_y, balanced=dataset == "ham10000"),
        "through_split": score(coded, test_y, balanced=dataset == "ham10000"),
        "of_all": score(scores, test_y, balanced=False),
        "loss": float(cross_entropy(scores, test_y)),
        "num_bytes": num_bytes,
        "ratio": sum(r.raw_bytes for r in crossed) / num_bytes,
        "seconds": seconds,
    }


def _through(halves: Halves, x: Tensor, up: Codec) -> Tensor:
    """Return the scores of a batch whose activations are coded on their way."""
    smashed = halves.front.eval()(x)
    scores: Tensor = halves.back.eval()(decode(encode(smashed, up)))
    return scores


def _class_weights(targets: Tensor, num_classes: int) -> Tensor:
    """Weight classes by the root of their rarity, so that none is given up."""
    counts = targets.bincount(minlength=num_classes).float()
    weights = (counts.mean() / counts.clamp(min=1)).sqrt()
    return weights / (weights * counts).sum() * counts.sum()


def score(scores: Tensor, targets: Tensor, *, balanced: bool) -> float:
    """Return the accuracy in percent, or its mean over classes."""
    hits = (scores.argmax(1) == targets).double()
    if not balanced:
        return 100 * float(hits.mean())
    classes = targets.unique()
    return 100 * float(torch.stack([hits[targets == c].mean() for c in classes]).mean())


def table(rows: list[dict[str, float]]) -> str:
    """Return means over seeds, and differences to identity joined, as Markdown.

    In brackets are standard errors, of differences by seed.
    """
    lines = [
        "| dataset | codec | seeds | joined | minus identity | through the split | "
        "minus identity | of all images | minus identity | loss | minus identity | "
        "ratio |",
        "|---" * 12 + "|",
    ]
    for dataset in PLAN:
        identity = _of(rows, dataset, "identity")
        for arm in ARMS:
            mine = _of(rows, dataset, arm)
            if not mine:
                continue
            cells = []
            for name in ("accuracy", "through_split", "of_all", "loss"):
                known = [r for r in mine if name in r]
                base = {r["seed"]: r[name] for r in identity if name in r}
                gaps = [r[name] - base[r["seed"]] for r in known if r["seed"] in base]
                cells += [_mean([r[name] for r in known], ".2f"), _mean(gaps, "+.2f")]
            ratio = statistics.mean(r["ratio"] for r in mine)
            told = " | ".join(cells)
            lines.append(f"| {dataset} | {arm} | {len(mine)} | {told} | {ratio:.1f}x |")
    return "\n".join(lines)


def _mean(values: list[float], form: str) -> str:
    """Return a mean, and its standard error in brackets."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:{form}}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):{form}} ({error:.2f})"


def _of(rows: list[dict[str, float]], dataset: str, arm: str) -> list[dict[str, float]]:
    return [r for r in rows if r["dataset"] == dataset and r["arm"] == arm]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()

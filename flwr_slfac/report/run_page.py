"""The page of any run, from the files that ``SplitFed.write`` leaves in a folder."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from flwr_slfac.errors import SettingError
from flwr_slfac.report.page import Page, Plot, Table
from flwr_slfac.report.rounds import readable_bytes

_HEAD = ("round", "devices", "lost", "loss", "accuracy", "bytes", "ratio", "seconds")
_RIGHT = {
    **{"overlaying": "y", "side": "right", "automargin": True},
    "title": {"text": "accuracy"},
}
# Bars that still can be told apart.
_MOST_DEVICES = 100


def run_page(folder: Path) -> Page:
    """Return the page of a run.

    Parameters
    ----------
    folder : Path
        With the ``rounds.json`` and ``traffic.csv`` of `SplitFed.write`.

    Raises
    ------
    SettingError
        If one of them is missing or cannot be read.
    """
    try:
        rounds = json.loads((folder / "rounds.json").read_text(encoding="utf-8"))
        with (folder / "traffic.csv").open(newline="", encoding="utf-8") as file:
            traffic = list(csv.DictReader(file))
        parts: list[Plot | Table] = [
            *_learning(rounds),
            *_bytes(rounds, traffic),
            Table("Rounds", _HEAD, [_row(report) for report in rounds]),
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{folder} is no folder of a run ({type(error).__name__}: {error}); give "
            "one that SplitFed.write(folder) has filled"
        ) from error
    total = sum(int(row["num_bytes"]) for row in traffic)
    facts = {
        "rounds": len(rounds),
        "devices that took part": len({row["device"] for row in traffic}),
        "crossed": readable_bytes(total),
    }
    return Page(f"Run {folder.resolve().name}", facts, parts)


def _accuracy(report: Mapping[str, Any]) -> float | None:
    """Return the accuracy on the server's test, or else on the devices'."""
    for found in (report["central"], report["evaluation"]):
        if "accuracy" in found:
            return float(found["accuracy"])
    return None


def _learning(rounds: Sequence[Mapping[str, Any]]) -> list[Plot]:
    numbers = [report["server_round"] for report in rounds]
    crossed = list(accumulate(sum(r["num_bytes"].values()) for r in rounds))
    accuracy = [_accuracy(report) for report in rounds]
    loss = [report["loss"] for report in rounds]
    return [
        Plot(
            "accuracy-by-bytes",
            "Accuracy against bytes that crossed",
            [
                {
                    "x": crossed,
                    "y": accuracy,
                    "mode": "lines+markers",
                    "name": "accuracy",
                }
            ],
            "bytes",
            "accuracy",
        ),
        Plot(
            "learning",
            "Training loss and accuracy by round",
            [
                {"x": numbers, "y": loss, "mode": "lines+markers", "name": "loss"},
                {
                    **{"x": numbers, "y": accuracy, "mode": "lines+markers"},
                    **{"name": "accuracy", "yaxis": "y2"},
                },
            ],
            "round",
            "loss",
            {"yaxis2": _RIGHT},
        ),
    ]


def _bytes(
    rounds: Sequence[Mapping[str, Any]], traffic: Sequence[Mapping[str, str]]
) -> list[Plot]:
    return [_bytes_by_round(rounds), _bytes_by_device(traffic)]


def _bytes_by_round(rounds: Sequence[Mapping[str, Any]]) -> Plot:
    numbers = [report["server_round"] for report in rounds]
    directions = sorted({name for report in rounds for name in report["num_bytes"]})
    by_round = [
        {
            **{"x": numbers, "type": "bar", "name": name},
            "y": [report["num_bytes"].get(name, 0) for report in rounds],
        }
        for name in directions
    ]
    title, layout = "Bytes by round and direction", {"barmode": "stack"}
    return Plot("bytes-by-round", title, by_round, "round", "bytes", layout)


def _bytes_by_device(traffic: Sequence[Mapping[str, str]]) -> Plot:
    sums: dict[int, int] = {}
    for row in traffic:
        device = int(row["device"])
        sums[device] = sums.get(device, 0) + int(row["num_bytes"])
    most = sorted(sums, key=lambda device: (-sums[device], device))[:_MOST_DEVICES]
    devices = sorted(most)
    title = "Bytes by device"
    if len(sums) > len(devices):
        title += f", the {len(devices)} of {len(sums)} with most"
    by_device = {
        **{"x": [str(device) for device in devices], "type": "bar"},
        "y": [sums[device] for device in devices],
    }
    layout = {"xaxis": {"type": "category"}}
    return Plot("bytes-by-device", title, [by_device], "device", "bytes", layout)


def _row(report: Mapping[str, Any]) -> tuple[Any, ...]:
    accuracy = _accuracy(report)
    return (
        report["server_round"],
        report["num_devices"],
        len(report["lost"]),
        float(report["loss"]),
        "-" if accuracy is None else accuracy,
        readable_bytes(sum(report["num_bytes"].values())),
        float(report["compression_ratio"]),
        float(report["train_s"]),
    )

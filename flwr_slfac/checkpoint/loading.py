"""The models of a checkpoint as plain PyTorch state dicts, without a Flower run."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from flwr_slfac.checkpoint.files import MANIFEST
from flwr_slfac.checkpoint.folder import (
    MODELS,
    CheckpointFolder,
    Saved,
    read_checkpoint,
)
from flwr_slfac.checkpoint.tree import unpack
from flwr_slfac.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """The models of a run after one of its rounds.

    Parameters
    ----------
    front, back : dict of str to Tensor
        State dicts of the device-side and the server-side model, on the CPU:
        ``cut(model, at=...).load(front, back)`` joins them.
    server_round : int
        The round, from 1.
    metrics : dict of str to float
        What the round came to, under the names of `RoundReport.scalars`.
    path : Path
        Where it was read.
    """

    front: dict[str, torch.Tensor]
    back: dict[str, torch.Tensor]
    server_round: int
    metrics: dict[str, float] = field(default_factory=dict)
    path: Path = Path()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read the models of a run that was saved.

    Parameters
    ----------
    path : str or Path
        The folder that was given as ``checkpoint=`` or to `SaveBest`, of which the
        newest whole checkpoint is taken (damaged ones are named in warnings), or one
        checkpoint in it: ``"runs/a/round-000012"``.

    Returns
    -------
    Checkpoint
        Plain state dicts, the round, its metrics.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged, or of another release.
    """
    path = Path(path).expanduser()
    if (path / MANIFEST).exists():
        return _models_of(read_checkpoint(path, MODELS))
    for saved in CheckpointFolder(path).whole(MODELS):
        return _models_of(saved)
    raise CheckpointError(
        f"{path} holds no checkpoint: no manifest.json, no folder named round-..."
    )


def _models_of(saved: Saved) -> Checkpoint:
    return Checkpoint(
        saved.sections["front"],
        saved.sections["back"],
        saved.server_round,
        unpack(saved.about["metrics"], {}),
        saved.path,
    )

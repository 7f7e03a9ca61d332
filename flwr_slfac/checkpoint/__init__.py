"""Saves what a run goes on from, and reads it again: the files, not what is in them.

::

    nested values ─tree─► JSON + tensors ─files─► round-000012/ ─folder─► newest, whole

Knows neither Flower nor the halves; what of a run is saved is for those who save it.
"""

from flwr_slfac.checkpoint.files import write_files
from flwr_slfac.checkpoint.folder import (
    SECTIONS,
    CheckpointFolder,
    Saved,
    read_checkpoint,
)
from flwr_slfac.checkpoint.ledger import Ledger
from flwr_slfac.checkpoint.loading import Checkpoint, load_checkpoint
from flwr_slfac.checkpoint.randomness import random_states, restore_random
from flwr_slfac.checkpoint.saving import Resumable, Saving, Session
from flwr_slfac.checkpoint.settings import described, modules_of, shapes_of
from flwr_slfac.checkpoint.tree import pack, register_kind, storable, unpack

__all__ = [
    "SECTIONS",
    "Checkpoint",
    "CheckpointFolder",
    "Ledger",
    "Resumable",
    "Saved",
    "Saving",
    "Session",
    "described",
    "load_checkpoint",
    "modules_of",
    "pack",
    "random_states",
    "read_checkpoint",
    "register_kind",
    "restore_random",
    "shapes_of",
    "storable",
    "unpack",
    "write_files",
]

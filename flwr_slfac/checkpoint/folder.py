"""The folder of a run: its checkpoints by round, the newest of them, one writer."""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_slfac.checkpoint.files import (
    read_manifest,
    read_sections,
    write_files,
)
from flwr_slfac.errors import CheckpointError, SettingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("flwr")

MODELS = ["front", "back"]
SECTIONS = [*MODELS, "state"]
_NAME = re.compile(r"round-(\d+)")
_LEFT_OVER = re.compile(r"\.round-\d+\..*\.(part|old)")
_LOCK = ".lock"
# A ServerApp whose SuperLink was killed takes some seconds to see it and end.
_LOCK_WAIT_S, _LOCK_LOOK_S = 30.0, 0.2


@dataclass(frozen=True)
class Saved:
    """One whole checkpoint, read.

    Parameters
    ----------
    path : Path
        Its folder.
    about : mapping
        Its manifest.
    sections : mapping of str to nested value
        What was saved.
    rounds : bytes
        What every round came to.
    """

    path: Path
    about: Mapping[str, Any]
    sections: Mapping[str, Any]
    rounds: bytes

    @property
    def server_round(self) -> int:
        """The round after which it was written."""
        return int(self.about["round"])


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    path : Path
        The folder; made when it is needed.
    keep : int (default: 3)
        How many of the newest stay.
    """

    def __init__(self, path: Path, keep: int = 3) -> None:
        self.path = path.expanduser().absolute()
        self._keep = keep

    def all(self) -> dict[int, Path]:
        """Return what is there by round, the newest first, damaged ones included."""
        if not self.path.is_dir():
            return {}
        found = {
            int(match.group(1)): path
            for path in self.path.iterdir()
            if (match := _NAME.fullmatch(path.name)) and path.is_dir()
        }
        return dict(sorted(found.items(), reverse=True))

    def whole(self, names: list[str]) -> Iterator[Saved]:
        """Yield whole checkpoints, the newest first; name damaged ones in warnings.

        Parameters
        ----------
        names : list of str
            Sections to read.

        Raises
        ------
        CheckpointError
            At the end, if there are checkpoints and all of them are damaged.
        """
        reasons, any_whole = list[str](), False
        for path in self.all().values():
            try:
                saved = read_checkpoint(path, names)
            except CheckpointError as error:
                logger.warning("checkpoint left out: %s", error)
                reasons.append(str(error))
                continue
            any_whole = True
            yield saved
        if reasons and not any_whole:
            raise CheckpointError(
                f"no checkpoint in {self.path} can be read: {'; '.join(reasons)}; give "
                "another folder, or remove these to start anew"
            )

    def save(
        self,
        server_round: int,
        sections: Mapping[str, Any],
        rounds: bytes,
        facts: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of a round, and remove those that are too old.

        Raises
        ------
        CheckpointError
            If a value cannot be stored, or the disk is full, say.
        """
        path = self.path / f"round-{server_round:06d}"
        write_files(path, sections, rounds, {**facts, "round": server_round})
        earlier = [p for r, p in self.all().items() if r <= server_round]
        for old in earlier[self._keep :]:
            remove(old)
        return path

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder as its only writer; the system lets go if this dies.

        Parameters
        ----------
        wait : bool (default: False)
            Whether to give a writer that may be about to end some time to do so.

        Raises
        ------
        SettingError
            If another process writes there, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / _LOCK).open("a+")
        except OSError as error:
            raise SettingError(
                f"the checkpoint folder {self.path} cannot be written to: {error}"
            ) from error
        with file:
            if fcntl is not None:
                self._lock(file.fileno(), _LOCK_WAIT_S if wait else 0.0)
            for path in self.path.iterdir():
                if _LEFT_OVER.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            yield

    def _lock(self, handle: int, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                # Of the process, not of its children, which may outlive it.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() >= deadline:
                    raise SettingError(
                        f"another process saves its run in {self.path}; end it, or "
                        "give this one a folder of its own"
                    ) from error
                time.sleep(_LOCK_LOOK_S)
            except OSError as error:  # a file system without locks
                logger.warning(
                    "%s cannot be locked (%s): see that one run writes there",
                    self.path,
                    error,
                )
                return


def read_checkpoint(path: Path, names: list[str]) -> Saved:
    """Return one checkpoint, if it is whole.

    Raises
    ------
    CheckpointError
        If it is damaged, or of another release.
    """
    about = read_manifest(path)
    try:
        sections, rounds = read_sections(path, about, names)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    return Saved(path, about, sections, rounds)


def remove(path: Path) -> None:
    """Remove a checkpoint; one that is removed in part is never taken for whole."""
    gone = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)

"""When a run is saved, and whether and from where it is resumed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from flwr_slfac.checkpoint.folder import SECTIONS, CheckpointFolder, Saved
from flwr_slfac.checkpoint.settings import require_same
from flwr_slfac.checkpoint.tree import pack
from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError

logger = logging.getLogger("flwr")


class Resumable(Protocol):
    """A run of which something outlives a round."""

    num_rounds: int

    @property
    def server_round(self) -> int:
        """The last round that was finished; 0 for none."""
        ...

    @property
    def aggregates(self) -> bool:
        """Whether no front stays on the devices after the last round."""
        ...

    @property
    def is_forced(self) -> bool:
        """Whether fronts were aggregated only because no round follows."""
        ...

    def settings(self) -> dict[str, str]:
        """Return what makes it another run; asked before the first round."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return what the last round came to."""
        ...

    def sections(self) -> dict[str, Any]:
        """Return what it goes on from: ``front``, ``back`` and ``state``."""
        ...

    def rounds(self) -> bytes:
        """Return what all rounds came to."""
        ...

    def load(
        self, sections: Mapping[str, Any], rounds: bytes, server_round: int
    ) -> None:
        """Go on from what `sections` and `rounds` returned after a round."""
        ...


class Saving:
    """What a user asks of checkpoints.

    Parameters
    ----------
    folder : str or Path, optional
        Where the run is saved; without one it is not.
    every : int
        Rounds between two checkpoints. Where fronts stay on the devices for some
        rounds (``Lightweight(period="round")``) the next round that aggregates is
        waited for. After the last round there is one in any case.
    keep : int
        How many of the newest stay.
    resume : bool
        Whether to go on from the newest whole checkpoint; without any the run starts
        anew, so that one command line can be repeated for ever.

    Raises
    ------
    SettingError
        If a setting is none, or a run is to be resumed from nowhere.
    """

    def __init__(
        self, folder: str | Path | None, every: int, keep: int, *, resume: bool
    ) -> None:
        require_count("checkpoint_every", every)
        require_count("keep", keep)
        if not isinstance(resume, bool):
            raise SettingError(f"resume is {resume!r}; give True or False")
        if folder is not None and not str(folder):
            raise SettingError("checkpoint is an empty text; give a folder, or None")
        if resume and folder is None:
            raise SettingError("resume=True needs checkpoint=, the folder of the run")
        self.folder = None if folder is None else CheckpointFolder(Path(folder), keep)
        self.resume = resume
        self._every = every

    @contextmanager
    def session(self, run: Resumable) -> Iterator["Session"]:
        """Hold the folder for a run, brought to where it is resumed from.

        Raises
        ------
        SettingError
            If the folder holds another run, or is in use.
        CheckpointError
            If all that it holds is damaged.
        """
        if self.folder is None:
            yield Session(run, None, self._every, {})
            return
        settings = run.settings()
        with self.folder.held(wait=self.resume):
            if self.resume:
                self._go_on(run, self.folder, settings)
            else:
                self._require_empty(self.folder)
            if not run.server_round:
                logger.info("Checkpoints: %s", self.folder.path)
            yield Session(run, self.folder, self._every, settings)

    def _require_empty(self, folder: CheckpointFolder) -> None:
        if found := folder.all():
            raise SettingError(
                f"{folder.path} holds checkpoints of another run, up to round "
                f"{max(found)}; set resume=True to go on with it, or give another "
                "folder"
            )

    def _go_on(
        self, run: Resumable, folder: CheckpointFolder, settings: Mapping[str, str]
    ) -> None:
        """Bring a run to the newest whole checkpoint; to nothing if there is none."""
        passed_over = ""
        for saved in folder.whole(SECTIONS):
            require_same(saved.about["settings"], settings, str(saved.path))
            passed_over = _why_not(saved, run.num_rounds)
            if passed_over:
                logger.warning("checkpoint left out: %s", passed_over)
                continue
            _warn_of_other_torch(saved)
            run.load(saved.sections, saved.rounds, saved.server_round)
            logger.info(
                "Resumed from %s, after round %d", saved.path, saved.server_round
            )
            return
        if passed_over:
            raise SettingError(passed_over)
        logger.info("Nothing to resume in %s: the run starts anew", folder.path)


class Session:
    """A run that is under way, saved or not.

    Parameters
    ----------
    run : Resumable
        The run.
    folder : CheckpointFolder or None
        Where it is saved.
    every : int
        Rounds between two checkpoints.
    settings : mapping of str to str
        What makes it another one.
    """

    def __init__(
        self,
        run: Resumable,
        folder: CheckpointFolder | None,
        every: int,
        settings: Mapping[str, str],
    ) -> None:
        self._run, self._folder, self._every = run, folder, every
        self._settings = settings
        self._last_saved = run.server_round

    def save(self, *, last: bool) -> None:
        """Save the run after a round, if it is time.

        Parameters
        ----------
        last : bool
            Whether no round follows.

        Raises
        ------
        CheckpointError
            If something of the run cannot be stored, or the disk is full, say; the
            checkpoints of before stay whole.
        """
        run, now = self._run, self._run.server_round
        due = last or now - self._last_saved >= self._every
        if self._folder is None or not due or not run.aggregates:
            return
        facts = {
            "settings": dict(self._settings),
            "metrics": pack(run.metrics())[0],
            "torch": torch.__version__,
            # A shorter run aggregates after its last round, where a longer would not.
            "forced": run.is_forced,
        }
        self._folder.save(now, run.sections(), run.rounds(), facts)
        self._last_saved = now


def _why_not(saved: Saved, num_rounds: int) -> str:
    """Return why a run of so many rounds cannot go on from a checkpoint, or nothing."""
    if saved.server_round > num_rounds:
        return (
            f"{saved.path} is of round {saved.server_round}, and the run is to end "
            f"after round {num_rounds}; raise num_rounds, or use load_checkpoint"
        )
    if saved.about["forced"] and saved.server_round < num_rounds:
        return (
            f"{saved.path} was the end of a run of {saved.server_round} rounds, which "
            f"aggregated fronts there; a run of {num_rounds} would not have"
        )
    return ""


def _warn_of_other_torch(saved: Saved) -> None:
    if saved.about["torch"] != torch.__version__:
        logger.warning(
            "%s was saved with torch %s, this is %s: the same numbers are not promised",
            saved.path,
            saved.about["torch"],
            torch.__version__,
        )

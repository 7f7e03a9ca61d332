"""When a run is saved, and whether and from where it is resumed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord

from flwr_slfac.checkpoint import SECTIONS, CheckpointFolder, Saved
from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError
from flwr_slfac.flower_rounds import FlowerRounds
from flwr_slfac.history import History
from flwr_slfac.run_settings import require_same
from flwr_slfac.run_state import Progress, RunState
from flwr_slfac.wrapped import WrappedStrategy

logger = logging.getLogger("flwr")


class Saving:
    """What a user asks of checkpoints.

    Parameters
    ----------
    folder : str or Path, optional
        Where the run is saved; without one it is not.
    every : int
        Rounds between two checkpoints. Where fronts stay on the devices for some
        rounds (``Lightweight(aggregate_every=...)``) the next round that aggregates is
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
    def session(
        self,
        rounds: FlowerRounds,
        history: History,
        wrapped: WrappedStrategy,
        arguments: Mapping[str, Any],
    ) -> Iterator["Session"]:
        """Hold the folder for a run, and give how far it has come.

        Parameters
        ----------
        rounds, history, wrapped
            As for `RunState`.
        arguments : mapping
            Those of `Strategy.start`, by name.

        Raises
        ------
        SettingError
            If the folder holds another run, or is in use.
        CheckpointError
            If all that it holds is damaged.
        """
        progress = Progress.at_first(arguments)
        state = RunState(rounds, history, wrapped)
        if self.folder is None:
            yield Session(state, progress, None, self._every, {})
            return
        settings = state.settings(arguments)
        with self.folder.held(wait=self.resume):
            if self.resume:
                progress = self._resumed(state, arguments, settings) or progress
            else:
                self._require_empty()
            if not progress.server_round:
                logger.info("Checkpoints: %s", self.folder.path)
            yield Session(state, progress, self.folder, self._every, settings)

    def _require_empty(self) -> None:
        folder = self.folder
        if folder is not None and (found := folder.all()):
            raise SettingError(
                f"{folder.path} holds checkpoints of another run, up to round "
                f"{max(found)}; set resume=True to go on with it, or give another "
                "folder"
            )

    def _resumed(
        self,
        state: RunState,
        arguments: Mapping[str, Any],
        settings: Mapping[str, str],
    ) -> Progress | None:
        """Return how far a saved run came; None if nothing was saved."""
        if self.folder is None:
            return None
        passed_over = ""
        for saved in self.folder.whole(SECTIONS):
            require_same(saved.about["settings"], settings, str(saved.path))
            passed_over = _why_not(saved, arguments["num_rounds"])
            if passed_over:
                logger.warning("checkpoint left out: %s", passed_over)
                continue
            _warn_of_other_torch(saved)
            progress = state.load(saved.sections, saved.rounds, saved.server_round)
            logger.info(
                "Resumed from %s, after round %d", saved.path, saved.server_round
            )
            return progress
        if passed_over:
            raise SettingError(passed_over)
        logger.info("Nothing to resume in %s: the run starts anew", self.folder.path)
        return None


class Session:
    """A run that is under way, saved or not.

    Parameters
    ----------
    state : RunState
        The parts of the run.
    progress : Progress
        How far it has come.
    folder : CheckpointFolder or None
        Where it is saved.
    every : int
        Rounds between two checkpoints.
    settings : mapping of str to str
        What makes it another one.
    """

    def __init__(
        self,
        state: RunState,
        progress: Progress,
        folder: CheckpointFolder | None,
        every: int,
        settings: Mapping[str, str],
    ) -> None:
        self.progress = progress
        self._state, self._folder, self._every = state, folder, every
        self._settings = settings
        self._last_saved = progress.server_round

    @property
    def arrays(self) -> ArrayRecord | None:
        """The aggregated device-side model of the last round; None if there is none."""
        return self.progress.result.arrays or None

    @property
    def stopped_by(self) -> str:
        """Class of a callback that ended the run and is still there; else empty."""
        present = {type(each).__name__ for each in self._state.callbacks}
        name = self.progress.stopped_by
        return name if name in present else ""

    @property
    def may_end(self) -> bool:
        """Whether no front stays on the devices after the last round."""
        return self._state.aggregates(self.progress.server_round)

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
        now, state = self.progress.server_round, self._state
        due = last or now - self._last_saved >= self._every
        if self._folder is None or not due or not state.aggregates(now):
            return
        facts = {
            "settings": dict(self._settings),
            "metrics": state.metrics(now),
            "torch": torch.__version__,
            # A shorter run aggregates after its last round, where a longer would not.
            "forced": state.is_forced(now),
        }
        sections = state.sections(self.progress)
        self._folder.save(now, sections, state.rounds(now), facts)
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

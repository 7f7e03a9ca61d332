"""What this package raises, under the tree of `flwr_slfac.errors`.

::

    SettingError        a setting or an input is wrong
    └── ScenarioError   a line of a file is wrong: names file, line and key
"""

from pathlib import Path

from flwr_slfac import SettingError


class ScenarioError(SettingError):
    """A line of a file is wrong.

    Parameters
    ----------
    path : Path
        The file.
    line : int or None
        From 1; None where the file lacks something.
    key : str
        The key, with its table: ``channel.bandwidth_up_hz``.
    reason : str
        What was found, what the limit is, what to change.
    """

    def __init__(self, path: Path, line: int | None, key: str, reason: str) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {key} {reason}")
        self.path, self.line, self.key = path, line, key

"""Settings that name a folder."""

import os
from pathlib import Path

from flwr_slfac.errors import SettingError


def require_folder(name: str, folder: str | Path | None) -> None:
    """Raise SettingError unless a setting is None or a folder to write to.

    Examples
    --------
    >>> require_folder("sample_folder", None)
    >>> require_folder("sample_folder", "/no/such/place")
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: sample_folder is '/no/such/place', no folder to \
write to
    """
    if folder is None:
        return
    if not Path(folder).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SettingError(f"{name} is {str(folder)!r}, no folder to write to")

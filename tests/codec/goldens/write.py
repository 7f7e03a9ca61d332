"""Write the golden frames: ``python -m tests.codec.goldens.write [--changed]``.

Without an argument only missing files are written. With ``--changed`` files whose bytes
differ are overwritten too: only right before a release of a new wire layout, under a
new codec id or version, since old frames must stay decodable.
"""

import sys
from pathlib import Path

import numpy as np

from flwr_slfac.codec import decode
from flwr_slfac.codec.wire import VERSION
from tests.codec.cases import CASES, Case, golden_tensor

_FOLDER = Path(__file__).parent / f"v{VERSION}"


def frame_path(case: Case) -> Path:
    """Return where the frame of a case lies."""
    return _FOLDER / f"{case.file_name}.frame"


def decoded_path(case: Case) -> Path:
    """Return where the decoded values of a case lie."""
    return _FOLDER / f"{case.file_name}.npy"


def main() -> None:
    """Write what is missing, and what differs if asked to."""
    _FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        path = frame_path(case)
        data = case.encode(golden_tensor(case.codec))
        if path.exists() and ("--changed" not in sys.argv or path.read_bytes() == data):
            continue
        path.write_bytes(data)
        np.save(decoded_path(case), decode(data).numpy(), allow_pickle=False)
        print(f"wrote {path.name}, {len(data)} bytes")


if __name__ == "__main__":
    main()

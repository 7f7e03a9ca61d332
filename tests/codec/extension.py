"""What tests of the compiled kernels share."""

import numpy as np
import pytest

from flwr_slfac.codec.kernels.choice import compiled_kernels

needs_extension = pytest.mark.skipif(
    compiled_kernels() is None, reason="the extension was not built: no C compiler"
)


def assert_refused(work, good, changes) -> None:  # type: ignore[no-untyped-def]
    """Hold that a function takes what is good, and no change of it."""
    work(*good)
    for place, wrong in changes:
        if isinstance(wrong, np.ndarray):
            wrong = np.ascontiguousarray(wrong)
        with pytest.raises(ValueError, match=r"\w"):
            work(*good[:place], wrong, *good[place + 1 :])

"""Buffers that each thread keeps from call to call, as fresh ones cost page faults."""

import threading

import numpy as np
import torch

__all__ = ["scratch"]

# Our choice: larger ones are asked of the system anew, so a thread keeps few MiB.
_LARGEST_BYTES = 2**22
# Our choice: of all shapes and names together.
_MOST_VIEWS = 64


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor on the CPU with arbitrary values.

    Parameters
    ----------
    name : str
        Of the buffer: the same name gives the same memory again, in this thread.
    shape, dtype
        Of the tensor.
    """
    key = name, shape, dtype
    view = _kept.views.get(key)
    if view is not None:
        return view
    # Outside of inference mode, as what is kept must serve every caller.
    with torch.inference_mode(False):
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size > _LARGEST_BYTES:
            # NumPy asks for huge pages, which take a third of the time to write to.
            fresh = torch.from_numpy(np.empty(size, np.uint8))
            return fresh.view(dtype).view(shape)
        buffer = _kept.buffers.get(name)
        if buffer is None or buffer.numel() < size or len(_kept.views) >= _MOST_VIEWS:
            _kept.views.clear()
            if buffer is None or buffer.numel() < size:
                # By powers of two, so that growing shapes do not ask each time.
                buffer = torch.empty(1 << (size - 1).bit_length(), dtype=torch.uint8)
                _kept.buffers[name] = buffer
        view = buffer[:size].view(dtype).view(shape)
    _kept.views[key] = view
    return view

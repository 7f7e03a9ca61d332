"""The global generators of random numbers, saved and put back."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of the global generators of random numbers."""
    here = torch.cuda.is_available()
    cuda = torch.cuda.get_rng_state_all() if here else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": [each.cpu() for each in cuda],
    }


def restore_random(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned; CUDA's on as many devices only."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])

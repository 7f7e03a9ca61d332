"""Which kernels run: the compiled ones where they are, else the reference."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from flwr_slfac.codec.kernels import fit, planes, trellis, trial
from flwr_slfac.codec.kernels.extension import Extension
from flwr_slfac.codec.kernels.frames import FrameLoops
from flwr_slfac.codec.kernels.spectra import SpectraLoops
from flwr_slfac.codec.kernels.trellis_loops import TrellisLoops
from flwr_slfac.errors import SettingError

logger = logging.getLogger("flwr")

_VARIABLE = "SLFAC_KERNELS"


@dataclass(frozen=True)
class Kernels:
    """The inner loops, each with the parameters of the reference.

    Parameters
    ----------
    name : {"compiled", "reference"}
        Which ones.
    fit_planes : callable
        See `fit`.
    plane_energies, plane_spectra, forward_planes, inverse_planes : callable
        See `planes`.
    count_levels : callable
        See `trial`.
    encode_trellis, open_trellis : callable
        See `trellis.encode` and `trellis.Decoder`.
    spectra : SpectraLoops, optional
        None where PyTorch does them.
    frames : FrameLoops, optional
        None where frames are coded stream by stream.
    """

    name: str
    fit_planes: Callable[..., fit.PlaneFit]
    plane_energies: Callable[..., Any]
    plane_spectra: Callable[..., None]
    forward_planes: Callable[..., tuple[Any, Any]]
    inverse_planes: Callable[..., None]
    count_levels: Callable[..., None]
    encode_trellis: Callable[..., tuple[bytes, Any]]
    open_trellis: Callable[[memoryview], Any]
    spectra: SpectraLoops | None = None
    frames: FrameLoops | None = None


REFERENCE = Kernels(
    "reference",
    fit.fit_planes,
    planes.energies,
    planes.spectra,
    planes.forward,
    planes.inverse,
    trial.count_levels,
    trellis.encode,
    trellis.Decoder,
)


def compiled_kernels() -> Kernels | None:
    """Return the compiled kernels, None where the extension was not built."""
    try:
        from flwr_slfac.codec.kernels import compiled
    except ImportError:
        return None
    extension, loops = Extension(compiled), TrellisLoops(compiled)
    return Kernels(
        "compiled",
        extension.fit_planes,
        extension.plane_energies,
        extension.plane_spectra,
        extension.forward_planes,
        extension.inverse_planes,
        compiled.count_levels,
        loops.encode,
        loops.open,
        SpectraLoops(compiled),
        FrameLoops(compiled),
    )


@cache
def kernels() -> Kernels:
    """Return the kernels that run here, and log once which they are.

    Raises
    ------
    SettingError
        If the environment variable asks for what there is not.
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "compiled", "reference"):
        raise SettingError(
            f"{_VARIABLE} is {wanted!r}; give 'compiled' or 'reference', or unset it"
        )
    found = None if wanted == "reference" else compiled_kernels()
    if found is None and wanted == "compiled":
        raise SettingError(
            f"{_VARIABLE} asks for compiled kernels, and there are none: install a C "
            "compiler and flwr-slfac again, or unset it"
        )
    if found is None:
        logger.info("codecs run in NumPy: slower, the same bytes")
        return REFERENCE
    logger.info("codecs run compiled kernels")
    return found

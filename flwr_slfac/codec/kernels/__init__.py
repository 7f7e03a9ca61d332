"""The inner loops of the codecs: compiled, or in NumPy with the same bytes.

The C files are built where a C compiler is, and are part of the wheels. Without them
the reference runs, several times slower: NumPy, and PyTorch for the spectra of SL-FAC.
The environment variable ``SLFAC_KERNELS`` asks for one of them: ``compiled``, which
fails where there is none, or ``reference``. Which one runs is logged once, when a
tensor is first coded.
"""

from flwr_slfac.codec.kernels import classes, digits, models, rans
from flwr_slfac.codec.kernels.choice import Kernels, kernels
from flwr_slfac.codec.kernels.classes import ClassGrid
from flwr_slfac.codec.kernels.contexts import Grid
from flwr_slfac.codec.kernels.fit import (
    LEAST_ENERGY,
    PlaneFit,
    half_units,
    plane_weights,
)
from flwr_slfac.codec.kernels.frames import CodingTables, Energies, FrameLoops
from flwr_slfac.codec.kernels.models import BUCKET_ENDS, CHANCE_BITS
from flwr_slfac.codec.kernels.rans import LOWER_BOUND, NUM_SYMBOLS, SCALE_BITS
from flwr_slfac.codec.kernels.scratch import scratch
from flwr_slfac.codec.kernels.spectra import SpectraLoops
from flwr_slfac.codec.kernels.stages import LONGEST_LINE, PlaneTransform, Stage
from flwr_slfac.codec.kernels.trellis import NUM_GROUPS, STEP_UNIT
from flwr_slfac.codec.kernels.trial import NUM_KEYS

__all__ = [
    "BUCKET_ENDS",
    "CHANCE_BITS",
    "LEAST_ENERGY",
    "LONGEST_LINE",
    "LOWER_BOUND",
    "NUM_GROUPS",
    "NUM_KEYS",
    "NUM_SYMBOLS",
    "SCALE_BITS",
    "STEP_UNIT",
    "ClassGrid",
    "CodingTables",
    "Energies",
    "FrameLoops",
    "Grid",
    "Kernels",
    "PlaneFit",
    "PlaneTransform",
    "SpectraLoops",
    "Stage",
    "classes",
    "digits",
    "half_units",
    "kernels",
    "models",
    "plane_weights",
    "rans",
    "scratch",
]

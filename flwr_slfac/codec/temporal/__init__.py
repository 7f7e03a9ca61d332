"""Prediction of a sample's values from what was decoded of it before.

::

    codec        the codec: around another one, which codes what is left over
    decoding     the way back
    agreement    how sides that mean other samples notice
    candidate    a batch coded one way, of which the smaller is sent
    prediction   which samples are predicted, from how much of what is remembered
    sums         energies that this is chosen by
    header       samples, predictions and versions as bytes
    memory       what both sides remember of samples
"""

from flwr_slfac.codec.temporal.codec import Temporal
from flwr_slfac.codec.temporal.memory import SampleMemory

__all__ = ["SampleMemory", "Temporal"]

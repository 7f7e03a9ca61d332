"""Prediction of a sample's values from what was decoded of it before.

::

    codec        the codec: around another one, which codes what is left over
    prediction   which samples are predicted, from how much of what is remembered
    header       samples, predictions and versions as bytes
    memory       what both sides remember of samples
"""

from flwr_slfac.codec.temporal.codec import Temporal
from flwr_slfac.codec.temporal.memory import SampleMemory

__all__ = ["SampleMemory", "Temporal"]

"""What `SplitFed` codes with unless it is told otherwise."""

from flwr_slfac.codec import Codec, Waterfill, as_codec

# Shares of the noise that mini-batches bring anyway, the same for all data, in no more
# than a hundredth of float32's bytes both ways. Gradients bear more than activations:
# see tests/bench/results/noise_budget.md.
DEFAULT_UP = Waterfill(noise=0.001, bits=0.45)
DEFAULT_DOWN = Waterfill(noise=0.005, bits=0.18)


def codecs_of(up: Codec | str | None, down: Codec | str | None) -> tuple[Codec, Codec]:
    """Return the codecs of activations and gradients; None stands for the default.

    Raises
    ------
    SettingError
        If a text names no codec.
    """
    return (
        as_codec(DEFAULT_UP if up is None else up),
        as_codec(DEFAULT_DOWN if down is None else down),
    )

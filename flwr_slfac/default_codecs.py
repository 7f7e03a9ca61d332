"""What `SplitFed` codes with unless it is told otherwise."""

from flwr_slfac.codec import Codec, Waterfill, as_codec

# Chosen by tests/bench/results/training_parity.md; gradients bear more error than
# activations do.
DEFAULT_UP = Waterfill(nrmse=0.1)
DEFAULT_DOWN = Waterfill(nrmse=0.4)


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

"""Waterfill (ours): a transform, one step for all coefficients, entropy coding.

::

    (N, C, H, W) --normalize--> planes (N, C, S), float32
                                   |
             plan, trials    channel basis (klt), mean of samples, spatial basis
                                   |
             transform       coefficients (S, N * r), an orthonormal way
                                   |
             energies        log2 energy ~ a[sample] + u[channel] + v[frequency]
                                   |
             target, sample  the step that meets an error or a size
             quantize        integers with a dead zone
                                   |
             sections        classes of equal energy --digits, model--> streams
             trellis         or levels and contexts at once, coder "best"

Decoding goes the same way up: `sections.read_sections` needs no plan.
"""

from flwr_slfac.codec.waterfill.codec import Waterfill

__all__ = ["Waterfill"]

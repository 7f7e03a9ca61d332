"""SL-FAC (Lin et al., arXiv 2604.07316): the codec of the paper, and its stages.

::

    (N, C, H, W) --layout--> rows --spectra--> coefficients, coarse to fine
                                                   |
             AFD (afd)      split where the energy reaches theta: low | high
                                                   |
             FQC (fqc)      bit width by log energy; ranges; min-max linear codes
                                                   |
             codes, sections   codes without gaps; header, splits, ranges --> frame

Decoding goes the same way up. `ablations` has what the paper compares the stages with,
`groups` how coefficients and codes lie in memory, eight by eight.
"""

from flwr_slfac.codec.slfac.codec import SLFAC

__all__ = ["SLFAC"]

"""Which orthonormal basis: DCT-II, an orthogonal wavelet of PyWavelets, identity."""

from dataclasses import dataclass
from functools import lru_cache

import pywt

from flwr_slfac.codec.transforms.wavelets import is_orthonormal
from flwr_slfac.errors import SettingError

# Bases that leave values as they are; the second is that of `SPECTRUM`.
PLAIN = ("identity", "spectrum")
# Our choice: 2**32 is beyond the size of any dimension on the wire.
_MAX_LEVEL = 32


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of any length it can do; made by `parse_basis`.

    Parameters
    ----------
    name : str
        ``"dct"``, ``"identity"`` or the name of an orthogonal wavelet.
    level : int, optional
        Number of times a wavelet halves the size. None: as often as the size halves
        evenly, up to the level PyWavelets deems useful for the filter, at least once.
    """

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"

    @property
    def is_wavelet(self) -> bool:
        """Whether the basis is a filter bank."""
        return self.name != "dct" and not self.is_plain

    @property
    def is_plain(self) -> bool:
        """Whether coefficients are the values as they are."""
        return self.name in PLAIN

    def num_levels(self, *sizes: int) -> int:
        """Return how often a wavelet halves lines or planes of these sizes.

        Raises
        ------
        SettingError
            If a size is odd where it must halve.
        """
        if not self.is_wavelet or all(size <= 1 for size in sizes):
            return 0
        halvings = min((s & -s).bit_length() - 1 if s else 64 for s in sizes)
        filter_length = pywt.Wavelet(self.name).dec_len
        useful = max(1, pywt.dwt_max_level(min(sizes), filter_length))
        level = min(useful, max(halvings, 1)) if self.level is None else self.level
        if level > halvings:
            shown = " x ".join(map(str, sizes))
            raise SettingError(
                f"basis {str(self)!r} needs sizes that are multiples of {2**level}, "
                f"found {shown}; use 'dct', which takes any size"
                + (f", or a level of at most {halvings}" if halvings else "")
            )
        return level


# Of planes that are spectra of the DCT already: their order, and no transform. It has
# no place in settings or on the wire.
SPECTRUM = Basis(PLAIN[1])


@lru_cache(maxsize=64)
def parse_basis(text: str) -> Basis:
    """Read a basis from text.

    Parameters
    ----------
    text : str
        ``"dct"``, ``"identity"``, or an orthogonal wavelet of PyWavelets with an
        optional level: ``"haar"``, ``"db2:2"``.

    Returns
    -------
    Basis
        Equal for equal text.

    Raises
    ------
    SettingError
        If the name is unknown, the wavelet is not orthogonal, or the level is not a
        number from 1 to 32.

    Examples
    --------
    >>> parse_basis("db2:2")
    Basis(name='db2', level=2)
    """
    name, colon, level_text = text.strip().partition(":")
    if name in ("dct", "identity"):
        if colon:
            raise SettingError(f"basis {name!r} has no level; found {text!r}")
        return Basis(name)
    if name not in pywt.wavelist(kind="discrete"):
        raise SettingError(
            f"no basis is named {name!r}; use 'dct', 'identity' or an orthogonal "
            "wavelet such as 'haar', 'db2', 'sym4' or 'coif1'"
        )
    if not is_orthonormal(name):
        raise SettingError(
            f"wavelet {name!r} is not orthogonal to 1e-6, so errors in its "
            "coefficients would not carry over; use 'haar', 'db2', 'sym4' or 'coif1'"
        )
    if not colon:
        return Basis(name)
    is_number = level_text.isascii() and level_text.isdigit()
    if not (is_number and 1 <= int(level_text) <= _MAX_LEVEL):
        raise SettingError(
            f"a level is a number from 1 to {_MAX_LEVEL}; found {text!r}"
        )
    return Basis(name, int(level_text))

"""See `rans`, and `choice` for how the others are called."""

from typing import Any

def rans_encode(
    states: Any, counts: Any, frequencies: Any, symbols: Any, words: Any, end: int
) -> int: ...
def rans_decode(
    states: Any, counts: Any, frequencies: Any, words: Any, start: int, out: Any
) -> int: ...
def pack_digits(
    values: Any,
    itemsize: int,
    limit: int,
    per_symbol: int,
    is_signed: bool,
    symbols: Any,
    counts: Any,
) -> int: ...
def unpack_digits(
    symbols: Any, limit: int, per_symbol: int, is_signed: bool, values: Any
) -> int: ...
def split(
    matrix: Any,
    itemsize: int,
    order: Any,
    rows: Any,
    starts: Any,
    runs: Any,
    offset: int,
    classes: int,
    out: Any,
) -> None: ...
def join(
    values: Any,
    itemsize: int,
    order: Any,
    rows: Any,
    starts: Any,
    runs: Any,
    offset: int,
    classes: int,
    out: Any,
) -> None: ...
def spectra_split(
    coeffs: Any,
    n: int,
    num_rows: int,
    order: Any,
    theta: float,
    store: Any,
    first: int,
    split: Any,
    energy: Any,
    ends: Any,
) -> None: ...
def spectra_ranges(ends: Any, exponent: int, halves: Any) -> None: ...
def spectra_levels(
    halves: Any,
    exponent: int,
    widths: Any,
    decodes: bool,
    low: Any,
    scale: Any,
    used: Any,
) -> bool: ...
def spectra_pack(
    store: Any, n: int, split: Any, low: Any, scale: Any, widths: Any, out: Any
) -> None: ...
def spectra_unpack(
    data: Any,
    position: int,
    n: int,
    first: int,
    num_rows: int,
    split: Any,
    low: Any,
    scale: Any,
    widths: Any,
    order: Any,
    coeffs: Any,
) -> int: ...
def place_columns(
    matrix: Any, rows: int, columns: int, index: Any, out: Any
) -> None: ...
def transpose(matrix: Any, rows: int, columns: int, out: Any) -> None: ...
def pack_records(words: Any, bits: int, out: Any) -> None: ...
def unpack_records(data: Any, bits: int, out: Any) -> None: ...
def fit_model(
    counts: Any, limit: int, per_symbol: int, is_signed: bool, midpoints: Any
) -> bytes: ...
def to_values(
    levels: Any, itemsize: int, step: float, taken: float, out: Any
) -> None: ...
def quantize(
    coefficients: Any,
    samples: Any,
    channels: Any,
    frequencies: Any,
    groups: Any,
    offset: int,
    inverse: float,
    levels: Any,
    itemsize: int,
    sums: Any,
) -> None: ...
def write_streams(
    lists: Any,
    sizes: Any,
    samples: Any,
    channels: Any,
    frequencies: Any,
    groups: Any,
    offset: int,
    shifts: Any,
    levels: Any,
    itemsize: int,
    kinds: Any,
    midpoints: Any,
    chances: Any,
) -> tuple[bytes, bytes]: ...
def read_lists(
    parameters: Any,
    words: Any,
    sizes: Any,
    kinds: Any,
    midpoints: Any,
    chances: Any,
    out: Any,
) -> str: ...
def read_streams(
    parameters: Any,
    words: Any,
    lists: Any,
    samples: int,
    channels: int,
    num_groups: int,
    groups: Any,
    offset: int,
    step: float,
    kinds: Any,
    midpoints: Any,
    chances: Any,
    order: Any,
    out: Any,
) -> str: ...
def plane_energies(planes: Any, num_places: int, energies: Any) -> None: ...
def forward_planes(
    planes: Any,
    index: Any,
    numbers: Any,
    weights: Any,
    of_planes: Any,
    room: Any,
    coeffs: Any,
    sums: Any,
    ends: Any,
) -> None: ...
def inverse_planes(
    coeffs: Any,
    index: Any,
    numbers: Any,
    weights: Any,
    clamps: bool,
    room: Any,
    planes: Any,
) -> None: ...
def fit_planes(
    energies: Any,
    num_positions: float,
    floor: float,
    alike: bool,
    a: Any,
    u: Any,
    samples: Any,
    channels: Any,
    order: Any,
    weights: Any,
) -> float: ...
def plane_spectra(
    planes: Any, numbers: Any, weights: Any, scales: Any, room: Any, spectra: Any
) -> None: ...
def count_levels(
    matrix: Any,
    first: int,
    last: int,
    rows: Any,
    columns: Any,
    offset: int,
    inverse: float,
    counts: Any,
) -> None: ...
def encode_trellis(
    lists: Any,
    sizes: Any,
    coefficients: Any,
    samples: Any,
    channels: Any,
    frequencies: Any,
    groups: Any,
    columns: Any,
    order: Any,
    rank: Any,
    width: int,
    offset: int,
    inverse: float,
    price: int,
    tables: Any,
    sums: Any,
) -> bytes: ...
def open_trellis(state: Any, data: Any, tables: Any) -> int: ...
def decode_list(state: Any, data: Any, tables: Any, out: Any) -> str: ...
def decode_trellis(
    state: Any,
    data: Any,
    samples: Any,
    channels: Any,
    frequencies: Any,
    groups: Any,
    columns: Any,
    order: Any,
    rank: Any,
    width: int,
    offset: int,
    step: float,
    taken: Any,
    tables: Any,
    out: Any,
) -> str: ...

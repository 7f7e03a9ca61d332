"""Codecs by name: the text is read without eval, and prints back."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from flwr_slfac.codec import Codec, Hints, Memory, register, registered, registry
from flwr_slfac.codec.plain import Float16, Identity
from flwr_slfac.codec.settings import format_codec, parse_codec
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError, SlfacError


@dataclass(frozen=True)
class Sample(Codec):
    """A codec with settings of each kind, that codes nothing."""

    codec_id: ClassVar[str] = "test-sample"
    number: float = 0.5
    count: int = 3
    name: str = "dct"
    widths: tuple[int, ...] = (2, 8)
    inner: Codec | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise SettingError(f"count is {self.count}; give 0 or more")

    def encode_sections(self, tensor: torch.Tensor, hints: Hints) -> list[bytes]:
        """Never called here."""
        raise NotImplementedError

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Never called here."""
        raise NotImplementedError


@pytest.fixture(autouse=True, scope="module")
def _sample() -> Iterator[None]:
    """Register the sample codec for this module only."""
    register(Sample)
    yield
    del registry._REGISTRY[Sample.codec_id]


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("float16", Float16()),
        ("float16()", Float16()),
        ("test-sample(name=haar)", Sample(name="haar")),
        (" float16 ( ) ", Float16()),
        ("test-sample", Sample()),
        ("test-sample(number=0.95)", Sample(number=0.95)),
        ("test-sample(widths=(2, 6), name='haar')", Sample(0.5, 3, "haar", (2, 6))),
        ("test-sample(number=-1e-3, count=+4)", Sample(-1e-3, 4)),
        ("test-sample(inner=float16, flag=True)", Sample(inner=Float16(), flag=True)),
        ("test-sample(inner=identity())", Sample(inner=Identity())),
        ("test-sample(inner=None)", Sample()),
    ],
)
def test_text_gives_the_codec(text: str, codec: Codec) -> None:
    """A name with or without settings reads to the codec it describes."""
    assert parse_codec(text) == codec


@given(
    st.builds(
        Sample,
        number=st.floats(allow_nan=False, allow_infinity=False),
        count=st.integers(0, 10**30),
        name=st.text(max_size=20),
        widths=st.lists(st.integers(-9, 9), max_size=4).map(tuple),
        inner=st.sampled_from([None, Float16(), Identity()]),
        flag=st.booleans(),
    )
)
def test_what_is_printed_reads_back(codec: Sample) -> None:
    """Parsing inverts formatting, and formatting is then stable."""
    text = format_codec(codec)
    assert parse_codec(text) == codec
    assert format_codec(parse_codec(text)) == text


def test_defaults_are_not_printed() -> None:
    """The text of a codec with its defaults is its id alone."""
    assert format_codec(Sample()) == "test-sample"
    assert format_codec(Sample(count=4)) == "test-sample(count=4)"
    assert (
        format_codec(Sample(inner=Float16(), widths=(1,)))
        == "test-sample(widths=(1,), inner=float16)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no codec is named ''"),
        ("flot16", "did you mean 'float16'"),
        ("nothing-like-it", "known: "),
        ("Float16", "no codec is named"),
        ("float16(bits=3)", "no setting 'bits'; it has: none"),
        ("test-sample(numbr=1)", "it has: number, count"),
        ("test-sample(0.5)", "cannot read"),
        ("test-sample(*[1])", "cannot read"),
        ("test-sample(**{'count': 1})", "cannot read"),
        ("test-sample(count=1, count=2)", "cannot read"),
        ("test-sample(count=1", "cannot read"),
        ("test-sample(count=1))", "cannot read"),
        ("test-sample(count=1)(count=2)", "cannot read"),
        ("test-sample()()", "cannot read"),
        ("test-sample().inner", "cannot read"),
        ("test-sample()[0]", "cannot read"),
        ("test-sample(number=inf)", "cannot read"),
        ("test-sample(count=unknown)", "cannot read"),
        ("test-sample(name=os.sep)", "cannot read"),
        ("test-sample(count=__import__('os').getpid())", "cannot read"),
        ("test-sample(count=open('/etc/passwd'))", "cannot read"),
        ("test-sample(count=2**9)", "cannot read"),
        ("test-sample(widths={[]: 1})", "cannot read"),
        ("test-sample(widths={{1}})", "cannot read"),
        ("test-sample(inner=float16(bits=3))", "no setting 'bits'"),
        ("test-sample(count=-1)", "count is -1; give 0 or more"),
        ("test-sample(count='three')", "test-sample"),
        ("test-sample(name='\x00')", "cannot read"),
        ("test-sample(number=" + "9" * 1000 + ")", "at most 1000"),
    ],
)
def test_wrong_text_is_refused_with_the_remedy(text: str, message: str) -> None:
    """A wrong name, setting, value or form raises SettingError that says which."""
    with pytest.raises(SettingError, match=message):
        parse_codec(text)


@given(
    st.one_of(
        st.text(max_size=60),
        st.text("()[]{}*,=-+.'1ea ", max_size=60).map("test-sample({})".format),
        st.integers(1, 900).map(lambda n: f"test-sample(count={'-' * n}1)"),
        st.integers(1, 400).map(lambda n: f"test-sample(count={'(' * n}1{')' * n})"),
        st.integers(1, 50).map(lambda n: "test-sample(inner=" * n + ")" * n),
    )
)
@example("test-sample(widths={[]: 1})")
@example("test-sample()()")
def test_arbitrary_text_raises_setting_error(text: str) -> None:
    """Any text gives a codec or SettingError, and never a warning of Python's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            codec = parse_codec(text)
        except SettingError:
            return
    assert parse_codec(format_codec(codec)) == codec


def test_an_id_is_taken_once() -> None:
    """Registering another class under a known id, or a bad id, is refused."""

    class Impostor(Sample):
        codec_id: ClassVar[str] = "float16"

    class Shouting(Sample):
        codec_id: ClassVar[str] = "LOUD"

    before = registered()
    with pytest.raises(SettingError, match="taken by Float16"):
        register(Impostor)
    with pytest.raises(SettingError, match="is not 1 to 32 characters"):
        register(Shouting)
    assert registered() == before
    assert register(Float16) is Float16


def test_the_registry_that_is_handed_out_is_a_copy() -> None:
    """Changing what `registered` returns changes no codec."""
    registered().clear()
    assert "float16" in registered()


def test_setting_errors_are_value_errors() -> None:
    """A caller may catch a wrong setting as ValueError or as SlfacError."""
    for expected in (ValueError, SlfacError):
        with pytest.raises(expected):
            parse_codec("nothing")

"""Codecs of installed distributions: found by name, checked, harmless when broken."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flwr_slfac.codec import (
    Feedback,
    Float16,
    decode,
    encode,
    format_codec,
    parse_codec,
    registered,
    registry,
)
from flwr_slfac.codec.wire import pack_frame
from flwr_slfac.errors import DecodeError, SettingError

SIGNS = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from flwr_slfac.codec import Codec
from flwr_slfac.codec.wire import as_bytes, from_bytes, require_sections


@dataclass(frozen=True)
class Signs(Codec):
    """The sign of each value, times a scale."""

    codec_id: ClassVar[str] = "signs"
    scale: float = 1.0

    def encode_sections(self, tensor, hints):
        scale = torch.tensor(self.scale, dtype=torch.float32)
        return [as_bytes(scale), as_bytes(tensor.sign().to(torch.int8))]

    @classmethod
    def decode_sections(cls, frame, memory, device):
        scale, signs = require_sections(frame, 2)
        scale = from_bytes(scale, torch.float32, (), device)
        signs = from_bytes(signs, torch.int8, frame.shape, device)
        return (signs * scale).to(frame.dtype)


class NoCodec:
    codec_id = "no-codec"


@dataclass(frozen=True)
class Half(Codec):
    codec_id: ClassVar[str] = "half-done"


@dataclass(frozen=True)
class TakesOver(Signs):
    codec_id: ClassVar[str] = "float16"


@dataclass(frozen=True)
class Loud(Signs):
    codec_id: ClassVar[str] = "LOUD"
'''

BREAKS = (
    SIGNS.replace("@dataclass", "@register\n@dataclass", 1)
    .replace("import Codec", "import Codec, register")
    .replace('"signs"', '"breaks"')
    .split("class NoCodec")[0]
    + "1 / 0"
)

DECLARED = """
[flwr_slfac.codecs]
signs = {package}.signs:Signs
no-codec = {package}.signs:NoCodec
half-done = {package}.signs:Half
mismatch = {package}.signs:Signs
missing = {package}.signs:Nothing
absent = {package}.nowhere:Signs
breaks = {package}.breaks:Signs
float16 = {package}.signs:TakesOver
LOUD = {package}.signs:Loud
"""

WRONG = [
    ("no-codec", "declare a concrete dataclass"),
    ("half-done", "declare a concrete dataclass"),
    ("mismatch", "has codec_id 'signs'; declare it as that"),
    ("missing", "cannot be loaded from .*AttributeError"),
    ("absent", "cannot be loaded from .*ModuleNotFoundError"),
    ("breaks", "cannot be loaded from .*ZeroDivisionError"),
    ("LOUD", "is not 1 to 32 characters"),
]


def install(folder: Path, name: str) -> None:
    """Lay a distribution out as an installer does: a package and its metadata."""
    package = folder / name.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "signs.py").write_text(SIGNS)
    (package / "breaks.py").write_text(BREAKS)
    metadata = folder / f"{package.name}-1.0.dist-info"
    metadata.mkdir()
    lines = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (metadata / "METADATA").write_text(lines)
    declared = DECLARED.format(package=package.name)
    (metadata / "entry_points.txt").write_text(declared)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder on the import path with one distribution, signs-codec."""
    install(tmp_path, "signs-codec")
    monkeypatch.syspath_prepend(tmp_path)
    known, modules = dict(registry._REGISTRY), set(sys.modules)
    yield tmp_path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)
    for name in set(sys.modules) - modules:
        if name.startswith("signs_codec"):
            del sys.modules[name]


@pytest.mark.usefixtures("site")
def test_an_installed_codec_is_known_by_its_name() -> None:
    """Text, frames and the list of codecs find it; its settings are read."""
    assert "signs_codec.signs" not in sys.modules
    codec = parse_codec("signs(scale=0.5)")
    assert format_codec(codec) == "signs(scale=0.5)"
    x = torch.tensor([[1.5, -2.0, 0.0]])
    assert decode(encode(x, codec)).tolist() == [[0.5, -0.5, 0.0]]
    assert registered()["signs"] is type(codec)
    assert parse_codec("signs") == type(codec)()


@pytest.mark.usefixtures("site")
def test_a_frame_alone_loads_the_codec() -> None:
    """Decoding needs no import of the distribution, not even inside another codec."""
    sections = [b"\0\0\x80\x3f", b"\x01\xff"]
    frame = pack_frame("signs", torch.float32, (2,), sections)
    assert decode(frame).tolist() == [1.0, -1.0]
    inside = pack_frame("feedback", torch.float32, (2,), [b"signs", *sections])
    assert decode(inside).tolist() == [1.0, -1.0]
    assert isinstance(parse_codec("feedback(inner=signs(scale=2.0))"), Feedback)


@pytest.mark.usefixtures("site")
def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    """Our own codecs and unknown names leave the distribution alone, but name it."""
    decode(encode(torch.ones(2), parse_codec("float16")))
    with pytest.raises(SettingError, match=r"did you mean 'signs'\? known: .*signs"):
        parse_codec("sings")
    assert "signs_codec" not in sys.modules


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("name", "message"), WRONG)
def test_a_wrong_entry_point_says_whose_it_is(name: str, message: str) -> None:
    """Asked for by name it raises SettingError, from `decode` DecodeError."""
    whose = f"codec '{name}' of distribution 'signs-codec'.*"
    for _ in range(2):
        with pytest.raises(SettingError, match=whose + message):
            parse_codec(name)
    for sections, codec_id in (([], name), ([name.encode()], "feedback")):
        frame = pack_frame(codec_id, torch.float32, (2,), sections)
        with pytest.raises(DecodeError, match=whose + message):
            decode(frame)


@pytest.mark.usefixtures("site")
def test_wrong_entry_points_break_no_other_codec() -> None:
    """The list leaves them out, and all others stay as they are."""
    before = registry._REGISTRY.copy()
    codecs = registered()
    assert set(codecs) == {*before, "signs"}
    assert all(codecs[name] is cls for name, cls in before.items())


@pytest.mark.usefixtures("site")
def test_our_ids_cannot_be_taken_over() -> None:
    """An entry point with the id of one of our codecs is never looked at."""
    assert parse_codec("float16") == Float16()
    assert registered()["float16"] is Float16


def test_two_distributions_with_one_id_are_refused(site: Path) -> None:
    """Which of the two would be meant is not guessed."""
    install(site, "signs-again")
    sys.path.insert(0, str(site))
    try:
        with pytest.raises(SettingError, match=r"declared by 'signs-.*' and 'signs-"):
            parse_codec("signs")
        assert "signs" not in registered()
    finally:
        sys.path.remove(str(site))


SCRIPT = """
import sys
import torch
from flwr_slfac.codec import decode, encode, parse_codec, registered
assert "signs_codec" not in sys.modules
frame = encode(torch.tensor([3.0, -4.0]), parse_codec("signs(scale=2.0)"))
assert decode(frame).tolist() == [2.0, -2.0]
assert "signs" in registered()
"""


def test_a_fresh_interpreter_finds_it(site: Path) -> None:
    """Installed beside flwr-slfac, a codec works without an import of its package."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec that README.md shows keeps its promises."""
    readme = (Path(registry.__file__).parent / "README.md").read_text()
    blocks = readme.split("```python\n")[1:]
    (source,) = [b.split("```")[0] for b in blocks if "class Clipped" in b]
    (tmp_path / "clipped_example.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(registry._REGISTRY)
    try:
        from clipped_example import Clipped

        registry.register(Clipped)
        decoded = decode(encode(torch.tensor([-3.0, 0.25]), parse_codec("clipped")))
        assert decoded.tolist() == [-1.0, 0.25]
    finally:
        registry._REGISTRY.clear()
        registry._REGISTRY.update(known)

"""Who may import whom, and what is public."""

import ast
import inspect
from pathlib import Path

import pytest

import flwr_slfac
import flwr_slfac.codec

PACKAGE = Path(flwr_slfac.__file__).parent

# Each room imports only from itself and from rooms above it.
ROOMS = (
    ("errors", "_release", "states"),
    ("cutting",),
    ("codec",),
    ("lightweight",),
    ("traffic",),
    ("split",),
    ("transport",),
    ("report", "progress"),
    ("client",),
    ("strategy", "run"),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
WITHOUT_FLOWER = (
    *("errors", "_release", "states", "cutting"),
    *("codec", "lightweight", "traffic", "split"),
)
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    """Return the room that a file of the package is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    """A file imports only from its own room and the rooms above it."""
    room = room_of(path)
    assert room in FLOOR, f"{room} is in no room: add it to ROOMS"
    for name in imported(path):
        if name.startswith("flwr_slfac."):
            other = name.split(".")[1]
            if other in FLOOR:
                assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_split_training_needs_no_flower(path: Path) -> None:
    """Cutting, codecs and the two halves import no Flower, and nothing imports Ray."""
    for name in imported(path):
        root = name.split(".")[0]
        assert root != "ray"
        assert root != "flwr" or room_of(path) not in WITHOUT_FLOWER
        assert root not in ("examples", "simulation", "tests")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_flower_is_entered_by_its_public_doors(path: Path) -> None:
    """Flower's inner modules move between releases: only its public ones are used."""
    doors = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
    for name in imported(path):
        if name.split(".")[0] == "flwr":
            assert name.startswith(doors), name


@pytest.mark.parametrize("module", [flwr_slfac, flwr_slfac.codec])
def test_public_names_exist_and_are_documented(module: object) -> None:
    """Every name in __all__ is there, listed once, and has a docstring."""
    names = module.__all__  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    for name in names:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name


def test_names_of_the_design_are_public() -> None:
    """The names that users were promised can be imported."""
    promised = {"cut", "Device", "client_app", "SplitFed", "legal_cuts"}
    assert promised <= set(flwr_slfac.__all__)
    codecs = {"Identity", "Float16", "BFloat16", "encode", "decode"}
    assert codecs <= set(flwr_slfac.codec.__all__)

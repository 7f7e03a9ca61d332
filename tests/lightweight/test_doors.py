"""What the room shows to others, and by which doors they enter."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import flwr_slfac
from flwr_slfac import cutting, lightweight
from flwr_slfac.lightweight import activations, pruning, quantization

PACKAGE = Path(flwr_slfac.__file__).parent
ROOM = PACKAGE / "lightweight"
DOORS = (lightweight, pruning, quantization, activations)
OUTSIDE = sorted(p for p in PACKAGE.rglob("*.py") if ROOM not in p.parents)
INSIDE = sorted(p for p in ROOM.rglob("*.py") if p.name != "__init__.py")


def sources(path: Path) -> set[str]:
    """Return the modules that a file imports from."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {n.module or "" for n in tree if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("door", [*DOORS, cutting], ids=lambda m: m.__name__)
def test_names_of_a_door_are_there_and_documented(door: object) -> None:
    """Every name in __all__ exists, is listed once, and has a docstring."""
    names = door.__all__  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    for name in names:
        thing = getattr(door, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_other_rooms_enter_by_the_doors(path: Path) -> None:
    """What is behind them may change without other rooms knowing."""
    allowed = {door.__name__ for door in DOORS}
    found = {m for m in sources(path) if m.startswith("flwr_slfac.lightweight")}
    assert found <= allowed


@pytest.mark.parametrize("path", INSIDE, ids=lambda p: str(p.relative_to(ROOM)))
def test_the_room_imports_its_own_modules(path: Path) -> None:
    """A module that imported a door would wait for itself."""
    assert not sources(path) & {door.__name__ for door in DOORS}
    cutters = {m for m in sources(path) if m.startswith("flwr_slfac.cutting")}
    assert cutters <= {"flwr_slfac.cutting"}


@pytest.mark.parametrize("path", INSIDE, ids=lambda p: str(p.relative_to(ROOM)))
def test_one_folder_touches_the_internals_of_autograd(path: Path) -> None:
    """Hooks, modes, custom functions and storages are met in `activations` only."""
    internals = r"saved_tensors_hooks|FunctionMode|autograd\.Function|StorageWeakRef"
    used = re.search(internals + r"|untyped_storage|_cdata", path.read_text())
    assert used is None or path.parent.name == "activations"

"""Who may import whom, and through which doors."""

import ast
import importlib
from pathlib import Path

import pytest

import flwr_slfac

PACKAGE = Path(flwr_slfac.__file__).parent

# Each room imports only from itself and from rooms above it.
ROOMS = (
    (
        "errors",
        "counts",
        "folders",
        "_release",
        "memory_order",
        "states",
        "spool",
        "tensor_files",
        "traffic",
    ),
    ("checkpoint",),
    ("cutting",),
    ("codec",),
    ("lightweight",),
    ("split",),
    ("transport",),
    ("flower_parts", "report"),
    ("status",),
    ("progress",),
    ("front_mods",),
    ("workers",),
    ("client",),
    ("history", "mean_probe", "sampled"),
    ("node_link", "links", "wrapped"),
    ("flower_rounds",),
    ("flower_kinds", "strategy_state"),
    ("run_state",),
    ("callbacks", "flower_loop"),
    ("default_codecs", "strategy", "run"),
)
# The same within a room, for those that have rooms of their own.
INNER = {
    "codec": (
        ("wire", "layout", "packing", "kernels"),
        ("transforms",),
        ("slfac", "waterfill", "temporal"),
    ),
    "lightweight": (("activations", "pruning", "quantization"), ("setting", "cost")),
    "lightweight.pruning": (("dependency",), ("masks", "importance", "shrink")),
    "transport": (
        ("begins", "channels", "told", "packing"),
        ("records", "record_state", "snapshots"),
        ("delivery", "node_state", "carrier"),
        ("messages", "answers"),
        ("stream",),
    ),
    "split": (("place", "features"), ("protocol",), ("crossing",), ("round", "local")),
}
# Rooms are entered by their `__init__`, and these by theirs or as modules.
DOORS = (
    "codec.wire",
    "codec.packing",
    "codec.layout",
    "lightweight.pruning",
    "lightweight.quantization",
    "lightweight.activations",
    "transport.stream",
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
WITHOUT_FLOWER = {name for names in ROOMS[:6] for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
by_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)


def module_of(path: Path) -> str:
    """Return the dotted name of a file within the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    """Return the room that a file of the package is in."""
    return module_of(path).split(".")[0]


def imports(path: Path) -> list[tuple[str, str]]:
    """Return (module, name) of what a file imports, at any depth of its code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def own_imports(path: Path) -> list[tuple[str, str]]:
    """Return (dotted name within the package, name) of what a file imports of it."""
    package = "flwr_slfac."
    return [
        (module.removeprefix(package), name)
        for module, name in imports(path)
        if module.startswith(package)
    ]


@by_file
def test_imports_run_one_way(path: Path) -> None:
    """A file imports only from its own room and the rooms above it."""
    room = room_of(path)
    assert room in FLOOR, f"{room} is in no room: add it to ROOMS"
    for module, _ in own_imports(path):
        other = module.split(".")[0]
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}"


@pytest.mark.parametrize("room", INNER)
def test_imports_run_one_way_within_a_room(room: str) -> None:
    """The same holds for the rooms inside a room."""
    floors = {name: floor for floor, names in enumerate(INNER[room]) for name in names}
    depth = room.count(".") + 1

    def floor_of(module: str) -> int | None:
        parts = module.split(".")
        inside = ".".join(parts[:depth]) == room and len(parts) > depth
        return floors.get(parts[depth]) if inside else None

    for path in FILES:
        own = floor_of(module_of(path))
        for module, _ in own_imports(path):
            other = floor_of(module)
            if own is not None and other is not None:
                assert other <= own, f"{module_of(path)} imports {module}"


@by_file
def test_rooms_are_entered_by_their_doors(path: Path) -> None:
    """What is imported of another room is exported by that room, and not private."""
    for module, name in own_imports(path):
        if module.split(".")[0] == room_of(path) or module == "_release":
            continue
        where = f"{module_of(path)} imports {name} of {module}"
        assert "." not in module or module in DOORS, where
        exported = getattr(
            importlib.import_module(f"flwr_slfac.{module}"), "__all__", None
        )
        assert not name.startswith("_"), where
        assert exported is None or name in exported, where


@by_file
def test_no_private_name_is_imported(path: Path) -> None:
    """A name with an underscore stays in its file."""
    for module, name in own_imports(path):
        assert not name.startswith("_"), f"{module_of(path)} imports {name} of {module}"


@by_file
def test_split_training_needs_no_flower(path: Path) -> None:
    """Cutting, codecs and the two halves import no Flower, and nothing imports Ray."""
    for module, _ in imports(path):
        root = module.split(".")[0]
        assert root != "ray"
        assert root != "flwr" or room_of(path) not in WITHOUT_FLOWER
        assert root not in ("examples", "simulation", "tests")


@by_file
def test_flower_is_entered_by_its_public_doors(path: Path) -> None:
    """Flower's inner modules move between releases: only its public ones are used."""
    doors = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
    for module, name in imports(path):
        if module.split(".")[0] == "flwr":
            assert f"{module}.{name}".startswith(doors), module


@pytest.mark.parametrize(
    "module",
    ["split.round", "split.device_half", "split.evaluation", "split.local", "strategy"],
)
def test_the_round_names_no_feature(module: str) -> None:
    """A feature is an object with a null form; no step asks whether it is on."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    words = ("dropout", "mask", "prune", "quantiz", "_bits", "noise")
    names = {
        getattr(node, "attr", None) or getattr(node, "id", "")
        for node in ast.walk(ast.parse(path.read_text()))
    }
    assert not [name for name in names if any(word in name for word in words)]
    tested = {
        ast.unparse(node.left)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
    }
    assert not {name for name in tested if "front" in name or "lightweight" in name} - {
        # Whether a front came back is what a reply says, not which feature is on.
        "r.front",
    }

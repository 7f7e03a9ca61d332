"""How the simulation is found, what it may import, and that its examples run."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.measure import measure, tier_text
from simulation.tiers import read_tier

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "simulation" / "simulation"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES
]


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", [ROOT, ROOT / "simulation"], ids=["root", "app"])
def test_it_is_found_from_the_root_and_as_an_app(folder: Path, tmp_path: Path) -> None:
    """From the repository's root and from the app's folder it is one and the same."""
    code = "import simulation.scenario as s; print(s.__name__, s.__file__)"
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), *_extra()]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-2:] == [
        "simulation.scenario",
        str(PACKAGE / "scenario.py"),
    ]


def _extra() -> list[str]:
    """Return what was on the path already, for packages that are not installed."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [str(Path(folder).absolute()) for folder in given if folder]


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_examples_in_docstrings_run(module: str) -> None:
    """Every example in a docstring gives what it shows."""
    name = module.removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


# What makes a Flower App of it.
APP = {"server_app.py", "client_app.py", "chosen.py"}


def test_the_core_knows_no_flower() -> None:
    """Only the app imports Flower, nothing Ray or tests, only the clock simpy."""
    for path in FILES:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"ray", "tests", "examples"}, path
        assert "flwr" not in roots or path.name in APP, path
        assert "simpy" not in roots or path.parent.name == "clock", path


def test_imports_run_one_way() -> None:
    """Devices and channel know no clock, the clock no plan, a plan no scenario."""
    floors = (
        (
            "errors",
            "numbers",
            "draws",
            "tables",
            "row_files",
            "typed_texts",
            "functions",
            "adaptation",
        ),
        ("profiles", "reference", "typed_tables", "channel", "sampling"),
        ("tiers",),
        ("measured",),
        ("clock",),
        ("plan_costs", "scenario_channel", "scenario_training", "measure"),
        ("plan",),
        ("plan_table",),
        ("scenario",),
        ("world", "run_settings", "data_sources", "data"),
        ("work",),
        ("notes", "estimates", "cut_choice", "rungs", "device_choices"),
        ("observed", "results"),
        ("pictures", "virtual", "report_page", "chosen"),
        ("run_folder", "launch", "comparison"),
        ("server_app", "client_app"),
        ("__main__",),
    )
    floor = {name: height for height, names in enumerate(floors) for name in names}
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imports(path):
            if module.startswith("simulation."):
                assert floor[module.split(".")[1]] <= floor[own], f"{own}: {module}"


def test_this_machine_becomes_a_tier(tmp_path: Path) -> None:
    """What is measured here is a tier that is read again, with positive speeds."""
    measured = measure("float16", batch_size=2, repeats=1)
    path = tmp_path / "mine.toml"
    path.write_text(tier_text(measured, "mine"))
    tier = read_tier(path)
    assert tier.median().forward_flop_per_s == measured.forward_flop_per_s
    assert "our estimate" in tier.figures["compute_w"].source
    assert "float16" in tier.figures["encode_byte_per_s"].source

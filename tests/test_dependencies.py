"""What a device has to install is there for the machines that devices are."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEPENDENCIES = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
# Raspberry Pi OS and JetPack, and what current wheels are built for.
PLATFORMS = (
    "manylinux2014_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_28_aarch64",
)


def has_registry() -> bool:
    """Say whether pip finds an index at all."""
    command = [sys.executable, "-m", "pip", "--timeout", "5", "--retries", "0"]
    done = subprocess.run(
        [*command, "index", "versions", "packaging"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def registry() -> None:
    """Skip where no registry is reached."""
    if not has_registry():
        pytest.skip("no package registry is reached from here")


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_installs_on_aarch64(
    dependency: str, registry: None, tmp_path: Path
) -> None:
    """It resolves to a wheel for aarch64 Linux, with no compiler."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    done = subprocess.run(
        [
            *command,
            *platforms,
            "--python-version=3.11",
            "--only-binary=:all:",
            "--no-deps",
            "--ignore-installed",
            f"--target={tmp_path}",
            dependency,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

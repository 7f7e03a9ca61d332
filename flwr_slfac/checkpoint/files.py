"""The files of one checkpoint: written whole or not at all, read only if unharmed.

::

    round-000012/
        manifest.json         what this is, and length and SHA-256 of every file
        front.safetensors     the device-side model; any reader of safetensors opens it
        back.safetensors      the server-side model
        state.safetensors     all other tensors that the run goes on from
        values.json           how those tensors are nested, and all that is no tensor
        rounds.bin            what every round came to, so far

A checkpoint is written under another name and renamed when all of it is on the disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from flwr_slfac._release import RELEASE, compatible
from flwr_slfac.checkpoint.tree import pack, unpack
from flwr_slfac.errors import CheckpointError

FORMAT = 1
MANIFEST, VALUES, ROUNDS = "manifest.json", "values.json", "rounds.bin"
_TENSORS = ".safetensors"


def write_files(
    folder: Path, sections: Mapping[str, Any], rounds: bytes, facts: Mapping[str, Any]
) -> int:
    """Write a checkpoint; return its bytes.

    Parameters
    ----------
    folder : Path
        Its final name; one that is there is replaced.
    sections : mapping of str to nested value
        Each becomes a file of tensors.
    rounds : bytes
        What every round came to.
    facts : mapping
        JSON's values for the manifest.

    Raises
    ------
    CheckpointError
        If a value cannot be stored, or the disk is full, say; nothing is then left
        behind, and earlier checkpoints stay whole.
    """
    packed = {name: pack(value, name) for name, value in sections.items()}
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, (_, tensors) in packed.items():
            save_file(_unshared(tensors), part / f"{name}{_TENSORS}")
        values = {name: value for name, (value, _) in packed.items()}
        (part / VALUES).write_text(_json(values))
        (part / ROUNDS).write_bytes(rounds)
        files = {path.name: _facts_of(path) for path in sorted(part.iterdir())}
        about = {"format": FORMAT, "release": RELEASE, **facts, "files": files}
        text = _json({**about, "sha256": _sha256(_json(about).encode())})
        (part / MANIFEST).write_text(text)
        for path in [*part.iterdir(), part]:
            _sync(path)
        _put_in_place(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"{folder} cannot be written: {error}; make room, and resume the run from "
            "the checkpoint before"
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return sum(int(f["bytes"]) for f in files.values()) + len(text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises
    ------
    CheckpointError
        If it is missing or damaged, or of another format or release.
    """
    try:
        text = (folder / MANIFEST).read_text()
        about = json.loads(text)
        digest = about.pop("sha256")
        if digest != _sha256(_json(about).encode()):
            raise ValueError("its checksum is wrong")
        found, release = int(about["format"]), str(about["release"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged: {error}") from error
    if found != FORMAT or not compatible(release, RELEASE):
        raise CheckpointError(
            f"{folder} was written by flwr-slfac {release} in format {found}; this is "
            f"{RELEASE}, which reads its own minor release in format {FORMAT}"
        )
    return dict(about)


def read_files(
    folder: Path, about: Mapping[str, Any], names: list[str]
) -> dict[str, bytes]:
    """Return the content of files, each as the manifest says.

    Raises
    ------
    CheckpointError
        If one is missing, truncated or changed.
    """
    contents = {}
    for name in names:
        try:
            wanted = about["files"][name]
            data = (folder / name).read_bytes()
        except (OSError, KeyError) as error:
            raise CheckpointError(f"{folder}: {name} is missing ({error})") from error
        if len(data) != wanted["bytes"]:
            raise CheckpointError(
                f"{folder}: {name} has {len(data)} bytes instead of {wanted['bytes']}"
            )
        if _sha256(data) != wanted["sha256"]:
            raise CheckpointError(f"{folder}: {name} has another checksum: it changed")
        contents[name] = data
    return contents


def read_sections(
    folder: Path, about: Mapping[str, Any], names: list[str]
) -> tuple[dict[str, Any], bytes]:
    """Return sections as they were written, and what every round came to.

    Raises
    ------
    CheckpointError
        If a file is missing, truncated or changed.
    """
    files = [f"{name}{_TENSORS}" for name in names]
    contents = read_files(folder, about, [*files, VALUES, ROUNDS])
    values = json.loads(contents[VALUES])
    sections = {
        name: unpack(values[name], load(contents[file]))
        for name, file in zip(names, files, strict=True)
    }
    return sections, contents[ROUNDS]


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of which no two share memory, as the format wants it."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return own


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, sort_keys=False)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _facts_of(path: Path) -> dict[str, int | str]:
    """Return the length and the checksum of a file, without holding it whole."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(part: Path, folder: Path) -> None:
    """Rename a written checkpoint; one of that name (it was damaged) goes before."""
    if folder.exists():
        old = part.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(folder)
    _sync(folder.parent)

"""Replace an attribute of a class for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(owner: type, name: str, value: Any) -> Iterator[None]:
    """Set ``owner.name`` inside the block; afterwards it is what it was."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)

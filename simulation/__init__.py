"""Makes `simulation` importable from the repository root as Flower imports it.

Flower puts this folder on sys.path and finds the package inside; here `__path__` leads
to the same files under the same names.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent / "simulation")]

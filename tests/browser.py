"""A page in headless Chromium: what it draws, and what its console says."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Appended to a copy of the page: once all is drawn, writes down what Plotly draws.
_READ_BACK = """<script>
const drawn = {};
for (const div of document.querySelectorAll(".plot"))
  drawn[div.id] = {
    svg: div.querySelectorAll("svg.main-svg").length,
    marks: div.querySelectorAll("path.point, .bars path, .lines path").length,
    traces: div._fullData.map(t => ({name: t.name, x: [...t.x], y: [...t.y]})),
  };
document.title = "drawn";
const place = document.createElement("pre");
place.id = "read-back";
place.textContent = JSON.stringify(drawn);
document.body.appendChild(place);
</script></body></html>"""
# What Chromium itself complains of where there is no desktop is no fault of a page.
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] \"(.*?)\"", re.DOTALL)


def chromium() -> str:
    """Return the browser's path, or skip the test."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser on the path: none of {', '.join(NAMES)}")


def drawn_by(page: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a page draws by plot, and what it says on the console.

    Parameters
    ----------
    page : Path
        The page.
    folder : Path
        For the browser's own files and a copy of the page.
    """
    copy = folder / "read-back.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body></html>", _READ_BACK), encoding="utf-8")
    command = [
        *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=20000"),
        *(f"--user-data-dir={folder / 'browser'}", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="read-back">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    unescaped = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(unescaped), _CONSOLE.findall(done.stderr)

"""The static files: what is vendored is what was published, and no module writes HTML."""

import hashlib
import json
import re
from pathlib import Path

import actors.page

STATIC = Path(actors.page.__file__).parent / "static"
UPLOT = STATIC / "vendor" / "uplot"
OURS = [path for path in STATIC.rglob("*.js") if "vendor" not in path.parts]
FORBIDDEN = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "DOMParser",
    "eval(",
    "new Function",
    "cssText",
    "srcdoc =",
)
MAX_LINES = 320


def test_uplot_is_the_published_one() -> None:
    known = json.loads((UPLOT / "vendor.json").read_bytes())
    assert f"(v{known['version']})" in (UPLOT / "uPlot.esm.js").read_text()[:400]
    assert known["integrity"].startswith("sha512-")
    files = {path.name for path in UPLOT.iterdir()} - {"vendor.json"}
    assert set(known["sha256"]) == files
    for name, digest in known["sha256"].items():
        assert hashlib.sha256((UPLOT / name).read_bytes()).hexdigest() == digest, name


def test_no_module_writes_html_or_sets_a_style_attribute() -> None:
    for path in OURS:
        text = path.read_text()
        found = [name for name in FORBIDDEN if name in text]
        assert not found, (path.name, found)
        assert 'setAttribute("style"' not in text, path.name


def test_the_document_has_no_inline_code_and_everything_that_is_named_is_there() -> None:
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert all(match.strip() == "" for match in re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL))
    for address in re.findall(r'(?:href|src)="/static/([^"]+)"', text):
        assert (STATIC / address).is_file(), address
    for path in OURS:
        for address in re.findall(r'(?:from|import\()\s*"(\.[^"]+)"', path.read_text()):
            assert (path.parent / address).resolve().is_file(), (path.name, address)


def test_modules_stay_small() -> None:
    for path in OURS:
        assert len(path.read_text().splitlines()) <= MAX_LINES, path.name

"""The site of the documentation is built without a warning, whole, and needs nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

import repfuse
from repfuse.commandline.cli import main

pytest.importorskip("mkdocs", reason="pip install 'repfuse[docs]'")

FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//|<link[^>]*stylesheet[^>]*https?://"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_whole(site: Path) -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= set(pages)
    assert all(f'id="repfuse.{name}"' in pages["reference.html"] for name in repfuse.__all__)
    assert all(f"repfuse {name}" in pages["cli.html"] for name in main.commands if name != "fuse")
    assert pages["exactness.html"].count("<math") > 30
    assert all(f'href="{name}"' in pages["faq.html"] for name in pages.keys() - {"404.html", "faq.html"})
    for name, text in pages.items():
        assert not FETCHED.search(text), name
        assert "arithmatex" not in text, name

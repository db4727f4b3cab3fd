"""Hooks of the documentation's site (mkdocs.yml): the pages that are made, links out of docs/, and equations.

On GitHub the same Markdown is read as it is: there links lead to files of the repository, and `$...$` is math.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from click.testing import CliRunner
from mkdocs.structure.files import File

import repfuse
from repfuse.commandline.cli import main

REPOSITORY = "https://github.com/repfuse/repfuse/blob/main"

FILES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "example.md": "examples/README.md"}
"""Pages that are files of the repository outside docs/."""

PAGES = {path: page for page, path in FILES.items()}


def _commands() -> str:
    """What `--help` says for each command."""
    text = "# The command line\n"
    for name in sorted(main.commands, key=lambda name: (name != "fuse", name)):
        said = CliRunner().invoke(main, [name, "--help"], prog_name="repfuse", terminal_width=100).output
        title = "repfuse" if name == "fuse" else f"repfuse {name}"
        text += f"\n## {title}\n\n```text\n{said}```\n"
    return text


def _reference() -> str:
    """The docstrings of all that is public."""
    names = [f"repfuse.{name}" for name in repfuse.__all__]
    names += ["repfuse.integrations.onnx_ir.FusePass", "repfuse.integrations.openvino.read_model"]
    return "# The Python API, all of it\n\n" + "\n".join(f"::: {name}\n" for name in names)


MADE = {"cli.md": _commands, "reference.md": _reference}
"""Pages that are made from the code."""

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
"""The target of a link within the repository."""

MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_config(config: Any) -> Any:
    """Let no page be missing in the navigation."""
    listed = set(re.findall(r"[\w-]+\.md", str(config.nav)))
    rest = sorted(path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in listed)
    if rest:
        config.nav.append({"More": rest})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/."""
    for page, path in FILES.items():
        files.append(File.generated(config, page, content=Path(path).read_text(encoding="utf-8")))
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site, or to the repository where the site has none."""
    source = FILES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        anchor = link[2] or ""
        if path in PAGES:
            return PAGES[path] + anchor
        return path.removeprefix("docs/") + anchor if path.startswith("docs/") else f"{REPOSITORY}/{path}"

    return LINK.sub(on_site, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write equations as MathML, which browsers render themselves."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(found[2]), display=display)

    return MATH.sub(mathml, content)

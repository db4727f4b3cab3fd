"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

NOT_RUN = "Not run by the tests: "
"""How the line above a block begins that cannot be run; it goes on with the reason."""


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: As the fence says; `sh` for an indented block.
        text: What stands in it.
        line: Where it begins, counted from 1.
        reason: Why it is not run; empty where it is.
    """

    language: str
    text: str
    line: int
    reason: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines of a shell, continued lines joined, without comments."""
        lines = re.sub(r"\\\n *", " ", self.text).splitlines()
        return [line for each in lines if (line := re.sub(r"(^|\s)#.*", "", each).strip())]


def blocks(text: str) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    before = ""
    for token in MarkdownIt().parse(text):
        if token.type == "inline":
            before = token.content
        elif token.type == "html_block":
            before = ""
        elif token.type in ("fence", "code_block"):
            assert token.map
            reason = before.strip("*").removeprefix(NOT_RUN) if before.startswith(f"*{NOT_RUN}") else ""
            language = token.info.split(" ")[0] if token.type == "fence" else "sh"
            yield Block(language, token.content, token.map[0] + 1, reason)
            before = ""


BLOCKS = {page: list(blocks(text)) for page, text in TEXTS.items()}

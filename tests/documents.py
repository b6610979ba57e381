"""Code in Markdown, for the tests that run it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def fenced(path):
    """Blocks of a Markdown file: line number, the reason why one is not to be run, language, code."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    pattern = r"(?:<!-- skip: (?P<reason>.+?) -->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield text[: match.start("code")].count("\n") + 1, match["reason"], match["language"], match["code"]


def blocks(path):
    """Its Python blocks: line number, reason, code."""
    return ((line, reason, code) for line, reason, language, code in fenced(path) if language == "python")

"""How the reference reads our docstrings: what is plain in the source text is made what Markdown and griffe call it."""

import re
import textwrap
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite that of a module, class, function or attribute."""
        if obj.docstring:
            for pattern, spelled in _SPELLINGS:
                obj.docstring.value = re.sub(pattern, spelled, obj.docstring.value, flags=re.MULTILINE)


def _as_code(section: re.Match[str]) -> str:
    """Spell "Examples", as griffe does, and fence what has no prompts."""
    code = textwrap.dedent(section[1]).strip("\n")
    if ">>>" not in code:
        code = f"```python\n{code}\n```"
    return "Examples:\n" + textwrap.indent(code, "    ") + "\n\n"


_SPELLINGS = (
    (r"^Example:\n((?:[ ]{4}.*\n?|\n)+)", _as_code),
    (r"^Source:\s+", "*Source:* "),
    (r"^::\n", ""),
    (r"::$", ":"),
    (r"^( +\w+: )>", r"\1\>"),  # "at least", not a quotation
)

"""`import ugr_fast` is light and its names are all there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import ugr_fast
from documents import ROOT


def test_import_needs_numpy_alone():
    heavy = "{'torch', 'transformers', 'pyarrow', 'matplotlib', 'tyro', 'rich'}"
    code = f"import sys, ugr_fast; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names():
    assert all(hasattr(ugr_fast, name) for name in ugr_fast.__all__)
    assert {"SidTrie", "decode", "metrics", "__version__"} <= set(dir(ugr_fast))
    assert ugr_fast.metrics.__name__ == "ugr_fast.metrics"
    with pytest.raises(AttributeError, match="module 'ugr_fast' has no attribute 'nothing'"):
        _ = ugr_fast.nothing


def test_the_version_is_that_of_cargo_and_the_changelog_knows_it():
    release = re.search(r'^version = "(\d+\.\d+\.\d+)', (ROOT / "Cargo.toml").read_text("utf-8"), re.MULTILINE)[1]
    assert ugr_fast.__version__.startswith(release)
    assert f"\n## [{release}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for name in ("pyproject.toml", "CITATION.cff"):
        assert not re.search(r"^version\b", (ROOT / name).read_text("utf-8"), re.MULTILINE), f"{name} states one too"

"""`import ugr_fast` is light and its names are all there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ugr_fast


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

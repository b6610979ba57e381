"""What is not installed is named with the command that installs it, however one asks for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import ugr_fast
from ugr_fast.extras import EXTRAS, NEED_TORCH, install, needed_for

PACKAGE = Path(ugr_fast.__file__).parent
SUBMODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
TORCH = "pip install 'ugr-fast[train]'"


HIDE = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in {modules} else find_spec(name, *more)
"""


def without(modules, code):
    """What a fresh interpreter that does not find `modules` prints."""
    code = HIDE.format(modules=modules) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_extras_are_those_of_the_package():
    lines = [re.fullmatch(r"([\w-]+)>=\S+ ?; extra == ['\"](\w+)['\"]", line) for line in requires("ugr-fast")]
    brought = [(match[2], match[1].removesuffix("-cpu").replace("-", "_")) for match in lines if match]
    for extra, modules in EXTRAS.items():
        assert sorted(modules) == sorted(module for name, module in brought if name == extra)


def test_without_extras_submodules_work_or_say_which_one_to_install():
    code = f"""
import importlib, json
said = {{}}
for name in {SUBMODULES!r}:
    try:
        importlib.import_module("ugr_fast." + name)
    except ImportError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
    said = json.loads(without({module for modules in EXTRAS.values() for module in modules}, code))
    assert said == {name: f"ugr_fast.{name} needs torch: {TORCH}" for name in NEED_TORCH}


@pytest.mark.parametrize(
    "code",
    ["uf.decode", "from ugr_fast import decode", "import ugr_fast.decode", "from ugr_fast.decode import beam_search"],
)
def test_every_way_to_ask_gets_the_same_answer(code):
    asked = f"import ugr_fast as uf\ntry:\n    {code}\nexcept ImportError as error:\n    print(error)"
    assert without({"torch"}, asked) == f"ugr_fast.decode needs torch: {TORCH}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft --data d --sids s --out o", f"ugr_fast.sft needs torch: {TORCH}"),
        ("recommend --run r --history h", f"ugr_fast.recommend needs torch: {TORCH}"),
        ("prepare --events e.csv --out o", "reading and writing data needs pyarrow: pip install 'ugr-fast[data]'"),
    ],
)
def test_commands_say_it_too(arguments, message, tmp_path):
    (tmp_path / "e.csv").touch()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "items.json").write_text('{"titles": ["h"], "ids": ["0"]}')
    code = f"""
import os
from ugr_fast.cli import main
os.chdir({str(tmp_path)!r})
sys.stderr = sys.stdout
try:
    main({arguments.split()!r})
except SystemExit as stop:
    print(stop.code)
"""
    assert without({"torch", "pyarrow"}, code) == f"ugr-fast: {message}\n2\n"


def test_what_no_extra_brings_is_left_to_python():
    assert install(None) == install("numpy") == ""
    assert install("transformers.models") == TORCH
    with pytest.raises(ModuleNotFoundError, match="'einops'"), needed_for("an RQ-VAE"):
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

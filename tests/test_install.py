"""What `make wheel` left in dist/ works where there is nothing else: no checkout, no torch, and no Rust for a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import README, ROOT, blocks

pytestmark = pytest.mark.slow

DATA = {"report/page.css", "report/page.js", "py.typed", "_core.pyi"}
LIGHT = (
    *("abstention", "advantages", "arrays", "baselines", "beam", "configs", "decisions", "doctor", "extras", "files"),
    *("metrics", "packing", "progress", "recalibration", "rewards", "trie"),
)


def built(pattern):
    """The one file of dist/ that fits."""
    found = sorted((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist/ holds {len(found)} files {pattern}: run `make wheel`"
    return found[0]


@dataclass(frozen=True)
class Place:
    """A virtual environment in a folder of its own."""

    folder: Path
    path: str

    def __call__(self, program, *arguments, code=0):
        """Run a program of the environment and return what it said."""
        command = shutil.which(program, path=self.folder / ("Scripts" if os.name == "nt" else "bin"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environment = {**kept, "PATH": self.path, "PYTHONUTF8": "1", "NO_COLOR": "1"}
        done = subprocess.run(
            [command, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def place(request, tmp_path_factory):
    """Where the package has been installed; without Rust for the wheel."""
    folder, file = tmp_path_factory.mktemp("place"), built(request.param)
    venv.create(folder, with_pip=True)
    folders, binary = os.environ["PATH"].split(os.pathsep), []
    if file.suffix == ".whl":
        folders = [entry for entry in folders if not shutil.which("cargo", path=entry)]
        binary = ["--only-binary", ":all:"]
    place = Place(folder, os.pathsep.join(folders))
    place("python", "-m", "pip", "install", "--quiet", *binary, str(file))
    return place


def test_what_is_in_the_wheel():
    path = built("*.whl")
    assert path.stat().st_size < 2e6
    assert "-cp310-abi3-" in path.name
    if sys.platform == "linux":
        assert "manylinux_2_17_" in path.name
    inside = zipfile.ZipFile(path).namelist()
    assert {f"ugr_fast/{name}" for name in DATA} <= set(inside)
    folders = {name.partition("/")[0] for name in inside}
    assert folders == {"ugr_fast", "-".join(path.name.split("-")[:2]) + ".dist-info"}


def test_what_is_in_the_sdist():
    path = built("*.tar.gz")
    assert path.stat().st_size < 4e6
    root = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    assert inside >= {"Cargo.lock", "LICENSE", "README.md", "rust/lib.rs", "tests/reference.py"}
    assert inside >= {f"python/ugr_fast/{name}" for name in DATA}


def test_little_else_comes_with_it(place):
    installed = place("python", "-m", "pip", "list", "--format", "freeze").lower()
    assert "ugr-fast==" in installed
    assert not [name for name in ("torch", "transformers", "pyarrow", "matplotlib") if name in installed]
    where = place("python", "-c", "import ugr_fast; print(ugr_fast.__file__)").strip()
    assert Path(where).resolve().is_relative_to(place.folder.resolve())
    assert all((Path(where).parent / name).is_file() for name in DATA)


@pytest.mark.parametrize("code", [code for _, reason, code in blocks(README) if not reason])
def test_the_lines_of_the_readme(place, code):
    place("python", "-W", "error", "-c", code)


@pytest.mark.parametrize("module", LIGHT)
def test_the_examples_of_the_light_modules(place, module):
    """With numpy alone, as each docstring shows it."""
    code = f"""
import doctest
import ugr_fast.{module} as module
for example in doctest.DocTestFinder(exclude_empty=True).find(module):
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(example)
"""
    assert place("python", "-W", "error", "-c", code) == ""


def test_what_needs_more_says_so(place):
    torch = "needs torch: pip install 'ugr-fast[train]'\n"
    asked = place("python", "-c", "from ugr_fast.decode import beam_search", code=1)
    assert asked.endswith(f"ImportError: ugr_fast.decode {torch}")
    told = place("ugr-fast", "sft", "--data", "d", "--sids", "s", "--out", "o", code=2)
    assert told == f"ugr-fast: ugr_fast.sft {torch}"
    found = place("ugr-fast", "doctor")
    assert f"ugr-fast {place('ugr-fast', '--version').strip()}, Python " in found
    assert "data: pyarrow missing; pip install 'ugr-fast[data]'\n" in found

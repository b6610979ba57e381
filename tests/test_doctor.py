"""`ugr-fast doctor` tells what is there, and ends with 2 and the remedy if something is wrong."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest
from pipeline import call
from ugr_fast import doctor
from ugr_fast.extras import EXTRAS


def versions(**changed):
    """A stand-in for `importlib.metadata.version`; None for what is not installed."""

    def version(name):
        if changed.get(name, "99") is None:
            raise metadata.PackageNotFoundError(name)
        return changed.get(name, "99")

    return version


def test_as_text_and_as_json():
    text, found = call("doctor"), call("doctor", "--json")
    assert (text.code, found.code, text.err, found.err) == (0, 0, "", "")
    found = json.loads(found.out)
    assert found["versions"]["ugr-fast"] == metadata.version("ugr-fast")
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["instructions"] in ("v3", "neon", "scalar")
    assert found["threads"]["cores"] >= 1
    assert list(found["packages"]) == ["base", *EXTRAS]
    assert set(found["packages"]["base"]) == {"numpy", "safetensors", "tyro", "rich"}
    for packages in found["packages"].values():
        assert all(f"{name} {version or 'missing'}" in text.out for name, version in packages.items())


def test_a_missing_extra_is_no_problem_and_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(metadata, "version", versions(**{"faiss-cpu": None}))
    found = doctor.examine()
    assert (found.install, found.problems) == ({"sids": "pip install 'ugr-fast[sids]'"}, [])
    line = "sids: faiss-cpu missing, vector-quantize-pytorch 99; pip install 'ugr-fast[sids]'"
    assert line in doctor.text(found).splitlines()


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("torch", "2.8.1+cpu", "torch 2.8.1+cpu is older than 2.9: pip install 'torch>=2.9'"),
        ("numpy", None, "numpy is missing: pip install 'numpy>=1.26'"),
        ("torch", "2.9", None),
        ("torch", "2.10.0a0+git", None),
    ],
)
def test_what_is_missing_or_too_old_is_a_problem(monkeypatch, name, version, problem):
    monkeypatch.setattr(metadata, "version", versions(**{name: version}))
    done = call("doctor")
    assert (done.code, done.err) == ((2, f"ugr-fast: {problem}\n") if problem else (0, ""))
    assert done.out.startswith("ugr-fast 99, ")


def test_a_torch_that_does_not_load(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    found = doctor.examine()
    assert found.problems == ["torch does not load (libcudart.so.13: cannot open shared object file); install it again"]
    assert "devices: none without torch" in doctor.text(found)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.examine()
    assert (found.devices, found.problems) == ([], [])
    assert list(found.threads) == ["cores"]

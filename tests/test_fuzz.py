"""Damaged files are refused with a message that says where, or read: cases that fuzzing kept, a few at random."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for package in ("torch", "pyarrow", "matplotlib"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import fuzz_files  # noqa: E402

each_target = pytest.mark.parametrize("name", fuzz_files.TARGETS)
damages = st.tuples(*[st.integers(0, 63)] * 2, *[st.integers(0, 2**16)] * 2).map(list)


@each_target
def test_what_was_found_stays_mended(name):
    assert fuzz_files.check(name, [])
    cases = fuzz_files.corpus(name)
    assert cases
    for case in cases:
        fuzz_files.check(name, case)


@each_target
@settings(max_examples=3)
@given(case=st.lists(damages, min_size=1, max_size=3))
def test_damaged_files_are_refused_or_read(name, case):
    fuzz_files.check(name, case)


@given(st.binary(max_size=60), st.integers(0, 2**32 - 1))
def test_every_input_is_a_case_and_varies_into_one(data, seed):
    case = json.loads(fuzz_files.vary(data, 4096, seed))
    assert fuzz_files.numbers(json.dumps(case).encode()) == case

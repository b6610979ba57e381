"""Files and folders are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.files import (
    CHECKSUMS,
    check_checksums,
    check_new_folder,
    new_file,
    new_folder,
    read_json,
    read_json_lines,
    read_object,
    write_checksums,
    write_json,
    writing,
)


def half_written(target, error):
    """Write something, then raise."""
    with target as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
        raise error


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": 1})
    assert read_json(path, "x") == {"é": 1}
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            half_written(new_file(path), error)
    assert read_json(path, "x") == {"é": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            half_written(new_folder(tmp_path / "deep" / "out"), error)
    assert os.listdir(tmp_path / "deep") == []
    (tmp_path / "deep" / ".out.99999999.tmp").mkdir()  # of a process that was killed
    (tmp_path / "deep" / f".out.{os.getppid()}.tmp").mkdir()  # of one that is running
    (tmp_path / "deep" / ".outer.99999999.tmp").mkdir()  # of another folder
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("whole")
        assert not (tmp_path / "deep" / "out").exists()
    assert sorted(os.listdir(tmp_path / "deep")) == sorted([f".out.{os.getppid()}.tmp", ".outer.99999999.tmp", "out"])
    with pytest.raises(FileExistsError, match="`out` must be a new or empty folder"):
        check_new_folder(tmp_path / "deep" / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="link is a file"):
        check_new_folder(tmp_path / "link" / "out")


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    for text in ("one", "two"):
        with new_folder(tmp_path / "out", replaces=True) as folder:
            (folder / text).write_text(text)
        assert os.listdir(tmp_path / "out") == [text]
    with pytest.raises(RuntimeError):
        half_written(new_folder(tmp_path / "out", replaces=True), RuntimeError)
    assert os.listdir(tmp_path / "out") == ["two"]
    (tmp_path / ".out.old.99999999.tmp").mkdir()  # of a process that was killed as it replaced
    (tmp_path / ".out.old").mkdir()  # nobody's but the user's
    with new_folder(tmp_path / "out", replaces=True):
        pass
    assert sorted(os.listdir(tmp_path)) == [".out.old", "out"]


def test_the_current_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(".") as folder:
        (folder / "a").write_text("whole")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "r"), RuntimeError("I/O (os error 28)")],
)
def test_errors_of_the_disk_get_a_place_and_a_remedy(error):
    message = r"cannot write here \(.*\); free space there or choose another place"
    with pytest.raises(OSError, match=message) as caught, writing("here"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass():
    for error in (ValueError("v"), FileNotFoundError(errno.ENOENT, "gone"), KeyError("k")):
        with pytest.raises(type(error)) as caught, writing("here"):
            raise error
        assert caught.value is error


def test_json_that_is_missing_or_malformed_names_its_maker(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.json does not exist; `ugr-fast x` makes it"):
        read_json(tmp_path / "a.json", "ugr-fast x")
    for content in (b"", b"{", b"\xff"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.json is not readable JSON .*; make it again with `ugr-fast x`"):
            read_json(tmp_path / "a.json", "ugr-fast x")


DEEP = b"[" * 100_000
NO_USE = {"deep": DEEP, "long": b"9" * 5000, "half": b'"\\ud800"'}


@pytest.mark.parametrize("content", NO_USE.values(), ids=NO_USE)
def test_json_of_no_use_is_refused_like_what_is_none(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.json is not readable JSON .*; make it again with `ugr-fast x`"):
        read_json(path, "ugr-fast x")
    path.write_bytes(content + b"\n{}\n")
    with pytest.raises(ValueError, match=r"a.json is not JSON in line 1 .*; remove that line"):
        read_json_lines(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"step": "3"}', '{"step": true}', '{"step": 3.0}'])
def test_an_object_has_its_fields_or_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"a.json must be an object with `step` \(int\), got .*; make it .* `ugr-fast x`"
    ):
        read_object(tmp_path / "a.json", "ugr-fast x", step=int)
    (tmp_path / "a.json").write_text('{"step": 3, "more": null}')
    assert read_object(tmp_path / "a.json", "ugr-fast x", step=int) == {"step": 3, "more": None}


def test_a_line_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n3\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"a.jsonl is not JSON in line 2 \(not an object: 3\); remove that line"):
        read_json_lines(tmp_path / "a.jsonl")


@given(st.binary(min_size=1, max_size=40), st.data())
def test_every_change_to_a_file_is_seen(content, draw):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir()
        path = folder / "sub" / "a b"
        path.write_bytes(content)
        check_checksums(folder)  # nothing recorded, nothing to check
        write_checksums(folder, ["sub/a b"])
        check_checksums(folder)
        position, bit = draw.draw(st.integers(0, len(content) - 1)), draw.draw(st.integers(0, 7))
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        for other in (bytes(flipped), content[:position], content + b"\0"):
            path.write_bytes(other)
            with pytest.raises(ValueError, match="a b is truncated or altered"):
                check_checksums(folder)
        path.unlink()
        with pytest.raises(ValueError, match="a b is missing"):
            check_checksums(folder)
        assert CHECKSUMS in os.listdir(folder)


def test_another_command_beside_this_one_keeps_its_unfinished_folder(tmp_path):
    with new_folder(tmp_path / "data.v2") as other:
        with new_folder(tmp_path / "data") as mine:
            (mine / "a").write_text("a")
        (other / "b").write_text("b")
    assert (tmp_path / "data" / "a").exists()
    assert (tmp_path / "data.v2" / "b").exists()

"""Files and folders that are whole or absent: written under a temporary name, then renamed.

A folder may carry SHA256SUMS, the format of `sha256sum -c`, which tells an altered file from the one that was written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

T = TypeVar("T")
CHECKSUMS = "SHA256SUMS"
_UMASK = os.umask(0)
os.umask(_UMASK)  # there is no other way to read it
_LEFTOVER = re.compile(r"\..+?\.(\d+)(?:\.\d+)?\.tmp")  # name, process and, for a file, thread
_UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOTDIR)
)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say what to do when `path` cannot be written because the disk is full, read-only or failing.

    Raises:
        OSError: that message, in place of the error that named neither file nor remedy.
    """
    try:
        yield
    except Exception as error:  # Rust's writers raise their own type, which holds "(os error 28)" as text
        if getattr(error, "errno", None) not in _UNWRITABLE and "(os error " not in str(error):
            raise
        raise OSError(
            f"cannot write {path} ({str(error) or type(error).__name__}); free space there or choose another place, "
            "then repeat the command"
        ) from error


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends well, and vanishes when it does not.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with new_file(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")
    try:
        with writing(path):
            yield temporary
            _sync(temporary)
            _share(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str], *, replaces: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: where it will be.
        replaces: whether to take the place of a folder that holds something.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds something and is not to be replaced.
    """
    path = Path(path).absolute()  # "." has no name
    if not replaces:
        check_new_folder(path)
    temporary, old = (path.parent / f".{path.name}.{kind}{os.getpid()}.tmp" for kind in ("", "old."))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(path)
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
                    _share(file)
            if path.exists():
                path.rename(old) if replaces else path.rmdir()
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder under a temporary name, so that `path` is whole or absent if the process is killed meanwhile."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    path.rename(temporary)
    shutil.rmtree(temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in `folder`, which is ours alone."""
    for path in folder.glob(".*.tmp"):
        owner = _LEFTOVER.fullmatch(path.name)
        if owner and not _is_running(int(owner[1])):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `path`."""
    for left in path.parent.iterdir():
        owner = re.fullmatch(rf"\.{re.escape(path.name)}\.(?:old\.)?(\d+)\.tmp", left.name)
        if owner and not _is_running(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # where signal 0 would end it
        return process != os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_leftover(path: Path) -> bool:
    """Whether `path` is a temporary file or folder that a killed process left."""
    return _LEFTOVER.fullmatch(path.name) is not None


def finite(value: Any) -> Any:
    """Return JSON values with None for what JSON has no number for.

    Example:
        >>> finite({"a": [1.0, float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something or cannot be made, before any work is done for it.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds something.
        NotADirectoryError: `path` lies below a file.
        PermissionError: the folder that it lies in cannot be written.
    """
    check_place(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"`out` must be a new or empty folder, and {path} exists; name another or remove it")


def check_place(path: Path) -> None:
    """Refuse a path that no folder can be made at.

    Raises:
        NotADirectoryError: it lies below a file.
        PermissionError: the folder that it lies in cannot be written.
    """
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(f"`out` must lie in a folder, and {above} is a file; name another place for {path}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"`out` must lie where it can be written, and {above} is read-only; name another place")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(text: str | bytes, **options: Any) -> Any:
    r"""Parse JSON as `json.loads` does, and refuse all that has no use with one kind of error.

    Args:
        text: the JSON.
        options: of `json.loads`.

    Raises:
        ValueError: no JSON, nested too deeply, a number too long, half of a character.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
        >>> parse_json('"\ud800"')
        Traceback (most recent call last):
        ...
        ValueError: it holds half of a character
    """
    try:
        found = json.loads(text, **options)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a character") from error
    return found


def read_json(path: Path, maker: str) -> Any:
    """Read a JSON file; `maker` is the command that writes it, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `{maker}` makes it")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); make it again with `{maker}`") from error


def read_object(path: Path, maker: str, **fields: type) -> dict[str, Any]:
    """Read a JSON file that is an object with these fields, each exactly of its type.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a field is missing or of another type.
    """
    found = read_json(path, maker)
    if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in fields.items()):
        wanted = ", ".join(f"`{name}` ({kind.__name__})" for name, kind in fields.items()) or "any fields"
        raise ValueError(f"{path} must be an object with {wanted}, got {str(found)[:60]}; make it again with `{maker}`")
    return found


def write_arrays(path: Path, arrays: dict[str, Any], how: Mapping[str, Any]) -> None:
    """Write NumPy arrays as safetensors, and what is to be known of them as JSON in the header."""
    with new_file(path) as temporary:
        save_file(arrays, temporary, metadata={"how": json.dumps(dict(how), sort_keys=True)})


def read_arrays(path: Path, make: Callable[[dict[str, Any]], T], maker: str) -> tuple[dict[str, Any], T]:
    """Return what is known of the arrays that `write_arrays` wrote, and what `make` makes of them.

    Args:
        path: the file.
        make: of arrays by name; refuses what is wrong with KeyError, TypeError or ValueError.
        maker: the command that writes it, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated or altered.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `{maker}` makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            made = make({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return dict(parse_json((file.metadata() or {})["how"])), made
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); make it again with `{maker}`") from error


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Record the SHA-256 of the files `names` of `folder`, paths relative to it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("whole")
        >>> write_checksums(folder, ["a.txt"])
        >>> check_checksums(folder)
        >>> _ = (folder / "a.txt").write_text("wholf")
        >>> check_checksums(folder)
        Traceback (most recent call last):
        ...
        ValueError: .../a.txt is truncated or altered: it is not the file that was written
    """
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in sorted(names))
    with new_file(folder / CHECKSUMS) as temporary:
        temporary.write_text(lines, encoding="utf-8")


def check_checksums(folder: Path) -> None:
    """Compare the files of `folder` with its SHA256SUMS; a folder without one passes.

    Raises:
        ValueError: a file is missing, truncated or altered.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _sha256(folder / name) != wanted:
            raise ValueError(f"{folder / name} is truncated or altered: it is not the file that was written")


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 of the names and contents of what a model is made of: its weights and config.json.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}")
        >>> fingerprint(folder)[:8]
        'f0c39c91'
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        if path.is_file():
            digest.update(f"{_sha256(path)}  {path.name}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; [] if there is none, and a last line that was cut off is dropped.

    Raises:
        ValueError: another line is no JSON object.
    """
    kept: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            kept.append(_object(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path} is not JSON in line {number} ({error}); remove that line") from error
    return kept


def _object(text: str) -> dict[str, Any]:
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"not an object: {text[:60]}")
    return found


def _share(path: Path) -> None:
    """Let others read a file as they may read any new one: some writers make theirs for the owner alone."""
    path.chmod(0o666 & ~_UMASK)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())

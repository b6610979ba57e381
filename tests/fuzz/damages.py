"""Damages to files, each named by four numbers, so that a list of them is a short case that can be kept and varied.

    [file, kind, place, value]      each taken modulo how many there are

What suits a file depends on its suffix: a bit of any file may flip, a value of JSON may become odd, the header of a
safetensors file may lie about what follows, a column of parquet may change its type. Bytes drawn at random would not
get beyond the first brace.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable

import numpy as np

Damage = Callable[[bytes, int, int], bytes]

DEEP = "[" * 5000 + "]" * 5000
ODD = [
    *("null", "true", "false", "0", "-1", "1", "2", "0.5", "1e-320", "1e308", "1e999", "-1e999", "NaN"),
    *("2147483648", "4294967296", "9223372036854775808", "18446744073709551617", "9" * 400, "9" * 5000),
    *('""', '"x"', '"0"', '"ß"', '"\\ud800"', '"\\u0000"', '"../x"', '"BF16"', '"F64"', '"' + "long " * 100 + '"'),
    *("[]", "[[]]", "[0]", "[-1, 2]", "{}", '{"a": 1}', DEEP),
]
"""JSON values, as they are written, that something may not expect."""
CELLS = (
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "nan",
    "9" * 30,
    "x",
    '"',
    '""',
    "\t",
    ",",
    "\n",
    "\r",
    "\0",
    "ß",
    "\ufeff",
    "[]",
    "[0, 'x']",
)
"""Texts of a table."""
NUMBERS = (np.nan, np.inf, -np.inf, -1, 0, 1, 2, 0.5, 7, 1e30, 2**31, 2**62)
DTYPES = ("f4", "f8", "f2", "i8", "i4", "i1", "u1", "u8", "?")


# ---- any file


def flip(content: bytes, place: int, value: int) -> bytes:
    """Flip a bit."""
    found = bytearray(content)
    if found:
        found[place % len(found)] ^= 1 << value % 8
    return bytes(found)


def cut(content: bytes, place: int, _: int) -> bytes:
    """Leave the end away."""
    return content[: place % (len(content) + 1)]


def take_out(content: bytes, place: int, value: int) -> bytes:
    """Leave something away."""
    place %= len(content) + 1
    return content[:place] + content[place + 1 + value % 64 :]


def put_in(content: bytes, place: int, value: int) -> bytes:
    """Put in a byte, or repeat a stretch."""
    place %= len(content) + 1
    more = bytes([value % 256]) if value % 2 else content[place : place + value % 64]
    return content[:place] + more + content[place:]


# ---- JSON


class _Odd(str):
    """A value as it is written."""


def _slots(value: object) -> list[tuple[dict | list, object]]:
    """Every place of a JSON value that holds another, as container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [slot for key in keys for slot in ((value, key), *_slots(value[key]))]


def _written(value: object) -> str:
    if isinstance(value, _Odd):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value)


def _json_odd(content: bytes, place: int, value: int) -> bytes:
    """Put an odd value in the place of another."""
    whole = [json.loads(content)]
    slots = _slots(whole)
    container, key = slots[place % len(slots)]
    container[key] = _Odd(ODD[value % len(ODD)])
    return _written(whole[0]).encode()


def _json_gone(content: bytes, place: int, _: int) -> bytes:
    """Take a value away."""
    whole = json.loads(content)
    slots = _slots(whole)
    container, key = slots[place % len(slots)]
    del container[key]
    return json.dumps(whole).encode()


def _json_moved(content: bytes, place: int, value: int) -> bytes:
    """Put a value in the place of another."""
    whole = [json.loads(content)]
    slots = _slots(whole)
    container, key = slots[place % len(slots)]
    source, name = slots[value % len(slots)]
    container[key] = json.loads(json.dumps(source[name]))
    return json.dumps(whole[0]).encode()


def _of_a_line(damage: Damage) -> Damage:
    """The same for a line of a file of JSON lines."""

    def damaged(content: bytes, place: int, value: int) -> bytes:
        lines = content.splitlines()
        number = place % len(lines)
        lines[number] = damage(lines[number], place // len(lines), value)
        return b"\n".join(lines) + b"\n"

    return damaged


# ---- safetensors


def _header_lies(content: bytes, _: int, value: int) -> bytes:
    """State another length of the header."""
    length = int.from_bytes(content[:8], "little")
    lies = (0, 1, length - 1, length + 1, len(content) - 8, len(content), 2**20, 2**31, 2**62, 2**63, 2**64 - 1)
    return struct.pack("<Q", lies[value % len(lies)]) + content[8:]


def _of_the_header(damage: Damage) -> Damage:
    """The same for the JSON at the start."""

    def damaged(content: bytes, place: int, value: int) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        header = damage(content[8:end], place, value)
        return struct.pack("<Q", len(header)) + header + content[end:]

    return damaged


def _tensor(change: Callable[[np.ndarray, int, int], np.ndarray | None]) -> Damage:
    """Change one tensor, and write the file anew; its metadata stay."""

    def damaged(content: bytes, place: int, value: int) -> bytes:
        from safetensors.numpy import load, save

        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        arrays = load(content)
        name = sorted(arrays)[place % len(arrays)]
        changed = change(arrays.pop(name), place // max(1, len(arrays)), value)
        arrays |= {} if changed is None else {name: np.ascontiguousarray(changed)}
        return save(arrays, header.get("__metadata__"))

    return damaged


def _number(array: np.ndarray, place: int, value: int) -> np.ndarray:
    changed = array.copy()
    if array.size:
        with np.errstate(all="ignore"):
            changed.flat[place % array.size] = np.float64(NUMBERS[value % len(NUMBERS)]).astype(array.dtype)
    return changed


def _retyped(array: np.ndarray, _: int, value: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(DTYPES[value % len(DTYPES)])


def _reshaped(array: np.ndarray, place: int, value: int) -> np.ndarray:
    shapes = (
        array[None],
        array[..., None],
        array.ravel(),
        array[:0],
        array[1:],
        array[..., :1],
        array[..., :0],
        array.T,
    )
    return shapes[value % len(shapes)] if array.ndim else array[None]


def _lost(array: np.ndarray, place: int, value: int) -> None:
    return None


# ---- npy


def _npy(change: Callable[[np.ndarray, int, int], np.ndarray]) -> Damage:
    def damaged(content: bytes, place: int, value: int) -> bytes:
        array, file = np.load(io.BytesIO(content)), io.BytesIO()
        if array.size > len(content):  # of nothing, as an earlier damage has it
            raise ValueError("too large")
        np.save(file, change(array, place, value))
        return file.getvalue()

    return damaged


def _npy_lies(content: bytes, place: int, value: int) -> bytes:
    """State another type or shape than that of what follows."""
    types = ("'<f4'", "'|O'", "'<M8[s]'", "'<U9'", "[('a', '<f4')]", "'V0'", "'x'", "None", "'<c8'")
    shapes = (
        "(4, 1000000000000)",
        "(4611686018427387904, 4)",
        "(0, 3)",
        "(-1, 3)",
        "()",
        "(4,)",
        "(4, True)",
        "'x'",
        "(4, 0)",
    )
    kind, shape = types[place % len(types)], shapes[value % len(shapes)]
    text = f"{{'descr': {kind}, 'fortran_order': {bool(value % 2)}, 'shape': {shape}, }}"
    return (
        content[:8]
        + struct.pack("<H", len(text))
        + text.encode()
        + content[10 + struct.unpack("<H", content[8:10])[0] :]
    )


# ---- parquet


def _parquet(change: Callable) -> Damage:
    """Change one column, and write the table anew."""

    def damaged(content: bytes, place: int, value: int) -> bytes:
        import pyarrow
        import pyarrow.parquet

        table, file = pyarrow.parquet.read_table(io.BytesIO(content)), io.BytesIO()
        number = place % len(table.columns)
        pyarrow.parquet.write_table(change(pyarrow, table, number, place // len(table.columns), value), file)
        return file.getvalue()

    return damaged


def _cell(pyarrow, table, number: int, place: int, value: int):
    """A column with one value changed, as far as the type of the column goes; else the column of one odd value."""
    odd = (
        None,
        0,
        -1,
        1,
        3,
        2**31,
        2**62,
        "",
        "x",
        "ß",
        float("nan"),
        1e300,
        [],
        [None],
        [-1],
        [0, 1],
        [2**40],
        [[0]],
        b"x",
        True,
    )
    column = table.column(number).to_pylist()
    value = odd[value % len(odd)]
    try:
        changed = [*column]
        changed[place % max(1, len(column))] = value
        changed = pyarrow.array(changed, table.schema.field(number).type)
    except (pyarrow.ArrowException, IndexError, TypeError, ValueError, OverflowError):
        changed = pyarrow.array([value] * len(column))
    return table.set_column(number, table.column_names[number], changed)


def _column_type(pyarrow, table, number: int, place: int, value: int):
    names = ("string", "large_string", "binary", "float64", "float32", "int8", "uint64", "bool_", "date32", "null")
    types = [getattr(pyarrow, name)() for name in names]
    types += [pyarrow.list_(pyarrow.float64()), pyarrow.list_(pyarrow.int8()), pyarrow.large_list(pyarrow.string())]
    types += [pyarrow.timestamp("ns"), pyarrow.decimal128(9, 2), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    kind = types[value % len(types)]
    try:
        changed = table.column(number).cast(kind)
    except pyarrow.ArrowException:
        changed = pyarrow.nulls(len(table), kind)
    return table.set_column(number, table.column_names[number], changed)


def _columns(pyarrow, table, number: int, place: int, value: int):
    """Columns or rows gone, twice, or by another name."""
    name, other = table.column_names[number], table.column_names[place % len(table.column_names)]
    tables = (
        lambda: table.drop_columns([name]),
        lambda: table.append_column(name, table.column(number)),
        lambda: table.rename_columns([*table.column_names[:number], other, *table.column_names[number + 1 :]]),
        lambda: table.set_column(number, name, table.column(place % len(table.column_names))),
        lambda: table[:0],
        lambda: table[place % (len(table) + 1) :],
        lambda: pyarrow.concat_tables([table, table[place % (len(table) + 1) :]]),
    )
    return tables[value % len(tables)]()


# ---- tables of text


def _text_cell(content: bytes, place: int, value: int) -> bytes:
    """Put another text in the place of a cell."""
    lines = content.decode().split("\n")
    number = place % len(lines)
    sign = "\t" if "\t" in lines[0] else ","
    cells = lines[number].split(sign)
    cells[place // len(lines) % len(cells)] = CELLS[value % len(CELLS)]
    lines[number] = sign.join(cells)
    return "\n".join(lines).encode()


def _text_line(content: bytes, place: int, value: int) -> bytes:
    """Put a line in the place of another."""
    lines = content.split(b"\n")
    lines[place % len(lines)] = lines[value % len(lines)]
    return b"\n".join(lines)


# ---- the table

ANY: tuple[Damage, ...] = (flip, cut, take_out, put_in)
_JSON: tuple[Damage, ...] = (_json_odd, _json_odd, _json_odd, _json_gone, _json_moved)
_ARRAY = (_number, _number, _retyped, _reshaped)
_TEXT: tuple[Damage, ...] = (_text_cell, _text_cell, _text_line)
BY_SUFFIX: dict[str, tuple[Damage, ...]] = {
    ".json": _JSON,
    ".jsonl": tuple(map(_of_a_line, _JSON)),
    ".safetensors": (_header_lies, *map(_of_the_header, _JSON), *map(_tensor, (*_ARRAY, _lost))),
    ".npy": (_npy_lies, *map(_npy, _ARRAY)),
    ".parquet": tuple(map(_parquet, (_cell, _cell, _column_type, _columns))),
    ".csv": _TEXT,
    ".inter": _TEXT,
}


def damaged(files: dict[str, bytes], case: list[list[int]]) -> tuple[dict[str, bytes], set[str]]:
    """The files after the damages of a case, and which were meant. One that does not suit what is left does nothing."""
    found, meant, names = dict(files), set(), sorted(files)
    for file, kind, place, value in case:
        name = names[file % len(names)]
        kinds = (*ANY, *BY_SUFFIX.get(name[name.rfind(".") :], ()))
        meant.add(name)
        try:
            found[name] = kinds[kind % len(kinds)](found[name], place, value)
        except Exception:  # an earlier damage left no JSON, no table, ...
            continue
    return found, meant

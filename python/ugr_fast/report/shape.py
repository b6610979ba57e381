"""What eval-SPLIT.json holds for a report, and what is wrong with one that was altered.

A shape is a type, or several; a dict, the shapes of its keys; a list of one shape, that of all its entries; or one of
the classes below. More keys may stand beside those that are named.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SOURCES = ("confidence", "likelihood")
NUMBER = (int, float)
MAYBE = (int, float, type(None))  # JSON has no NaN
WORDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class Each(NamedTuple):
    """A dict of any keys, all of one shape."""

    shape: Any


class Among(NamedTuple):
    """One of these words."""

    words: tuple[str, ...]


class Numbers(NamedTuple):
    """A list of so many numbers."""

    length: int | str
    """How many; or the key of a list with as many, in the same dict or in one around it."""
    fewer: int = 0
    """How many fewer than those."""


_SCALARS = {"n": NUMBER, "base_rate": NUMBER}
_BINS = {"confidence": [NUMBER], **dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), Numbers("confidence"))}
_LEVEL = {
    "before": _SCALARS,
    "after": _SCALARS,
    "reliability": {"before": _BINS, "after": _BINS},
    "histogram": {"edges": [NUMBER], "hits": Numbers("edges", 1), "misses": Numbers("edges", 1)},
}
_CURVE = {"coverage": [NUMBER], "risk": Numbers("coverage")}
_SOURCE = {"user": {**_LEVEL, "risk_coverage": _CURVE}, "candidate": _LEVEL}
_RANKED = {"ndcg@10": Numbers(3), "hr@10": Numbers(3)}
_RERANKED = {**_RANKED, "weight": NUMBER, "gain": Numbers(3), "by_weight": Numbers("weights")}


def _bands(across: str, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, dict.fromkeys(("value", "low", "high"), Numbers(across)))


_KEPT, _CUT = _bands("coverage", "ndcg@10", "hr@10"), _bands("length", "precision", "recall")
_ANSWERED = {"share": NUMBER, "risk": MAYBE}
_PROMISE = {
    "k": int, "max_risk": NUMBER, "delta": NUMBER, "reason": (str, type(None)),
    "calibration": {**_ANSWERED, "upper_bound": MAYBE}, "realised": _ANSWERED,
}  # fmt: skip
_ITEM = {"title": str, "calibrated": NUMBER, "hit": bool}
_DECISIONS: dict[str, Any] = {
    "chosen_on": int,
    "rows": int,
    "rerank": {"weights": [NUMBER], "likelihood": _RANKED, "confidence": _RERANKED, "random": _RERANKED},
    "reject": {"coverage": [NUMBER], **{source: {"aggregate": str, **_KEPT} for source in SOURCES}, "random": _KEPT},
    "cut": {"length": [NUMBER], **dict.fromkeys((*SOURCES, "fixed", "random"), _CUT)},
}
EVALUATION: dict[str, Any] = {
    "how": dict, "num_rows": int, "num_users": int, "num_beams": int, "trained": bool, "signal": Among(SOURCES),
    "ranking": Each(MAYBE), "intervals": Each(Numbers(2)), "reach": Each(MAYBE), "baselines": Each(Each(MAYBE)),
    "confidence": _SOURCE, "likelihood": _SOURCE, "decisions": _DECISIONS, "promises": [_PROMISE],
    "examples": [{"user": int, "history": [str], "target": str, "recommended": [_ITEM]}],
}  # fmt: skip


def check_shape(value: Any, shape: Any, name: str = "", around: tuple[Any, ...] = ()) -> None:
    """Refuse a value that is not of a shape.

    Args:
        value: as read from JSON.
        shape: what it must be.
        name: of the value: the keys that lead to it.
        around: what it lies in, outermost first.

    Raises:
        ValueError: it is not; the message names the first key that is missing or has another kind of value.

    Example:
        >>> check_shape({"k": 1, "at": [{"risk": "low"}]}, {"k": int, "at": [{"risk": NUMBER}]})
        Traceback (most recent call last):
        ...
        ValueError: `at.0.risk` must be a number, got 'low'
    """
    length = _length(shape, around)
    if not _fits(value, shape) or (length is not None and len(value) != length):
        many = "" if length is None else f" of {length}"
        raise ValueError(f"`{name}` must be {_words(shape)}{many}, got {_short(value)}")
    for key, expected in _parts(value, shape).items():
        inner = f"{name}.{key}".lstrip(".")
        if isinstance(value, dict) and key not in value:
            raise ValueError(f"`{inner}` is missing")
        check_shape(value[key], expected, inner, (*around, value))


def _fits(value: Any, shape: Any) -> bool:
    return value in shape.words if isinstance(shape, Among) else isinstance(value, _kinds(shape))


def _words(shape: Any) -> str:
    named = shape.words if isinstance(shape, Among) else (WORDS.get(kind, "a number") for kind in _kinds(shape))
    return " or ".join(dict.fromkeys(named))


def _kinds(shape: Any) -> tuple[type, ...]:
    if isinstance(shape, (dict, Each)):
        return (dict,)
    if isinstance(shape, (list, Numbers)):
        return (list,)
    return shape if isinstance(shape, tuple) else (shape,)


def _length(shape: Any, around: tuple[Any, ...]) -> int | None:
    if not isinstance(shape, Numbers):
        return None
    if isinstance(shape.length, int):
        return shape.length
    return len(next(outer[shape.length] for outer in reversed(around) if shape.length in outer)) - shape.fewer


def _parts(value: Any, shape: Any) -> dict[Any, Any]:
    """Return the shapes of what a value holds, by key or place."""
    if isinstance(shape, dict):
        return shape
    if isinstance(shape, Each):
        return dict.fromkeys(value, shape.shape)
    if isinstance(shape, (list, Numbers)):
        return dict.fromkeys(range(len(value)), shape[0] if isinstance(shape, list) else NUMBER)
    return {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"

"""Maps from the confidence that a model states to the accuracy that it turned out to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import (
    AnyArray,
    Array,
    at_least,
    check_length,
    confidences,
    like,
    outcomes,
    refuse,
    to_numpy,
    unit,
    weights,
)

Method = Literal["temperature", "platt", "beta", "isotonic", "histogram"]
Floats: TypeAlias = npt.NDArray[np.float64]
Parameters: TypeAlias = dict[str, Floats]

MAX_LOG_TEMPERATURE = 10.0
MAX_BINS = 65536
MAX_STEPS = 200
"""Of Newton's method, which takes about ten, or forty where there is no finite optimum."""


@dataclass(eq=False)
class Recalibrator:
    """A map of confidences, fitted to outcomes on data that the model was not trained on.

    With z = logit(c) = ln c - ln(1 - c), the calibrated confidence is

    | method | calibrated confidence | fitted by |
    |---|---|---|
    | `"temperature"` | sigmoid(z / T), T in [e^-10, e^10] | maximum likelihood |
    | `"platt"` | sigmoid(slope z + offset) | maximum likelihood |
    | `"beta"` | sigmoid(a ln c - b ln(1 - c) + offset), a, b >= 0 | maximum likelihood |
    | `"isotonic"` | the best non-decreasing map, interpolated | least squares |
    | `"histogram"` | mean outcome of the bin [k / bins, (k + 1) / bins), the last one closed | least squares |

    All but Platt, whose slope may come out negative, and the histogram keep the order of confidences, though isotonic
    regression makes ties. A confidence of exactly 0 or 1 has no logit: |z| is cut at 17.3 for float32 and 37.4 for
    float64, from where on a sigmoid rounds to 1.

    Args:
        method: One of the above.
        bins: Of the histogram, in [1, 65536].
        step: Isotonic: constant from each block to the next, instead of a line from one to the other.
        smooth: Platt: fit to (hits + 1) / (hits + 2) and 1 / (misses + 2) in place of 1 and 0: finite even where the
            confidence tells hits from misses without a mistake, at the price of a likelihood that may fall.

    Raises:
        TypeError: `bins` that are no whole number.
        ValueError: An unknown method, `bins` out of range, an option that the method does not have.

    Example:
        >>> confidence, correct = np.array([0.9, 0.9, 0.8, 0.8, 0.8, 0.6]), np.array([1, 0, 1, 1, 0, 0])
        >>> recalibrate = Recalibrator("isotonic").fit(confidence, correct)
        >>> recalibrate(np.array([0.95, 0.7, 0.1])).round(3).tolist()
        [0.6, 0.3, 0.0]

    Source: Guo et al. (arXiv 1706.04599) §4; Platt (1999) with Lin, Lin and Weng (Machine Learning 2007); Kull, Silva
        Filho and Flach (AISTATS 2017); Zadrozny and Elkan (ICML 2001, KDD 2002).
    """

    method: Method
    bins: int = field(default=15, kw_only=True)
    step: bool = field(default=False, kw_only=True)
    smooth: bool = field(default=False, kw_only=True)
    parameters: Parameters | None = field(default=None, init=False, repr=False)
    """What `fit` found, by name; None before."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"`method` must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        if at_least(self.bins, "bins", 1) > MAX_BINS:
            raise ValueError(f"`bins` must lie in [1, {MAX_BINS}], got {self.bins}")
        for name, default, owner in (
            ("bins", 15, "histogram"),
            ("step", False, "isotonic"),
            ("smooth", False, "platt"),
        ):
            if getattr(self, name) != default and self.method != owner:
                raise ValueError(f"`{name}` is an option of {owner}, not of {self.method}; leave it out")

    def fit(self, confidence: Any, correct: Any, weight: Any = None) -> Recalibrator:
        """Find the parameters, in place.

        Args:
            confidence: (N,) in [0, 1], N >= 1; NumPy or torch.
            correct: (N,) bool, 0 and 1, or soft outcomes in [0, 1].
            weight: (N,) 0 or in [1e-100, 1e100], what each sample counts; default all 1. Whole weights are
                repetitions.

        Returns:
            This object, fitted.

        Raises:
            ValueError: Shapes that do not fit, a value out of range or NaN (with its index), no sample that counts.

        Example:
            >>> fitted = Recalibrator("temperature").fit([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0])
            >>> round(float(fitted.parameters["temperature"]), 3), fitted.at_bound
            (2.0, False)
        """
        self.parameters = _METHODS[self.method].fit(_samples(confidence, correct, weight), self)
        return self

    @property
    def at_bound(self) -> bool:
        """Whether the likelihood has no finite maximum, so that the parameters are where the search ended.

        Outcomes that are all equal or in perfect order of confidence do that; to a temperature, those in no order or
        the wrong one as well.
        """
        return bool((self.parameters or {}).get("at_bound", False))

    def __call__(self, confidence: AnyArray) -> AnyArray:
        """The calibrated confidences.

        Args:
            confidence: Any shape, in [0, 1].

        Returns:
            Of the same shape, kind (array, or tensor on the same device) and floating dtype, in [0, 1].

        Raises:
            RuntimeError: It was not fitted.
            ValueError: A confidence outside [0, 1] or NaN, with its index.
        """
        parameters = self._fitted()
        array = to_numpy(confidence)
        flat = unit("confidence", confidences(array.ravel()))
        result = _METHODS[self.method].apply(flat, parameters).reshape(array.shape)
        return like(confidence, result, dtype=getattr(confidence, "dtype", None) if array.dtype.kind == "f" else None)

    def to_arrays(self) -> dict[str, Floats]:
        """All that a file needs, as float64 arrays named "method.parameter"; with `tolist()` they are JSON.

        Raises:
            RuntimeError: It was not fitted.

        Example:
            >>> fitted = Recalibrator("histogram", bins=2).fit([0.2, 0.4, 0.9], [0, 1, 1])
            >>> saved = {name: array.tolist() for name, array in fitted.to_arrays().items()}
            >>> saved
            {'histogram.value': [0.5, 1.0], 'histogram.weight': [2.0, 1.0]}
            >>> Recalibrator.from_arrays(saved)(np.array([0.1]))
            array([0.5])
        """
        return {f"{self.method}.{name}": value for name, value in self._fitted().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Recalibrator:
        """The fitted map of `to_arrays`, which may have been through JSON.

        Raises:
            ValueError: Names or values that no fit writes.
        """
        methods = {name.partition(".")[0] for name in arrays}
        method = next((known for known in get_args(Method) if methods == {known}), None)
        if method is None:
            raise ValueError(f"`arrays` must hold the parameters of one method, got {sorted(arrays)}")
        parameters = {name.partition(".")[2]: np.array(value, np.float64) for name, value in arrays.items()}
        _check(method, parameters)
        bins = len(parameters["weight"]) if method == "histogram" else cls.bins
        loaded = cls(method, bins=bins, step=bool(parameters.get("step", False)))
        loaded.parameters = parameters
        return loaded

    def _fitted(self) -> Parameters:
        if self.parameters is None:
            raise RuntimeError("this Recalibrator was not fitted; call `fit`, or `from_arrays` with what was saved")
        return self.parameters


# ---- samples


class _Samples(NamedTuple):
    """N samples that count, N >= 1."""

    confidence: Array
    """float32 or float64."""
    correct: Array
    """uint8, 0 and 1, or float64 in [0, 1]."""
    weight: Floats | None
    """None: all 1."""

    @property
    def weights(self) -> Floats:
        """The weights as an array."""
        return np.ones(len(self.correct)) if self.weight is None else self.weight

    @property
    def share(self) -> Floats:
        """What each sample counts; they add up to 1."""
        share: Floats = self.weights / self.weights.sum()
        return share


def _samples(confidence: Any, correct: Any, weight: Any) -> _Samples:
    c, y = unit("confidence", confidences(confidence)), unit("correct", outcomes(correct))
    check_length("correct", y, len(c))
    w = None if weight is None else weights(weight, len(c))
    if w is not None:
        c, y, w = c[w > 0], y[w > 0], w[w > 0]
    if not len(c):
        raise ValueError("`confidence` must hold at least one sample that counts, got none")
    return _Samples(c, y, w)


# ---- temperature, Platt, beta: sigmoid(columns @ parameters)


def _logs(confidence: Array) -> tuple[Floats, Floats]:
    """Logarithms ln c and -ln(1 - c), cut where a sigmoid of their sum rounds to 0 or 1 in the type of `confidence`."""
    bound = (25 if confidence.itemsize == 4 else 54) * np.log(2)
    c = confidence.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(c), -bound), np.minimum(-np.log1p(-c), bound)


def _logit(confidence: Array) -> Floats:
    low, high = _logs(confidence)
    return low + high


def _sigmoid(x: Floats) -> Floats:
    tail = np.exp(-np.abs(x))
    p: Floats = np.where(x >= 0, 1, tail) / (1 + tail)
    return p


def _loss(x: Floats, target: Array, share: Floats) -> float:
    """Mean negative log-likelihood of sigmoid(x)."""
    return float(share @ (target * np.logaddexp(0, -x) + (1 - target) * np.logaddexp(0, x)))


def _in_order(z: Floats, correct: Array) -> bool:
    """Whether no miss is above a hit, and not all are level: the likelihood grows with the slope for ever."""
    hits, misses = z[correct > 0], z[correct < 1]  # a soft outcome is some of both
    if not (len(hits) and len(misses)):
        return True
    return bool(hits.min() >= misses.max() and z.min() < z.max())


def _fit_temperature(samples: _Samples, _: Recalibrator) -> Parameters:
    """Newton's method on ln(1 / T), where the slope of the loss changes its sign once, kept between two bounds."""
    z, y, share = _logit(samples.confidence), samples.correct, samples.share

    def slopes(t: float) -> tuple[float, float]:
        beta, p = np.exp(t), _sigmoid(np.exp(t) * z)
        first = beta * (share @ ((p - y) * z))
        return first, first + beta**2 * (share @ (p * (1 - p) * z * z))

    low, high, t = -MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, 0.0
    if not z.any():  # every temperature is as good
        return _scalars(temperature=1, at_bound=False)
    for bound, sign in ((low, 1), (high, -1)):
        if sign * slopes(bound)[0] >= 0:
            return _scalars(temperature=np.exp(-bound), at_bound=True)
    for _step in range(MAX_STEPS):
        first, second = slopes(t)
        low, high = (low, t) if first > 0 else (t, high)
        newton = t - first / second if second > 0 else np.inf
        t, last = (newton if low <= newton <= high else (low + high) / 2), t
        if abs(t - last) < 1e-14:
            break
    return _scalars(temperature=np.exp(-t), at_bound=False)


def _fit_platt(samples: _Samples, options: Recalibrator) -> Parameters:
    z, y, share = _logit(samples.confidence), samples.correct, samples.share
    at_bound = not options.smooth and (_in_order(z, y) or _in_order(-z, y))
    if options.smooth:
        hits, misses = samples.weights @ y, samples.weights @ (1 - y)
        y = y * (hits + 1) / (hits + 2) + (1 - y) / (misses + 2)
    slope, offset = _newton(np.stack((z, np.ones_like(z)), 1), y, share, np.array([1.0, 0.0]))
    return _scalars(slope=slope, offset=offset, at_bound=at_bound)


def _fit_beta(samples: _Samples, _: Recalibrator) -> Parameters:
    """The best of the fits with a, b, or both held at 0 that leave neither below 0: the loss is convex."""
    low, high = _logs(samples.confidence)
    columns, identity = np.stack((low, high, np.ones_like(low)), 1), np.array([1.0, 1.0, 0.0])
    y, share = samples.correct, samples.share
    fits = []
    for free in ([0, 1, 2], [0, 2], [1, 2], [2]):
        theta = np.zeros(3)
        theta[free] = _newton(columns[:, free], y, share, identity[free])
        if theta[:2].min() >= 0:
            fits.append(theta)
        if len(free) == 3 and fits:
            break
    a, b, offset = min(fits, key=lambda theta: _loss(columns @ theta, y, share))
    return _scalars(a=a, b=b, offset=offset, at_bound=_in_order(low + high, y))


def _newton(columns: Floats, target: Array, share: Floats, identity: Floats) -> Floats:
    """The parameters of least loss: Newton's method, steps halved until the loss does not grow."""

    def loss_at(theta: Floats) -> float:
        return _loss(columns @ theta, target, share)

    theta = min((identity, np.zeros_like(identity)), key=loss_at)
    for _ in range(MAX_STEPS):
        p = _sigmoid(columns @ theta)
        gradient = columns.T @ (share * (p - target))
        hessian = (columns.T * (share * p * _sigmoid(-columns @ theta))) @ columns
        step: Floats = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        if gradient @ step < 1e-12:  # twice what is to be gained; the next step would gain its square
            return theta - step
        while not loss_at(theta - step) <= loss_at(theta):
            step /= 2
        theta = theta - step
    return theta


def _scalars(**values: float) -> Parameters:
    return {name: np.array(value, np.float64) for name, value in values.items()}


def _apply_temperature(confidence: Array, parameters: Parameters) -> Floats:
    return _sigmoid(_logit(confidence) / parameters["temperature"])


def _apply_platt(confidence: Array, parameters: Parameters) -> Floats:
    return _sigmoid(parameters["slope"] * _logit(confidence) + parameters["offset"])


def _apply_beta(confidence: Array, parameters: Parameters) -> Floats:
    low, high = _logs(confidence)
    return _sigmoid(parameters["a"] * low + parameters["b"] * high + parameters["offset"])


# ---- isotonic, histogram


def _fit_isotonic(samples: _Samples, options: Recalibrator) -> Parameters:
    c, y, w = samples
    if w is None and y.dtype == np.uint8:
        knots, value = _core.isotonic_hard(c, y)
    else:
        y = y.astype(np.float64)
        worth = np.where(y < 1e-100, 0, y)  # times a weight, it might be too small a number to be exact
        knots, value = _core.isotonic_weighted(c.astype(np.float64), worth, samples.weights)
        value = value.clip(y.min(), y.max())
    return {"confidence": knots, "value": value, "step": np.array(float(options.step))}


def _apply_isotonic(confidence: Array, parameters: Parameters) -> Floats:
    c, knots, value = confidence.astype(np.float64), parameters["confidence"], parameters["value"]
    below = np.maximum(np.searchsorted(knots, c, "right") - 1, 0)
    if parameters["step"]:
        return value[below]
    above = np.minimum(below + 1, len(knots) - 1)
    gap = np.where(above > below, knots[above] - knots[below], 1)
    part = np.clip((c - knots[below]) / gap, 0, 1)
    between: Floats = np.minimum(value[below] + part * (value[above] - value[below]), value[above])
    return between


def _fit_histogram(samples: _Samples, options: Recalibrator) -> Parameters:
    bins, w = options.bins, samples.weights
    k = _bin(samples.confidence, bins)
    weight, hits = np.bincount(k, w, bins), np.bincount(k, w * samples.correct, bins)
    centre = (np.arange(bins) + 0.5) / bins
    value = np.where(weight > 0, hits / np.where(weight > 0, weight, 1), centre)
    return {"value": np.minimum(value, 1), "weight": weight}


def _apply_histogram(confidence: Array, parameters: Parameters) -> Floats:
    value = parameters["value"]
    own: Floats = value[_bin(confidence, len(value))]
    return own


def _bin(confidence: Array, bins: int) -> npt.NDArray[np.intp]:
    """The last bin whose edge, k / bins rounded to the type of `confidence`, is not above it."""
    edges = np.arange(bins, dtype=confidence.dtype) / confidence.dtype.type(bins)
    return np.searchsorted(edges, confidence, "right") - 1


# ---- the table


class _Functions(NamedTuple):
    fit: Callable[[_Samples, Recalibrator], Parameters]
    apply: Callable[[Array, Parameters], Floats]


_METHODS: dict[Method, _Functions] = {
    "temperature": _Functions(_fit_temperature, _apply_temperature),
    "platt": _Functions(_fit_platt, _apply_platt),
    "beta": _Functions(_fit_beta, _apply_beta),
    "isotonic": _Functions(_fit_isotonic, _apply_isotonic),
    "histogram": _Functions(_fit_histogram, _apply_histogram),
}
_ANY, _UNIT = (-1e100, 1e100), (0.0, 1.0)
_RANGES: dict[Method, dict[str, tuple[float, float]]] = {
    "temperature": {"temperature": (np.exp(-MAX_LOG_TEMPERATURE), np.exp(MAX_LOG_TEMPERATURE)), "at_bound": _UNIT},
    "platt": {"slope": _ANY, "offset": _ANY, "at_bound": _UNIT},
    "beta": {"a": (0.0, 1e100), "b": (0.0, 1e100), "offset": _ANY, "at_bound": _UNIT},
    "isotonic": {"confidence": _UNIT, "value": _UNIT, "step": _UNIT},
    "histogram": {"value": _UNIT, "weight": (0.0, np.inf)},
}
_COLUMNS = ("confidence", "value", "weight")
_SHAPES = ("a scalar", "as long as the others")


def _check(method: Method, parameters: Parameters) -> None:
    """Refuse parameters that no fit of `method` has."""
    ranges = _RANGES[method]
    if parameters.keys() != ranges.keys():
        raise ValueError(f"`arrays` of {method} must hold {list(ranges)}, got {list(parameters)}")
    lengths = {value.size for name, value in parameters.items() if name in _COLUMNS}
    for name, value in parameters.items():
        if value.ndim != (name in _COLUMNS) or len(lengths) > 1 or not value.size:
            raise ValueError(f"`{method}.{name}` must be {_SHAPES[name in _COLUMNS]}, got shape {value.shape}")
        low, high = ranges[name]
        flat = value.ravel()
        refuse(f"{method}.{name}", flat, (flat >= low) & (flat <= high), f"must lie in [{low:g}, {high:g}]")
    if method == "isotonic":
        for name, least in (("confidence", 5e-324), ("value", 0)):
            rises = np.diff(parameters[name], prepend=-1) >= least
            refuse(f"isotonic.{name}", parameters[name], rises, "must rise" if least else "must not fall")

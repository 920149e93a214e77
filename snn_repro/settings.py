"""One value that a user may choose, declared beside the class that uses it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from snn_repro.errors import UserError, nearest


@dataclass(frozen=True)
class Setting:
    """Default, meaning, unit and range (low and high inclusive, above and below not; `why` says what the range is for).

    The default's type is the value's: bool, whole number, number, as many whole numbers, an interval [low, high], or one of
    `choices`. Default None stands for a number that depends on another setting.
    """

    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Iterable[str] | None = None
    why: str = ""

    def checked(self, key: str, value: Any) -> Any:
        """The value as the class takes it. Raises UserError, naming the key, the value and what is allowed."""
        if self.choices is not None:
            allowed = tuple(self.choices)
            if value not in allowed:
                raise UserError(f"{key}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
            return value
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{key}={value!r} must be true or false")
            return value
        if isinstance(self.default, tuple):
            whole = all(isinstance(n, int) for n in self.default)
            return _whole_numbers(key, value, len(self.default), self.low or 0) if whole else _interval(key, value)
        whole = isinstance(self.default, int)
        if whole and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{key}={value!r} must be a whole number")
        value = value if whole else _number(key, value)
        why = f" ({self.why})" if self.why else ""
        low, high = self.low, self.high
        if low is not None and high is not None and not low <= value <= high:
            raise UserError(f"{key}={value} must lie in {low:g}..{high:g}{why}")
        if low is not None and self.below is not None and not low <= value < self.below:
            raise UserError(f"{key}={value} must be at least {low:g} and below {self.below:g}{why}")
        if low is not None and value < low:
            raise UserError(f"{key}={value} must be at least {low:g}{why}")
        if high is not None and value > high:
            raise UserError(f"{key}={value} must be at most {high:g}{why}")
        if self.above is not None and value <= self.above:
            raise UserError(f"{key}={value} must be above {self.above:g}{why}")
        if self.below is not None and value >= self.below:
            raise UserError(f"{key}={value} must be below {self.below:g}{why}")
        return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be a finite number")
    return float(value)


def _whole_numbers(key: str, value: Any, count: int, low: float) -> list[int]:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != count or not all(type(n) is int and n >= low for n in numbers):
        raise UserError(f"{key}={value!r} must be {count} whole numbers of at least {low:g}")
    return numbers


def _interval(key: str, value: Any) -> tuple[float, float]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise UserError(f"{key}={value!r} must be two numbers [low, high]") from None
    low, high = _number(key, low), _number(key, high)
    if low > high:
        raise UserError(f"{key}=[{low}, {high}] must have low <= high")
    return low, high

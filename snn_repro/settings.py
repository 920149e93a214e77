"""One value that a user may choose, declared beside the class that uses it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from snn_repro.errors import UserError, nearest


@dataclass(frozen=True)
class Setting:
    """Default, meaning, unit and range (low and high inclusive, above and below not; `why` says what the range is for).

    The default's type is the value's: bool, whole number, number, word, as many whole numbers, an interval [low, high] of two
    numbers, or one of `choices`. Default None stands for a number, or a choice, that depends on another setting.
    """

    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[Any] | None = None
    why: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The choices as they are written."""
        return tuple(str(c).lower() if isinstance(c, bool) else c for c in self.choices or ())

    @property
    def range(self) -> str:
        """What a number must be, in words."""
        bounds = ("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below)
        return " and ".join(f"{word} {bound:.12g}" for word, bound in bounds if bound is not None)

    def checked(self, key: str, value: Any) -> Any:
        """The value as the class takes it. Raises UserError, naming the key, the value and what is allowed."""
        if value is None and self.default is None:
            return None
        if self.choices is None:
            if isinstance(self.default, bool | str):
                if type(value) is not type(self.default):
                    wanted = "true or false" if isinstance(self.default, bool) else "a word"
                    raise UserError(f"{key}={value!r} must be {wanted}")
                return value
            if isinstance(self.default, tuple):
                whole = all(isinstance(n, int) for n in self.default)
                return _whole_numbers(key, value, len(self.default), self.low or 0) if whole else _interval(key, value)
            if isinstance(self.default, int) and (isinstance(value, bool) or not isinstance(value, int)):
                raise UserError(f"{key}={value!r} must be a whole number")
            value = value if isinstance(self.default, int) else _number(key, value)
        self.check_range(key, value)
        return value

    def check_range(self, key: str, value: Any) -> None:
        """Raise UserError for a value of the right type that is not one of the choices, or out of range."""
        if self.choices is not None:
            if value not in self.choices:
                raise UserError(f"{key}={value!r} is not one of {', '.join(self.names)}{nearest(value, self.names)}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _number(key, value)
            low, high, above, below = self.low, self.high, self.above, self.below
            if (
                (low is not None and value < low) or (high is not None and value > high)
                or (above is not None and value <= above) or (below is not None and value >= below)
            ):  # fmt: skip
                reason = f" ({self.why})" if self.why else f" ({self.unit})" if self.unit else ""
                raise UserError(f"{key}={value} must be {self.range}{reason}")


def shared(
    settings: Mapping[str, Setting], published: Mapping[str, Any], without: Collection[str] = (), **own: Setting
) -> dict[str, Setting]:
    """The settings that all of a kind have, but for `without`, with the defaults that one was published with, and its own."""
    common = {k: replace(s, default=published.get(k, s.default)) for k, s in settings.items() if k not in without}
    return common | own


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be a finite number")
    return float(value)


def _whole_numbers(key: str, value: Any, count: int, low: float) -> list[int]:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != count or not all(type(n) is int and n >= low for n in numbers):
        raise UserError(f"{key}={value!r} must be {count} whole numbers of at least {low:g}")
    return numbers


def _interval(key: str, value: Any) -> list[float]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise UserError(f"{key}={value!r} must be two numbers [low, high]") from None
    low, high = _number(key, low), _number(key, high)
    if low > high:
        raise UserError(f"{key}=[{low}, {high}] must have low <= high")
    return [low, high]

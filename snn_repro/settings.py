"""A value that a user can set, declared beside the class that uses it."""

import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from snn_repro.errors import UserError, nearest

BOUNDS = {
    "low": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "high": ("at most", operator.le),
    "below": ("below", operator.lt),
    "multiple": ("a multiple of", lambda value, of: value % of == 0),
}


@dataclass(frozen=True)
class Setting:
    """Default, meaning, unit and range of a value (low, high inclusive; above, below exclusive).

    The default's type is the value's: bool, whole number, number, word, a list of as many whole numbers, an interval
    [low, high], or one of `choices`. Default None: a number or choice that depends on another setting. why: reason of
    the range.
    """

    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    multiple: int | None = None
    choices: Collection[Any] | None = None
    why: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The choices as they are typed."""
        return tuple(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices or ())

    def _bounds(self) -> list[tuple[str, Callable[..., bool], float]]:
        return [(*BOUNDS[name], bound) for name in BOUNDS if (bound := getattr(self, name)) is not None]

    @property
    def range(self) -> str:
        """The allowed range, in words."""
        return " and ".join(f"{word} {bound:.12g}" for word, _, bound in self._bounds())

    def checked(self, key: str, value: Any) -> Any:
        """The value as the class takes it; raises UserError naming what is allowed."""
        if value is None and self.default is None:
            return None
        if self.choices is None:
            if isinstance(self.default, tuple):
                return _numbers(key, value, self.default, self.low or 0)
            if isinstance(self.default, bool | str | int):
                if type(value) is not type(self.default):
                    raise UserError(f"{key}={value!r} must be {_KINDS[type(self.default)]}")
            else:
                value = _number(key, value)
        self.check_range(key, value)
        return value

    def check_range(self, key: str, value: Any) -> None:
        """Raise UserError for a value that is out of range or not a choice."""
        if self.choices is not None:
            if value not in self.choices:
                raise UserError(f"{key}={value!r} is not one of {', '.join(self.names)}{nearest(value, self.names)}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _number(key, value)
            if not all(holds(value, bound) for _, holds, bound in self._bounds()):
                reason = f" ({self.why or self.unit})" if self.why or self.unit else ""
                raise UserError(f"{key}={value} must be {self.range}{reason}")


_KINDS = {bool: "true or false", str: "a word", int: "a whole number"}


def shared(
    settings: Mapping[str, Setting], published: Mapping[str, Any], without: Collection[str] = (), **own: Setting
) -> dict[str, Setting]:
    """The `settings` of a family except `without`, with `published` defaults, plus `own`."""
    return {k: replace(s, default=published.get(k, s.default)) for k, s in settings.items() if k not in without} | own


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be a finite number")
    return float(value)


def _numbers(key: str, value: Any, default: tuple, least: float) -> list:
    """A list of as many whole numbers as the default has, or an interval."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if all(isinstance(n, int) for n in default):
        if len(numbers) != len(default) or not all(type(n) is int and n >= least for n in numbers):
            raise UserError(f"{key}={value!r} must be {len(default)} whole numbers of at least {least:g}")
        return numbers
    if len(numbers) != 2:
        raise UserError(f"{key}={value!r} must be two numbers [low, high]")
    low, high = (_number(key, n) for n in numbers)
    if low > high:
        raise UserError(f"{key}=[{low}, {high}] must have low <= high")
    return [low, high]

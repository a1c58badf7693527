r"""One notation for numbers, in the book, in README.md and in results/README.md.

Very small and very large numbers are typeset, ``$1.30 \times 10^{-6}$``; shares are in per cent,
differences of shares in points. An interval follows in brackets, ``97.8% (97.1% to 98.4%)``.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "Shown",
    "counted",
    "plain",
    "show_bound",
    "show_metric",
    "show_number",
    "show_percent",
    "show_points",
]

_SUPERSCRIPTS = "\N{SUPERSCRIPT MINUS}" + "".join(
    chr(code) for code in (0x2070, 0xB9, 0xB2, 0xB3, *range(0x2074, 0x207A))
)


class Shown(NamedTuple):
    """The digits of a number and of its interval, if any, with their sign, exponent and unit."""

    value: str
    bounds: Sequence[str] = ()
    sign: str = ""
    exponent: int = 0
    unit: str = ""  # written once, after the value

    def on_one_line(self) -> str:
        """The number, followed by its interval in brackets."""
        interval = self._interval(self.sign)
        if self.exponent:
            return self._mathematics(rf"{self.value}\ {interval}" if interval else self.value)
        return f"{_minus(self.value)}{self.sign}{self.unit} {interval}".rstrip()

    def apart(self) -> tuple[str, str]:
        """The number, and its interval in brackets; the second is empty if there is no interval."""
        interval = self._interval("")
        if self.exponent:
            return self._mathematics(self.value), interval and self._mathematics(interval)
        return f"{_minus(self.value)}{self.sign}", interval.replace(")", f"{self.sign})")

    def _interval(self, sign: str) -> str:
        if not self.bounds:
            return ""
        low, high = self.bounds
        if self.exponent:
            return rf"({low}{sign} \text{{ to }} {high}{sign})"
        # No line may break inside the brackets.
        to = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
        return f"({_minus(low)}{sign}{to}{_minus(high)}{sign})"

    def _mathematics(self, digits: str) -> str:
        return rf"${digits} \times 10^{{{self.exponent}}}$"


def show_percent(values: Sequence[float], digits: int = 1) -> Shown:
    """A share in per cent.

    Args:
        values: the share alone, or the share and both ends of its interval.
        digits: after the decimal point.
    """
    shown, *bounds = (f"{100 * x:.{digits}f}" for x in values)
    return Shown(shown, bounds, sign="%")


def show_points(values: Sequence[float], digits: int = 2) -> Shown:
    """A difference of two shares in points; arguments as for :func:`show_percent`."""
    shown, *bounds = (f"{100 * x:.{digits}f}" for x in values)
    return Shown(shown, bounds, unit=" points")


def show_number(values: Sequence[float], digits: int = 3) -> Shown:
    """A number to ``digits`` significant digits; ``values`` as for :func:`show_percent`.

    Integers are shown with all their digits.
    """
    if all(isinstance(x, int) for x in values):
        shown, *bounds = (f"{x:,}" for x in values)
        return Shown(shown, bounds)
    exponent = int(f"{values[0]:.{digits - 1}e}".split("e")[1])
    if -3 <= exponent < 6:
        places = max(0, digits - 1 - exponent)
        shown, *bounds = (f"{x:,.{places}f}" for x in values)
        return Shown(shown, bounds)
    shown, *bounds = (f"{x / 10**exponent:.{digits - 1}f}" for x in values)
    return Shown(shown, bounds, exponent=exponent)


def show_metric(condition: dict[str, Any]) -> str:
    """The measured value of a condition of ``claims.json``, in the unit of its metric."""
    if "value" not in condition:
        return str(condition["measured"])
    keys = ("value", "low", "high")
    values = [condition[key] for key in keys if condition.get(key) is not None]
    if values[1:] == values[:1] * 2:
        values = values[:1]
    shown = _in_unit(condition["unit"], values)
    return f"at least {shown}" if condition.get("lower_bound") else shown


def show_bound(condition: dict[str, Any]) -> str:
    """The rule of a condition of ``claims.json``, with numbers in the unit of its metric."""
    return re.sub(
        r"(?<=at most |t least )\S+",
        lambda number: _exact(condition["unit"], float(number[0])),
        condition["bound"],
    )


def counted(number: int | str, noun: str) -> str:
    """A number of things: ``"1 network"``, ``"2 networks"``."""
    return f"{number} {noun}{'' if str(number) == '1' else 's'}"


def plain(text: str) -> str:
    """A text with this module's mathematics as plain characters, for alternative texts."""
    raised = str.maketrans("-0123456789", _SUPERSCRIPTS)
    text = re.sub(
        r"\$(.*?) \\times 10\^\{(-?\d+)\}\$",
        lambda match: f"{match[1]} \N{MULTIPLICATION SIGN} 10{match[2].translate(raised)}",
        text,
    )
    return text.replace(r"\ (", " (").replace(r"\text{ to }", "to").replace("  to  ", " to ")


def _in_unit(unit: str, values: Sequence[float], digits: int | None = None) -> str:
    """Values in a metric's unit; ``digits`` replaces the number that suits measured values."""
    if unit == "difference":
        return show_points(values, digits or 2).on_one_line()
    if unit == "share":
        # Only a share of exactly 1 is shown as 100%.
        needed = 1
        while round(values[0], needed + 2) == 1 != values[0] and needed < 6:
            needed += 1
        return show_percent(values, digits or needed).on_one_line()
    if len(values) == 1 and 1 <= abs(values[0]) < 1e6 and float(values[0]).is_integer():
        return _minus(f"{int(values[0]):,}")
    return show_number(values, digits or 3).on_one_line()


def _exact(unit: str, bound: float) -> str:
    """A bound with all its digits and without trailing zeros, because it is exact."""
    text = _in_unit(unit, [bound], digits=6)
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda match: match[1].rstrip("."), text, count=1)


def _minus(digits: str) -> str:
    return digits.replace("-", "\N{MINUS SIGN}")

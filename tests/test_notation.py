"""Numbers in the units that readers expect."""

import pytest

from pipeline.notation import (
    counted,
    show_bound,
    show_metric,
    show_number,
    show_percent,
    show_points,
)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1797], "1,797"),
        ([0.12345], "0.123"),
        ([-0.12345], "\N{MINUS SIGN}0.123"),
        ([1234.5], "1,234"),
        ([2.5e-6], r"$2.50 \times 10^{-6}$"),
        ([2.5e-4, 2e-4, 3e-4], r"$2.50\ (2.00 \text{ to } 3.00) \times 10^{-4}$"),
    ],
)
def test_numbers(values, shown):
    assert show_number(values).on_one_line() == shown


def test_shares_and_differences():
    assert show_percent([0.978, 0.971, 0.984]).on_one_line() == (
        "97.8% (97.1%\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}98.4%)"
    )
    assert show_points([-0.015, -0.02, 0.01]).on_one_line() == (
        "\N{MINUS SIGN}1.50 points (\N{MINUS SIGN}2.00\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}1.00)"
    )
    assert show_points([-0.015, -0.02, 0.01]).apart()[0] == "\N{MINUS SIGN}1.50"


@pytest.mark.parametrize(
    ("unit", "value", "bound", "measured", "rule"),
    [
        ("share", 1.0, "at least 1", "100.0%", "at least 100%"),
        ("share", 0.99996, "at least 1", "99.996%", "at least 100%"),
        ("share", 0.079, "at most 0.5", "7.9%", "at most 50%"),
        (
            "share",
            0.079,
            "at most 0.5 in 3 networks or more, here 1",
            "7.9%",
            "at most 50% in 3 networks or more, here 1",
        ),
        (
            "difference",
            -0.0041,
            "at least -0.01",
            "\N{MINUS SIGN}0.41 points",
            "at least \N{MINUS SIGN}1 points",
        ),
        ("number", 1.0, "at most 1.05", "1", "at most 1.05"),
        # A bound is exact, and keeps all its digits whatever the measured number.
        ("number", 1.0, "at most 1.0005", "1", "at most 1.0005"),
        (
            "difference",
            0.0,
            "at least -0.00125",
            "0.00 points",
            "at least \N{MINUS SIGN}0.125 points",
        ),
        (
            "number",
            1.28e-6,
            "at most 5e-06",
            r"$1.28 \times 10^{-6}$",
            r"at most $5 \times 10^{-6}$",
        ),
    ],
)
def test_a_condition_is_in_the_unit_of_its_metric(unit, value, bound, measured, rule):
    condition = {"unit": unit, "value": value, "low": value, "high": value, "bound": bound}
    assert show_metric(condition) == measured
    assert show_bound(condition) == rule


def test_what_was_not_measured_says_so():
    assert show_metric({"measured": "not measured"}) == "not measured"


def test_a_lower_bound_is_shown_as_one():
    value = {"unit": "number", "value": 41.8, "low": 30.0, "high": 52.0}
    assert show_metric(value | {"lower_bound": True}).startswith("at least 41.8 (")
    assert not show_metric(value).startswith("at least")


def test_things_are_counted():
    assert [counted(number, "network") for number in (0, 1, 2)] == [
        "0 networks",
        "1 network",
        "2 networks",
    ]

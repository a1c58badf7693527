import json

import pytest

from pipeline.claims import CLAIMS, judge, verdict
from pipeline.params import Rule, load_params


@pytest.fixture
def results(tmp_path):
    (tmp_path / "inversion").mkdir()
    content = {
        "plain": 0.5,
        "estimate": {"value": 1.0, "low": 0.8, "high": 1.2, "n": 10},
    }
    (tmp_path / "inversion" / "metrics.json").write_text(json.dumps(content))
    return tmp_path


def rule(metric, **bounds):
    return Rule(what="a number", metric=metric, **bounds)


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [
        ({"at_most": 1.2}, True),
        ({"at_most": 1.1}, False),
        ({"at_least": 0.8}, True),
        ({"at_least": 0.9}, False),
        ({"at_least": 0.5, "at_most": 1.5}, True),
        ({"at_least": 0.5, "at_most": 1.0}, False),
    ],
)
def test_all_of_an_interval_must_satisfy_the_bound(results, bounds, holds):
    condition = judge(rule("inversion.estimate", **bounds), results)
    assert condition["holds"] is holds
    assert condition["measured"] == "1 [0.8, 1.2]"
    assert condition["n"] == 10


def test_a_plain_number_is_its_own_interval(results):
    condition = judge(rule("inversion.plain", at_most=0.5), results)
    assert condition["holds"] is True
    assert condition["measured"] == "0.5"
    assert condition["bound"] == "at most 0.5"


@pytest.mark.parametrize("metric", ["inversion.absent", "inversion.plain.deeper", "memory.x"])
def test_what_was_not_measured_neither_holds_nor_fails(results, metric):
    condition = judge(rule(metric, at_most=1.0), results)
    assert condition["holds"] is None
    assert condition["measured"] == "not measured"


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ([True, True], "reproduced"),
        ([True, False], "partly"),
        ([False, False], "not reproduced"),
        ([True, None], "not tested here"),
        ([], "not tested here"),
    ],
)
def test_verdicts(holds, expected):
    assert verdict(holds) == expected


def test_there_is_a_rule_for_every_claim_of_the_embedded_experiment():
    assert set(load_params().sections["digits"].claims) == set(CLAIMS)

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from irevnet import create_model
from irevnet.analysis import dimensionality, inversion, jacobian, separation, statistics
from pipeline.claims import Condition, judge, judge_claims, load_claims, verdict
from pipeline.notebook import initial_models, load_experiment_data, training_history
from pipeline.params import ROOT, ParamsError, load_bounds, load_params
from pipeline.questions import QUESTIONS


@pytest.fixture
def results(tmp_path):
    (tmp_path / "inversion").mkdir()
    estimate = {"value": 1.0, "low": 0.8, "high": 1.2, "n": 10}
    content = {"irevnet": {"flops_ratio": 0.5, "relative_error": estimate}}
    (tmp_path / "inversion" / "metrics.json").write_text(json.dumps(content))
    return tmp_path


def condition(metric, **bounds):
    return Condition(what="a number", metric=metric, **bounds)


@pytest.mark.parametrize(
    ("bounds", "state"),
    [
        ({"at_most": 1.2}, "holds"),
        ({"at_most": 1.1}, "open"),
        ({"at_most": 0.7}, "fails"),
        ({"at_least": 0.8}, "holds"),
        ({"at_least": 0.9}, "open"),
        ({"at_least": 1.3}, "fails"),
        ({"at_least": 0.5, "at_most": 1.5}, "holds"),
        ({"at_least": 0.5, "at_most": 1.0}, "open"),
        ({"at_least": 1.3, "at_most": 1.5}, "fails"),
    ],
)
def test_a_condition_holds_or_fails_with_all_of_its_interval(results, bounds, state):
    row = judge(condition("inversion.irevnet.relative_error", **bounds), results)
    assert row["state"] == state
    assert row["measured"] == "1 [0.8, 1.2]"
    assert row["n"] == 10


@pytest.mark.parametrize(
    ("metric", "families"),
    [
        ("inversion.irevnet.plain.relative_error", {"irevnet"}),
        ("inversion.irevnet_bijective.flops_ratio", {"irevnet_bijective"}),
        ("accuracy.differences.irevnet_minus_resnet", {"irevnet", "resnet"}),
        ("memory.reversible.growth", set()),
    ],
)
def test_the_networks_that_a_condition_is_about(metric, families):
    assert condition(metric, at_most=1.0).families == families


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("inversion.irevnet.equal_as_uint8", "share"),
        ("accuracy.differences.irevnet_minus_resnet", "difference"),
        ("memory.retrained.difference", "difference"),
        ("benchmarks.cpu-1-threads.against_revnet.ratio", "number"),
    ],
)
def test_the_unit_of_a_condition(metric, unit):
    assert condition(metric, at_most=1.0).unit == unit


def test_every_family_that_a_rule_is_about_is_trained_by_an_experiment():
    """A misspelt family would silently leave its claim untested in every experiment."""
    trained = {family for one in load_params().sections.values() for family in one.models}
    rules = [one for claim in load_claims("digits").values() for one in claim.conditions]
    assert set().union(*(rule.families for rule in rules)) <= trained


def test_conditions_on_networks_that_an_experiment_lacks_are_left_out():
    """``ilsvrc2012`` has the bijective network alone."""
    rows = {row["id"]: row for row in judge_claims("ilsvrc2012")}
    metrics = {c["metric"] for c in rows["C4"]["conditions"]}
    assert metrics == {
        "jacobian.irevnet_bijective.condition_number",
        "jacobian.irevnet_bijective.energy_share",
    }
    # All conditions of C5 are on another network: they are kept, and the claim stays untested.
    assert len(rows["C5"]["conditions"]) == 2
    assert rows["C5"]["verdict"] == "not tested here"
    digits = {row["id"]: row for row in judge_claims("digits")}
    assert len(digits["C4"]["conditions"]) == 4


@pytest.mark.parametrize(
    ("networks", "state", "bound"),
    [(10, "holds", "at most 2"), (11, "open", "at most 2 in 11 networks or more, here 10")],
)
def test_too_few_networks_leave_it_open(results, networks, state, bound):
    one = condition("inversion.irevnet.relative_error", at_most=2.0)
    judged = judge(one, results, networks)
    assert (judged["state"], judged["bound"]) == (state, bound)


@pytest.mark.parametrize(
    ("bounds", "state"),
    [({"at_least": 0.7}, "holds"), ({"at_least": 1.3}, "open"), ({"at_most": 1.3}, "open")],
)
def test_a_lower_bound_holds_or_leaves_open(tmp_path, bounds, state):
    """The condition number in a window of an image is a lower bound for the whole image."""
    (tmp_path / "jacobian").mkdir()
    estimate = {"value": 1.0, "low": 0.8, "high": 1.2, "n": 2, "lower_bound": True}
    content = {"irevnet": {"condition_number": estimate}}
    (tmp_path / "jacobian" / "metrics.json").write_text(json.dumps(content))
    row = judge(condition("jacobian.irevnet.condition_number", **bounds), tmp_path)
    assert row["state"] == state
    assert row["measured"] == "at least 1 [0.8, 1.2]"


def test_a_plain_number_is_its_own_interval(results):
    row = judge(condition("inversion.irevnet.flops_ratio", at_most=0.5), results)
    assert row["state"] == "holds"
    assert row["measured"] == "0.5"
    assert row["bound"] == "at most 0.5"


@pytest.mark.parametrize("metric", ["inversion.resnet.relative_error", "memory.reversible.growth"])
def test_what_was_not_measured_neither_holds_nor_fails(results, metric):
    row = judge(condition(metric, at_most=1.0), results)
    assert row["state"] == row["measured"] == "not measured"


def test_a_damaged_file_is_named(results):
    path = results / "inversion" / "metrics.json"
    path.write_text('{"irevnet": 0.')
    with pytest.raises(ValueError, match=r"inversion/metrics\.json is damaged"):
        judge(condition("inversion.irevnet.flops_ratio", at_most=1.0), results)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["holds", "holds"], "consistent"),
        (["holds", "fails", "open"], "inconsistent"),
        (["holds", "open"], "inconclusive"),
        (["holds", "not measured"], "not tested here"),
        ([], "not tested here"),
    ],
)
def test_verdicts(states, expected):
    assert verdict(states) == expected


def test_the_papers_own_numbers_pass_the_rule_of_c2():
    """Table 1, top-1 accuracies: (a) 75.3, (b) 73.3, ResNet-50 75.3, RevNet-56 74.8."""
    accuracy = {"irevnet": 0.753, "irevnet_bijective": 0.733, "resnet": 0.753, "revnet": 0.748}
    rule = load_claims("cifar10")["C2"].conditions
    assert len(rule) == 4
    for one in rule:
        ours, theirs = one.metric.removeprefix("accuracy.differences.").split("_minus_")
        assert accuracy[ours] - accuracy[theirs] >= one.at_least


def test_a_network_that_loses_more_than_the_margin_fails_the_rule_of_c2(tmp_path):
    (tmp_path / "accuracy").mkdir()
    estimate = {"value": -0.04, "low": -0.05, "high": -0.03, "n": 10}
    names = ["irevnet_minus_resnet", "irevnet_bijective_minus_revnet"]
    metrics = {"differences": dict.fromkeys(names, estimate)}
    (tmp_path / "accuracy" / "metrics.json").write_text(json.dumps(metrics))
    states = [judge(one, tmp_path)["state"] for one in load_claims("cifar10")["C2"].conditions]
    assert states.count("fails") == 2


def test_an_experiment_can_override_only_known_bounds():
    params = load_params()
    params.section("digits").bounds["relative_error"] = 0.25
    assert load_claims("digits", params)["C1"].conditions[0].at_most == 0.25
    assert load_claims("cifar10", params)["C1"].conditions[0].at_most == 5e-6
    params.section("digits").bounds["margn"] = 0.1
    with pytest.raises(ParamsError, match=r"digits\.bounds: claims\.yaml has no bound margn"):
        load_claims("digits", params)


def test_a_figure_and_its_rule_use_the_same_bound():
    rule = load_claims("cifar10_cpu")["C2"].conditions[0]
    assert load_bounds("cifar10_cpu")["accuracy_margin"] == -rule.at_least == 0.005


def test_every_metric_that_a_rule_names_is_written_by_its_notebook():
    rows = {row["id"]: row for row in judge_claims("digits")}
    unmeasured = [
        one["metric"]
        for row in rows.values()
        for one in row["conditions"]
        if one["state"] == "not measured"
    ]
    assert unmeasured == []


def leaves(value, path=""):
    """Dotted paths of the numbers and estimates in a file of metrics."""
    if isinstance(value, dict) and not {"value", "low", "high"} <= set(value):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".removeprefix("."))
    else:
        yield path


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_notebook_writes_the_metrics_that_its_question_declares(name):
    written = leaves(json.loads((ROOT / "results/digits" / name / "metrics.json").read_text()))
    declared = {metric: False for metric in QUESTIONS[name].metrics}
    for path in written:
        for metric in declared:
            own = replace(QUESTIONS[name], metrics={metric: "number"})
            declared[metric] |= own.families_in(path) is not None
    assert all(declared.values()), declared


def test_pixels_fail_the_rule_of_c4(tmp_path):
    """The Jacobian of the identity: no direction has more energy than another."""
    measured = jacobian.summary(
        torch.ones(3, 4, 64), 0.9, outputs=64, inputs=64, invertible=True, preserves_volume=True
    )
    (tmp_path / "jacobian").mkdir()
    metrics = dict.fromkeys(("irevnet", "irevnet_bijective"), measured)
    (tmp_path / "jacobian" / "metrics.json").write_text(json.dumps(metrics))
    rule = load_claims("digits")["C4"]
    states = [judge(one, tmp_path, rule.networks)["state"] for one in rule.conditions]
    assert states == ["fails"] * 4


def test_an_inverse_that_loses_images_fails_the_rule_of_c1(tmp_path):
    (tmp_path / "inversion").mkdir()
    lost = {
        "relative_error": {"value": 0.3, "low": 0.2, "high": 0.4, "n": 5},
        "equal_as_uint8": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 5},
    }
    metrics = {"irevnet": {"plain": lost, **lost}, "irevnet_bijective": lost}
    (tmp_path / "inversion" / "metrics.json").write_text(json.dumps(metrics))
    for claim in ("C1", "C1b"):
        rule = load_claims("digits")[claim].conditions
        assert {judge(one, tmp_path)["state"] for one in rule} == {"fails"}


def judged(claim, question, metrics, folder):
    """States of a claim's conditions on metrics of one question."""
    (folder / question).mkdir(parents=True)
    (folder / question / "metrics.json").write_text(json.dumps(metrics))
    rule = load_claims("digits")[claim]
    return [judge(one, folder, rule.networks)["state"] for one in rule.conditions]


FAMILIES = ("irevnet", "irevnet_bijective")


def published(experiment, question):
    return json.loads((ROOT / "results" / experiment / question / "metrics.json").read_text())


def exactly(value):
    return statistics.exact(value, 5).as_dict()


def test_untrained_networks_fail_the_rule_of_c6(tmp_path):
    """Three untrained networks against two others: there is nothing that training has added."""
    data = load_experiment_data("digits")
    (train, train_labels), (test, test_labels) = data.train.first(200), data.test.first(300)
    items = (train, train_labels.numpy(), test, test_labels.numpy(), [0.01])
    metrics = {}
    for family in FAMILIES:
        networks = initial_models("digits", family, train)
        curves = [separation.by_depth(network, *items) for network in networks]
        rows = {name: np.array([curve[name] for curve in curves]) for name in curves[0]}
        some, others = (
            {name: row[part] for name, row in rows.items()} for part in (slice(3), slice(3, 5))
        )
        metrics[family] = separation.summary(some, others, len(test))
    states = judged("C6", "separation", metrics, tmp_path)
    assert "holds" not in states
    assert verdict(states) == "inconsistent"


def test_networks_that_separate_classes_at_once_fail_the_rule_of_c6(tmp_path):
    """As well at every depth as the trained ones at the last: no progress with depth."""
    metrics = {}
    for family, measured in published("digits", "separation").items():
        trained, initial = {}, {}
        for name in ("svm", "knn"):
            before = np.array(measured[f"initial_{name}_by_depth"])
            initial[name] = np.tile(before, (3, 1))
            trained[name] = np.full_like(initial[name], measured[f"{name}_by_depth"][-1])
        same = dict.fromkeys(("within", "between", "contraction"), initial["svm"])
        same |= dict.fromkeys(("penalty", "penalty_at_edge"), initial["svm"])
        metrics[family] = separation.summary(trained | same, initial | same, 540)
    assert judged("C6", "separation", metrics, tmp_path) == ["fails"] * 4 + ["holds"] * 4


def test_a_network_that_is_really_worse_fails_the_rule_of_c3(tmp_path):
    """The bijective network of CIFAR-10 is points behind the ResNet."""
    behind = published("cifar10_cpu", "accuracy")["differences"]["irevnet_bijective_minus_resnet"]
    names = ("irevnet_minus_projected", "shuffled_minus_revnet")
    metrics = {"differences": dict.fromkeys(names, behind)}
    assert judged("C3", "accuracy", metrics, tmp_path) == ["fails", "fails"]


def test_stored_activations_fail_the_rule_of_c8(tmp_path):
    metrics = {"reversible": published("digits", "memory")["stored"]}
    assert judged("C8", "memory", metrics, tmp_path) == ["fails"]


def test_activations_recovered_with_fewer_bits_fail_the_rule_of_c8b(tmp_path):
    """Fixed point is coarser than float32 here: its gradients are exact ones of coarse states."""
    measured = published("digits", "precision")["gradients"]
    metrics = {
        family: {"ratio": exactly(errors["fixed_reversible"] / errors["float_stored"])}
        for family, errors in measured.items()
    }
    assert judged("C8b", "precision", {"gradients": metrics}, tmp_path) == ["fails", "fails"]


def test_the_plain_inverse_of_an_injective_network_fails_the_rule_of_c8b(tmp_path):
    measured = published("digits", "precision")["gradients"]
    metrics = {
        family: {
            "ratio": exactly(
                errors["float_reversible_known_channels_ignored"] / errors["float_stored"]
            )
        }
        for family, errors in measured.items()
    }
    states = judged("C8b", "precision", {"gradients": metrics}, tmp_path)
    assert states == ["fails", "holds"], "a bijective network has no known channels"


def test_networks_that_stop_after_an_epoch_fail_the_rule_of_c8c(tmp_path):
    runs = training_history("digits", "irevnet_bijective")
    lost = [run[0]["validation_accuracy"] - run[-1]["validation_accuracy"] for run in runs]
    metrics = {"retrained": {"difference": statistics.mean(lost).as_dict()}}
    assert judged("C8c", "memory", metrics, tmp_path) == ["fails"]


class TwiceInverted(torch.nn.Module):
    """An i-RevNet whose inverse takes two rounds, as an iterative one would."""

    def __init__(self, model):
        super().__init__()
        self.model, self.encode = model, model.encode

    def inverse(self, z):
        return self.model.inverse(self.encode(self.model.inverse(z)))


def test_a_costly_or_an_approximate_inverse_fails_the_rule_of_c9(tmp_path):
    model = TwiceInverted(create_model("irevnet_digits_bijective").eval())
    encode, inverse = inversion.flops(model, torch.rand(2, 1, 8, 8))
    states = published("digits", "precision")["drift"]["irevnet_bijective"]["evaluation"]
    metrics = {
        "flops_ratio": exactly(inverse / encode),
        "representation_error": exactly(states["bfloat16"]["image"]),
    }
    assert judged("C9", "inversion", {"irevnet_bijective": metrics}, tmp_path) == ["fails", "fails"]


def dimensionality_of(plateau, initial, loss, networks=3):
    def curve(start):
        values = [0.9 if d >= start else 0.1 for d in (1, 20, 200, 400)]
        curves = dict.fromkeys(("svm", "knn", "penalty", "penalty_at_edge"), values)
        return {"tried": [1, 20, 200, 400], **curves, "variance": [1.0] * 400}

    summary = dimensionality.summary(
        [curve(plateau)] * networks,
        [curve(initial)] * networks,
        [0.9 + loss] * networks,
        classes=100,
        tolerance=0.01,
        test_images=1000,
    )
    return dict.fromkeys(FAMILIES, summary)


def test_the_papers_numbers_pass_the_rule_of_c7_and_networks_at_initialisation_fail_it(tmp_path):
    # 200 components for 100 classes; 75.4 to 73.2% with a linear read-out.
    paper = dimensionality_of(200, 400, 0.022)
    assert set(judged("C7", "dimensionality", paper, tmp_path / "paper")) == {"holds"}
    initial = dimensionality_of(20, 20, 0.0)
    states = judged("C7", "dimensionality", initial, tmp_path / "initial")
    assert states.count("fails") == 4
    single = dimensionality_of(200, 400, 0.022, networks=1)
    assert set(judged("C7", "dimensionality", single, tmp_path / "few")) == {"open"}


def test_unrecognisable_pictures_fail_the_rule_of_c5(tmp_path):
    measured = json.loads((ROOT / "results/digits/interpolation/metrics.json").read_text())
    metrics = {"irevnet": {}}
    for kind in ("same_class", "different_classes"):
        control = measured["irevnet"][kind]["control"]
        metrics["irevnet"][kind] = {"recognised_of_yardstick": control}
    assert judged("C5", "interpolation", metrics, tmp_path) == ["fails", "fails"]


def test_a_rule_can_use_a_benchmark(tmp_path):
    path = tmp_path / "benchmarks" / "cpu-1-threads" / "against_revnet.json"
    path.parent.mkdir(parents=True)
    rule = load_claims("digits")["C10"].conditions[0]
    assert judge(rule, tmp_path / "digits")["state"] == "not measured"
    for ratio, state in ((4 / 3, "holds"), (1.0, "fails"), (3.0, "fails")):
        step = {"value": ratio, "low": ratio, "high": ratio, "n": 5}
        path.write_text(json.dumps({"ilsvrc": {"step_over_revnet": step}}))
        row = judge(rule, tmp_path / "digits")
        assert row["state"] == state
        assert (tmp_path / "digits" / row["source"]).resolve() == path


def test_a_benchmark_needs_a_folder_and_a_file():
    with pytest.raises(ValidationError, match=r"metric must be benchmarks\.FOLDER\.FILE\.KEY"):
        Condition(what="x", metric="benchmarks.folder.key", at_most=1)

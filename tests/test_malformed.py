"""Malformed ``params.yaml`` and ``claims.yaml`` are refused with the path of what is wrong."""

import copy
import math

import pytest
import yaml

from pipeline.claims import load_claims
from pipeline.params import ROOT, ParamsError, check_models, load_params

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
CLAIMS = yaml.safe_load((ROOT / "claims.yaml").read_text())
REMOVED = object()
NAMES = ["../evil", "-rf", "a/b", "x;touch y", "$(touch y)", "A", "a b", "1a", "", "é", "a" * 41]
HUGE = 10**6
NAN, INFINITE = math.nan, math.inf

# The path, the value that replaces the one there, and a part of the message.
VALUES = [
    ("default", "digit", "available"),
    ("default", REMOVED, "default"),
    ("default", None, "default"),
    ("default", ["digits"], "default"),
    ("digits", None, "digits"),
    ("digits", [], "digits"),
    ("digits", {}, "digits.seeds"),
    ("digits.sedes", [0], "Extra"),
    ("digits.trivail", {}, "Extra"),
    ("digits.seeds", REMOVED, "required"),
    ("digits.seeds", [], "at least 1"),
    ("digits.seeds", 5, "list"),
    ("digits.seeds", [0, 0], "repeat"),
    ("digits.seeds", [-1], "greater than or equal to 0"),
    ("digits.seeds", [2**32], "less than"),
    ("digits.seeds", [0.5], "integer"),
    ("digits.seeds", ["0"], "integer"),
    ("digits.seeds", [True], "integer"),
    ("digits.seeds", [0, 1], "networks"),
    ("digits.published", "last", "'best'"),
    ("digits.published", None, "'best'"),
    ("digits.judged_on", "train", "'test'"),
    ("digits.threads", 0, "greater than"),
    ("digits.threads", -1, "greater than"),
    ("digits.threads", 1.0, "integer"),
    ("digits.threads", HUGE, "less than"),
    ("digits.data", REMOVED, "required"),
    ("digits.data.name", "mnist", "'cifar10'"),
    ("digits.data.root", 3, "string"),
    ("digits.data.validation", -1, "greater than or equal to 0"),
    ("digits.data.validation", 5, "each class"),
    ("digits.data.validation", 1250, "each class"),
    ("digits.data.validation", HUGE, "each class"),
    ("digits.data.validation", 0, "published: best needs"),
    ("digits.data.validation", "180", "integer"),
    ("digits.data.workers", -1, "greater than"),
    ("digits.data.size", 0, "greater than"),
    ("digits.models", {}, "at least 1"),
    ("digits.models", [], "dictionary"),
    ("digits.models.resnet", REMOVED, "needs models.resnet"),
    ("digits.models.resnet.released", "data/w.pth", "training must be left out"),
    ("digits.models.projected.variant_of", "densenet", "must be another family"),
    ("digits.models.projected.variant_of", "projected", "must be another family"),
    ("digits.models.irevnet_bijective.variant_of", "projected", "must be another family"),
    ("digits.models.resnet.variant_of", "irevnet", "accuracy needs resnet as a family of its own"),
    ("digits.training", REMOVED, "training is missing"),
    ("digits.data.divided", True, "divided goes with name: folders"),
    ("imagenette.data.divided", True, "no validation images"),
    ("ilsvrc2012.models.irevnet_bijective.released", REMOVED, "have no released"),
    ("ilsvrc2012.models.irevnet_bijective.training", {"epochs": 2}, "nothing is trained"),
    ("ilsvrc2012.seeds", [0, 1], "where nothing is trained"),
    ("ilsvrc2012.interpolation.judges", 1, "needs models.resnet"),
    ("digits.models.resnet", "resnet_digits", "dictionary"),
    ("digits.models.resnet", {}, "required"),
    ("digits.models.resnet.name", 3, "string"),
    ("digits.models.resnet.nmae", "resnet_digits", "Extra"),
    ("digits.models.resnet.name", "revnet_digits", "revnet"),
    ("digits.models.resnet.overrides", [1], "dictionary"),
    ("digits.models.resnet.weights", "float64", "'float16'"),
    ("digits.models.resnet.training", {"epoch": 3}, "unknown: epoch"),
    ("digits.models.resnet.training", {"epochs": 0}, "positive"),
    ("digits.models.resnet.training", {"batch_size": HUGE}, "1077"),
    ("cifar10_recipe.models.cutout_8.training", {}, "the same as base"),
    ("digits.bounds", {"accuracy_margin": NAN}, "finite"),
    ("digits.bounds", {"accuracy_margin": INFINITE}, "finite"),
    ("digits.bounds", {"accuracy_margin": "0.01"}, "number"),
    ("digits.bounds", {"../x": 1.0}, "plain word"),
    ("digits.training", {}, "missing"),
    ("digits.training.epochs", REMOVED, "missing"),
    ("digits.training.epochs", 0, "positive"),
    ("digits.training.epochs", -3, "positive"),
    ("digits.training.epochs", "many", "'many'"),
    ("digits.training.epochs", 1.5, "1.5"),
    ("digits.training.epochs", INFINITE, "inf"),
    ("digits.training.epochs", True, "True"),
    ("digits.training.epochs", None, "None"),
    ("digits.training.batch_size", 0, "positive"),
    ("digits.training.batch_size", 1078, "1077, the number of training images"),
    ("digits.training.learning_rate", 0.0, "(0, inf)"),
    ("digits.training.learning_rate", -0.1, "(0, inf)"),
    ("digits.training.learning_rate", INFINITE, "(0, inf)"),
    ("digits.training.learning_rate", NAN, "(0, inf)"),
    ("digits.training.learning_rate", "0.1", "'0.1'"),
    ("digits.training.momentum", 1.0, "[0, 1)"),
    ("digits.training.weight_decay", INFINITE, "[0, inf)"),
    ("digits.training.weight_decay", -1.0, "[0, inf)"),
    ("digits.training.gradient_clip", INFINITE, "[0, inf)"),
    ("digits.training.label_smoothing", 1.0, "[0, 1)"),
    ("digits.training.averaging", 1.0, "[0, 1)"),
    ("digits.training.warmup", 0.0, "(0, 1)"),
    ("digits.training.schedule", "cosine", "'onecycle'"),
    ("digits.training.schedule", "step", "at least one epoch"),
    ("digits.training.milestones", [3, 2], "rising"),
    ("digits.training.milestones", [3], "onecycle"),
    ("cifar10.training.milestones", "3", "milestones"),
    ("digits.training.optimizer", "adam", "'muon'"),
    ("digits.training.muon_steps", 3, "sgd"),
    ("cifar10.training.muon_steps", 0, "1 to 20"),
    ("digits.training.padding", -1, "padding"),
    ("digits.training.cutout", 1.5, "cutout"),
    ("digits.training.flip", True, "'alternating'"),
    ("digits.training.sides", [0], "sides"),
    ("digits.training.precision", "float16", "'bfloat16'"),
    ("digits.training.compile", 1, "compile"),
    ("digits.training.epoch", 3, "unknown: epoch"),
    ("digits.inversion", [], "dictionary"),
    ("digits.inversion.images", 541, "540, the number of test images"),
    ("digits.inversion.images", 5, "gallery must be at most images"),
    ("digits.inversion.images", 1, "greater than"),
    ("digits.inversion.gallery", 541, "gallery must be at most images"),
    ("digits.inversion.gallery", 0, "greater than"),
    ("digits.inversion.random_representations", 1.5, "integer"),
    ("digits.inversion.image", 3, "Extra"),
    ("digits.accuracy.margin", 0.01, "Extra"),
    ("digits.accuracy.level", 1.0, "less than"),
    ("digits.accuracy.level", 0.5, "greater than"),
    ("digits.accuracy.level", NAN, "found nan"),
    ("digits.accuracy.baselines", [], "at least 1"),
    ("digits.accuracy.baselines", ["densenet"], "needs models.densenet"),
    ("digits.accuracy.baselines", ["resnet", "resnet"], "repeat"),
    ("cifar10_released.accuracy.baselines", ["resnet", "irevnet"], "leave a family"),
    ("digits.jacobian.networks", 6, "5, the number of seeds"),
    ("digits.jacobian.images", REMOVED, "required"),
    ("digits.jacobian.compared_images", 9, "at most images"),
    ("digits.jacobian.energy", 0.0, "greater than"),
    ("digits.jacobian.energy", 90, "less than"),
    ("digits.jacobian.precision", "bfloat16", "'float64'"),
    ("digits.jacobian.memory", 0, "greater than"),
    ("digits.interpolation.pairs", 541, "540, the number of test images"),
    ("digits.interpolation.pairs", 3, "greater than"),
    ("digits.interpolation.shown", 101, "half of pairs"),
    ("digits.interpolation.steps", 2, "greater than"),
    ("digits.separation", None, "trivial reads the results of separation"),
    ("digits.separation.networks", 6, "5, the number of seeds"),
    ("digits.separation.networks", 0, "greater than"),
    ("digits.separation.training_images", 1078, "1077, the number of training images"),
    ("digits.separation.test_images", 541, "540, the number of test images"),
    ("digits.separation.penalties", [], "at least 1"),
    ("digits.separation.penalties", [0.0], "greater than 0"),
    ("digits.separation.penalties", [-1.0], "greater than 0"),
    ("digits.separation.penalties", [INFINITE], "finite"),
    ("digits.separation.penalties", [NAN], "finite"),
    ("digits.separation.penalties", [0.1, 0.1], "repeat"),
    ("digits.separation.search_tolerance", INFINITE, "finite"),
    ("digits.dimensionality.dimensions", [4, 2], "rise"),
    ("digits.dimensionality.dimensions", [2, 2], "rise"),
    ("digits.dimensionality.dimensions", [0, 2], "greater than 0"),
    ("digits.dimensionality.dimensions", [2], "at least 2"),
    ("digits.dimensionality.tolerance", 1.0, "less than"),
    ("digits.memory.blocks_per_stage", [4, 2], "rise"),
    ("digits.memory.batch_size", 1078, "1077, the number of training images"),
    ("digits.precision.training_images", HUGE, "1077, the number of training images"),
    ("digits.precision.images", HUGE, "1077, the number of training images"),
    ("digits.precision.batches", 32, "times batches must be at most 1077"),
    ("digits.trivial.pairs", 271, "twice trivial.pairs must be at most 540"),
    ("digits.interpolation.judge_images", 1078, "1077, the number of training images"),
    ("digits.published", "none", "published: none leaves inversion, interpolation"),
    ("digits.metamers.shown", 101, "at most pairs"),
    ("digits.trivial.features", [5, 0], "rise"),
    ("digits.trivial.features", [0, 65], "the values of an image"),
    ("digits.trivial.training_images", 64, "the values of an image"),
    ("digits.stability.limit", NAN, "finite"),
    ("digits.stability.step_size", -50, "greater than 0"),
]


def dump(content):
    return yaml.dump(content, Dumper=yaml.CSafeDumper)


def change(content, path, value):
    """A copy with the value at a dotted path replaced, or removed."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key] if not key.isdigit() else place[int(key)]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return content


def refused(tmp_path, content):
    """The message of the error for a file with that content."""
    path = tmp_path / "params.yaml"
    path.write_text(dump(content))
    with pytest.raises(ParamsError) as error:
        check_models(load_params(path))
    return str(error.value)


@pytest.mark.parametrize(("path", "value", "message"), VALUES)
def test_a_bad_value_is_refused_with_its_path(tmp_path, path, value, message):
    text = refused(tmp_path, change(PARAMS, path, value))
    assert message in text
    assert path.split(".")[0] in text
    if len(path.split(".")) > 1:
        assert path.split(".")[1] in text
    assert len(text.splitlines()) < 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["", "digits.models.", "digits.bounds."])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path, place, name):
    """Names become folders and arguments of commands."""
    content = copy.deepcopy(PARAMS)
    if place == "":
        content[name] = content["digits"]
    elif place == "digits.models.":
        content["digits"]["models"][name] = {"name": "resnet_digits", "training": {"epochs": 3}}
    else:
        content["digits"]["bounds"] = {name: 0.1}
    text = refused(tmp_path, content)
    assert "must be a plain word" in text
    assert repr(name) in text


def test_the_name_of_other_results_is_refused(tmp_path):
    text = refused(tmp_path, PARAMS | {"benchmarks": PARAMS["digits"]})
    assert "must not be 'benchmarks'" in text


NETWORKS = [
    ("irevnet", {"name": "irevnet_x"}, "name must be one of"),
    ("irevnet", {"name": "irevnet_digits", "overrides": {"depth": 3}}, "no argument depth"),
    ("irevnet", {"name": "irevnet_digits", "overrides": {"blocks": [0, 1, 1]}}, "blocks"),
    ("irevnet", {"name": "irevnet_cifar"}, "(3, 32, 32)"),
    ("irevnet", {"name": "irevnet_digits", "overrides": {"num_classes": 7}}, "7 classes"),
    ("irevnet", {"name": "resnet_digits", "overrides": {"units": [1, 1, 1]}}, "no irevnet"),
    ("revnet", {"name": "irevnet_digits", "overrides": {"blocks": [1, 1, 1]}}, "no revnet"),
    (
        "irevnet",
        {"name": "irevnet_digits_bijective", "overrides": {"blocks": [1, 1, 1]}},
        "the family irevnet is injective",
    ),
    (
        "irevnet_bijective",
        {"name": "irevnet_digits", "overrides": {"blocks": [1, 1, 1]}},
        "the family irevnet_bijective is bijective",
    ),
]


@pytest.mark.parametrize(("family", "model", "message"), NETWORKS)
def test_a_network_that_does_not_fit_is_refused(tmp_path, family, model, message):
    text = refused(tmp_path, change(PARAMS, f"digits.models.{family}", model))
    assert f"digits.models.{family}: " in text
    assert message in text


TEXTS = [
    ("digits: [", "cannot be read"),
    ("\tdefault: digits", "cannot be read"),
    ("default: digits\ndefault: cifar10\n", "the key 'default' appears twice"),
    ("default: digits\ndigits: {seeds: [0], seeds: [1]}", "the key 'seeds' appears twice"),
    ("default: &a {x: *a}", "default"),
    ("- digits", "must be a mapping"),
    ("", "must be a mapping"),
    ("digits", "must be a mapping"),
    ("1: {}", "must be a mapping from names"),
    ("true: {}", "must be a mapping from names"),
    ("{[a]: 1}", "cannot be read"),
    ("a: " + "[" * 5000, "cannot be read"),
    ("a: " + "{b: " * 5000, "cannot be read"),
    ("a: !!python/object:os.system {}", "cannot be read"),
    ("a: 1\0", "cannot be read"),
    ("default: digits\n---\ndefault: digits", "cannot be read"),
]


@pytest.mark.parametrize("name", ["params.yaml", "claims.yaml"])
@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_a_text_that_is_no_mapping_of_sections_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ParamsError) as error:
        load_params(path) if name == "params.yaml" else load_claims("digits", path=path)
    assert name in str(error.value)
    if name == "params.yaml":
        assert message in str(error.value)


@pytest.mark.parametrize("name", ["params.yaml", "claims.yaml"])
def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path, name):
    path = tmp_path / name
    for content, message in ((None, "No such file"), (b"a: \xff\xfe", "utf-8")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ParamsError, match=rf"{name} cannot be read: .*{message}"):
            load_params(path) if name == "params.yaml" else load_claims("digits", path=path)


CONDITION = "claims.C1.conditions.0"
RULES = [
    ("bounds", {}, "no bound"),
    ("bounds.relative_error", NAN, "finite"),
    ("bounds.relative_error", INFINITE, "finite"),
    ("bounds.relative_error", "5e-6", "number"),
    ("bounds.relative_eror", 1.0, "no rule uses relative_eror"),
    ("bounds.$(x)", 1.0, "plain word"),
    ("claims", {}, "at least 1"),
    ("claims.C1.claim", "", "at least 1"),
    ("claims.C1.paper", REMOVED, "required"),
    ("claims.C1.written", "yesterday", "date"),
    ("claims.C1.written", REMOVED, "required"),
    ("claims.C1.networks", 0, "greater than"),
    ("claims.C1.conditions", {}, "list"),
    ("claims.D1", CLAIMS["claims"]["C1"], "D1"),
    (f"{CONDITION}.what", "", "at least 1"),
    (f"{CONDITION}.at_most", "relativ_error", "no bound relativ_error"),
    (f"{CONDITION}.at_most", None, "needs at_most or at_least"),
    (f"{CONDITION}.at_most", NAN, "finite"),
    (f"{CONDITION}.at_least", 1.0, "more than at_most"),
    (
        f"{CONDITION}.metric",
        "inversions.irevnet.relative_error",
        "must begin with benchmarks or",
    ),
    (f"{CONDITION}.metric", "inversion.irevnet.relativ_error", "its question declares"),
    (f"{CONDITION}.metric", "inversion.irevnet", "its question declares"),
    (f"{CONDITION}.metric", "precision.drift", "its question declares"),
    (f"{CONDITION}.metric", 3, "string"),
    (f"{CONDITION}.unit", "networks", "Extra"),
]


@pytest.mark.parametrize(("path", "value", "message"), RULES)
def test_a_rule_that_cannot_be_judged_is_refused(tmp_path, path, value, message):
    file = tmp_path / "claims.yaml"
    file.write_text(dump(change(CLAIMS, path, value)))
    with pytest.raises(ParamsError) as error:
        load_claims("digits", path=file)
    text = str(error.value)
    assert "claims.yaml is not valid" in text
    assert message in text


def test_bounds_of_an_experiment_that_do_not_exist_or_contradict_a_rule_are_refused(tmp_path):
    file = tmp_path / "claims.yaml"
    content = change(CLAIMS, f"{CONDITION}.at_least", -1.0)
    file.write_text(dump(content))
    params = load_params()
    params.section("digits").bounds["relative_error"] = -2.0
    with pytest.raises(ParamsError, match=r"C1.*at_least -1\.0 is more than at_most -2\.0"):
        load_claims("digits", params, file)
    params.section("digits").bounds["relativ_error"] = 1.0
    with pytest.raises(ParamsError, match=r"digits\.bounds: .*no bound relativ_error"):
        load_claims("digits", params, file)

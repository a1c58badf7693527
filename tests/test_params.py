import dataclasses

import pytest
import yaml

from irevnet.training import TrainingConfig
from pipeline.params import ROOT, ParamsError, Training, check_models, load_params


def changed(tmp_path, *path, value=None, remove=False):
    """The repository's ``params.yaml`` with one entry changed, added or removed."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    *parents, last = path
    section = content
    for key in parents:
        section = section[key]
    if remove:
        del section[last]
    else:
        section[last] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_repositorys_file_is_valid():
    params = load_params()
    check_models(params)
    assert set(params.experiments) <= set(params.sections)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("digits", "accuracy", "margn"), 0.1, r"digits\.accuracy\.margn: Extra inputs"),
        (("digits", "training", "epochs"), 0, r"digits\.training\.epochs: .*greater than 0"),
        (("digits", "training", "epochs"), "many", r"epochs: .*valid integer \(found 'many'\)"),
        (("digits", "training", "schedule"), "cosine", r"schedule: .*'onecycle' or 'step'"),
        (("digits", "accuracy", "margin"), 2.0, r"digits\.accuracy\.margin: .*less than 1"),
        (("digits", "data", "name"), "mnist", r"digits\.data\.name: .*'digits', 'cifar10'"),
        (("digits", "claims", "C10"), [], r"digits\.claims\.C10"),
        (("digits", "claims", "C1"), [{"what": "a", "metric": "b"}], r"needs at_most or at_least"),
        (("seeds",), [], r"seeds: .*at least 1 item"),
        (("experiments",), ["digit"], r"names 'digit', of which there is no section; there are"),
        (("beyond", "trivial"), [], r"beyond\.trivial must list .*: digits has one"),
        (("digits", "data", "validation"), 0, r"digits: .*published: best needs validation images"),
        (("new",), {"data": {"name": "digits"}}, r"new\.models: Field required"),
        (("families",), ["irevnet", "densenet"], r"families\.1: .*'irevnet'"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path, path, value, message):
    with pytest.raises(ParamsError, match=message):
        load_params(changed(tmp_path, *path, value=value))


def test_a_missing_key_is_named(tmp_path):
    file = changed(tmp_path, "digits", "jacobian", "images", remove=True)
    with pytest.raises(ParamsError, match=r"digits\.jacobian\.images: Field required"):
        load_params(file)


def test_every_problem_is_named_at_once(tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["seeds"] = [-1]
    content["digits"]["training"]["momentum"] = 1.5
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as error:
        load_params(file)
    assert "seeds.0" in str(error.value)
    assert "digits.training.momentum" in str(error.value)


def test_a_network_that_cannot_be_built_is_named(tmp_path):
    model = {"name": "irevnet_digits", "overrides": {"depth": 3}}
    file = changed(tmp_path, "digits", "models", "irevnet", value=model)
    with pytest.raises(
        ParamsError, match=r"digits\.models\.irevnet: irevnet_digits has no .*depth"
    ):
        check_models(load_params(file))


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("digits: [")
    with pytest.raises(ParamsError, match=r"params\.yaml cannot be read"):
        load_params(file)


def test_training_has_the_fields_and_defaults_of_the_packages_configuration():
    ours = {
        name: field.default if not field.is_required() else dataclasses.MISSING
        for name, field in Training.model_fields.items()
    }
    theirs = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    assert {**ours, "milestones": tuple(ours["milestones"])} == theirs

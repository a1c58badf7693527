"""What ``params.yaml`` may say: bad values are named by their path, before anything runs."""

import copy
import subprocess
import sys

import pytest
import yaml

from irevnet.training import shortened
from pipeline.params import ROOT, ParamsError, check_models, load_params

CONTENT = yaml.safe_load((ROOT / "params.yaml").read_text())
NOTHING = object()


def changed(folder, *path, value=NOTHING):
    """A copy of the repository's file with a value replaced, or removed."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is NOTHING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_file_of_the_repository_is_valid():
    params = load_params()
    check_models(params)
    assert params.default in params.sections


def test_checking_the_file_does_not_wait_for_pytorch():
    program = (
        "import sys; from pipeline.params import load_params; load_params(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_missing_key_is_named(tmp_path):
    file = changed(tmp_path, "digits", "jacobian", "images")
    with pytest.raises(ParamsError, match=r"digits\.jacobian\.images: Field required"):
        load_params(file)


def test_every_problem_is_named_at_once(tmp_path):
    content = copy.deepcopy(CONTENT)
    content["digits"]["seeds"] = [-1]
    content["digits"]["training"]["momentum"] = 1.5
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as error:
        load_params(file)
    assert "digits.seeds.0" in str(error.value)
    assert "digits.training: Value error, momentum must be" in str(error.value)


def test_every_recipe_can_be_shortened_to_the_epochs_of_every_question():
    """Some notebooks train networks themselves, by the experiment's recipe for fewer epochs."""
    lengths = []
    trained = {name: one for name, one in load_params().sections.items() if one.training}
    for name, section in trained.items():
        for question in section.questions:
            for parameter, epochs in getattr(section, question):
                if parameter.endswith("epochs") and epochs:
                    configs = [shortened(section.recipe(f), epochs) for f in section.families]
                    assert {config.epochs for config in configs} == {epochs}
                    lengths.append((name, question))
    assert {("cifar10", one) for one in ("interpolation", "memory", "precision", "stability")} <= {
        *lengths
    }

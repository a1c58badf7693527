import dataclasses
import math
import re
import subprocess
import sys

import pytest

from irevnet.training import TrainingConfig, shortened
from recipes import config


def test_milestones_may_be_a_list_as_yaml_gives_it():
    assert config(epochs=200, schedule="step", milestones=[60, 120]).milestones == (60, 120)


def test_inclusive_bounds_are_allowed():
    config(momentum=0, weight_decay=0, label_smoothing=0, gradient_clip=0, padding=0)
    config(epochs=2, schedule="step", milestones=(1,), decay=1)


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("epochs", (0, -1, 1.0, "10", None, True), "a positive integer"),
        ("batch_size", (0, 32.0, None), "a positive integer"),
        (
            "learning_rate",
            (0, -0.1, math.nan, math.inf, float("1e400"), "1e-3", None),
            "a number in (0, inf)",
        ),
        ("warmup", (0, 1, -1, "0.5"), "a number in (0, 1)"),
        ("decay", (0, 1.1), "a number in (0, 1]"),
        ("momentum", (-0.1, 1), "a number in [0, 1)"),
        ("weight_decay", (-1e-4, math.nan, "5e-4", True), "a number in [0, inf)"),
        ("label_smoothing", (-0.1, 1), "a number in [0, 1)"),
        ("gradient_clip", (-1, None), "a number in [0, inf)"),
        ("averaging", (-0.1, 1, "0.99"), "a number in [0, 1)"),
        ("padding", (-1, 1.0, None), "0 or a positive integer"),
        (
            "milestones",
            ((0, 1), (2, 1), (1, 1), (1.0,), ("1",), "12", 3, None),
            "positive integers in rising order",
        ),
        ("schedule", ("cosine", None), "one of ('onecycle', 'step')"),
        ("precision", ("float16", None), "one of ('float32', 'bfloat16')"),
        ("flip", ("yes", True, None), "one of ('none', 'random', 'alternating')"),
        ("optimizer", ("adam", None), "one of ('sgd', 'muon')"),
        ("muon_learning_rate", (0, math.inf), "a number in (0, inf)"),
        ("muon_momentum", (1, -0.5), "a number in [0, 1)"),
        ("muon_steps", (0, 21, 5.0), "an integer from 1 to 20"),
        ("residual_scale", (-1, math.nan), "a number in [0, inf)"),
        ("norm_bias_factor", (0, "64"), "a number in (0, inf)"),
        ("cutout", (-1, 2.5), "0 or a positive integer"),
        ("sides", ((0,), (16.0,), "32", 16), "positive integers"),
        ("channels_last", ("no", 1), "one of (True, False)"),
        ("compile", (2,), "one of (True, False)"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(name, values, allowed):
    for value in values:
        message = re.escape(f"{name} must be {allowed}, got {value!r}")
        with pytest.raises(ValueError, match=f"^{message}$"):
            config(**{name: value})


def test_every_field_is_checked():
    for field in dataclasses.fields(TrainingConfig):
        with pytest.raises(ValueError, match=f"^{field.name} must be "):
            config(**{field.name: "nonsense"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "milestones must name at least one epoch with schedule 'step'"),
        ({"milestones": (1,)}, "milestones must be empty with schedule 'onecycle'"),
        ({"decay": 0.2}, "decay must be left out with schedule 'onecycle', got 0.2"),
        ({"schedule": "step", "milestones": (1, 2)}, "milestones must be before the last epoch, 2"),
        ({"sides": (4, 4, 8)}, "sides must be at most as many as epochs, 2"),
        ({"muon_steps": 4}, "muon_steps must be left out with optimizer 'sgd', got 4"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**settings)


def test_sides_share_the_epochs_equally():
    recipe = config(epochs=6, sides=[16, 24, 32])
    assert [recipe.side(epoch) for epoch in range(6)] == [16, 16, 24, 24, 32, 32]
    assert config().side(0) is None


@pytest.mark.parametrize(
    "own",
    [
        {"sides": [16, 16, 16, 24, 32], "residual_scale": 0.1},  # more sides than epochs
        {"schedule": "step", "milestones": [6, 8], "decay": 0.2},
        {"averaging": 0.99},  # over more steps than there are
    ],
)
def test_a_shortened_recipe_keeps_what_does_not_depend_on_its_length(own):
    recipe = {"epochs": 10, "batch_size": 128, "learning_rate": 0.1, "flip": "alternating", **own}
    kept = {"residual_scale": 0.1} if "residual_scale" in own else {}
    expected = TrainingConfig(
        epochs=1, batch_size=128, learning_rate=0.1, flip="alternating", **kept
    )
    assert shortened(recipe, 1) == expected


def test_a_shortened_recipe_is_checked():
    with pytest.raises(ValueError, match="epochs must be a positive integer, got 0"):
        shortened({"epochs": 10, "batch_size": 128, "learning_rate": 0.1}, 0)


def test_a_recipe_can_be_checked_without_pytorch():
    program = "import sys; import irevnet.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

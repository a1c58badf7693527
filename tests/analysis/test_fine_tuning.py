import pytest
import torch
from torch import nn

from irevnet import create_model
from irevnet.analysis.fine_tuning import gentle_recipe, with_last_block_fine_tuned
from irevnet.data import ImageData, load_digits
from irevnet.training import TrainingConfig, evaluate

RECIPE = TrainingConfig(epochs=2, batch_size=64, learning_rate=0.02)


@pytest.fixture(scope="module")
def data():
    whole = load_digits(180)
    return ImageData(whole.train.subset(256), whole.validation, whole.test, whole.classes)


@pytest.fixture(scope="module", params=["irevnet_digits", "irevnet_digits_bijective"])
def model(request):
    return create_model(request.param, pretrained="digits")


def test_only_the_last_block_and_the_read_out_change(model, data):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = with_last_block_fine_tuned(model, data, RECIPE, dropout=0.5)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    after = tuned.state_dict()
    last = f"blocks.{len(model.blocks) - 1}."
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith((last, "classifier.")) for name in changed)
    filters = [name for name, p in tuned.blocks[-1].named_parameters() if p.ndim == 4]
    assert {f"{last}{name}" for name in filters} <= changed


def test_the_fine_tuned_network_still_classifies_and_inverts(model, data):
    tuned = with_last_block_fine_tuned(model, data, RECIPE, dropout=0.5)
    assert not any(module.training for module in tuned.modules())
    assert all(p.requires_grad for p in tuned.parameters())
    assert evaluate(tuned, data.test).accuracy > 0.9
    x, _ = data.test.first(8)
    with torch.no_grad():
        # Nothing is dropped any more.
        assert torch.equal(tuned.encode(x), tuned.encode(x))
        torch.testing.assert_close(tuned.inverse(tuned.encode(x)), x, rtol=0, atol=1e-4)
    tuned.train()
    for module in tuned.modules():
        assert not isinstance(module, nn.Dropout)
        assert not module._forward_pre_hooks


def test_the_seed_decides_and_dropout_matters(model, data):
    first, again, other, plain = (
        with_last_block_fine_tuned(model, data, RECIPE, dropout=dropout, seed=seed)
        for dropout, seed in ((0.5, 0), (0.5, 0), (0.5, 1), (0.0, 0))
    )
    weight, *others = (net.classifier.linear.weight for net in (first, again, other, plain))
    assert [torch.equal(weight, one) for one in others] == [True, False, False]


def test_a_gentle_recipe_has_a_tenth_of_the_rates_and_nothing_that_undoes_training():
    recipe = {
        "epochs": 30,
        "batch_size": 128,
        "learning_rate": 0.1,
        "optimizer": "muon",
        "muon_learning_rate": 0.05,
        "residual_scale": 0.1,
        "sides": [16, 24, 32],
        "flip": "alternating",
    }
    expected = TrainingConfig(
        epochs=2,
        batch_size=128,
        learning_rate=0.01,
        optimizer="muon",
        muon_learning_rate=0.005,
        flip="alternating",
    )
    assert gentle_recipe(recipe, 2) == expected


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_an_invalid_dropout_is_refused(model, data, dropout):
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\)"):
        with_last_block_fine_tuned(model, data, RECIPE, dropout=dropout)

import math

import pytest
import torch
from torch import nn

from irevnet.data import TensorImages
from irevnet.training import evaluate
from recipes import network


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_restores_the_mode_and_changes_nothing(digits, training):
    model = network(dropout=0.3).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, digits.test)
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert evaluate(model, digits.test) == first


def test_against_plain_loops_whatever_the_batch_size(digits):
    model = network().eval()
    with torch.no_grad():
        model.classifier.linear.weight.mul_(20)
        x, labels = digits.test.first(540)
        probabilities = model(x).double().softmax(1)
    pairs = list(zip(probabilities, labels, strict=True))
    right = sum(int(p.argmax()) == int(label) for p, label in pairs)
    loss = -sum(math.log(p[label]) for p, label in pairs) / 540
    for batch_size in (1, 7, 256, 540, 1000):
        result = evaluate(model, digits.test, batch_size=batch_size)
        assert result.n == 540
        assert result.accuracy == right / 540
        assert result.loss == pytest.approx(loss, rel=1e-5)


def test_flips_average_the_logits_of_an_image_and_its_mirror_image(digits):
    model = network().eval()
    x, labels = digits.validation.first(20)
    with torch.no_grad():
        logits = (model(x) + model(x.flip(3))) / 2
    result = evaluate(model, digits.validation, views="mirrored")
    assert result.accuracy == (logits.argmax(1) == labels).sum().item() / 20
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    mirrored = TensorImages(digits.validation.images.flip(3), digits.validation.labels)
    assert evaluate(model, mirrored, views="mirrored").loss == pytest.approx(result.loss, rel=1e-6)


def test_an_empty_set_has_no_accuracy(digits):
    empty = TensorImages(digits.test.images[:0], digits.test.labels[:0])
    result = evaluate(network(), empty)
    assert result.n == 0
    assert math.isnan(result.accuracy)
    assert math.isnan(result.loss)


def test_bfloat16_is_used_where_it_is_asked_for(digits):
    dtypes = []
    model = network()
    model.classifier.linear.register_forward_hook(
        lambda module, arguments, logits: dtypes.append(logits.dtype)
    )
    evaluate(model, digits.test, precision="bfloat16")
    evaluate(model, digits.test)
    assert set(dtypes[:3]) == {torch.bfloat16}
    assert set(dtypes[3:]) == {torch.float32}


def test_invalid_arguments_are_refused(digits):
    message = r"precision must be one of \('float32', 'bfloat16'\), got 'float16'"
    with pytest.raises(ValueError, match=message):
        evaluate(network(), digits.test, precision="float16")
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        evaluate(network(), digits.test, batch_size=0)
    with pytest.raises(ValueError, match=r"views must be one of .*, got 'ten'"):
        evaluate(network(), digits.test, views="ten")


def test_shifted_views_weigh_half_as_much_as_unmoved_ones(digits):
    """The logits depend on the top left pixel alone: moved views show its neighbours there."""

    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * x[:, :, 0, 0].expand(-1, 10).contiguous() * torch.arange(10.0)

    x, labels = digits.validation.first(20)
    unmoved = (x[:, 0, 0, 0] + x[:, 0, 0, 7]) / 2
    # Up and left shows the pixel that reflects (-1, -1): (1, 1); down and right is (1, 1) itself.
    moved = (x[:, 0, 1, 1] + x[:, 0, 1, 6]) / 2
    logits = ((unmoved + moved) / 2)[:, None] * torch.arange(10.0)
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert evaluate(Corner(), digits.validation, views="shifted").loss == pytest.approx(expected)


def test_an_error_leaves_every_module_in_its_mode(digits):
    model = network().train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    model.classifier.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, digits.test)
    assert [module.training for module in model.modules()] == before

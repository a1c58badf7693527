import pytest
import torch
from recipes import config, network
from torch import nn

from irevnet.training.optimizer import FilterMuon, make_optimizers


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_a_filter_along_its_momentum_made_orthogonal(layout):
    convolution = nn.Conv2d(6, 4, 3, bias=False).to(memory_format=layout)
    before = convolution.weight.detach().clone()
    gradient = torch.randn_like(before)
    optimizer = FilterMuon([convolution.weight], lr=0.1, momentum=0.6, weight_decay=0.0)
    convolution.weight.grad = gradient.clone()
    optimizer.step()
    step = ((before - convolution.weight.detach()) / 0.1).flatten(1)
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    aligned = u.T @ step @ v.T
    # The same singular vectors; five iterations bring singular values near one, not to it.
    assert 0.6 < aligned.diagonal().min() <= aligned.diagonal().max() < 1.3
    torch.testing.assert_close(aligned, aligned.diagonal().diag(), rtol=0, atol=0.1)


def test_muon_remembers_gradients_and_shrinks_filters():
    torch.manual_seed(1)
    filters = [nn.Parameter(torch.randn(4, 4, 1, 1)) for _ in range(2)]
    first, second = torch.randn(2, 4, 4, 1, 1)
    start = filters[0].detach().clone()
    filters[1].data.copy_(start)
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, "ns_steps": 12}
    for gradients, filter_ in zip(((first, second), (second, second)), filters, strict=True):
        optimizer = FilterMuon([filter_], **options)
        for gradient in gradients:
            filter_.grad = gradient.clone()
            optimizer.step()
    assert not torch.allclose(filters[0], filters[1], atol=1e-3)
    still = nn.Parameter(start.clone())
    still.grad = torch.zeros_like(still)
    FilterMuon([still], **options).step()
    torch.testing.assert_close(still.detach(), start * (1 - 0.1 * 0.2))


def test_muon_has_the_filters_and_sgd_the_rest():
    model = network()
    (sgd, peaks), (muon, muon_peaks) = make_optimizers(
        model, config(optimizer="muon", muon_learning_rate=0.04, norm_bias_factor=8.0)
    )
    by_sgd = [p for group in sgd.param_groups for p in group["params"]]
    assert {id(p) for p in by_sgd} == {id(p) for p in model.parameters() if p.ndim != 4}
    assert [id(p) for p in muon.filters] == [id(p) for p in model.parameters() if p.ndim == 4]
    assert peaks == [0.1, 0.8]
    assert muon_peaks == [0.04]
    biases = {id(m.bias) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert {id(p) for p in sgd.param_groups[1]["params"]} == biases
    assert sgd.param_groups[1]["weight_decay"] == 5e-4 / 8

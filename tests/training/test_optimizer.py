import pytest
import torch
from torch import nn

from irevnet.training.optimizer import FilterMuon, make_optimizers, orthogonal_factor
from recipes import config, network


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 4, 3, 3), (4, 16, 1, 1), (8, 1, 3, 3)])
def test_muon_in_bfloat16_is_that_of_torch_on_matrices(layout, shape):
    torch.manual_seed(0)
    filter_ = nn.Parameter(torch.randn(shape).to(memory_format=layout))
    # Columns in the order in which the filter's weights lie in memory, which rounding depends on.
    matrix = nn.Parameter(filter_.detach().permute(0, 2, 3, 1).flatten(1).clone())
    if layout == torch.contiguous_format:
        matrix = nn.Parameter(filter_.detach().flatten(1).clone())
    options = {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.05, "ns_steps": 5}
    ours = FilterMuon([filter_], precision="bfloat16", **options)
    theirs = torch.optim.Muon([matrix], **options)
    for _ in range(3):
        gradient = torch.randn_like(filter_)
        filter_.grad = gradient
        last = gradient.permute(0, 2, 3, 1) if layout == torch.channels_last else gradient
        matrix.grad = last.flatten(1)
        ours.step()
        theirs.step()
    moved = filter_.detach()
    moved = moved.permute(0, 2, 3, 1) if layout == torch.channels_last else moved
    assert torch.equal(moved.flatten(1), matrix.detach())


def test_muon_moves_a_filter_whose_gradient_has_another_layout():
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 4, 6, 3, 3)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        filter_ = nn.Parameter(start.clone())
        # Set by hand, because torch gives a gradient the layout of its parameter.
        filter_.grad = gradient.clone().to(memory_format=layout)
        FilterMuon([filter_], lr=0.1, momentum=0.6, weight_decay=0.0).step()
        moved.append(filter_.detach())
    torch.testing.assert_close(moved[0], moved[1])


def test_muon_in_float32_is_orthogonal_to_its_rounding():
    torch.manual_seed(0)
    matrix = torch.randn(8, 30)
    exact = torch.linalg.svd(matrix, full_matrices=False)
    precise = orthogonal_factor(matrix, 5)
    coarse = orthogonal_factor(matrix, 5, torch.bfloat16).float()
    aligned = exact.U.T @ precise @ exact.Vh.T
    torch.testing.assert_close(aligned, aligned.diagonal().diag(), rtol=0, atol=1e-5)
    assert (precise - coarse).abs().max() < 0.02
    tall = orthogonal_factor(matrix.T, 5)
    torch.testing.assert_close(tall, precise.T)


def test_muon_refuses_parameters_that_are_not_filters():
    with pytest.raises(ValueError, match=r"got a parameter of shape \(4, 4\)"):
        FilterMuon([nn.Parameter(torch.zeros(4, 4))], lr=0.1, momentum=0.6, weight_decay=0.0)


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
    (group,) = muon.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.ndim == 4]
    assert peaks == [0.1, 0.8]
    assert muon_peaks == [0.04]
    biases = {id(m.bias) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert {id(p) for p in sgd.param_groups[1]["params"]} == biases
    assert sgd.param_groups[1]["weight_decay"] == 5e-4 / 8

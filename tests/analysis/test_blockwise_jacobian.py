import pytest
import torch

from benchmarks.measure import peak_bytes
from irevnet import IRevNet, create_model
from irevnet.analysis import blockwise_jacobian
from irevnet.analysis.blockwise_jacobian import irevnet_jacobians
from irevnet.analysis.jacobian import jacobians, log_determinant, singular_values, spectra
from networks import BIJECTIVE, images, randomise, small_irevnet

WAYS = ["_add_by_windows", "_add_by_columns"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each way of multiplying, for all blocks."""
    for name in WAYS:
        monkeypatch.setattr(blockwise_jacobian, name, getattr(blockwise_jacobian, request.param))


def built(**settings):
    torch.manual_seed(0)
    defaults = {"in_shape": (2, 8, 8), "entry_factor": 1, "blocks": (2, 2), "strides": (1, 2)}
    model = IRevNet(**{**defaults, "num_classes": 3, "bottleneck_channels": (5, 6), **settings})
    return randomise(model.double()).eval()


def assert_equals_rows(model, x, **options):
    expected = jacobians(model.encode, x, side="rows")
    result = irevnet_jacobians(model, x, **options)
    assert result.shape == (len(x), model.encode(x[:1]).numel(), x[0].numel())
    assert result.dtype == x.dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("kernel_sizes", [(1, 3, 1), (3, 3, 3)])
@pytest.mark.parametrize("stride_on", ["first", "middle"])
@pytest.mark.parametrize(
    "shape",
    [
        {"half_channels": (1, 4)},
        {"half_channels": (3, 12)},  # zero channels
        {"half_channels": (4, 16), "strides": (2, 2)},
        {"in_shape": (1, 6, 6), "entry_factor": 2, "half_channels": (2, 18), "strides": (1, 3)},
        {"in_shape": (2, 6, 12), "half_channels": (9, 36), "strides": (3, 2)},
        {"in_shape": (2, 5, 7), "half_channels": (1, 1), "strides": (1, 1)},
        {"half_channels": (1, 4), "normalization": ((0.5, 0.4), (0.2, 0.3))},
        {"entry_factor": 2, "half_channels": (4, 16), "entry_order": "offset"},
    ],
    ids=[
        "bijective",
        "injective",
        "two strides",
        "entry",
        "not square",
        "odd",
        "normalised",
        "offset first",
    ],
)
def test_the_jacobian_equals_that_computed_by_rows(shape, stride_on, kernel_sizes, way):
    model = built(kernel_sizes=kernel_sizes, stride_on=stride_on, **shape)
    assert_equals_rows(model, images(model))


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective", "irevnet_cifar"])
def test_the_jacobian_of_networks_of_the_zoo(name, way):
    torch.manual_seed(0)
    model = small_irevnet(name)
    assert_equals_rows(model, images(model, 2, wider=2))


@pytest.mark.parametrize("memory", [1, 2**14])
def test_the_memory_budget_does_not_change_the_jacobian(memory, way):
    model = built(half_channels=(1, 4), kernel_sizes=(3, 3, 3))
    assert_equals_rows(model, images(model, 1), memory=memory)


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
def test_memory_stays_within_the_budget(name, way):
    model = create_model(name).double().eval()
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    result = irevnet_jacobians(model, image).nbytes
    for budget in (2**20, 2**22):

        def compute(budget=budget):
            irevnet_jacobians(model, image, memory=budget)

        # Some parameters may be copied to another memory layout.
        weights = sum(weight.nbytes for weight in model.parameters())
        assert peak_bytes(compute, image.device) < budget + 2.5 * result + weights


def test_the_way_with_fewer_multiplications_is_chosen(monkeypatch):
    chosen = []
    for name in WAYS:
        monkeypatch.setattr(
            blockwise_jacobian, name, lambda *arguments, name=name: chosen.append(name)
        )
    # First a wide F on a large map, then a narrow F whose windows are as large as the map.
    for settings in (
        {"half_channels": (1, 4), "bottleneck_channels": (16, 16)},
        {"half_channels": (16, 64), "bottleneck_channels": (1, 1), "kernel_sizes": (5, 5, 5)},
    ):
        model = built(**settings)
        irevnet_jacobians(model, images(model, 1))
    assert chosen == 4 * WAYS[:1] + 4 * WAYS[1:]


@pytest.mark.parametrize("name", BIJECTIVE)
def test_a_bijective_network_preserves_volume(name):
    torch.manual_seed(0)
    model = small_irevnet(name)
    (matrix,) = irevnet_jacobians(model, images(model, 1))
    scale = torch.linalg.svdvals(matrix).log().abs().sum()
    assert torch.linalg.slogdet(matrix).logabsdet.abs() < 1e-10 * scale


def test_singular_values_of_an_irevnet_come_from_the_blockwise_jacobian(monkeypatch):
    model = built(half_channels=(1, 4))
    x = images(model)
    expected = spectra(jacobians(model.encode, x))
    monkeypatch.setattr("irevnet.analysis.jacobian.jacobians", None)
    values = singular_values(model, x)
    torch.testing.assert_close(values, expected)
    assert log_determinant(values).abs().max() < 1e-8


def test_weights_get_no_gradients_and_float32_is_kept():
    model = built(half_channels=(1, 4)).float()
    result = irevnet_jacobians(model, images(model, 1, dtype=torch.float32))
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unsuitable_networks_and_images_are_refused():
    model = built(half_channels=(1, 4))
    x = images(model)
    with pytest.raises(ValueError, match="an IRevNet of coupling blocks alone, got ResNet"):
        irevnet_jacobians(create_model("resnet_digits"), x)
    projected = create_model("projected_irevnet_digits").double().eval()
    with pytest.raises(ValueError, match="coupling blocks alone, got ProjectedIRevNet"):
        irevnet_jacobians(projected, torch.rand(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="streams='fixed'"):
        irevnet_jacobians(built(half_channels=(1, 4), streams="fixed"), x)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        irevnet_jacobians(built(half_channels=(1, 4)).train(), x)
    with pytest.raises(ValueError, match="x must have shape"):
        irevnet_jacobians(model, x[0])
    with pytest.raises(ValueError, match=r"the model's dtype torch\.float64, got torch\.float32"):
        irevnet_jacobians(model, x.float())
    with pytest.raises(ValueError, match="memory must be a positive number of bytes, got 0"):
        irevnet_jacobians(model, x, memory=0)
    model.blocks[1].residual = torch.nn.AdaptiveAvgPool2d(1).eval()
    with pytest.raises(ValueError, match="a Bottleneck as the residual of every block"):
        irevnet_jacobians(model, x)

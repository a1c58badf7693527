import pytest
import torch

from irevnet import create_model
from irevnet.analysis import iterative_jacobian, jacobian
from networks import randomise


def network(name):
    torch.manual_seed(0)
    return randomise(create_model(name)).double().eval()


@pytest.fixture(params=["irevnet_digits", "irevnet_digits_bijective", "resnet_digits"])
def windowed(request):
    """The map from a window of 4 x 4 pixels, these pixels, and the whole Jacobian of the map."""
    model = network(request.param)
    image = torch.rand(1, 8, 8, dtype=torch.float64)
    function, pixels = jacobian.windowed(model.encode, image, 4)
    return function, pixels, jacobian.jacobians(function, pixels)[0]


def test_products_equal_those_with_the_whole_matrix(windowed):
    function, pixels, whole = windowed
    operator = iterative_jacobian.as_operator(function, pixels)
    assert operator.shape == whole.shape
    generator = torch.Generator().manual_seed(0)
    for product, matrix in ((operator.matvec, whole), (operator.rmatvec, whole.T)):
        vector = torch.randn(matrix.shape[1], dtype=torch.float64, generator=generator)
        torch.testing.assert_close(torch.from_numpy(product(vector.numpy())), matrix @ vector)


@pytest.mark.parametrize("largest", [True, False])
def test_extreme_singular_values_equal_those_of_the_whole_spectrum(windowed, largest):
    function, pixels, whole = windowed
    values = iterative_jacobian.extreme_singular_values(function, pixels, 3, largest=largest)
    expected = torch.linalg.svdvals(whole)
    expected = expected[:3] if largest else expected[-3:]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)


def test_the_inverses_largest_singular_values_are_reciprocals_of_the_smallest():
    model = network("irevnet_digits_bijective")
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        z = model.encode(image)
    values = iterative_jacobian.extreme_singular_values(model.inverse, z, 2)
    smallest = torch.linalg.svdvals(jacobian.jacobians(model.encode, image)[0])[-2:]
    torch.testing.assert_close(1 / values, smallest.flip(0), rtol=1e-5, atol=0)


def test_the_energy_is_within_its_error(windowed):
    function, pixels, whole = windowed
    energy, error = iterative_jacobian.total_energy(function, pixels, 200)
    assert abs(energy - whole.square().sum().item()) < 4 * error
    assert error < 0.2 * energy


def test_the_energy_excludes_the_given_directions(windowed):
    function, pixels, whole = windowed
    vectors, values, _ = torch.linalg.svd(whole, full_matrices=False)
    remaining, error = iterative_jacobian.total_energy(
        function, pixels, 200, without=vectors[:, :4].numpy()
    )
    assert abs(remaining - values[4:].square().sum().item()) < 4 * error


def whole_and_partial(name, window, leading, trailing):
    model = network(name)
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    expected = jacobian.singular_values(model, image, window=window)[0]
    return expected, iterative_jacobian.partial_spectrum(
        model, image, leading, trailing, window=window, probes=200
    )


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("irevnet_digits_bijective", 0),  # the smallest by the inverse
        ("irevnet_digits_bijective", 4),
        ("irevnet_digits", 4),
        ("resnet_digits", 4),
    ],
)
def test_a_partial_spectrum_agrees_with_the_whole(name, window):
    expected, part = whole_and_partial(name, window, 10, 2)
    torch.testing.assert_close(part.leading, expected[:10], rtol=1e-6, atol=0)
    torch.testing.assert_close(part.trailing, expected[-2:], rtol=1e-4, atol=1e-9)
    assert part.dimensions == len(expected)
    assert part.energy == pytest.approx(expected.square().sum().item(), rel=0.02)
    assert part.condition_number() == pytest.approx((expected[0] / expected[-1]).item(), rel=1e-3)
    directions = jacobian.energy_dimensions(expected[None], 0.5).item()
    assert part.energy_dimensions(0.5) == directions


def test_a_summary_says_what_the_leading_directions_reach():
    _, part = whole_and_partial("irevnet_digits_bijective", 4, 10, 0)
    energies = part.leading.square().cumsum(0) / part.energy
    summary = iterative_jacobian.summary([[part, part]] * 3, (energies[5] - 1e-6).item())
    assert summary["energy_share"]["value"] == pytest.approx(6 / 16)
    assert summary["leading_energy"]["value"] == pytest.approx(energies[-1].item())
    assert (summary["leading"], summary["dimensions"]) == (10, 16)
    assert (summary["networks"], summary["images"], summary["energy_share"]["n"]) == (3, 2, 3)
    # A lower bound: there may be worse directions that were not computed.
    bound = summary["condition_number"]["value"]
    assert bound == pytest.approx((part.leading[0] / part.leading[-1]).item())
    assert summary["condition_number"]["lower_bound"]
    out_of_reach = iterative_jacobian.summary([[part, part]], (energies[-1] + 1e-6).item())
    assert "energy_share" not in out_of_reach


def test_a_map_to_fewer_numbers_has_fewer_singular_values():
    matrix = torch.rand(7, 12, dtype=torch.float64)
    model = torch.nn.Module().eval()
    model.encode = lambda x: x.flatten(1) @ matrix.T
    part = iterative_jacobian.partial_spectrum(model, torch.rand(1, 3, 2, 2).double(), 3)
    assert part.dimensions == 7
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        iterative_jacobian.partial_spectrum(model.train(), torch.rand(1, 3, 2, 2).double(), 3)


def test_numbers_out_of_range_are_named(windowed):
    function, pixels, _ = windowed
    with pytest.raises(ValueError, match=r"count must be less than 16, .* got 16"):
        iterative_jacobian.extreme_singular_values(function, pixels, 16)
    model = network("irevnet_digits")
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"leading must be less than 4, .* got 4"):
        iterative_jacobian.partial_spectrum(model, image, 4, window=2)
    with pytest.raises(ValueError, match="probes must be 2 or more, got 1"):
        iterative_jacobian.total_energy(function, pixels, 1)

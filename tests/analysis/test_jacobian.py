import math

import pytest
import torch

from benchmarks.measure import peak_bytes
from irevnet import create_model
from irevnet.analysis import jacobian
from networks import BIJECTIVE, images, randomise, small_irevnet


def test_a_summary_describes_spectra():
    spectra = torch.tensor([[[8.0, 4.0, 2.0, 1.0]] * 2], dtype=torch.float64)
    summary = jacobian.summary(spectra, 0.9, 4, 4, invertible=True)
    assert summary["condition_number"]["value"] == 8
    assert summary["energy_share"]["value"] == 2 / 4  # 80 of 85
    assert summary["rank"]["value"] == 4
    assert summary["full_rank_share"] == 1
    assert summary["dimensions"] == 4
    assert summary["log_determinant"]["value"] == pytest.approx(math.log(64))
    assert "lower_bound" not in summary["condition_number"]
    window = jacobian.summary(spectra, 0.9, 4, 4, invertible=True, windowed=True)
    assert window["condition_number"]["lower_bound"]
    volume = jacobian.summary(spectra, 0.9, 4, 4, invertible=True, preserves_volume=True)
    assert volume["largest_absolute_log_determinant"] == pytest.approx(math.log(64))

    lost = spectra.clone()
    lost[..., 3] = 0
    summary = jacobian.summary(lost, 0.9, 4, 4, invertible=False)
    assert summary["condition_number"]["value"] == 4, "lost directions do not count"
    assert summary["rank"]["value"] == 3
    assert "log_determinant" not in summary


@pytest.mark.parametrize("outputs", [7, 12, 20])
@pytest.mark.parametrize("memory", [1, 2**10, 2**28])
def test_the_jacobian_of_a_linear_map_is_its_matrix_on_either_side(outputs, memory):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(outputs, 12, dtype=torch.float64, generator=generator)
    images = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    result = jacobian.jacobians(lambda x: x.flatten(1) @ matrix.T, images, memory=memory)
    torch.testing.assert_close(result, matrix.expand(3, outputs, 12))
    model = torch.nn.Module().eval()
    model.encode = lambda x: x.flatten(1) @ matrix.T
    values = jacobian.singular_values(model, images, memory=memory)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix).expand(3, -1))


@pytest.mark.parametrize(
    "name", ["irevnet_digits", "irevnet_digits_bijective", "revnet_digits", "resnet_digits"]
)
def test_the_jacobian_of_a_network_is_that_of_a_loop_over_its_outputs(name):
    torch.manual_seed(0)
    model = randomise(create_model(name)).double().eval()
    for network in (model, model.encode):  # fewer outputs than pixels, and as many or more
        image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        out = network(image).flatten()
        rows = [torch.autograd.grad(value, image, retain_graph=True)[0] for value in out]
        result = jacobian.jacobians(network, image.detach())[0]
        torch.testing.assert_close(result, torch.stack(rows).flatten(1))
    model.train()
    for function in (model, model.encode):
        with pytest.raises(ValueError, match="model must be in evaluation mode"):
            jacobian.jacobians(function, image.detach())
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        jacobian.singular_values(model, image.detach())


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
def test_memory_stays_within_the_budget(name):
    model = create_model(name).double().eval()
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    outputs = model.encode(image).numel()
    one = jacobian.direction_bytes(model.encode, image[0])
    for budget in (8 * one, 32 * one):

        def compute(budget=budget):
            jacobian.jacobians(model.encode, image, memory=budget)

        compute()
        # The result is stacked from pieces, and parameters may be copied to another layout.
        weights = sum(weight.nbytes for weight in model.parameters())
        assert peak_bytes(compute, image.device) < budget + 2 * outputs * image.nbytes + weights


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective", "resnet_digits"])
def test_a_window_has_the_columns_of_its_pixels(name):
    torch.manual_seed(0)
    model = randomise(create_model(name)).double().eval()
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    whole = jacobian.jacobians(model.encode, image)[0].unflatten(1, (8, 8))
    middle = whole[:, 2:5, 2:5].flatten(1)  # the upper left one of two centres
    function, pixels = jacobian.windowed(model.encode, image[0], 3)
    torch.testing.assert_close(function(pixels), model.encode(image))
    torch.testing.assert_close(jacobian.jacobians(function, pixels)[0], middle)
    values = jacobian.singular_values(model, image, window=3)
    torch.testing.assert_close(values[0], torch.linalg.svdvals(middle))


@pytest.mark.parametrize("side", [0, -1, 9])
def test_a_window_must_fit_into_the_image(side):
    with pytest.raises(ValueError, match=rf"side must be from 1 to 8.*got {side}"):
        jacobian.windowed(torch.flatten, torch.rand(3, 8, 10), side)


def test_rows_and_columns_give_the_same_jacobian():
    torch.manual_seed(0)
    model = small_irevnet("irevnet_digits_bijective")
    x = images(model, 1)
    rows, columns = (jacobian.jacobians(model.encode, x, side=s) for s in ("rows", "columns"))
    torch.testing.assert_close(rows, columns)
    with pytest.raises(ValueError, match=r"side must be .* or None, got 'left'"):
        jacobian.jacobians(model.encode, x, side="left")


def test_a_memory_budget_of_zero_is_refused():
    with pytest.raises(ValueError, match="memory must be a positive number of bytes, got 0"):
        jacobian.jacobians(torch.sin, torch.rand(1, 1, 2, 2), memory=0)


def test_an_irevnet_with_projections_has_the_singular_values_of_its_jacobian():
    torch.manual_seed(0)
    model = randomise(create_model("projected_irevnet_digits")).double().eval()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    expected = jacobian.spectra(jacobian.jacobians(model.encode, x))
    torch.testing.assert_close(jacobian.singular_values(model, x), expected)


def test_direction_bytes_are_what_autograd_saves_for_one_more_image():
    image = torch.rand(1, 2, 3, dtype=torch.float64)
    weight = torch.rand(7, 6, dtype=torch.float64)
    # Saved: the sigmoid's output, 7 numbers. The weight exists only once and does not count. Then
    # the input and the output, 6 and 7 numbers, twice.
    taken = jacobian.direction_bytes(lambda x: (x.flatten(1) @ weight.T).sigmoid(), image)
    assert taken == 8 * (7 + 2 * (6 + 7))


def test_the_interval_of_the_energy_share_is_the_range_of_few_images_and_at_most_one():
    two = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 1]], dtype=torch.float64)
    share = jacobian.summary(two[None], 0.9, 4, 4, invertible=False)["energy_share"]
    assert share == {"value": (1 / 4 + 1) / 2, "low": 1 / 4, "high": 1, "n": 1}
    five = two[[0, 1, 1, 1, 1]]
    share = jacobian.summary(five[None], 0.9, 4, 4, invertible=False)["energy_share"]
    assert share["high"] == 1
    assert 0.25 < share["low"] < share["value"] == pytest.approx(0.85)


def test_the_unit_of_a_summary_is_the_network():
    """Its number is the median over its images; the interval is Student's over networks."""
    conditions = torch.tensor([[10.0, 20, 900], [30, 30, 30], [1, 40, 50]], dtype=torch.float64)
    values = torch.stack([conditions, torch.ones_like(conditions)], dim=2)
    results = jacobian.summary(values, 0.5, 2, 2, invertible=True)
    estimate = results["condition_number"]
    # Medians 20, 30, 40: mean 30, spread 10, and 4.303 standard errors for two degrees of freedom.
    assert estimate["value"] == pytest.approx(30)
    assert estimate["high"] == pytest.approx(30 + 4.303 * 10 / math.sqrt(3), rel=1e-3)
    assert (results["networks"], results["images"]) == (3, 3)
    assert {results[name]["n"] for name in ("condition_number", "energy_share", "rank")} == {3}
    single = jacobian.summary(values[:1], 0.5, 2, 2, invertible=True)["condition_number"]
    assert single == {"value": 20, "low": 10, "high": 900, "n": 1}, "the range over few images"


def test_spectra_and_derived_quantities_of_a_known_matrix():
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        for _ in range(2)
    )
    values = torch.tensor([8.0, 4.0, 2.0, 0.25], dtype=torch.float64)
    spectrum = jacobian.spectra((left * values @ right)[None])
    torch.testing.assert_close(spectrum[0], values)
    assert jacobian.condition_number(spectrum).tolist() == pytest.approx([32])
    assert jacobian.log_determinant(spectrum).tolist() == pytest.approx([math.log(16)])
    # Energies 64, 16, 4, 0.0625: the first carries 76%, two 95%.
    shares = [64 / 84.0625, 80 / 84.0625, 84 / 84.0625, 1]
    assert jacobian.cumulated_energy(spectrum)[0].tolist() == pytest.approx(shares)
    assert jacobian.energy_dimensions(spectrum, 0.75).tolist() == [1]
    assert jacobian.energy_dimensions(spectrum, 0.9).tolist() == [2]


def test_effective_rank_counts_equal_directions():
    spectrum = torch.tensor([[3.0, 3.0, 3.0, 0.0]])
    assert jacobian.effective_rank(spectrum).item() == pytest.approx(3)


def test_lost_directions_are_counted_and_left_out():
    spectrum = torch.tensor([[4.0, 2.0, 1e-9], [4.0, 2.0, 1.0]], dtype=torch.float32)
    rank = jacobian.numerical_rank(spectrum, outputs=5, inputs=3)
    assert rank.tolist() == [2, 3]
    assert jacobian.condition_number(spectrum, rank).tolist() == pytest.approx([2, 4])
    assert jacobian.numerical_rank(spectrum.double(), outputs=5, inputs=3).tolist() == [3, 3]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_rank_equals_that_of_torch_for_wide_and_tall_matrices(transposed):
    # Between 4 and 4000 times the spacing of float32 at one, relative to the largest.
    matrix = torch.zeros(4, 4000)
    matrix[range(4), range(4)] = torch.tensor([1.0, 0.5, 0.25, 1e-4])
    matrix = matrix.T if transposed else matrix
    rank = jacobian.numerical_rank(jacobian.spectra(matrix[None]), *matrix.shape)
    assert rank.tolist() == [torch.linalg.matrix_rank(matrix)] == [3]


@pytest.mark.parametrize("name", BIJECTIVE)
def test_a_bijective_network_preserves_volume_at_every_image(name):
    torch.manual_seed(0)
    model = small_irevnet(name)
    start, end, noise = images(model, 3).unsqueeze(1)
    for x in (start, noise, (start + end) / 2):
        matrix = jacobian.jacobians(model.encode, x)
        values = jacobian.spectra(matrix)
        scale = values.log().abs().sum()
        assert jacobian.log_determinant(values).abs().max() < 1e-10 * scale
        assert torch.linalg.slogdet(matrix[0]).logabsdet.abs() < 1e-10 * scale
        assert jacobian.condition_number(values).min() > 1.01


def test_an_injective_network_loses_no_direction():
    torch.manual_seed(0)
    model = small_irevnet("irevnet_digits")
    matrix = jacobian.jacobians(model.encode, images(model, 1))
    values = jacobian.spectra(matrix)
    assert values.shape == (1, 64)
    assert jacobian.numerical_rank(values, *matrix.shape[1:]).tolist() == [64]
    gram = torch.linalg.slogdet(matrix[0].T @ matrix[0]).logabsdet
    assert jacobian.log_determinant(values).item() == pytest.approx(gram.item() / 2)

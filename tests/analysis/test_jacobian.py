import math

import pytest
import torch

from irevnet import create_model
from irevnet.analysis import jacobian


def test_the_jacobian_of_a_linear_map_is_its_matrix():
    matrix = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    result = jacobian.jacobians(lambda x: x.flatten(1) @ matrix.T, images, chunk_size=5)
    torch.testing.assert_close(result, matrix.expand(3, 7, 12))


def test_spectra_and_what_is_read_off_them_for_a_known_matrix():
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
    assert jacobian.energy_dimensions(spectrum, 0.75).tolist() == [1]
    assert jacobian.energy_dimensions(spectrum, 0.9).tolist() == [2]


def test_effective_rank_counts_equal_directions():
    spectrum = torch.tensor([[3.0, 3.0, 3.0, 0.0]])
    assert jacobian.effective_rank(spectrum).item() == pytest.approx(3)


def test_a_bijective_network_preserves_volume_at_every_image():
    torch.manual_seed(0)
    model = create_model("irevnet_digits_bijective").double().eval()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    values = jacobian.spectra(jacobian.jacobians(model.encode, images))
    assert values.shape == (2, 64)
    assert jacobian.log_determinant(values).abs().max() < 1e-10
    assert jacobian.condition_number(values).min() > 1.01

import numpy as np
import pytest
import torch

from irevnet.analysis import dimensionality


def test_principal_components_find_a_planted_plane():
    generator = np.random.default_rng(0)
    plane, _ = np.linalg.qr(generator.normal(size=(20, 2)))
    data = generator.normal(size=(500, 2)) * [5, 3] @ plane.T
    data += generator.normal(0, 0.01, data.shape)
    train, test, variance = dimensionality.principal_components(data[:400], data[400:])
    assert variance[1] > 0.999
    assert train[:, 2:].std() < 0.02
    assert test[:, 0].std() == pytest.approx(5, rel=0.2)


def test_representations_keep_their_first_components():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    spread = torch.tensor([9.0, 4.0, 2.0, *[0.1] * 9])
    fitted = (torch.randn(500, 12, generator=generator) * spread @ basis.T + 3).view(-1, 3, 2, 2)
    z = fitted[:5]
    kept = dimensionality.keep_components(fitted, z, [0, 3, 12])
    assert kept.shape == (3, 5, 3, 2, 2)
    torch.testing.assert_close(kept[0], fitted.mean(0).expand(5, 3, 2, 2))
    assert 0.05 < (kept[1] - z).abs().max() < 0.5  # the dropped components have a spread of 0.1
    torch.testing.assert_close(kept[2], z)
    with pytest.raises(ValueError, match="counts must be from 0 to 12, got 13"):
        dimensionality.keep_components(fitted, z, [0, 13])


def test_the_plateau_starts_where_accuracy_stays():
    assert dimensionality.plateau([1, 2, 4, 8], [0.5, 0.9, 0.895, 0.9], tolerance=0.01) == 2
    assert dimensionality.plateau([1, 2, 4, 8], [0.5, 0.9, 0.7, 0.9], tolerance=0.01) == 8


def test_by_dimension_finds_how_many_directions_separate_classes():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 4
    # Seven features repeat the first bit of the class, three the second; the others are noise.
    bits = np.stack([labels & 1, labels >> 1], axis=1) * 2.0 - 1
    copies = np.repeat(bits, [7, 3], axis=1) + generator.normal(0, 0.1, (200, 10))
    features = np.concatenate([copies, generator.normal(0, 1, (200, 3))], axis=1)
    items = (features[:100], labels[:100], features[100:], labels[100:])
    scores = dimensionality.by_dimension(*items, [1, 2, 5, 50], [0.1, 1.0])
    assert scores["tried"] == [1, 2, 5, 13]
    assert scores["svm"][0] < 0.8
    assert scores["svm"][1:] == scores["knn"][1:] == [1, 1, 1]
    assert len(scores["variance"]) == 13
    assert scores["variance"][-1] == pytest.approx(1)


def curves(plateau, accuracy=0.9):
    """The scores of a network whose classifiers need ``plateau`` of 8 components."""
    tried = [1, 2, 4, 8]
    scores = [accuracy if d >= plateau else 0.1 for d in tried]
    variance = [d / 8 for d in range(1, 9)]
    penalties = {"penalty": [0.1] * 3 + [0.01], "penalty_at_edge": [1, 0, 0, 0]}
    return {"tried": tried, "svm": scores, "knn": scores, "variance": variance, **penalties}


def test_summary_sets_plateaus_against_classes_and_initialisation():
    results = dimensionality.summary(
        [curves(2), curves(4)],
        [curves(8), curves(4)],
        [0.92, 0.94],
        classes=2,
        tolerance=0.01,
        test_images=100,
    )
    assert results["dimensions"] == 8
    assert results["svm_plateau"]["value"] == 3
    assert results["svm_per_class"]["value"] == 1.5
    assert results["initial_svm_plateau"] == 6
    assert results["knn_against_initial"]["value"] == 0.5
    assert results["variance_at_knn_plateau"]["value"] == pytest.approx((2 / 8 + 4 / 8) / 2)
    assert results["readout_loss"]["value"] == pytest.approx(0.03)
    assert results["readout_loss"]["n"] == 2
    assert results["svm_penalty"]["value"] == 0.01
    assert (results["svm_fits_at_edge"], results["svm_fits"]) == (4, 16)


def test_networks_equal_to_their_initialisation_have_a_ratio_of_one():
    settings = {"classes": 2, "tolerance": 0.01, "test_images": 100}
    results = dimensionality.summary([curves(4)], [curves(4)], [0.9], **settings)
    assert results["svm_against_initial"] == {"value": 1, "low": 1, "high": 1, "n": 1}

"""Comparison of results, on small made-up trees."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from pipeline.compare import Difference, compare_results, markdown


@pytest.fixture
def trees(tmp_path):
    """Two equal trees of results."""
    for name in ("published", "here"):
        folder = tmp_path / name
        for question in ("claims", "inversion", "train/resnet-0"):
            (folder / question).mkdir(parents=True)
        metrics = {"resnet": {"error": 0.5, "n": 10, "names": ["a", "b"]}, "nan": math.nan}
        (folder / "inversion/metrics.json").write_text(json.dumps(metrics))
        rows = [{"id": "C1", "verdict": "consistent", "value": 1.0}, {"id": "C2", "verdict": "x"}]
        (folder / "claims/claims.json").write_text(json.dumps({"rows": rows}))
        (folder / "inversion/figure.png").write_bytes(b"figure")
        (folder / "inversion/provenance.json").write_text(json.dumps({"started": name}))
        (folder / "dvc.lock").write_text(name)
        (folder / "train/resnet-0/history.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
        save_file({"w": torch.tensor([3.0, 4.0])}, folder / "train/resnet-0/weights.safetensors")
    return tmp_path / "published", tmp_path / "here"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_equal_trees_are_identical_whatever_their_provenance(trees):
    comparison = compare_results(*trees)
    assert comparison.differences == []
    assert comparison.equal == comparison.files == 5
    assert markdown(comparison) == "identical: all 5 result files"


def test_a_number_is_named_with_its_relative_difference(trees):
    edit(trees[1] / "inversion/metrics.json", "0.5", "0.75")
    comparison = compare_results(*trees)
    assert comparison.equal == 4
    (difference,) = comparison.differences
    assert difference == Difference("inversion/metrics.json", "resnet.error", 0.5, 0.75)
    assert difference.relative == 0.5
    assert "| inversion/metrics.json | resnet.error | 0.5 | 0.75 | 5.0e-01 |" in markdown(
        comparison
    )
    assert "4 of 5 result files are identical; 1 number and 0 verdicts" in markdown(comparison)


def test_verdicts_come_first(trees):
    edit(trees[1] / "inversion/metrics.json", "0.5", "50")
    edit(trees[1] / "claims/claims.json", "consistent", "inconclusive")
    comparison = compare_results(*trees)
    assert comparison.differences[0].is_verdict
    assert comparison.differences[0].name == "rows.C1.verdict"
    assert comparison.verdicts == comparison.differences[:1]
    assert comparison.differences[0].relative is None


def test_the_rows_of_a_table_are_numbers(trees):
    edit(trees[1] / "train/resnet-0/history.csv", "0.25", "0.26")
    (difference,) = compare_results(*trees).differences
    assert difference.name == "1.loss"
    assert difference.relative == pytest.approx(0.04)


def test_tensors_are_compared_by_distance(trees):
    save_file({"w": torch.tensor([4.0, 3.0])}, trees[1] / "train/resnet-0/weights.safetensors")
    (difference,) = compare_results(*trees).differences
    assert difference.published == difference.here == 5
    assert difference.relative == pytest.approx(math.sqrt(2) / 5)


def test_tensors_of_other_shapes_are_named(trees):
    save_file({"w": torch.ones(3)}, trees[1] / "train/resnet-0/weights.safetensors")
    (difference,) = compare_results(*trees).differences
    assert (difference.published, difference.here) == ("(2,)", "(3,)")


def test_equal_tensors_with_another_description_are_told_apart(trees):
    path = trees[1] / "train/resnet-0/weights.safetensors"
    save_file({"w": torch.tensor([3.0, 4.0])}, path, metadata={"irevnet": "{}"})
    (difference,) = compare_results(*trees).differences
    assert difference.name == "metadata"
    assert difference.relative is None


def test_missing_and_new_values_and_files_are_named(trees):
    edit(trees[1] / "inversion/metrics.json", '"n"', '"m"')
    (trees[1] / "inversion/figure.png").unlink()
    (trees[1] / "claims/new.json").write_text("{}")
    table = markdown(compare_results(*trees))
    assert "| resnet.n | 10 | missing |" in table
    assert "| resnet.m | missing | 10 |" in table
    assert "| inversion/figure.png | (the file) | a file | missing |" in table
    assert "| claims/new.json | (the file) | missing | a file |" in table


def test_a_figure_and_a_damaged_file_differ_as_a_whole(trees):
    (trees[1] / "inversion/figure.png").write_bytes(b"other")
    (trees[1] / "inversion/metrics.json").write_text("{")
    (trees[1] / "train/resnet-0/weights.safetensors").write_bytes(b"damaged")
    table = markdown(compare_results(*trees))
    assert "| inversion/figure.png | (the file) | other bytes | other bytes |" in table
    assert table.count("cannot be read") == 2


def test_from_zero_every_change_is_infinite_and_kinds_are_told_apart():
    assert Difference("f", "x", 0.0, 1e-9).relative == math.inf
    assert Difference("f", "x", True, False).relative is None
    assert Difference("f", "x", 1, None).relative is None


def test_a_long_table_says_how_much_is_left_out(trees):
    (trees[1] / "train/resnet-0/history.csv").write_text("epoch,loss\n3,0.1\n4,0.2\n")
    assert markdown(compare_results(*trees), limit=1).endswith("... and 3 more")

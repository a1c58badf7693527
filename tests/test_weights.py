import json
import os
import re
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import irevnet
from irevnet.weights import (
    load_weights,
    read_tensors,
    round_weights,
    save_weights,
    write_tensors,
)
from networks import IREVNETS, SMALL

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
}
METADATA = {"overrides": {"blocks": [1, 2]}, "accuracy": 0.5, "name": "ü"}


def network(channels=4):
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels))


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


class TestTensors:
    def test_round_trip(self, tmp_path):
        write_tensors(tmp_path / "new" / "folder" / "w.safetensors", TENSORS, METADATA)
        tensors, metadata = read_tensors(tmp_path / "new" / "folder" / "w.safetensors")
        assert metadata == METADATA
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)
        assert os.listdir(tmp_path / "new" / "folder") == ["w.safetensors"]

    def test_a_path_may_be_a_string(self, tmp_path):
        write_tensors(str(tmp_path / "w"), TENSORS, {})
        assert read_tensors(str(tmp_path / "w"))[1] == {}

    def test_special_floats_in_the_metadata(self, tmp_path):
        write_tensors(tmp_path / "w", {}, {"loss": [float("inf"), float("nan")]})
        loss = read_tensors(tmp_path / "w")[1]["loss"]
        assert loss[0] == float("inf")
        assert loss[1] != loss[1]

    def test_the_same_content_gives_the_same_bytes(self, tmp_path):
        write_tensors(tmp_path / "1", TENSORS, METADATA)
        write_tensors(
            tmp_path / "2",
            dict(reversed(TENSORS.items())),
            dict(reversed(json.loads(json.dumps(METADATA)).items())),
        )
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_memory_format_and_sharing_do_not_matter(self, tmp_path):
        x = torch.rand(2, 3, 4, 4)
        views = {"whole": x, "part": x[1:], "last": x.contiguous(memory_format=torch.channels_last)}
        write_tensors(tmp_path / "1", views, {})
        plain = {name: view.clone().contiguous() for name, view in views.items()}
        write_tensors(tmp_path / "2", plain, {})
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
        assert torch.equal(read_tensors(tmp_path / "1")[0]["part"], x[1:])

    def test_it_is_a_plain_safetensors_file(self, tmp_path):
        write_tensors(tmp_path / "w", TENSORS, METADATA)
        with safe_open(tmp_path / "w", framework="pt") as file:
            assert set(file.keys()) == set(TENSORS)
            assert json.loads(file.metadata()["irevnet"]).items() >= METADATA.items()

    def test_file_permissions_are_those_of_other_new_files(self, tmp_path):
        write_tensors(tmp_path / "w", TENSORS, METADATA)
        (tmp_path / "other").touch()
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w", "other")}
        assert len(modes) == 1

    @pytest.mark.parametrize("broken", ["fsync", "replace"])
    def test_a_file_is_replaced_whole_or_not_at_all(self, tmp_path, monkeypatch, broken):
        path = tmp_path / "w.safetensors"
        write_tensors(path, TENSORS, METADATA)
        before = path.read_bytes()

        def fail(*arguments):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="no space left"):
            write_tensors(path, {"other": torch.zeros(3)}, {})
        assert path.read_bytes() == before
        monkeypatch.undo()
        write_tensors(path, {"other": torch.zeros(3)}, {})
        assert read_tensors(path)[0].keys() == {"other"}
        assert os.listdir(tmp_path) == ["w.safetensors"]


class TestDamage:
    def assert_refused(self, path):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged, truncated or not")):
            read_tensors(path)

    def test_missing(self, tmp_path):
        for path in (tmp_path / "nothing", tmp_path):
            with pytest.raises(FileNotFoundError, match=re.escape(f"no weights at {path}")):
                read_tensors(path)

    def test_truncated_anywhere(self, tmp_path):
        path = tmp_path / "w.safetensors"
        write_tensors(path, TENSORS, METADATA)
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            self.assert_refused(path)

    def test_longer_than_it_says(self, tmp_path):
        path = tmp_path / "w.safetensors"
        write_tensors(path, TENSORS, METADATA)
        path.write_bytes(path.read_bytes() + b"\0")
        self.assert_refused(path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\0" * 100, b"\xff" * 100, b"PK\x03\x04" + b"a" * 100, b"a text file\n" * 10],
    )
    def test_a_foreign_file_is_refused(self, tmp_path, content):
        path = tmp_path / "w.safetensors"
        path.write_bytes(content)
        self.assert_refused(path)

    def test_a_pickle(self, tmp_path):
        path = tmp_path / "w.safetensors"
        torch.save(network().state_dict(), path)
        self.assert_refused(path)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"irevnet": "{"}])
    def test_safetensors_of_someone_else(self, tmp_path, metadata):
        path = tmp_path / "w.safetensors"
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        self.assert_refused(path)

    def test_a_damaged_header_is_a_value_error_or_changes_nothing(self, tmp_path):
        path = tmp_path / "w.safetensors"
        model = network()
        save_weights(model, path, METADATA)
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        before = snapshot(model)
        refused = 0
        for position in range(header):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(bytes(damaged))
            try:
                load_weights(model, read_tensors(path)[0], "w")
            except ValueError:
                refused += 1
            assert_unchanged(model, before)
        assert refused > header / 2  # the other bits are in the text of the metadata

    def test_a_flipped_bit_in_the_numbers_is_found(self, tmp_path):
        path = tmp_path / "w"
        write_tensors(path, TENSORS, METADATA)
        content = bytearray(path.read_bytes())
        content[-1] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"w is damaged: its tensors do not have the checksum"):
            read_tensors(path)

    def test_older_files_without_a_checksum_are_read(self, tmp_path):
        save_file(TENSORS, tmp_path / "w", {"irevnet": json.dumps(METADATA)})
        assert read_tensors(tmp_path / "w")[1] == METADATA

    def test_metadata_that_is_a_list(self, tmp_path):
        save_file(TENSORS, tmp_path / "w", {"irevnet": "[1, 2]"})
        with pytest.raises(ValueError, match="its metadata is not a mapping"):
            read_tensors(tmp_path / "w")


class TestWeights:
    @pytest.mark.parametrize("name", IREVNETS)
    def test_round_trip_of_every_irevnet(self, tmp_path, name):
        first, second = (irevnet.create_model(name, **SMALL[name]) for _ in range(2))
        for buffer in first.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
        save_weights(first, tmp_path / "1", {})
        load_weights(second, read_tensors(tmp_path / "1")[0], "file 1")
        assert_unchanged(second, first.state_dict())
        save_weights(second, tmp_path / "2", {})
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda state: state.pop("0.bias"), "1 missing (0.bias)"),
            (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
            (
                lambda state: state.update({"0.bias": torch.zeros(5)}),
                "1 of another shape (0.bias: (5,) instead of (4,))",
            ),
            (
                lambda state: state.update({"0.bias": torch.zeros(4, dtype=torch.int32)}),
                "1 of another kind (0.bias: torch.int32 instead of torch.float32)",
            ),
            (
                lambda state: state.update({"1.num_batches_tracked": torch.tensor(0.5)}),
                "1 of another kind (1.num_batches_tracked: torch.float32 instead of torch.int64)",
            ),
            (
                lambda state: (state.pop("0.weight"), state.update(b=torch.zeros(1))),
                "1 missing (0.weight); 1 unexpected (b)",
            ),
            (
                lambda state: state.clear(),
                "7 missing (0.bias, 0.weight, 1.bias, ...)",
            ),
        ],
    )
    def test_weights_of_another_network_are_refused_and_nothing_is_changed(self, change, problem):
        model = network()
        before = snapshot(model)
        state = snapshot(network())
        change(state)
        message = (
            "somewhere holds the weights of a different network than this Sequential: " + problem
        )
        with pytest.raises(ValueError, match=re.escape(message) + "$"):
            load_weights(model, state, "somewhere")
        assert_unchanged(model, before)

    def test_weights_of_a_wider_network_are_refused_and_nothing_is_changed(self):
        model = network()
        before = snapshot(model)
        with pytest.raises(ValueError, match=r"6 of another shape \(0.bias: \(5,\) instead of "):
            load_weights(model, network(5).state_dict(), "somewhere")
        assert_unchanged(model, before)

    def test_what_is_stored_in_half_precision_is_what_the_rounded_network_computes(self, tmp_path):
        torch.manual_seed(0)
        model = irevnet.create_model("irevnet_digits").eval()
        x = torch.rand(4, 1, 8, 8)
        exact = model(x)
        round_weights(model, torch.float16)
        rounded = model(x)
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, atol=1e-2, rtol=1e-2)
        path = tmp_path / "half.safetensors"
        save_weights(model, path, METADATA, torch.float16)
        tensors, _ = read_tensors(path)
        assert tensors["classifier.linear.weight"].dtype == torch.float16
        assert tensors["classifier.norm.running_var"].dtype == torch.float32
        other = irevnet.create_model("irevnet_digits").eval()
        load_weights(other, tensors, str(path))
        assert torch.equal(other(x), rounded)

    def test_what_half_precision_cannot_hold_is_refused_and_nothing_is_rounded(self):
        model = irevnet.create_model("irevnet_digits")
        with torch.no_grad():
            model.classifier.linear.bias[3] = 1e6
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"classifier\.linear\.bias holds values .*float16"):
            round_weights(model, torch.float16)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_precision_may_differ(self):
        model, other = network(), network().double()
        load_weights(model, other.state_dict(), "somewhere")
        assert torch.equal(model[0].weight, other[0].weight.float())

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("0.weight", float("nan"), "0.weight holds values that are not finite"),
            ("1.running_mean", float("inf"), "1.running_mean holds values that are not finite"),
            ("1.running_var", -0.1, "1.running_var holds negative variances"),
        ],
    )
    def test_numbers_that_no_network_has_are_refused_and_nothing_is_changed(
        self, name, value, problem
    ):
        model, other = network(), network()
        before = snapshot(model)
        state = snapshot(other)
        state[name].view(-1)[0] = value
        with pytest.raises(ValueError, match=f"^file is damaged: {problem}"):
            load_weights(model, state, "file")
        assert_unchanged(model, before)

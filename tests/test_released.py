import math
import os
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import irevnet
from irevnet.released import (
    IMAGENET_NORMALIZATION,
    convert_released,
    representation_permutation,
)
from irevnet.reversible.layers import OffsetFirst
from irevnet.weights import load_weights, read_tensors, save_weights
from networks import images, randomise


def offset_first(x, factor):
    """Space-to-depth to channels ``(i * factor + j) * C + c``."""
    batch, channels, height, width = x.shape
    blocks = x.view(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(
        batch, factor**2 * channels, height // factor, width // factor
    )


class Reference(nn.Module):
    """The released network, written from its description; its modules have their names there."""

    def __init__(
        self,
        *,
        blocks,
        strides,
        half_channels,
        entry_factor,
        in_shape=(3, 32, 32),
        num_classes=5,
        kernel_sizes=(3, 3, 3),
    ):
        super().__init__()
        self.entry_factor = entry_factor
        self.half = half_channels[0] // strides[0] ** 2
        self.strides = []
        self.stack = nn.ModuleList()
        half = self.half
        for count, stride, width in zip(blocks, strides, half_channels, strict=True):
            for index in range(count):
                self.strides.append(stride if index == 0 else 1)
                block = self.bottleneck(half, width, self.strides[-1], kernel_sizes)
                self.stack.append(nn.ModuleDict({"bottleneck_block": block}))
                half = width
        self.bn1 = nn.BatchNorm2d(2 * half)
        self.linear = nn.Linear(2 * half, num_classes)

    def bottleneck(self, before, after, stride, kernel_sizes):
        middle = after // 4
        first, second, third = (
            nn.Conv2d(inside, outside, size, stride=step, padding=size // 2, bias=False)
            for inside, outside, step, size in zip(
                (before, middle, middle),
                (middle, middle, after),
                (stride, 1, 1),
                kernel_sizes,
                strict=True,
            )
        )
        layers = [nn.BatchNorm2d(before), nn.ReLU()] if len(self.stack) else []
        layers += [first, nn.BatchNorm2d(middle), nn.ReLU()]
        layers += [second, nn.Dropout(0.1), nn.BatchNorm2d(middle), nn.ReLU(), third]
        return nn.Sequential(*layers)

    def encode(self, x):
        x = offset_first(x, self.entry_factor)
        zeros = x.new_zeros(len(x), 2 * self.half - x.shape[1], *x.shape[2:])
        x1, x2 = torch.cat([x, zeros], dim=1).chunk(2, dim=1)
        for stride, block in zip(self.strides, self.stack, strict=True):
            y = offset_first(x1, stride) + block["bottleneck_block"](x2)
            x1, x2 = offset_first(x2, stride), y
        return torch.cat([x1, x2], dim=1)

    def forward(self, x):
        z = functional.relu(self.bn1(self.encode(x)))
        return self.linear(functional.avg_pool2d(z, tuple(z.shape[2:])).flatten(1))


CONFIGS = {
    "cifar": {
        "in_shape": (3, 8, 12),
        "entry_factor": 1,
        "blocks": (3, 2, 2),
        "strides": (1, 2, 2),
        "half_channels": (16, 64, 256),
    },
    "no zeros in one half": {
        "in_shape": (6, 8, 8),
        "entry_factor": 1,
        "blocks": (2, 2),
        "strides": (1, 2),
        "half_channels": (4, 16),
        "kernel_sizes": (1, 3, 1),
    },
    "b": {
        "in_shape": (3, 64, 32),
        "entry_factor": 2,
        "blocks": (2, 1, 2, 1),
        "strides": (2, 2, 2, 2),
        "half_channels": (24, 96, 384, 1536),
        "kernel_sizes": (1, 3, 1),
    },
    "b, 3x3": {
        "in_shape": (2, 32, 32),
        "entry_factor": 2,
        "blocks": (1, 2, 2),
        "strides": (2, 2, 2),
        "half_channels": (16, 64, 256),
    },
    "a": {
        "in_shape": (3, 16, 16),
        "entry_factor": 4,
        "blocks": (2, 2),
        "strides": (1, 2),
        "half_channels": (32, 128),
    },
}
SMALL = CONFIGS["no zeros in one half"]
NAMES = {"cifar": "irevnet_cifar", "a": "irevnet_b", "b": "irevnet_b", "b, 3x3": "irevnet_b"}


def reference(**config):
    """A released network in evaluation mode, far from its initial weights."""
    return randomise(Reference(**config)).eval()


def overrides(config):
    """The overrides that a conversion needs; the checkpoint determines the others."""
    return {name: value for name, value in config.items() if name != "kernel_sizes"}


def assert_same_function(model, theirs, **tolerance):
    model, theirs = model.double(), theirs.double()
    x = images(model)
    with torch.no_grad():
        z = model.encode(x)
        assert_close(z, theirs.encode(x)[:, representation_permutation(model)], **tolerance)
        assert_close(model(x), theirs(x), **tolerance)
        assert_close(model.classify(z), theirs(x), **tolerance)
        assert_close(model.inverse(z), x, rtol=0, atol=1e-8)


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def uncounted(state):
    """A state dict as early PyTorch wrote it, without the counts of batches."""
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def training_state(state):
    """A checkpoint as the released ImageNet script saves it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    return {
        "epoch": 3,
        "arch": "irevnet",
        "state_dict": state,
        "best_prec1": 74.0,
        "optimizer": optimizer.state_dict(),
    }


class TestConversion:
    @pytest.mark.parametrize("config", CONFIGS)
    def test_it_is_the_same_function(self, config):
        theirs = reference(**CONFIGS[config])
        model = convert_released(
            theirs.state_dict(),
            NAMES.get(config, "irevnet_cifar"),
            **overrides(CONFIGS[config]),
        )
        assert type(model) is irevnet.IRevNet
        assert not model.training
        assert model.num_classes == 5
        assert_same_function(model, theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize(
        "form",
        [
            uncounted,
            prefixed,
            training_state,
            lambda state: training_state(prefixed(uncounted(state))),
        ],
    )
    @pytest.mark.parametrize("kept", ["in memory", "zip", "legacy"])
    def test_every_form_of_a_checkpoint(self, tmp_path, form, kept):
        theirs = reference(**SMALL)
        checkpoint = form(theirs.state_dict())
        if kept != "in memory":
            path = tmp_path / "i-revnet.pth.tar"
            torch.save(checkpoint, path, _use_new_zipfile_serialization=kept == "zip")
            checkpoint = path if kept == "zip" else str(path)
        model = convert_released(checkpoint, **overrides(SMALL))
        assert_same_function(model, theirs, rtol=1e-10, atol=1e-10)

    def test_the_checkpoint_is_not_changed(self):
        state = reference(**SMALL).state_dict()
        before = {name: tensor.clone() for name, tensor in state.items()}
        convert_released(state, **overrides(SMALL))
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in before)

    def test_batches_are_counted_from_zero_where_they_were_not(self):
        state = reference(**SMALL).state_dict()
        for name in state:
            if name.endswith("num_batches_tracked"):
                state[name].fill_(7)
        for checkpoint, counted in ((state, 7), (uncounted(state), 0)):
            model = convert_released(checkpoint, **overrides(SMALL))
            assert model.classifier.norm.num_batches_tracked == counted

    @pytest.mark.parametrize("backward", ["stored", "reversible"])
    def test_gradients(self, backward):
        theirs = reference(**CONFIGS["b, 3x3"])
        model = convert_released(
            theirs.state_dict(), "irevnet_b", backward=backward, **overrides(CONFIGS["b, 3x3"])
        )
        gradients = []
        x = images(model)
        for network in (model.double(), theirs.double()):
            image = x.clone().requires_grad_()
            network(image).square().sum().backward()
            gradients.append(image.grad)
        assert_close(*gradients)

    def test_other_overrides_reach_the_network(self):
        state = reference(**SMALL).state_dict()
        model = convert_released(
            state, **{**overrides(SMALL), "in_shape": (6, 4, 6), "streams": "fixed"}
        )
        assert model.in_shape == (6, 4, 6)
        x = images(model, dtype=torch.float32).mul(255).round().div(255)
        with torch.no_grad():
            assert torch.equal(model.inverse(model.encode(x)).mul(255).round().div(255), x)

    @pytest.mark.parametrize(
        ("name", "size", "count"), [("irevnet_cifar", 32, 10), ("irevnet_b", 64, 1000)]
    )
    def test_at_full_size(self, name, size, count):
        """With the released defaults, whose kernels are all 3x3."""
        config = {
            "irevnet_cifar": {
                "entry_factor": 1,
                "blocks": (18, 18, 18),
                "strides": (1, 2, 2),
                "half_channels": (16, 64, 256),
            },
            "irevnet_b": {
                "entry_factor": 2,
                "blocks": (6, 16, 72, 6),
                "strides": (2, 2, 2, 2),
                "half_channels": (24, 96, 384, 1536),
            },
        }[name]
        theirs = Reference(num_classes=count, **config).eval()
        for block in theirs.stack:  # as constructed, the network is almost a permutation
            nn.init.uniform_(block["bottleneck_block"][-1].weight, -0.1, 0.1)
        model = convert_released(prefixed(theirs.state_dict()), name)
        x = torch.rand(1, 3, size, size)
        with torch.no_grad():
            z = model.encode(x)
            theirs_z = theirs.encode(x)[:, representation_permutation(model)]
            assert (z - theirs_z).norm() < 1e-5 * theirs_z.norm()
            assert (model.classify(z) - theirs(x)).norm() < 1e-5 * theirs(x).norm()
            assert_close(model.inverse(z), x, rtol=0, atol=1e-3)


OF_PYTORCHCV = {
    "blocks": (2, 1),
    "strides": (2, 2),
    "half_channels": (24, 96),
    "in_shape": (3, 56, 56),
}


class TestPytorchcv:
    """Networks of pytorchcv, which has trained weights of the released ILSVRC network."""

    @pytest.fixture
    def theirs(self):
        models = pytest.importorskip(
            "pytorchcv.models.irevnet", reason="pytorchcv, of the extra `test`, is not installed"
        )
        torch.manual_seed(0)
        network = models.IRevNet(
            channels=[[24, 24], [96]],
            init_block_channels=12,
            final_block_channels=192,
            in_size=(56, 56),
            num_classes=5,
        )
        # A few steps of training, so that no tensor has its initial value.
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for _ in range(2):
            functional.cross_entropy(
                network(torch.rand(8, 3, 56, 56)), torch.arange(8) % 5
            ).backward()
            optimizer.step()
        return network.eval()

    def test_it_is_the_same_function(self, theirs, tmp_path):
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        x = torch.rand(4, 3, 56, 56)
        with torch.no_grad():
            logits, representation = theirs.double()(x.double(), return_out_bij=True)
        ours = convert_released(tmp_path / "theirs.pth", "irevnet_b", **OF_PYTORCHCV).double()
        with torch.no_grad():
            assert_close(ours(x.double()), logits, atol=1e-9, rtol=1e-9)
            z = ours.encode(x.double())
            expected = representation[:, representation_permutation(ours)]
            assert_close(z, expected, atol=1e-9, rtol=1e-9)
            assert_close(ours.inverse(z), x.double(), atol=1e-9, rtol=0)

    def test_a_missing_tensor_is_named(self, theirs):
        state = theirs.state_dict()
        del state["features.stage2.unit1.bottleneck.conv2.conv.weight"]
        with pytest.raises(ValueError, match=r"stack\.2\.bottleneck_block\.5\.weight"):
            convert_released(state, "irevnet_b", **OF_PYTORCHCV)

    def test_at_full_size_it_has_as_many_parameters(self):
        models = pytest.importorskip(
            "pytorchcv.models.irevnet", reason="pytorchcv, of the extra `test`, is not installed"
        )
        with torch.device("meta"):
            theirs = models.irevnet301()
            ours = irevnet.create_model("irevnet_b", kernel_sizes=(3, 3, 3))
        counts = {sum(p.numel() for p in model.parameters()) for model in (theirs, ours)}
        assert counts == {125_120_356}


class TestEntry:
    @pytest.mark.parametrize(("factor", "channels"), [(1, 3), (2, 1), (2, 3), (4, 3)])
    def test_the_order_is_theirs_and_it_is_undone(self, factor, channels):
        x = torch.rand(2, channels, 8, 12)
        entry = OffsetFirst(factor, channels)
        assert torch.equal(entry(x), offset_first(x, factor))
        assert torch.equal(entry.inverse(entry(x)), x)

    def test_weights_that_need_it_do_not_load_without_it(self, tmp_path):
        config = CONFIGS["b, 3x3"]
        model = convert_released(reference(**config).state_dict(), "irevnet_b", **overrides(config))
        save_weights(model, tmp_path / "w", {})
        plain = irevnet.create_model(
            "irevnet_b", num_classes=5, kernel_sizes=(3, 3, 3), **overrides(config)
        )
        with pytest.raises(ValueError, match=r"than this IRevNet: 1 unexpected \(entry.order\)"):
            load_weights(plain, read_tensors(tmp_path / "w")[0], "w")

    def test_they_load_in_a_network_of_the_zoo_with_that_entry(self, tmp_path):
        config = CONFIGS["b, 3x3"]
        model = convert_released(reference(**config).state_dict(), "irevnet_b", **overrides(config))
        save_weights(model, tmp_path / "w", {})
        shape = {"num_classes": 5, "kernel_sizes": (3, 3, 3), **config}
        same = irevnet.create_model("irevnet_b", entry_order="offset", **shape)
        load_weights(same.eval(), read_tensors(tmp_path / "w")[0], "w")
        x = images(model, dtype=torch.float32)
        assert torch.equal(same(x), model(x))

    def test_normalisation_can_be_the_networks(self):
        state = reference(**CONFIGS["b"]).state_dict()
        outside = convert_released(state, "irevnet_b", **overrides(CONFIGS["b"]))
        inside = convert_released(
            state, "irevnet_b", **overrides(CONFIGS["b"]), normalization=IMAGENET_NORMALIZATION
        )
        x = torch.rand(2, 3, 64, 32)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_NORMALIZATION)
        with torch.no_grad():
            z = inside.encode(x)
            assert torch.equal(z, outside.encode((x - mean) / std))
            assert_close(inside.inverse(z), x, rtol=0, atol=1e-4)

    def test_weights_that_do_not_need_it_load_in_a_network_of_the_zoo(self, tmp_path):
        model = convert_released(reference(**SMALL).state_dict(), **overrides(SMALL))
        save_weights(model, tmp_path / "w", {})
        plain = irevnet.create_model("irevnet_cifar", num_classes=5, **SMALL).eval()
        load_weights(plain, read_tensors(tmp_path / "w")[0], "w")
        x = images(model, dtype=torch.float32)
        assert torch.equal(plain(x), model(x))


class TestPermutation:
    @pytest.mark.parametrize("config", CONFIGS)
    def test_it_permutes_the_channels_within_each_half(self, config):
        config = CONFIGS[config]
        with torch.device("meta"):
            theirs = Reference(**config)
        state = {name: torch.zeros_like(t, device="cpu") for name, t in theirs.state_dict().items()}
        model = convert_released(state, "irevnet_b", **overrides(config))
        permutation = representation_permutation(model)
        assert permutation.dtype == torch.int64
        half = model.channels // 2
        for part, first in zip(permutation.split(half), (0, half), strict=True):
            assert sorted(part.tolist()) == list(range(first, first + half))

    def test_networks_with_another_entry_are_refused(self):
        with torch.device("meta"):
            model = irevnet.create_model("irevnet_b")
        message = "got one whose entry is SpaceToDepth(factor=2)"
        with pytest.raises(ValueError, match=re.escape(message)):
            representation_permutation(model)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestErrors:
    @pytest.fixture
    def state(self):
        return reference(**SMALL).state_dict()

    @pytest.mark.parametrize("name", ["irevnet_a", "irevnet_cifar_bijective", "", None, ["b"]])
    def test_unknown_name(self, state, name):
        message = f"name must be one of ['irevnet_b', 'irevnet_cifar'], got {name!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            convert_released(state, name)

    def test_unknown_override(self, state):
        with pytest.raises(ValueError, match="irevnet_cifar has no argument depth; allowed are"):
            convert_released(state, depth=3)

    def test_missing_file(self, tmp_path):
        for path in (tmp_path / "nothing", tmp_path, str(tmp_path / "nothing")):
            with pytest.raises(FileNotFoundError, match=re.escape(f"no weights at {path}")):
                convert_released(path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_truncated(self, tmp_path, state, zipped):
        path = tmp_path / "w.pth"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        step = math.ceil(len(content) / 100)
        for length in [*range(100), *range(100, len(content), step), len(content) - 1]:
            path.write_bytes(content[:length])
            # Cut within the name of a class, the file seems to name another class.
            with pytest.raises(ValueError, match=rf"^{path} (.*: it )?is damaged"):
                convert_released(path)

    @pytest.mark.parametrize(
        "content",
        [b"\0" * 100, b"\xff" * 100, b"PK\x03\x04" + b"a" * 100, b"a text file\n" * 10],
    )
    def test_foreign_file(self, tmp_path, content):
        path = tmp_path / "w.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged, truncated or not")):
            convert_released(path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_whole_models_are_refused(self, tmp_path, zipped):
        """What the released CIFAR-10 script saves."""
        path = tmp_path / "i-revnet-55.t7"
        checkpoint = {"model": nn.DataParallel(Reference(**SMALL)), "acc": 94.5, "epoch": 200}
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        message = (
            f"{path} asks to run code (torch.nn.parallel.data_parallel.DataParallel), which "
            "is refused: "
        )
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            convert_released(path, **overrides(SMALL))
        # and the message says what to do
        command = re.search(r"torch\.save\(.*\)", str(error.value))[0]
        exec(command.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))))
        model = convert_released(tmp_path / "weights.pt", **overrides(SMALL))
        assert_same_function(model, checkpoint["model"].module.eval())

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_never_run(self, tmp_path, state, zipped):
        path = tmp_path / "w.pth"
        checkpoint = {"state_dict": state, "extra": Trap(tmp_path / "trap")}
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=rf"{path} asks to run code \(\w+\.mkdir\)"):
            convert_released(path, **overrides(SMALL))
        assert not (tmp_path / "trap").exists()

    @pytest.mark.parametrize(
        ("found", "problem"),
        [
            ([torch.zeros(2)], "a state dict, got list"),
            (torch.zeros(2), "a state dict, got Tensor"),
            ({"epoch": 3}, "got int under 'epoch'"),
            ({"state_dict": {"epoch": 3}}, "got int under 'epoch'"),
            ({"state_dict": 3}, "got int under 'state_dict'"),
            ({1: torch.zeros(2)}, "got Tensor under 1"),
        ],
    )
    def test_no_state_dict(self, tmp_path, found, problem):
        path = tmp_path / "w.pth"
        torch.save(found, path)
        with pytest.raises(ValueError, match=rf"{path} must hold .*{problem}"):
            convert_released(path)
        if isinstance(found, dict):
            with pytest.raises(ValueError, match=f"the checkpoint must hold .*{problem}"):
                convert_released(found)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (
                lambda state: state.pop("stack.1.bottleneck_block.2.weight"),
                "1 missing (stack.1.bottleneck_block.2.weight)",
            ),
            (lambda state: state.pop("linear.bias"), "1 missing (linear.bias)"),
            (
                lambda state: state.update(fc=torch.zeros(1)),
                "1 unexpected (fc)",
            ),
            (
                lambda state: state.update({"module.fc": torch.zeros(1)}),
                "1 unexpected (module.fc)",
            ),
            (
                lambda state: state.update({"bn1.running_var": torch.zeros(5)}),
                "1 of another shape (bn1.running_var: (5,) instead of (32,))",
            ),
            (
                lambda state: state.update({"linear.bias": torch.zeros(3)}),
                "1 of another shape (linear.bias: (3,) instead of (5,))",
            ),
            (
                lambda state: state.update({"linear.weight": torch.tensor(3.0)}),
                "2 of another shape (linear.bias: (5,) instead of (10,), linear.weight: () ",
            ),
            (
                lambda state: state.update({"stack.0.bottleneck_block.3.weight": torch.zeros(2)}),
                "stack.0.bottleneck_block.3.weight: (2,) instead of (1, 1, 3, 3), ",
            ),
            (
                lambda state: state.update({"linear.weight": torch.zeros(5, 32).int()}),
                "1 of another kind (linear.weight: torch.int32 instead of torch.float32)",
            ),
            (lambda state: state.clear(), "missing (bn1.bias, bn1.running_mean, bn1.running_var, "),
        ],
    )
    def test_weights_of_another_network(self, tmp_path, state, change, problem):
        change(state)
        torch.save(state, tmp_path / "w.pth")
        for checkpoint, source in (
            (dict(state), "the checkpoint"),
            (tmp_path / "w.pth", str(tmp_path / "w.pth")),
        ):
            with pytest.raises(ValueError, match=re.escape(problem)) as error:
                convert_released(checkpoint, **overrides(SMALL))
            assert str(error.value).startswith(
                f"{source} holds the weights of a different network than this ReleasedIRevNet: "
            )

    def test_weights_of_another_depth_or_name(self, state):
        deeper = {**overrides(SMALL), "blocks": (2, 3)}
        for name, config in (("irevnet_cifar", deeper), ("irevnet_b", {}), ("irevnet_cifar", {})):
            with pytest.raises(ValueError, match="the checkpoint holds the weights of a diff"):
                convert_released(state, name, **config)

    def test_weights_of_this_package(self):
        model = irevnet.create_model("irevnet_cifar", num_classes=5, **SMALL)
        with pytest.raises(ValueError, match=r"unexpected \(blocks.0.residual.0.weight, "):
            convert_released(model.state_dict(), **overrides(SMALL))

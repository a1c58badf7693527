import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import irevnet
from irevnet import runs, zoo
from irevnet.network.downsampling import ProjectedIRevNet, ShuffledRevNet
from irevnet.weights import save_weights, write_tensors
from networks import BIJECTIVE, INJECTIVE, IREVNETS, SMALL


def test_names():
    assert irevnet.list_models() == [
        "irevnet_a",
        "irevnet_b",
        "irevnet_cifar",
        "irevnet_cifar_bijective",
        "irevnet_cifar_bijective_3x3",
        "irevnet_digits",
        "irevnet_digits_bijective",
        "projected_irevnet_cifar",
        "projected_irevnet_digits",
        "resnet50",
        "resnet_cifar",
        "resnet_digits",
        "revnet56",
        "revnet_cifar",
        "revnet_digits",
        "shuffled_revnet_cifar",
    ]


@pytest.mark.parametrize("name", irevnet.list_models())
def test_every_network_is_what_its_name_says(name):
    with torch.device("meta"):
        model = irevnet.create_model(name)
    kind = {
        "irevnet": irevnet.IRevNet,
        "revnet": irevnet.RevNet,
        "resnet": irevnet.ResNet,
        "projected_irevnet": ProjectedIRevNet,
        "shuffled_revnet": ShuffledRevNet,
    }
    family = re.match("((projected|shuffled)_)?(irevnet|revnet|resnet)", name)[0]
    if name == "resnet50":
        assert type(model).__module__ == "torchvision.models.resnet"
    else:
        assert type(model) is kind[family]
    assert model.training
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())
    if family == "irevnet":
        assert model.is_bijective == (name in BIJECTIVE)


def test_every_irevnet_of_the_zoo_goes_through_the_invariant_suite():
    assert set(SMALL) == set(IREVNETS) == set(BIJECTIVE) | set(INJECTIVE)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("irevnet_a", {}, 180_999_016),
        ("irevnet_b", {}, 29_201_092),
        ("irevnet_b", {"kernel_sizes": (3, 3, 3)}, 125_120_356),
        ("revnet56", {}, 27_553_128),
        ("resnet50", {}, 25_557_032),
    ],
)
def test_parameter_counts_of_table_1(name, overrides, expected):
    with torch.device("meta"):
        model = irevnet.create_model(name, **overrides)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("baseline", ["revnet_cifar", "resnet_cifar"])
def test_baselines_on_cifar10_match_the_released_network(baseline):
    sizes = {}
    for name in ("irevnet_cifar", baseline):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = irevnet.create_model(name)
            model(torch.empty(1, 3, 32, 32))
        depth = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        sizes[name] = torch.tensor([depth, parameters, counter.get_total_flops()])
    # Depth and operations to 5%, parameters to 15%.
    ratios = sizes[baseline] / sizes["irevnet_cifar"]
    assert ((ratios - 1).abs() <= torch.tensor([0.05, 0.15, 0.05])).all()


def test_kernels_of_the_bijective_networks_on_cifar10_at_equal_parameters():
    counts = {}
    for name, kernels in {
        "irevnet_cifar_bijective": [1, 3, 1],
        "irevnet_cifar_bijective_3x3": [3, 3, 3],
    }.items():
        with torch.device("meta"):
            model = irevnet.create_model(name)
        for block in model.blocks:
            convolutions = [m for m in block.residual if isinstance(m, torch.nn.Conv2d)]
            assert [m.kernel_size[0] for m in convolutions] == kernels
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    first, second = counts.values()
    assert abs(second / first - 1) <= 0.01


@pytest.mark.parametrize("name", ["irevnet_a", "irevnet_b"])
def test_layers_and_downsampling_of_the_papers_models(name):
    with torch.device("meta"):
        model = irevnet.create_model(name)
    # Three convolutions a block: 54 of them, the entry and the classifier are the 56 layers of (a).
    assert 3 * len(model.blocks) == {"irevnet_a": 54, "irevnet_b": 300}[name]
    downsampling = [
        3 * index + 3 for index, block in enumerate(model.blocks) if block.downsample.factor == 2
    ]
    assert downsampling == {"irevnet_a": [15, 27, 45], "irevnet_b": [3, 21, 69, 285]}[name]


def test_overrides_reach_the_network():
    model = irevnet.create_model("irevnet_digits", num_classes=3, in_shape=(1, 16, 24))
    assert model.num_classes == 3
    assert model.in_shape == (1, 16, 24)
    with torch.device("meta"):
        assert irevnet.create_model("resnet50", num_classes=7).fc.out_features == 7


class TestErrors:
    @pytest.mark.parametrize("name", ["irevnet_c", "", None, 3, ["irevnet_a"]])
    def test_unknown_name(self, name):
        message = f"name must be one of {irevnet.list_models()}, got {name!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            irevnet.create_model(name)

    @pytest.mark.parametrize(
        ("name", "allowed"),
        [("irevnet_b", "'half_channels'"), ("revnet56", "'stem'"), ("resnet50", "['num_classes']")],
    )
    def test_unknown_overrides(self, name, allowed):
        with pytest.raises(
            ValueError, match=rf"{name} has no argument depth, width; allowed are "
        ) as error:
            irevnet.create_model(name, width=3, depth=4)
        assert allowed in str(error.value)

    @pytest.mark.parametrize("num_classes", [0, -1, "10", 10.0, None])
    @pytest.mark.parametrize(
        "name", ["irevnet_digits", "revnet_digits", "resnet_digits", "resnet50"]
    )
    def test_number_of_classes(self, name, num_classes):
        message = f"num_classes must be a positive integer, got {num_classes!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            irevnet.create_model(name, num_classes=num_classes)

    def test_overrides_that_cannot_work(self):
        with pytest.raises(
            ValueError, match=r"in_shape must have a height and width divisible by 32"
        ):
            irevnet.create_model("irevnet_b", in_shape=(3, 225, 225))
        with pytest.raises(ValueError, match=r"half_channels\[0\] must be at least 96 "):
            irevnet.create_model("irevnet_b", in_shape=(12, 224, 224))


def listed(folder, *more):
    """Writes a list of training runs, the first published; returns the path for its weights."""
    first = {"family": "irevnet", "model": "irevnet_digits", "seed": 3, "published": True}
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps([first, *more]))
    return folder / "irevnet.safetensors"


class TestPretrained:
    @pytest.fixture(autouse=True)
    def root(self, tmp_path, monkeypatch):
        """The package seems to lie in an empty checkout."""
        monkeypatch.setattr(runs, "__file__", str(tmp_path / "irevnet" / "runs.py"))
        return tmp_path

    @pytest.fixture
    def weights(self, root):
        return listed(root / "results" / "digits" / "weights")

    @pytest.mark.parametrize("place", ["results/digits/weights", "irevnet/pretrained/digits"])
    def test_weights_and_configuration_come_back(self, root, place):
        overrides = {"blocks": (1, 2, 1), "num_classes": 4}
        trained = irevnet.create_model("irevnet_digits", **overrides).eval()
        path = listed(root / place)
        save_weights(trained, path, {"overrides": overrides})
        assert runs.find_run("irevnet_digits", "digits").path == path
        model = irevnet.create_model("irevnet_digits", pretrained="digits")
        assert not model.training
        assert len(model.blocks) == 4
        x = torch.rand(2, 1, 8, 8)
        assert torch.equal(model(x), trained(x))

    def test_weights_of_an_installed_package_take_precedence(self, root, weights):
        installed = listed(root / "irevnet" / "pretrained" / "digits")
        for path in (weights, installed):
            save_weights(irevnet.create_model("irevnet_digits"), path, {"overrides": {}})
        assert runs.find_run("irevnet_digits", "digits").path == installed

    def test_overrides_that_keep_the_weights(self, weights):
        save_weights(irevnet.create_model("irevnet_digits"), weights, {"overrides": {}})
        model = irevnet.create_model("irevnet_digits", pretrained="digits", in_shape=(1, 16, 16))
        assert model.in_shape == (1, 16, 16)

    def test_overrides_that_do_not_fit_the_weights(self, weights):
        save_weights(irevnet.create_model("irevnet_digits"), weights, {"overrides": {}})
        message = (
            r"irevnet.safetensors holds the weights of a different network than this IRevNet: "
        )
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_digits", pretrained="digits", num_classes=3)

    def test_weights_under_another_networks_name(self, weights):
        trained = irevnet.create_model("irevnet_digits")
        save_weights(trained, weights, {"overrides": {}, "model": "irevnet_cifar"})
        message = "holds the weights of irevnet_cifar, not of irevnet_digits"
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_digits", pretrained="digits")

    def test_another_run_by_its_seed(self, root, weights):
        other = {"family": "irevnet", "model": "irevnet_digits", "seed": 4, "published": False}
        runs_file = weights.with_name("runs.json")
        runs_file.write_text(json.dumps([*json.loads(runs_file.read_text()), other]))
        path = root / "results" / "digits" / "train" / "irevnet-4" / "weights.safetensors"
        message = rf"weights of irevnet with seed 4 of 'digits' are missing: there is no {path}"
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_digits", pretrained="digits", seed=4)
        for place in (weights, path):
            save_weights(irevnet.create_model("irevnet_digits"), place, {"overrides": {}})
        assert runs.find_run("irevnet_digits", "digits").path == weights
        assert runs.find_run("irevnet_digits", "digits", seed=3).path == weights
        assert runs.find_run("irevnet_digits", "digits", seed=4).path == path
        irevnet.create_model("irevnet_digits", pretrained="digits", seed=4)
        with pytest.raises(ValueError, match=r"seed must be one of \[3, 4\] for .*, got 5"):
            irevnet.create_model("irevnet_digits", pretrained="digits", seed=5)

    def test_one_of_two_families_with_the_same_network(self, root):
        wide = {"family": "wide", "model": "irevnet_digits", "seed": 3, "published": True}
        path = listed(root / "results" / "digits" / "weights", wide)
        for place in (path, path.with_name("wide.safetensors")):
            save_weights(irevnet.create_model("irevnet_digits"), place, {"overrides": {}})
        with pytest.raises(ValueError, match="family must be one of irevnet, wide: 'digits' has"):
            irevnet.create_model("irevnet_digits", pretrained="digits")
        for family in ("irevnet", "wide"):
            actual = runs.find_run("irevnet_digits", "digits", family=family)
            assert actual.path.stem == actual.family == family
            irevnet.create_model("irevnet_digits", pretrained="digits", family=family)
        with pytest.raises(ValueError, match="for family 'narrow' of 'digits'; available are"):
            irevnet.create_model("irevnet_digits", pretrained="digits", family="narrow")

    @pytest.mark.parametrize("choice", [{"seed": 0}, {"family": "irevnet"}])
    def test_a_choice_among_trained_networks_needs_pretrained(self, choice):
        with pytest.raises(ValueError, match="chooses trained weights: it needs pretrained"):
            irevnet.create_model("irevnet_digits", **choice)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[", r"runs\.json is damaged"),
            ('[{"family": "a"}]', r"runs\.json is damaged"),
            ("[1]", r"runs\.json is damaged"),
            ("{}", "no pretrained weights"),
        ],
    )
    def test_a_damaged_list_of_runs_is_named(self, weights, text, message):
        weights.with_name("runs.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_digits", pretrained="digits")

    def test_an_experiment_without_any_weights_is_named(self):
        message = "no pretrained weights of irevnet_b for 'imagenet'; available are: none"
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_b", pretrained="imagenet")

    @pytest.mark.parametrize("experiment", ["cifar10", True, ""])
    def test_weights_of_other_experiments_are_named(self, weights, experiment):
        save_weights(irevnet.create_model("irevnet_digits"), weights, {"overrides": {}})
        message = (
            f"no pretrained weights of irevnet_digits for {experiment!r}; "
            "available are: irevnet_digits with pretrained='digits'"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            irevnet.create_model("irevnet_digits", pretrained=experiment)

    def test_damaged_weights_are_refused(self, weights):
        save_weights(irevnet.create_model("irevnet_digits"), weights, {"overrides": {}})
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"irevnet.safetensors is damaged, truncated or"):
            irevnet.create_model("irevnet_digits", pretrained="digits")

    def test_weights_without_the_arguments_of_their_network_are_refused(self, weights):
        write_tensors(weights, irevnet.create_model("irevnet_digits").state_dict(), {"run": "x"})
        message = r"irevnet.safetensors does not say how its network was built"
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_digits", pretrained="digits")

    def test_weights_with_all_arguments_outlive_a_change_of_the_zoo(self, weights, monkeypatch):
        model = irevnet.create_model("irevnet_digits", num_classes=4)
        overrides = zoo.model_arguments("irevnet_digits", num_classes=4)
        save_weights(model, weights, {"overrides": overrides})
        network, arguments = zoo._MODELS["irevnet_digits"]
        changed = (network, {**arguments, "blocks": (1, 1, 1), "strides": (2, 1, 2)})
        monkeypatch.setitem(zoo._MODELS, "irevnet_digits", changed)
        loaded = irevnet.create_model("irevnet_digits", pretrained="digits")
        x = torch.rand(2, 1, 8, 8)
        assert torch.equal(loaded(x), model.eval()(x))

    def test_overrides_are_plain_json(self, weights):
        overrides = {"num_classes": 4, "blocks": [1, 1, 1]}
        model = irevnet.create_model("irevnet_digits", **overrides)
        save_weights(model, weights, {"overrides": json.loads(json.dumps(overrides))})
        assert len(irevnet.create_model("irevnet_digits", pretrained="digits").blocks) == 3

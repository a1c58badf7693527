"""The logic of the benchmarks. No test depends on the clock: speed is measured, not tested."""

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

import irevnet
from benchmarks import (
    against_revnet,
    balance,
    command,
    ilsvrc2012,
    input_rate,
    interruptions,
    jacobian,
    memory_and_speed,
    photographs,
    time_to_accuracy,
    training_step,
    variants,
    variation,
)
from benchmarks.command import Run, make_parser
from benchmarks.measure import (
    estimate,
    fit_line,
    interleave,
    largest,
    peak_bytes,
    ratios,
    resident_bytes,
)
from benchmarks.memory_and_speed import SECTIONS
from benchmarks.provenance import public_command
from benchmarks.settings import Settings
from benchmarks.steps import (
    Mode,
    gradients,
    images_for,
    relative_difference,
    relu_signs,
    smooth,
    trainer,
)
from benchmarks.targets import targets
from irevnet.analysis.memory import saved_bytes
from irevnet.data import load_digits
from irevnet.training import evaluate
from irevnet.weights import load_weights, read_tensors
from pipeline.params import Params, read_yaml

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
MEMORY_AND_SPEED = "memory_and_speed.json"
OWN = [variant for variant in variants.LABELS if variant != "memcnn"]
TINY = Settings(
    CPU,
    skip=("memcnn",),
    rounds=1,
    blocks={"irevnet_cifar": 2, "irevnet_cifar_bijective": 2},
    depths=(1, 2),
    byte_depths=(1, 2),
    batch_size=2,
    batches=(1, 2),
    training_steps=1,
    throughput_batch=2,
    inverse_batch=1,
    compile=False,
    overrides={
        "irevnet_cifar": {"in_shape": (3, 8, 8)},
        "irevnet_cifar_bijective": {
            "in_shape": (3, 8, 8),
            "bottleneck_channels": (4, 4, 4),
        },
        "irevnet_b": {"blocks": (1, 1, 1, 1), "in_shape": (3, 32, 32)},
    },
)


def test_tasks_take_turns():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(tasks, 3, CPU)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def test_an_estimate_is_the_median_with_quartiles():
    assert estimate([5, 1, 3, 2, 4]) == {"value": 3, "low": 2, "high": 4, "n": 5}
    assert estimate([7.0]) == {"value": 7, "low": 7, "high": 7, "n": 1}


def test_ratios_are_taken_within_a_round():
    assert ratios([2, 30], [1, 10]) == [2, 3]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def test_a_line_says_what_fits():
    line = fit_line([1, 2, 4], [110, 120, 140])
    assert (line.offset, line.slope, line.error) == pytest.approx((100, 10, 0))
    assert [line.largest_within(budget) for budget in (99, 109, 110, 205)] == [0, 0, 1, 10]
    assert fit_line([1, 2, 3], [100, 100, 130]).error > 0.03
    with pytest.raises(ValueError, match="do not grow"):
        fit_line([1, 2], [5, 5])


@pytest.mark.parametrize("true_limit", [0, 1, 2, 37, 1000])
def test_the_search_finds_the_largest_that_fits(true_limit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= true_limit

    assert largest(fits, 4096, tolerance=0) == true_limit
    assert len(tried) < 25
    assert largest(fits, 16, tolerance=0) == min(true_limit, 16)


def test_the_search_stops_within_its_tolerance():
    assert 950 <= largest(lambda size: size <= 1000, 4096, tolerance=0.05) <= 1000


def test_peak_bytes_count_what_is_alive_together():
    def step():
        for _ in range(3):
            held = torch.ones(2**18)
            del held
        both = torch.ones(2**18), torch.ones(2**18)
        del both

    assert 2 * 2**20 <= peak_bytes(step, CPU) < 2.1 * 2**20


def test_resident_bytes_count_the_momentum():
    model = torch.nn.Linear(4, 4, bias=False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert resident_bytes(model, optimiser) == 64
    model(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    assert resident_bytes(model, optimiser) == 128


def built(variant, **overrides):
    torch.manual_seed(0)
    return variants.build(variant, "irevnet_digits", blocks=(2, 2, 2), **overrides)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("variant", ["checkpoint", "reversible", "fixed"])
def test_every_variant_trains_the_same_network(variant, dropout):
    images, labels, _ = images_for((1, 8, 8), 8, CPU, TINY.data)
    exact = gradients(built("stored", dropout=dropout).double(), images.double(), labels)
    model = built(variant, dropout=dropout).double()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    measured = gradients(model, images.double(), labels)
    assert relative_difference(measured, exact) < (1e-3 if variant == "fixed" else 1e-10)
    assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())


def test_every_variant_normalises_images():
    images, _, _ = images_for((1, 8, 8), 4, CPU, TINY.data)
    plain, *logits = (
        built(variant, normalization=normalization).eval()(images)
        for variant, normalization in (
            ("stored", None),
            ("stored", ([0.5], [0.2])),
            ("checkpoint", ([0.5], [0.2])),
        )
    )
    assert logits[0].equal(logits[1])
    assert not logits[0].equal(plain)


def test_saved_bytes_are_ordered():
    images, _, _ = images_for((1, 8, 8), 8, CPU, TINY.data)
    models = {variant: built(variant) for variant in OWN}
    counts = {v: saved_bytes(lambda m=m: m(images), m) for v, m in models.items()}
    assert counts["stored"] > counts["checkpoint"] > counts["reversible"] > 0


def test_a_missing_library_is_a_reason(monkeypatch):
    if importlib.util.find_spec("memcnn") is not None:
        pytest.skip("memcnn is installed")
    assert list(variants.unavailable()) == ["memcnn"]
    assert "memcnn cannot be imported" in variants.unavailable()["memcnn"]


def test_a_mode_says_what_it_is():
    assert str(Mode()) == "float32, NCHW"
    assert str(Mode(True, True, True)) == "bfloat16 autocast, channels last, compiled F"


def test_a_step_trains():
    model = built("stored")
    images, labels, _ = images_for((1, 8, 8), 8, CPU, TINY.data)
    before = model.classifier.linear.weight.clone()
    step, optimiser = trainer(model, images, labels, Mode(bfloat16=True, channels_last=True))
    step()
    assert not model.classifier.linear.weight.equal(before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimiser.state


def test_relus_are_watched_with_gradients_on_only():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    with relu_signs(model) as signs:
        with torch.no_grad():
            model(torch.ones(2))
        assert signs == {}
        model(torch.tensor([-1.0, 1.0]))
    assert {name: sign.tolist() for name, sign in signs.items()} == {
        "0": [False, True],
        "1": [False, True],
    }
    model(torch.ones(2))
    assert signs["0"].tolist() == [False, True]


def test_smooth_networks_have_no_relu_layers():
    model = smooth(built("stored"))
    assert not any(isinstance(layer, torch.nn.ReLU) for layer in model.modules())
    assert sum(isinstance(layer, torch.nn.SiLU) for layer in model.modules()) == 6 * 3 - 1


def test_images_are_of_the_networks_size(tmp_path):
    assert images_for((1, 8, 8), 3, CPU, tmp_path)[2] == "digits"
    images, labels, name = images_for((3, 32, 32), 3, CPU, tmp_path)
    assert (images.shape, labels.shape, name) == ((3, 3, 32, 32), (3,), "uniform noise")


def met(actual):
    return {row["what"]: row["met"] for row in targets(actual)}


def test_targets_are_judged_by_what_was_measured():
    assert set(met({}).values()) == {None}
    ratio = {"value": 1.3, "low": 1.2, "high": 1.5, "n": 5}
    case = {
        "network": "irevnet_cifar",
        "dropout": 0.1,
        "blocks_per_stage": 18,
        "batch_size": 32,
        "mode": "float32, NCHW",
        "over_stored": {"reversible": ratio},
        "over_checkpoint": {"reversible": ratio},
    }
    saved = {
        "batch_size": 32,
        "blocks_per_stage": [2, 8, 64],
        "bytes": {"reversible": [50, 100, 105]},
        "at_blocks_per_stage": 18,
        "at_bytes": {"stored": 1000, "reversible": 101},
    }
    rows = {"float32": 1e-6, "float64": 2e-12}
    inverse = {
        "network": "irevnet_b",
        "mode": "float32, NCHW",
        "batch_size": 8,
        "inverse_over_encode": ratio | {"value": 0.89},
    }
    actual = {
        "step_time": {"cases": [case]},
        "memory": {"saved": {"irevnet_cifar": saved}},
        "gradients": {"networks": [rows, rows | {"float32": 1e-5}]},
        "throughput": {"blocks_per_stage": 18, "over_released": {"a": ratio | {"value": 2}}},
        "inverse": {"cases": [inverse]},
    }
    answers = met(actual)
    (gradient32, gradient64, stored, checkpoint, growth, other, saving, throughput) = list(
        answers.values()
    )[:8]
    assert (gradient32, gradient64) == (True, False)
    assert (stored, checkpoint) == (True, False)
    assert (growth, other, saving, throughput) == (True, None, False, True)
    assert answers["Throughput of inverse over encode, irevnet_b, float32, NCHW"] is False
    # A measurement at another size says nothing about the target.
    assert met({"step_time": {"cases": [case | {"batch_size": 8}]}}) == met({})
    assert met({"step_time": {"cases": [case | {"mode": "bfloat16, NCHW"}]}}) == met({})


def run_into(output):
    options = ["--device", "cpu", "--output", str(output)]
    parser = make_parser("memory_and_speed", threads=None, device=True)
    return Run("memory_and_speed", options, parser.parse_args(options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of a whole run at tiny sizes."""
    output = tmp_path_factory.mktemp("benchmarks")
    memory_and_speed.measure(TINY, run_into(output), list(SECTIONS))
    return output


@pytest.fixture
def written(folder):
    return json.loads((folder / MEMORY_AND_SPEED).read_text())


def test_a_run_writes_everything_it_promises(folder, written):
    assert written["complete"]
    assert [row["fixed"] for row in written["sections"]["gradients"]["networks"]] == [0] * 5
    assert list(written["sections"]) == list(SECTIONS)
    assert {"command", "commit", "versions", "processor"} <= set(written["provenance"])
    assert str(folder) not in json.dumps(written)
    for case in written["sections"]["step_time"]["cases"]:
        assert {len(rounds) for rounds in case["rounds"].values()} == {1}
        assert set(case["over_stored"]) == {"checkpoint", "reversible", "fixed"}
        assert case["forward_share"]["value"] > 0
    fits = written["sections"]["capacity"]["batch_size"]["fits"]
    assert fits["reversible"][0] > fits["stored"][0] > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "memory.png",
        MEMORY_AND_SPEED,
        "time.png",
    ]


def test_an_interrupted_run_leaves_what_it_has(tmp_path, monkeypatch):
    def interrupted(settings, actual, save):
        actual["partial"] = [1]
        save()
        raise KeyboardInterrupt

    monkeypatch.setitem(SECTIONS, "inverse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory_and_speed.measure(TINY, run_into(tmp_path), ["inverse"])
    written = json.loads((tmp_path / MEMORY_AND_SPEED).read_text())
    assert written["sections"] == {"inverse": {"partial": [1]}}
    assert not written["complete"]


def test_a_run_of_some_sections_does_not_replace_the_results_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(memory_and_speed, "settings_for", lambda *_, **__: TINY)
    path = memory_and_speed.main(["--device", "cpu", "--only", "inverse"])
    assert path.parent.parent == tmp_path / "scratch" / "benchmarks"
    written = json.loads(path.read_text())
    assert written["provenance"]["command"].endswith("--device cpu --only inverse")


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (balance.main, ["--rounds", "0"], "--rounds: must be a positive integer, got '0'"),
        (memory_and_speed.main, ["--only", "capacity"], "capacity uses the results of memory"),
    ],
)
def test_invalid_options_are_refused_before_anything_runs(main, options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


def test_the_command_is_recorded_without_folders():
    shown = public_command("jacobian", ["--device", "cpu", "--data", "/a/b", "--quick"])
    assert shown == "python -m benchmarks.jacobian --device cpu --quick"
    shown = public_command("memory_and_speed", ["--output=/a/b", "--only", "memory"])
    assert shown == "python -m benchmarks.memory_and_speed --only memory"


def test_quick_settings_are_small():
    full = memory_and_speed.settings_for(CPU, TINY.data, quick=False, compiling=True)
    quick = memory_and_speed.settings_for(CPU, TINY.data, quick=True, compiling=True)
    for name in ("rounds", "batch_size", "training_steps", "throughput_batch"):
        assert getattr(quick, name) < getattr(full, name)
    assert not quick.compile
    assert dataclasses.replace(quick, rounds=full.rounds) != full


def test_the_benchmark_of_the_jacobian_times_equal_results(tmp_path):
    path = jacobian.main(["--quick", "--device", "cpu", "--output", str(tmp_path)])
    record = json.loads(path.read_text())
    assert record["dimensions"] == 192
    assert record["loop_rows_timed"] == 4
    assert set(record["relative_difference"]) == {"blockwise", "rows", "columns"}
    assert max(record["relative_difference"].values()) < 1e-5
    others = {"loop", "loop_with_parameters", "columns"}
    assert set(record["rows_times_as_fast_as"]) == others
    assert set(record["times_as_fast_as"]) == others | {"rows"}
    assert record["targets"][0]["measured"] == record["times_as_fast_as"]["loop"]
    assert record["provenance"]["command"] == "python -m benchmarks.jacobian --quick --device cpu"


class TestTimeToAccuracy:
    OPTIONS = ("--experiment", "digits", "--epochs", "1", "--device", "cpu", "--threads", "1")

    def run(self, folder, *options):
        return json.loads(
            time_to_accuracy.main([*self.OPTIONS, "--output", str(folder), *options]).read_text()
        )

    def test_every_seed_of_every_family_is_trained_and_kept(self, tmp_path):
        families = ("irevnet_bijective", "resnet")
        weights = tmp_path / "weights"
        options = ("--families", *families, "--weights", str(weights))
        record = self.run(tmp_path, "--seeds", "1", *options)
        assert [run["family"] for run in record["runs"]] == list(families)
        before = record["runs"]
        record = self.run(tmp_path, "--seeds", "2", *options)
        # The first two come from the run before and are not trained again.
        assert record["runs"][:2] == before
        assert [(run["family"], run["seed"]) for run in record["runs"][2:]] == [
            ("irevnet_bijective", 1),
            ("resnet", 1),
        ]
        for run in record["runs"]:
            tensors, metadata = read_tensors(weights / f"{run['family']}-{run['seed']}.safetensors")
            model = irevnet.create_model(metadata["model"], **metadata["overrides"])
            load_weights(model, tensors, "weights")
            actual = evaluate(model, load_digits().test)
            assert actual.accuracy == run["test_accuracy"] == metadata["metrics"]["test_accuracy"]
        assert record["families"]["resnet"]["networks"] == 2
        assert record["targets"][0]["met"] is False

    def test_results_with_other_settings_are_kept(self, tmp_path):
        path = tmp_path / "time_to_accuracy.json"
        path.write_text('{"settings": {"experiment": "cifar10"}, "runs": []}')
        with pytest.raises(SystemExit, match="holds results with other settings"):
            self.run(tmp_path)
        assert "cifar10" in path.read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--experiment", "seeds"), "--experiment must be a section of params.yaml, got 'see"),
            (("--families", "vgg"), "--families must be among irevnet, .*, got vgg"),
            (("--seeds", "0"), "--seeds: must be a positive integer, got '0'"),
            (("--experiment", "ilsvrc2012"), "nothing is trained in ilsvrc2012"),
            (("--experiment", "cifar10_recipe"), "cifar10_recipe is not judged on test images"),
        ],
    )
    def test_errors(self, tmp_path, capsys, options, message):
        with pytest.raises(SystemExit):
            self.run(tmp_path, *options)
        assert re.search(message, capsys.readouterr().err)

    def test_the_goal_counts_networks_that_were_fast_enough(self):
        runs = [
            {
                "family": family,
                "test_accuracy": accuracy,
                "seconds": {"set_up": 30.0, "training": seconds},
            }
            for family, accuracy, seconds in (
                ("irevnet", 0.94, 110.0),
                ("irevnet", 0.96, 119.0),
                ("irevnet_bijective", 0.97, 121.0),
                ("resnet", 0.99, 10.0),
            )
        ]
        families = time_to_accuracy.summary(runs)
        assert families["irevnet"]["test_accuracy"] == pytest.approx(0.95)
        assert families["irevnet"]["standard_deviation"] == pytest.approx(0.02 / 2**0.5)
        assert families["resnet"]["standard_deviation"] is None
        target = time_to_accuracy.target(families)
        assert target["measured"] == pytest.approx(0.95)
        assert target["met"]
        slow = time_to_accuracy.target({"irevnet": families["irevnet_bijective"]})
        assert slow["met"] is False
        assert slow["measured"] is None
        assert time_to_accuracy.target({"resnet": families["resnet"]})["met"] is None


def test_the_input_rate_is_compared_with_training(tmp_path):
    path = input_rate.main(["--quick", "--output", str(tmp_path)])
    record = json.loads(path.read_text())
    assert record["decoded_images_per_second"]["value"] > 0
    network = record["networks"]["irevnet_b"]
    assert network["images_per_second"]["value"] > 0
    assert network["estimated"]["cores_to_feed"] >= 1


def test_what_training_would_take_is_arithmetic():
    """A GPU of 100 TFLOP/s processes 1,000 images of 100 GFLOP a second."""
    result = input_rate.estimated(100e9, decoded=150, gpu_tflops=100, gpus=8, price=2)
    assert result["images_per_second"] == pytest.approx(1000)
    assert result["cores_to_feed"] == 7
    assert result["hours"] == pytest.approx(600_000 * 256 / 8000 / 3600)
    assert result["price"] == pytest.approx(16 * result["hours"])


def test_operations_of_a_training_step_are_counted():
    """A linear layer: two operations a weight forward, and two for the weights' gradients."""
    model = torch.nn.Linear(5, 3, bias=False)
    assert input_rate.flops_per_image(model, torch.rand(4, 5)) == 2 * 15 + 2 * 15


def test_time_against_revnet(tmp_path):
    path = against_revnet.main(["--quick", "--output", str(tmp_path)])
    record = json.loads(path.read_text())["cifar10"]
    ours, theirs = (record["rounds"][name][0] for name in record["networks"])
    assert record["step_over_revnet"]["value"] == pytest.approx(ours / theirs)


def test_photographs_come_back_in_a_fresh_process(tmp_path):
    path = photographs.main(["--quick", "--output", str(tmp_path)])
    entry = json.loads(path.read_text())["networks"]["irevnet_b"]
    assert entry["float"]["equal_as_uint8"] == entry["fixed"]["equal_as_uint8"] == 2
    assert 0 < entry["float"]["largest_relative_error"] < 1e-4
    kept, batch = entry["saved_bytes_per_image"], entry["largest_batch_in_80_gb"]
    assert kept["reversible"] < kept["balanced"] < kept["stored"]
    assert batch["reversible"] > batch["stored"]
    assert (tmp_path / "photographs.png").stat().st_size > 0


def test_crops_are_of_photographs():
    crops = photographs.crops(4, (64, 64))
    assert crops.shape == (4, 3, 64, 64)
    assert crops.min() >= 0
    assert crops.max() <= 1
    assert len({crop.sum().item() for crop in crops}) == 4


def test_time_against_memory(tmp_path):
    path = balance.main(["--quick", "--output", str(tmp_path)])
    record = json.loads(path.read_text())
    share = record["saved_share"]
    assert share["stored"] == 1 > share["balanced"] > share["reversible"]
    assert len(record["rounds"]["balanced"]) == 1
    assert (tmp_path / "balance.png").stat().st_size > 0


def test_interruptions_compare_the_bits_of_a_killed_training(tmp_path):
    path = interruptions.main(["--quick", "--output", str(tmp_path)])
    (training,) = json.loads(path.read_text())["trainings"]
    assert (training["processes"], training["kills"]) == (1, 1)
    assert training["equal_bits"]


def test_faster_training_steps_are_the_same_to_the_bit(tmp_path):
    path = training_step.main(["--quick", "--output", str(tmp_path), "--threads", "1"])
    (case,) = json.loads(path.read_text())["cases"]
    assert case["equal_bits"] == {"layout": True, "kept": True}
    assert set(case["rounds"]) == {"plain", "layout", "kept"}


def test_the_pipeline_at_full_size_asks_only_what_params_allows():
    params = read_yaml(ROOT / "params.yaml")
    for question, changes in ilsvrc2012.FEWER.items():
        params["ilsvrc2012"][question] |= changes
    section = Params(**params).section("ilsvrc2012")
    assert section.inversion.images == ilsvrc2012.FEWER["inversion"]["images"]
    assert section.data.size == 224


def test_a_variation_keeps_what_commands_print(tmp_path):
    path = variation.main(["--quick", "--output", str(tmp_path)])
    record = json.loads(path.read_text())
    assert record["commands"] == variation.COMMANDS
    # No file was changed before the commands ran.
    assert record["printed"]["changed_files"] == ""
    assert len(record["printed"]["parameters"].splitlines()) == 2, "the head of a table"

import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from irevnet.data import ImageData, TensorImages
from irevnet.training import Checkpoint, CheckpointError, Trainer, checkpoint
from irevnet.training.checkpoint import code_digest
from irevnet.weights import read_tensors, save_weights
from recipes import assert_same_bits, config, network

RUN = {"network": "small", "seed": 0}
STATE = {"weight": torch.arange(6.0)}


class PowerCut(Exception):
    """Stands in for a power cut."""


def interrupt(model, step):
    """Makes the network raise in a training step, counted from one."""
    left = [step]

    def count(module, _arguments):
        left[0] -= module.training
        if left[0] == 0:
            raise PowerCut

    model.register_forward_pre_hook(count)
    return model


class TestFile:
    def test_a_state_comes_back_and_the_one_before_is_kept(self, tmp_path):
        checkpoint = Checkpoint(tmp_path / "folder" / "state", RUN)
        assert checkpoint.load() is None
        checkpoint.save(STATE, {"step": 1})
        checkpoint.save(STATE, {"step": 2})
        tensors, metadata = checkpoint.load()
        assert torch.equal(tensors["weight"], STATE["weight"])
        assert metadata["step"] == 2
        assert read_tensors(checkpoint.previous)[1]["step"] == 1
        checkpoint.remove()
        assert os.listdir(tmp_path / "folder") == []

    @pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
    def test_a_damaged_state_is_named_and_the_one_before_is_used(self, tmp_path, damage):
        checkpoint = Checkpoint(tmp_path / "state", RUN)
        checkpoint.save(STATE, {"step": 1})
        checkpoint.save(STATE, {"step": 2})
        if damage == "missing":
            checkpoint.path.unlink()
        else:
            keep = -3 if damage == "truncated" else 0
            checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:keep])
        assert checkpoint.load()[1]["step"] == 1
        if damage != "missing":
            (note,) = checkpoint.notes
            assert note.startswith(f"{checkpoint.path} is damaged")
            assert note.endswith("using state.previous")

    def test_an_error_says_that_every_state_is_damaged(self, tmp_path):
        checkpoint = Checkpoint(tmp_path / "state", RUN)
        checkpoint.path.write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=r"no state of .* can be used: .*damaged"):
            checkpoint.load()

    def test_another_runs_state_is_refused_and_what_differs_is_named(self, tmp_path):
        first = Checkpoint(tmp_path / "state", RUN)
        first.save(STATE, {})
        first.close()
        other = Checkpoint(tmp_path / "state", {**RUN, "seed": 1, "code": "new"})
        with pytest.raises(CheckpointError, match="another run, which differs in code, seed; rem"):
            other.load()
        assert first.path.exists()

    def test_a_process_that_is_refused_touches_nothing(self, tmp_path):
        first = Checkpoint(tmp_path / "state", RUN)
        writing = tmp_path / "state.new"  # the file that the first process is writing
        writing.write_bytes(b"half a state")
        with pytest.raises(CheckpointError, match="another process trains with the checkpoint"):
            Checkpoint(tmp_path / "state", RUN)
        assert writing.read_bytes() == b"half a state"
        first.close()

    def test_a_lock_that_was_removed_meanwhile_is_taken_again(self, tmp_path, monkeypatch):
        """The first process ends between the second one's opening of the file and its locking."""
        first = Checkpoint(tmp_path / "state", RUN)
        flock = checkpoint.fcntl.flock

        def end_first(file, operation):
            first.close()
            return flock(file, operation)

        monkeypatch.setattr(checkpoint.fcntl, "flock", end_first)
        second = Checkpoint(tmp_path / "state", RUN)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="another process trains with the checkpoint"):
            Checkpoint(tmp_path / "state", RUN)
        second.close()

    def test_two_processes_on_one_checkpoint_are_refused(self, tmp_path):
        first = Checkpoint(tmp_path / "state", RUN)
        with pytest.raises(CheckpointError, match="another process trains with the checkpoint"):
            Checkpoint(tmp_path / "state", RUN)
        first.close()
        Checkpoint(tmp_path / "state", RUN).close()

    def test_a_place_that_cannot_be_written_is_noticed_at_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="file cannot be written"):
            Checkpoint(tmp_path / "file" / "state", RUN)

    @pytest.mark.parametrize("broken", ["fsync", "replace"])
    def test_a_full_disk_keeps_the_last_state(self, tmp_path, monkeypatch, broken):
        checkpoint = Checkpoint(tmp_path / "state", RUN)
        checkpoint.save(STATE, {"step": 1})

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            message = "cannot be written .*No space left on device.*; kept: the last"
            with pytest.raises(CheckpointError, match=message):
                checkpoint.save(STATE, {"step": 2})
        assert checkpoint.load()[1]["step"] == 1
        assert not (tmp_path / "state.new").exists()


class TestResuming:
    RECIPES = (
        {"padding": 1, "flip": "random", "cutout": 3},
        {"optimizer": "muon", "flip": "alternating", "averaging": 0.9, "sides": (16, 8, 8)},
        {"schedule": "step", "milestones": (1,), "precision": "bfloat16", "channels_last": True},
    )

    @pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: next(iter(recipe)))
    @pytest.mark.parametrize("step", [2, 5, 12])
    def test_interrupted_at_any_step_it_gives_the_same_bits(self, digits, tmp_path, recipe, step):
        settings = config(epochs=3, **recipe)
        expected = network(dropout=0.2)
        history = Trainer(expected, digits, settings, seed=7).run()

        path = tmp_path / "state"
        first = Trainer(
            interrupt(network(dropout=0.2), step), digits, settings, seed=7, checkpoint=path
        )
        with pytest.raises(PowerCut):
            first.run(checkpoint_seconds=0)

        model = network(seed=1, dropout=0.2)  # its weights come from the checkpoint
        torch.manual_seed(99)
        trainer = Trainer(model, digits, settings, seed=7, checkpoint=path)
        assert trainer.epoch * 4 + trainer.step == step - 1
        assert trainer.sessions == 2
        assert trainer.run() == history
        assert_same_bits(model, expected)
        trainer.finish()
        assert os.listdir(tmp_path) == []

    def test_the_state_stays_until_the_weights_are_safe(self, digits, tmp_path):
        path = tmp_path / "state"
        first = Trainer(network(), digits, config(averaging=0.8), checkpoint=path)
        history = first.run()
        first._checkpoint.close()
        # The process died before it could write the weights.
        again = Trainer(network(seed=1), digits, config(averaging=0.8), checkpoint=path)
        assert again.run() == history
        assert_same_bits(again.model, first.model)
        assert again.seconds == first.seconds

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("seed", "seed"),
            ("config", "settings"),
            ("network", "network"),
            ("train", "images"),
            ("validation", "images"),
            ("code", "code"),
        ],
    )
    def test_the_state_of_another_run_is_refused_and_nothing_is_changed(
        self, digits, tmp_path, monkeypatch, change, named
    ):
        path = tmp_path / "state"
        first = Trainer(network(), digits, config(), checkpoint=path)
        first.save()
        first._checkpoint.close()
        content = path.read_bytes()
        model = network(seed=1, dropout=0.1 if change == "network" else 0.0)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        data = {"train": digits.train, "validation": digits.validation}
        if change in data:
            images = data[change]
            data[change] = TensorImages(images.images.flip(3), images.labels)
        if change == "code":
            monkeypatch.setattr("irevnet.training.trainer.code_digest", lambda: "other")
        with pytest.raises(CheckpointError, match=f"another run, which differs in {named};"):
            Trainer(
                model,
                ImageData(**data, test=digits.test, classes=digits.classes),
                config(weight_decay=1e-4 if change == "config" else 5e-4),
                seed=1 if change == "seed" else 0,
                checkpoint=path,
            )
        assert path.read_bytes() == content
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    def test_weights_in_place_of_a_checkpoint_are_refused(self, digits, tmp_path):
        path = tmp_path / "state"
        save_weights(network(), path, {"overrides": {}})
        with pytest.raises(CheckpointError, match="checkpoint of another run"):
            Trainer(network(), digits, config(), checkpoint=path)


SOURCE = """
class Network:
    def forward(self, x):
        if x > 1:
            return 2 * x
        return self.scale
"""
SAME = '''"""A module."""
# A comment.


class Network:
    """A network."""

    def forward(self, x):
        """Doubles large values."""
        if (x > 1):  # large
            return (
                2 * x
            )
        return self.scale
    """A string that nothing uses."""
'''


class TestCodeDigest:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        for name in ("training/checkpoint.py", "network/model.py", "analysis/statistics.py"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text(SOURCE)
        monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "training/checkpoint.py"))
        return tmp_path

    def test_analyses_comments_docstrings_and_format_do_not_count(self, package):
        before = code_digest()
        assert re.fullmatch("[0-9a-f]{16}", before)
        (package / "analysis/statistics.py").write_text("a = 2")
        (package / "network/model.py").write_text(SAME)
        assert code_digest() == before

    @pytest.mark.parametrize(
        ("old", "new"),
        [("2 * x", "3 * x"), ("2 * x", "2 * 1.0 * x"), ("2 * x", "2 + x"), ("> 1", ">= 1"),
         ("scale", "bias"), ("self.scale", "'a string'")],
    )  # fmt: skip
    def test_every_other_change_counts(self, package, old, new):
        before = code_digest()
        (package / "network/model.py").write_text(SOURCE.replace(old, new))
        assert code_digest() != before

    def test_names_of_modules_count(self, package):
        before = code_digest()
        (package / "network/model.py").rename(package / "network/other.py")
        assert code_digest() != before


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from recipes import config, network
from irevnet.data import ImageData, TensorImages, load_digits
from irevnet.training import Trainer
from irevnet.weights import save_weights
data = load_digits(20)
recipe = config(epochs=8, flip="random")
trainer = Trainer(network(dropout=0.2), data, recipe, checkpoint=sys.argv[1])
print("started", trainer.epoch, trainer.step, flush=True)
trainer.run(checkpoint_seconds=0.01)
save_weights(trainer.model, sys.argv[2], {})
trainer.finish()
"""


def test_killed_and_started_again_it_gives_the_same_bits(tmp_path):
    """SIGKILL and SIGTERM in turn, after fixed times and so at arbitrary steps."""
    tests = os.path.dirname(os.path.dirname(__file__))
    root = os.path.dirname(tests)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, tests])}

    def start(name):
        arguments = [sys.executable, "-c", PROGRAM, tmp_path / f"{name}.state", tmp_path / name]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, text=True)

    alone = start("alone")
    assert alone.wait(120) == 0
    alone.stdout.close()
    kills = 0
    for delay in (0.15, 0.4):
        process = start("killed")
        assert process.stdout.readline().startswith("started")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL if kills % 2 == 0 else signal.SIGTERM)
        kills += process.wait(60) != 0
        process.stdout.close()
        if (tmp_path / "killed").exists():
            break
    if not (tmp_path / "killed").exists():
        last = start("killed")
        assert last.wait(120) == 0
        last.stdout.close()
    assert kills > 0
    tensors, expected = (read_tensors(tmp_path / name)[0] for name in ("killed", "alone"))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert sorted(os.listdir(tmp_path)) == ["alone", "killed"]

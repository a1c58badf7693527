"""Training by several processes on the CPU, as ``torchrun`` starts them."""

import contextlib
import multiprocessing
import os
import signal
import socket

import pytest
import torch

from irevnet.data import Augmentation, ImageData, TensorImages, TrainingPass, load_digits
from irevnet.training import (
    CheckpointError,
    LostProcessError,
    Stopped,
    Trainer,
    join_processes,
    train,
)
from irevnet.training.evaluation import Evaluation, combine
from recipes import assert_same_bits, config, network

SETTINGS = {"padding": 1, "flip": "random", "cutout": 3, "gradient_clip": 1.0, "averaging": 0.9}


def few_digits():
    data = load_digits(20)
    few = TensorImages(data.train.images[:132], data.train.labels[:132])
    # An odd number, so that shares differ in size.
    odd = TensorImages(data.validation.images[:13], data.validation.labels[:13])
    return ImageData(few, odd, data.test, data.classes)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(rank, count, port):
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run(work, *arguments, count=2):
    """Runs ``work(rank, *arguments)`` in a group of processes; returns their exit codes."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    # Imported once, by the server from which every process is forked.
    context.set_forkserver_preload(["irevnet.training.trainer", "sklearn.datasets"])
    processes = [
        context.Process(target=join_and_work, args=(rank, count, port, work, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    return [process.exitcode for process in processes]


def join_and_work(rank, count, port, work, arguments):
    torch.set_num_threads(1)
    os.environ.update(environment(rank, count, port))
    with contextlib.suppress(RuntimeError), join_processes(timeout=60):
        work(rank, *arguments)


class Recorder:
    """Trains and saves the outcome; after ``last`` steps it sends itself the signal ``happens``."""

    def __init__(self, folder, name, **options):
        self.folder, self.name, self.options = folder, name, options

    def __call__(self, rank):
        options = dict(self.options)
        happens, last = options.pop("happens", None), options.pop("last", 0)
        victims = options.pop("victims", (0, 1))
        model = network(backward="reversible", dropout=options.pop("dropout", 0.0))
        taken = []

        class Watched(Trainer):
            def _train_step(self, x, labels):
                super()._train_step(x, labels)
                taken.append(len(x))
                if len(taken) == last and rank in victims:
                    os.kill(os.getpid(), happens)

        outcome = {"taken": taken, "error": ""}
        try:
            trainer = Watched(
                model,
                few_digits(),
                config(epochs=3, **options),
                seed=5,
                checkpoint=self.folder / "run.safetensors",
            )
            outcome["history"] = trainer.run(checkpoint_seconds=0)
            outcome["notes"] = trainer.notes
        except (CheckpointError, LostProcessError, Stopped) as error:
            outcome["error"] = f"{type(error).__name__}: {error}"
        outcome["state"] = model.state_dict()
        torch.save(outcome, self.folder / f"{self.name}-{rank}.pt")


def outcomes(folder, name, ranks=(0, 1)):
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in ranks]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcomes of an undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(Recorder(folder, "whole", dropout=0.2)) == [0, 0]
    return outcomes(folder, "whole")


def test_two_processes_train_one_network_and_share_every_batch(whole):
    first, second = whole
    assert first["history"] == second["history"]
    assert first["taken"] == second["taken"] == [16] * 12
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name


@pytest.mark.parametrize(("optimizer", "parts"), [("sgd", 4), ("muon", 2)])
def test_two_processes_have_the_losses_of_one_with_all_shares(optimizer, parts, tmp_path):
    settings = {**SETTINGS, "optimizer": optimizer, "accumulation": parts}
    assert run(Recorder(tmp_path, "two", **settings)) == [0, 0]
    two, _ = outcomes(tmp_path, "two")
    model = network(backward="reversible")
    one = train(model, few_digits(), config(epochs=3, **settings), seed=5)
    for row, expected in zip(two["history"], one, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        assert row["train_accuracy"] == pytest.approx(expected["train_accuracy"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(two["state"][name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [2, 7])
def test_a_run_that_was_killed_ends_with_the_same_bits(last, whole, tmp_path):
    killed = Recorder(tmp_path, "killed", dropout=0.2, happens=signal.SIGKILL, last=last)
    assert run(killed) == [-signal.SIGKILL] * 2
    assert run(Recorder(tmp_path, "again", dropout=0.2)) == [0, 0]
    for outcome, expected in zip(outcomes(tmp_path, "again"), whole, strict=True):
        assert len(outcome["taken"]) == 12 - (last - 1)
        assert outcome["history"] == expected["history"]
        for name, tensor in outcome["state"].items():
            assert torch.equal(tensor, expected["state"][name]), name


def test_the_others_say_that_one_was_lost_and_name_the_checkpoint(tmp_path):
    lost = Recorder(tmp_path, "lost", happens=signal.SIGKILL, last=3, victims=(1,))
    assert run(lost)[1] == -signal.SIGKILL
    (outcome,) = outcomes(tmp_path, "lost", ranks=(0,))
    assert outcome["error"].startswith("LostProcessError: process 1 of 2 has lost another one")
    assert f"last good checkpoint: {tmp_path / 'run.safetensors'}" in outcome["error"]


def test_a_signal_to_one_stops_all_at_the_same_step_and_one_process_can_go_on(tmp_path):
    stopped = Recorder(tmp_path, "stopped", happens=signal.SIGTERM, last=6, victims=(1,))
    assert run(stopped) == [0, 0]
    first, second = outcomes(tmp_path, "stopped")
    assert first["taken"] == second["taken"] == [16] * 6
    assert first["error"] == "Stopped: stopped by another process"
    assert second["error"] == "Stopped: stopped by SIGTERM"
    Recorder(tmp_path, "alone")(0)
    (alone,) = outcomes(tmp_path, "alone", ranks=(0,))
    assert alone["taken"] == [32] * 6
    assert alone["notes"] == ["resumed after epoch 1, step 2"]


def test_the_checkpoint_of_another_run_is_refused_by_all(tmp_path):
    Recorder(tmp_path, "other", learning_rate=0.2)(0)
    assert run(Recorder(tmp_path, "refused")) == [0, 0]
    for outcome in outcomes(tmp_path, "refused"):
        assert "is the checkpoint of another run, which differs in settings" in outcome["error"]


class TestFit:
    @pytest.fixture(autouse=True)
    def three(self, monkeypatch):
        class Three:
            rank, count = 0, 3

        monkeypatch.setattr("irevnet.training.trainer.Processes", Three)

    def test_a_batch_that_cannot_be_shared_equally_is_refused(self):
        with pytest.raises(ValueError, match="batch_size must be a multiple of 3, for 3 processes"):
            Trainer(network(), few_digits(), config())

    def test_parts_are_shared_and_each_process_takes_one_at_least(self):
        with pytest.raises(ValueError, match=r"multiple of 6, for 3 processes .* 2 parts each"):
            Trainer(network(), few_digits(), config(accumulation=4))

    def test_synchronised_batch_norm_needs_gpus(self):
        with pytest.raises(ValueError, match="sync_batch_norm needs GPUs"):
            Trainer(network(), few_digits(), config(batch_size=30, sync_batch_norm=True))


def test_synchronised_batch_norm_of_one_process_is_plain_batch_norm():
    model, expected = network(backward="reversible"), network(backward="reversible")
    train(model, few_digits(), config(sync_batch_norm=True))
    train(expected, few_digits(), config())
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert_same_bits(model, expected)


class TestJoining:
    def test_without_torchrun_the_error_says_how_to_start_it(self, monkeypatch):
        for name in environment(0, 1, 0):
            monkeypatch.delenv(name, raising=False)
        with (
            pytest.raises(ValueError, match=r"no RANK.*torchrun --standalone"),
            join_processes(),
        ):
            pass

    def test_a_port_in_use_is_named(self, monkeypatch):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            for name, value in environment(0, 1, port).items():
                monkeypatch.setenv(name, value)
            with (
                pytest.raises(LostProcessError, match=f"127.0.0.1:{port}: the port is in use"),
                join_processes(timeout=5),
            ):
                pass

    def test_a_process_that_is_lost_outside_of_a_training_is_named(self, monkeypatch):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]
        for name, value in environment(0, 1, port).items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(LostProcessError, match=r"1 of 1 has lost another one.*reset by peer"),
            join_processes(),
        ):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:599] Connection reset by peer")
        with pytest.raises(RuntimeError, match="of the model"), join_processes():
            raise RuntimeError("an error of the model")


class TestShares:
    def test_every_image_is_evaluated_by_one_process(self):
        images = few_digits().validation
        shards = [images.shard(rank, 3) for rank in range(3)]
        assert sorted(map(len, shards)) == [4, 4, 5]
        seen = torch.cat([shard.images for shard in shards])
        assert torch.equal(seen.unique(dim=0), images.images.unique(dim=0))

    def test_shares_of_a_batch_are_the_parts_that_one_process_sees(self):
        images = few_digits().train
        augmentation = Augmentation(padding=1, flip="alternating", cutout=3)
        batches = [
            list(images.training_batches(32, augmentation, TrainingPass(1, 1, 2, *process)))
            for process in ((0, 1), (0, 2), (1, 2))
        ]
        for (x, labels), *parts in zip(*batches, strict=True):
            assert torch.equal(torch.cat([part[0] for part in parts]), x)
            assert torch.equal(torch.cat([part[1] for part in parts]), labels)

    def test_evaluations_are_combined_by_the_number_of_images(self):
        empty = Evaluation(float("nan"), float("nan"), 0)
        shares = [Evaluation(0.5, 1.0, 2), empty, Evaluation(1.0, 4.0, 1)]
        assert combine(shares) == Evaluation(pytest.approx(2 / 3), pytest.approx(2.0), 3)
        assert combine([empty, empty]).n == 0

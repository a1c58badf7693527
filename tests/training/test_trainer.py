import dataclasses
import itertools
import math
import os
import re
import signal

import pytest
import torch
from PIL import Image
from torch import nn

import irevnet
from irevnet.data import ImageData, TensorImages, load_image_folders
from irevnet.training import NonFiniteLossError, Stopped, Trainer, evaluate, train
from irevnet.training.trainer import describe_row
from irevnet.weights import read_tensors
from recipes import assert_same_bits, config, network


def fit(model, data, settings, **options):
    """Trains with a checkpoint after every step."""
    return Trainer(model, data, settings, **options).run(checkpoint_seconds=0)


class TestTraining:
    def test_training_reduces_the_loss_and_raises_the_accuracy(self, digits):
        model = network()
        history = train(model, digits, config(epochs=12))
        assert [row["epoch"] for row in history] == list(range(1, 13))
        assert history[-1]["train_accuracy"] > 0.8 > 0.5 > history[0]["train_accuracy"]
        assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
        validation = evaluate(model, digits.validation)
        assert validation.accuracy == history[-1]["validation_accuracy"]
        assert validation.loss == history[-1]["validation_loss"]
        assert validation.n == 20

    def test_one_step_by_hand(self, digits):
        model, other = network(), network()
        one_batch = ImageData(
            TensorImages(digits.train.images[:32], digits.train.labels[:32]),
            TensorImages(digits.train.images[:0], digits.train.labels[:0]),
            digits.test,
            digits.classes,
        )
        settings = config(
            epochs=1, learning_rate=0.05, momentum=0.9, weight_decay=0.01,
            label_smoothing=0.1, gradient_clip=0.5,
        )  # fmt: skip
        (row,) = train(model, one_batch, settings)

        x, labels = one_batch.train.first(32)
        logits = other.train()(x)
        log_probabilities = logits.log_softmax(1)
        loss = -0.9 * log_probabilities[range(32), labels].mean() - 0.1 * log_probabilities.mean()
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 0.5
        for name, before, gradient, after in zip(
            dict(other.named_parameters()),
            other.parameters(),
            gradients,
            model.parameters(),
            strict=True,
        ):
            direction = gradient * 0.5 / norm + 0.01 * before
            # Nesterov: the momentum is the direction itself in the first step. One cycle of one
            # step begins at a 25th of the peak.
            expected = before - 0.05 / 25 * (direction + 0.9 * direction)
            torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-6, msg=name)
        assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["train_accuracy"] == (logits.argmax(1) == labels).float().mean().item()
        assert math.isnan(row["validation_accuracy"])
        assert math.isnan(row["validation_loss"])

    def test_a_row_is_passed_on_after_each_epoch_and_described_in_one_line(self, digits):
        rows = []
        history = train(network(), digits, config(), on_epoch=rows.append)
        assert rows == history
        row = history[0]
        assert describe_row(row, 2) == (
            f"epoch   1/2  learning rate {row['learning_rate']:.4f}  loss {row['train_loss']:.4f}"
            f"  training accuracy {row['train_accuracy']:.2%}"
            f"  validation {row['validation_accuracy']:.2%}"
        )

    def test_without_validation_images_the_line_leaves_them_out(self, digits):
        empty = TensorImages(digits.train.images[:0], digits.train.labels[:0])
        data = ImageData(digits.train, empty, digits.test, digits.classes)
        (row,) = train(network(), data, config(epochs=1))
        assert describe_row(row, 1).count("validation") == 0

    @pytest.mark.parametrize("backward", ["stored", "reversible"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"dropout": 0.2},
            {"padding": 1, "flip": "random", "label_smoothing": 0.1},
            {"precision": "bfloat16"},
            {"channels_last": True, "gradient_clip": 1.0},
            {"averaging": 0.9},
            {"optimizer": "muon", "channels_last": True, "norm_bias_factor": 4.0},
            {"flip": "alternating", "cutout": 3, "sides": (16, 8)},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_the_same_seed_gives_the_same_bits_and_another_one_others(
        self, digits, settings, backward
    ):
        settings = dict(settings)
        overrides = {"dropout": settings.pop("dropout", 0.0), "backward": backward}

        def trained(seed, noise):
            torch.manual_seed(noise)  # the global generator must not matter
            model = network(**overrides)
            history = train(model, digits, config(**settings), seed=seed)
            return model, history

        model, history = trained(3, noise=1)
        again, same_history = trained(3, noise=2)
        assert_same_bits(model, again)
        assert history == same_history
        other, _ = trained(4, noise=1)
        assert not torch.equal(model.classifier.linear.weight, other.classifier.linear.weight)

    def test_every_epoch_has_an_order_of_its_own(self, digits):
        model = network()
        seen = []
        model.register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0]) if module.training else None
        )
        train(model, digits, config())
        assert len(seen) == 8
        first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("source", ["digits", "folders"])
    def test_the_global_generator_is_left_as_it_was(self, digits, source, tmp_path):
        data, batch_size, shape = digits, 32, (1, 8, 8)
        if source == "folders":
            for part, index in itertools.product(("train", "val"), range(5)):
                (tmp_path / part / "class").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9)).save(tmp_path / part / "class" / f"{index}.png")
            data = load_image_folders(tmp_path, size=8, workers=0)
            batch_size, shape = 4, (3, 8, 8)
            data = dataclasses.replace(data, validation=data.test)
        model = network(dropout=0.1, in_shape=shape)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        train(model, data, config(batch_size=batch_size))
        assert torch.equal(torch.rand(3), expected)

    def test_test_images_are_not_touched(self, digits):
        data = ImageData(digits.train, digits.validation, digits.test, digits.classes)
        other = TensorImages(digits.test.images.flip(3), digits.test.labels.flip(0))
        first, second = network(), network()
        train(first, data, config())
        train(second, dataclasses.replace(data, test=other), config())
        assert_same_bits(first, second)

    def test_compiled_training_compiles_the_model_and_keeps_names(self, digits, monkeypatch):
        compiled = []

        def compile_(model):
            compiled.append(model)
            return nn.Sequential(model)

        monkeypatch.setattr(torch, "compile", compile_)
        model, plain = network(), network()
        train(model, digits, config(compile=True))
        train(plain, digits, config())
        assert compiled == [model]
        assert_same_bits(model, plain)

    @pytest.mark.parametrize("name", ["revnet_digits", "resnet_digits", "irevnet_digits_bijective"])
    def test_the_other_families(self, digits, name):
        model = irevnet.create_model(name)
        history = train(model, digits, config(epochs=1))
        assert math.isfinite(history[0]["train_loss"])

    def test_averaging_ends_with_the_moving_average_of_the_weights(self, digits):
        """Against the average taken by hand, from the weights before every step and at the end."""
        plain, seen = network(), []

        def note(module, _arguments):
            if module.training:
                seen.append(module.classifier.linear.weight.detach().clone())

        plain.register_forward_pre_hook(note)
        train(plain, digits, config())
        after_every_step = [*seen[1:], plain.classifier.linear.weight.detach()]
        expected = after_every_step[0]
        for weight in after_every_step[1:]:
            expected = 0.8 * expected + 0.2 * weight
        averaged = network()
        history = train(averaged, digits, config(averaging=0.8))
        torch.testing.assert_close(averaged.classifier.linear.weight.detach(), expected)
        assert evaluate(averaged, digits.validation).loss == history[-1]["validation_loss"]

    def test_batches_larger_than_the_data_are_refused(self, digits):
        message = "batch_size must be at most the number of training images, 132, got 133"
        with pytest.raises(ValueError, match=message):
            train(network(), digits, config(batch_size=133))
        train(network(), digits, config(batch_size=132, epochs=1))

    def test_alternating_flips_show_every_image_in_both_orientations(self, digits):
        seen = []
        model = network()
        model.register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0]) if module.training else None
        )
        train(model, digits, config(batch_size=66, flip="alternating"))
        first, second = (torch.cat(half).flatten(1) for half in (seen[:2], seen[2:]))
        mirrored = torch.cat(seen[2:]).flip(3).flatten(1)
        unsymmetric = (second != mirrored).any(1)
        same = (first[:, None] == second[None]).all(2).any(1)
        opposite = (first[:, None] == mirrored[None]).all(2).any(1)
        assert opposite.all()
        assert same.sum() <= (~unsymmetric).sum()

    def test_sides_are_what_the_network_sees(self, digits):
        seen = []
        model = network()
        model.register_forward_pre_hook(
            lambda module, arguments: (
                seen.append(arguments[0].shape[3]) if module.training else None
            )
        )
        train(model, digits, config(sides=(8, 16)))
        assert seen == [8] * 4 + [16] * 4
        with pytest.raises(ValueError, match="multiples of the network's total stride, 8, got 12"):
            train(network(), digits, config(sides=(12, 8)))

    def test_residual_scale_zero_starts_with_blocks_that_are_the_identity(self, digits):
        model = network()
        Trainer(model, digits, config(residual_scale=0.0, averaging=0.9))
        x = torch.rand(2, 1, 8, 8)
        first, *_, last = model.eval().states(x)
        assert torch.equal(first.flatten(1).sort(1).values, last.flatten(1).sort(1).values)

    def test_a_signal_stops_it_after_the_step_at_hand(self, digits):
        handler = signal.getsignal(signal.SIGTERM)
        model = network()
        model.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        trainer = Trainer(model, digits, config())
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            trainer.run()
        assert trainer.step == 1
        assert signal.getsignal(signal.SIGTERM) is handler


class Exploding(nn.Module):
    """Linear logits; in one step, they are NaN, or only their gradients are."""

    def __init__(self, step, where):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.left, self.where = step, where

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        if self.training:
            self.left -= 1
            if self.left == 0 and self.where == "loss":
                return logits * math.nan
            if self.left == 0:
                logits.register_hook(lambda gradient: gradient * math.nan)
        return logits


class TestNonFiniteLoss:
    def test_step_learning_rate_and_checkpoint_are_named(self, digits, tmp_path):
        path = tmp_path / "checkpoint"
        settings = config(epochs=3, schedule="step", milestones=(2,), learning_rate=0.125)
        message = (
            "loss is nan in step 3 of epoch 2, at learning rate 0.125; "
            f"last good checkpoint: {path}"
        )
        with pytest.raises(NonFiniteLossError, match=re.escape(message)):
            fit(Exploding(7, "loss"), digits, settings, checkpoint=path)

        # The last good checkpoint is in the second epoch, and a run resumed from it succeeds.
        def well_behaved():
            torch.manual_seed(0)
            return Exploding(1000, "loss")

        assert len(read_tensors(path)[1]["history"]) == 1
        trainer = Trainer(well_behaved(), digits, settings, checkpoint=path)
        assert trainer.notes == ["resumed after epoch 1, step 2"]
        assert len(trainer.run()) == 3

    @pytest.mark.parametrize("name", ["checkpoint", None])
    def test_without_a_checkpoint_it_says_none(self, digits, tmp_path, name):
        path = None if name is None else tmp_path / name
        message = r"loss is nan in step 4 of epoch 1, .*; last good checkpoint: none$"
        with pytest.raises(NonFiniteLossError, match=message):
            Trainer(Exploding(4, "loss"), digits, config(), checkpoint=path).run()

    def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_saved(self, digits, tmp_path):
        path = tmp_path / "checkpoint"
        message = (
            r"weights are not finite after step 4 of epoch 2, at learning rate 0.125; "
            rf"last good checkpoint: {re.escape(str(path))}$"
        )
        settings = config(epochs=3, schedule="step", milestones=(2,), learning_rate=0.125)
        with pytest.raises(NonFiniteLossError, match=message):
            fit(Exploding(8, "gradient"), digits, settings, checkpoint=path)
        tensors, metadata = read_tensors(path)
        assert len(metadata["history"]) == 1
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    def test_a_learning_rate_that_is_far_too_high(self, digits):
        settings = config(
            epochs=3, schedule="step", milestones=(2,), learning_rate=1e30, momentum=0.0
        )
        with pytest.raises(NonFiniteLossError, match=r"at learning rate 1e\+30"):
            train(network(), digits, settings)

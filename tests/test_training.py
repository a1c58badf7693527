import dataclasses
import math
import os
import re

import pytest
import torch
from torch import nn

import irevnet
from irevnet import training
from irevnet.checkpoint import read_tensors, save_weights
from irevnet.data import ImageData, TensorImages, load_digits
from irevnet.training import NonFiniteLossError, TrainingConfig, evaluate, train

SCHEDULES = {
    "onecycle": {"schedule": "onecycle"},
    "step": {"schedule": "step", "milestones": (1, 3), "decay": 0.5},
}


class Interrupted(Exception):
    """What stands for a power cut."""


def interrupt_after(epoch):
    """A report that raises when an epoch is over."""

    def report(line):
        if line.startswith(f"epoch {epoch:>3}/"):
            raise Interrupted

    return report


def silent(line):
    pass


@pytest.fixture(scope="module")
def digits():
    """132 training images, which at a batch size of 32 leaves some out, and 20 to validate."""
    data = load_digits(20)
    few = TensorImages(data.train.images[:132], data.train.labels[:132])
    return ImageData(few, data.validation, data.test, data.classes)


def network(seed=0, **overrides):
    torch.manual_seed(seed)
    arguments = {"blocks": (1, 1, 1), "bottleneck_channels": (4, 4, 4), **overrides}
    return irevnet.create_model("irevnet_digits", **arguments)


def config(**changes):
    return TrainingConfig(**{"epochs": 2, "batch_size": 32, "learning_rate": 0.1, **changes})


def assert_same_bits(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


class TestConfig:
    def test_milestones_may_be_a_list_as_yaml_gives_it(self):
        assert config(schedule="step", milestones=[60, 120]).milestones == (60, 120)

    def test_bounds_are_allowed_where_they_are_said_to_be(self):
        config(decay=1, momentum=0, weight_decay=0, label_smoothing=0, gradient_clip=0, padding=0)

    @pytest.mark.parametrize(
        ("name", "values", "allowed"),
        [
            ("epochs", (0, -1, 1.0, "10", None, True), "a positive integer"),
            ("batch_size", (0, 32.0, None), "a positive integer"),
            ("checkpoint_epochs", (0, 0.5), "a positive integer"),
            ("learning_rate", (0, -0.1, math.nan, math.inf, "1e-3", None), "a number in (0, inf)"),
            ("warmup", (0, 1, -1, "0.5"), "a number in (0, 1)"),
            ("decay", (0, 1.1), "a number in (0, 1]"),
            ("momentum", (-0.1, 1), "a number in [0, 1)"),
            ("weight_decay", (-1e-4, math.nan, "5e-4", True), "a number in [0, inf)"),
            ("label_smoothing", (-0.1, 1), "a number in [0, 1)"),
            ("gradient_clip", (-1, None), "a number in [0, inf)"),
            ("averaging", (-0.1, 1, "0.99"), "a number in [0, 1)"),
            ("padding", (-1, 1.0, None), "0 or a positive integer"),
            (
                "milestones",
                ((0, 1), (2, 1), (1, 1), (1.0,), ("1",), "12", 3, None),
                "positive integers in rising order",
            ),
            ("schedule", ("cosine", None), "one of ('onecycle', 'step')"),
            ("precision", ("float16", None), "one of ('float32', 'bfloat16')"),
            ("flip", ("yes", None), "one of (True, False)"),
            ("channels_last", ("no",), "one of (True, False)"),
            ("compile", (2,), "one of (True, False)"),
        ],
    )
    def test_errors_name_argument_value_and_what_is_allowed(self, name, values, allowed):
        for value in values:
            message = re.escape(f"{name} must be {allowed}, got {value!r}")
            with pytest.raises(ValueError, match=f"^{message}$"):
                config(**{name: value})

    def test_every_field_is_checked(self):
        for field in dataclasses.fields(TrainingConfig):
            with pytest.raises(ValueError, match=f"^{field.name} must be "):
                config(**{field.name: "nonsense"})


class TestSchedules:
    def learning_rates(self, settings, epochs, steps_per_epoch):
        """The learning rate of every step."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
        settings = dataclasses.replace(settings, epochs=epochs)
        scheduler = training._scheduler(optimizer, settings, steps_per_epoch)
        found = []
        for _ in range(epochs * steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            assert scheduler.get_last_lr() == found[-1:]
            optimizer.step()
            scheduler.step()
        return found

    def test_the_papers_steps_for_cifar10(self):
        settings = config(learning_rate=0.1, schedule="step", milestones=(60, 120, 160), decay=0.2)
        found = self.learning_rates(settings, 200, 3)
        expected = [0.1] * 180 + [0.02] * 180 + [0.004] * 120 + [0.0008] * 120
        assert found == pytest.approx(expected, rel=1e-12)

    def test_onecycle_rises_linearly_to_the_peak_and_falls_linearly_to_nothing(self):
        found = self.learning_rates(config(learning_rate=0.4, warmup=0.25), 10, 10)
        peak = 0.25 * 101 - 1  # in steps from the first
        for step, rate in enumerate(found):
            if step <= peak:
                expected = 0.016 + (0.4 - 0.016) * step / peak
            else:
                expected = 0.4 * (100 - step) / (100 - peak)
            assert rate == pytest.approx(expected, abs=2e-6)  # nothing is 1.6e-6
        assert max(found) == pytest.approx(0.4, rel=0.01)
        assert found[-1] < 0.4 / 70

    @pytest.mark.parametrize("warmup", [0.01, 0.25, 0.5, 0.99])
    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
    def test_onecycle_of_a_few_steps(self, steps, warmup):
        found = self.learning_rates(config(learning_rate=0.4, warmup=warmup), 1, steps)
        assert all(0 < rate <= 0.4 for rate in found)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_rows_hold_the_learning_rate_of_the_last_step(self, digits, schedule):
        settings = config(epochs=4, **SCHEDULES[schedule])
        history = train(network(), digits, settings, report=silent)
        expected = self.learning_rates(settings, 4, 4)[3::4]
        assert [row["learning_rate"] for row in history] == expected


class TestTraining:
    def test_it_learns_what_there_is_to_learn(self, digits):
        model = network()
        history = train(model, digits, config(epochs=12), report=silent)
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
            epochs=1, schedule="step", learning_rate=0.05, momentum=0.9, weight_decay=0.01,
            label_smoothing=0.1, gradient_clip=0.5,
        )  # fmt: skip
        (row,) = train(model, one_batch, settings, report=silent)

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
            # Nesterov: the momentum is the direction itself in the first step.
            expected = before - 0.05 * (direction + 0.9 * direction)
            torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-6, msg=name)
        assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["train_accuracy"] == (logits.argmax(1) == labels).float().mean().item()
        assert math.isnan(row["validation_accuracy"])
        assert math.isnan(row["validation_loss"])

    def test_one_line_an_epoch(self, digits):
        lines = []
        history = train(network(), digits, config(), report=lines.append)
        assert len(lines) == 2
        row = history[0]
        assert lines[0] == (
            f"epoch   1/2  learning rate {row['learning_rate']:.4f}  loss {row['train_loss']:.4f}"
            f"  training accuracy {row['train_accuracy']:.2%}"
            f"  validation {row['validation_accuracy']:.2%}"
        )

    def test_without_validation_images_the_line_leaves_them_out(self, digits):
        empty = TensorImages(digits.train.images[:0], digits.train.labels[:0])
        lines = []
        data = ImageData(digits.train, empty, digits.test, digits.classes)
        train(network(), data, config(epochs=1), report=lines.append)
        assert lines[0].count("validation") == 0

    @pytest.mark.parametrize("backward", ["stored", "reversible"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"dropout": 0.2},
            {"padding": 1, "flip": True, "label_smoothing": 0.1},
            {"precision": "bfloat16"},
            {"channels_last": True, "gradient_clip": 1.0},
            {"averaging": 0.9},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_the_same_seed_gives_the_same_bits_and_another_one_others(
        self, digits, settings, backward
    ):
        settings = dict(settings)
        overrides = {"dropout": settings.pop("dropout", 0.0), "backward": backward}

        def trained(seed, noise):
            torch.manual_seed(noise)  # the global generator is not asked
            model = network(**overrides)
            history = train(model, digits, config(**settings), seed=seed, report=silent)
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
        train(model, digits, config(), report=silent)
        assert len(seen) == 8
        first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
        assert not torch.equal(first, second)

    def test_the_global_generator_is_left_as_it_was(self, digits):
        model = network(dropout=0.1)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        train(model, digits, config(), report=silent)
        assert torch.equal(torch.rand(3), expected)

    def test_test_images_are_not_touched(self, digits):
        data = ImageData(digits.train, digits.validation, digits.test, digits.classes)
        other = TensorImages(digits.test.images.flip(3), digits.test.labels.flip(0))
        first, second = network(), network()
        train(first, data, config(), report=silent)
        train(second, dataclasses.replace(data, test=other), config(), report=silent)
        assert_same_bits(first, second)

    def test_compile_is_asked_for_the_steps_and_changes_no_names(self, digits, monkeypatch):
        compiled = []

        def compile_(model):
            compiled.append(model)
            return nn.Sequential(model)

        monkeypatch.setattr(torch, "compile", compile_)
        model, plain = network(), network()
        train(model, digits, config(compile=True), report=silent)
        train(plain, digits, config(), report=silent)
        assert compiled == [model]
        assert_same_bits(model, plain)

    @pytest.mark.parametrize("name", ["revnet_digits", "resnet_digits", "irevnet_digits_bijective"])
    def test_the_other_families(self, digits, name):
        model = irevnet.create_model(name)
        history = train(model, digits, config(epochs=1), report=silent)
        assert math.isfinite(history[0]["train_loss"])

    def test_averaging_ends_with_the_moving_average_of_the_weights(self, digits):
        """Against the average taken by hand, from the weights before every step and at the end."""
        plain, seen = network(), []

        def note(module, _arguments):
            if module.training:
                seen.append(module.classifier.linear.weight.detach().clone())

        plain.register_forward_pre_hook(note)
        train(plain, digits, config(), report=silent)
        after_every_step = [*seen[1:], plain.classifier.linear.weight.detach()]
        expected = after_every_step[0]
        for weight in after_every_step[1:]:
            expected = 0.8 * expected + 0.2 * weight
        averaged = network()
        history = train(averaged, digits, config(averaging=0.8), report=silent)
        torch.testing.assert_close(averaged.classifier.linear.weight.detach(), expected)
        assert evaluate(averaged, digits.validation).loss == history[-1]["validation_loss"]

    def test_ready_is_called_once_before_the_first_step(self, digits):
        calls = []
        model = network()
        model.register_forward_pre_hook(lambda module, arguments: calls.append("step"))
        train(model, digits, config(epochs=1), report=silent, ready=lambda: calls.append("ready"))
        assert calls.index("ready") == 0
        assert calls.count("ready") == 1

    def test_batches_larger_than_the_data_are_refused(self, digits):
        message = "batch_size must be at most the number of training images, 132, got 133"
        with pytest.raises(ValueError, match=message):
            train(network(), digits, config(batch_size=133), report=silent)
        train(network(), digits, config(batch_size=132, epochs=1), report=silent)


class TestResuming:
    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize(("checkpoint_epochs", "done"), [(1, 2), (2, 2)])
    def test_an_interrupted_run_gives_the_bits_of_an_uninterrupted_one(
        self, digits, tmp_path, schedule, dropout, checkpoint_epochs, done
    ):
        settings = config(
            epochs=4, checkpoint_epochs=checkpoint_epochs, padding=1, **SCHEDULES[schedule]
        )
        expected = network(dropout=dropout)
        expected_history = train(expected, digits, settings, seed=7, report=silent)

        path = tmp_path / "folder" / "checkpoint.safetensors"
        with pytest.raises(Interrupted):
            train(
                network(dropout=dropout), digits, settings, seed=7, checkpoint=path,
                report=interrupt_after(3),
            )  # fmt: skip
        assert len(read_tensors(path)[1]["history"]) == done

        lines = []
        model = network(seed=1, dropout=dropout)  # its weights come from the checkpoint
        torch.manual_seed(99)
        history = train(model, digits, settings, seed=7, checkpoint=path, report=lines.append)
        assert lines[0] == f"resumed after epoch {done} from checkpoint.safetensors"
        assert len(lines) == 1 + 4 - done
        assert_same_bits(model, expected)
        assert history == expected_history
        assert os.listdir(path.parent) == []

    def test_the_average_of_an_interrupted_run_goes_on_too(self, digits, tmp_path):
        settings = config(epochs=3, averaging=0.9)
        expected = network()
        expected_history = train(expected, digits, settings, report=silent)
        path = tmp_path / "checkpoint"
        with pytest.raises(Interrupted):
            train(network(), digits, settings, checkpoint=path, report=interrupt_after(2))
        model = network(seed=1)
        assert train(model, digits, settings, checkpoint=path, report=silent) == expected_history
        assert_same_bits(model, expected)

    def test_twice_interrupted_without_validation_images(self, digits, tmp_path):
        empty = TensorImages(digits.train.images[:0], digits.train.labels[:0])
        data = ImageData(digits.train, empty, digits.test, digits.classes)
        settings = config(epochs=5)
        expected = network()
        train(expected, data, settings, report=silent)
        path = tmp_path / "checkpoint"
        for epoch in (2, 4):
            with pytest.raises(Interrupted):
                train(network(), data, settings, checkpoint=path, report=interrupt_after(epoch))
        model = network()
        history = train(model, data, settings, checkpoint=str(path), report=silent)
        assert_same_bits(model, expected)
        assert all(math.isnan(row["validation_loss"]) for row in history)

    def test_a_run_that_ended_after_its_last_checkpoint(self, digits, tmp_path, monkeypatch):
        path = tmp_path / "checkpoint"
        model, other = network(), network(seed=1)
        with monkeypatch.context() as patch:
            patch.setattr(type(path), "unlink", lambda self, missing_ok: None)
            expected = train(model, digits, config(), checkpoint=path, report=silent)
        assert train(other, digits, config(), checkpoint=path, report=silent) == expected
        assert_same_bits(model, other)
        assert not path.exists()

    def test_the_checkpoint_is_removed_at_the_end(self, digits, tmp_path):
        train(network(), digits, config(), checkpoint=tmp_path / "checkpoint", report=silent)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("change", ["seed", "config", "network", "train", "validation"])
    def test_the_checkpoint_of_another_run_is_refused_and_nothing_is_changed(
        self, digits, tmp_path, change
    ):
        path = tmp_path / "checkpoint"
        with pytest.raises(Interrupted):
            train(network(), digits, config(), checkpoint=path, report=interrupt_after(2))
        content = path.read_bytes()
        model = network(seed=1, dropout=0.1 if change == "network" else 0.0)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        data = digits
        if change in ("train", "validation"):
            images = getattr(digits, change)
            fewer = TensorImages(images.images[:-1], images.labels[:-1])
            data = dataclasses.replace(digits, **{change: fewer})
        message = (
            f"{path} is the checkpoint of a run with other settings, another seed, network or data "
            "set; remove it, or name another file"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            train(
                model,
                data,
                config(weight_decay=1e-4 if change == "config" else 5e-4),
                seed=1 if change == "seed" else 0,
                checkpoint=path,
                report=silent,
            )
        assert path.read_bytes() == content
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_a_damaged_checkpoint_or_one_that_is_none_is_refused(self, digits, tmp_path):
        path = tmp_path / "checkpoint"
        path.write_bytes(b"damaged")
        with pytest.raises(ValueError, match="checkpoint is damaged, truncated or not"):
            train(network(), digits, config(), checkpoint=path, report=silent)
        save_weights(network(), path, {"overrides": {}})
        with pytest.raises(ValueError, match="checkpoint is the checkpoint of a run with other"):
            train(network(), digits, config(), checkpoint=path, report=silent)


class Exploding(nn.Module):
    """Linear logits; from a step on, NaN comes out, or goes into the gradients alone."""

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
        settings = config(epochs=3, schedule="step", learning_rate=0.125)
        message = (
            "loss is nan in epoch 2, step 3 of it, at learning rate 0.125; "
            f"last good checkpoint: {path}"
        )
        with pytest.raises(NonFiniteLossError, match=re.escape(message)):
            train(Exploding(7, "loss"), digits, settings, checkpoint=path, report=silent)

        # The checkpoint is that of the first epoch, and a run that goes on from it is a good one.
        def well_behaved():
            torch.manual_seed(0)
            return Exploding(1000, "loss")

        assert len(read_tensors(path)[1]["history"]) == 1
        lines = []
        train(well_behaved(), digits, settings, checkpoint=path, report=lines.append)
        assert lines[0] == "resumed after epoch 1 from checkpoint"
        assert not path.exists()

    @pytest.mark.parametrize("name", ["checkpoint", None])
    def test_without_a_checkpoint_it_says_none(self, digits, tmp_path, name):
        path = None if name is None else tmp_path / name
        message = r"loss is nan in epoch 1, step 4 of it, .*; last good checkpoint: none$"
        with pytest.raises(NonFiniteLossError, match=message):
            train(Exploding(4, "loss"), digits, config(), checkpoint=path, report=silent)

    def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_saved(self, digits, tmp_path):
        path = tmp_path / "checkpoint"
        message = (
            r"weights are not finite after epoch 2, step 4 of it, at learning rate 0.125; "
            rf"last good checkpoint: {re.escape(str(path))}$"
        )
        settings = config(epochs=3, schedule="step", learning_rate=0.125)
        with pytest.raises(NonFiniteLossError, match=message):
            train(Exploding(8, "gradient"), digits, settings, checkpoint=path, report=silent)
        tensors, metadata = read_tensors(path)
        assert len(metadata["history"]) == 1
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    def test_a_learning_rate_that_is_far_too_high(self, digits):
        settings = config(epochs=3, schedule="step", learning_rate=1e30, momentum=0.0)
        with pytest.raises(NonFiniteLossError, match=r"at learning rate 1e\+30"):
            train(network(), digits, settings, report=silent)


class TestEvaluate:
    @pytest.mark.parametrize("training", [False, True])
    def test_the_mode_is_restored_and_nothing_changed(self, digits, training):
        model = network(dropout=0.3).train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first = evaluate(model, digits.test)
        assert model.training == training
        assert all(module.training == training for module in model.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert evaluate(model, digits.test) == first

    def test_against_plain_loops_whatever_the_batch_size(self, digits):
        model = network().eval()
        with torch.no_grad():
            model.classifier.linear.weight.mul_(20)
            x, labels = digits.test.first(540)
            probabilities = model(x).double().softmax(1)
        pairs = list(zip(probabilities, labels, strict=True))
        right = sum(int(p.argmax()) == int(label) for p, label in pairs)
        loss = -sum(math.log(p[label]) for p, label in pairs) / 540
        for batch_size in (1, 7, 256, 540, 1000):
            found = evaluate(model, digits.test, batch_size=batch_size)
            assert found.n == 540
            assert found.accuracy == right / 540
            assert found.loss == pytest.approx(loss, rel=1e-5)

    def test_flips_average_the_logits_of_an_image_and_its_mirror_image(self, digits):
        model = network().eval()
        x, labels = digits.validation.first(20)
        with torch.no_grad():
            logits = (model(x) + model(x.flip(3))) / 2
        found = evaluate(model, digits.validation, flips=True)
        assert found.accuracy == (logits.argmax(1) == labels).sum().item() / 20
        expected = nn.functional.cross_entropy(logits, labels).item()
        assert found.loss == pytest.approx(expected, rel=1e-6)
        mirrored = TensorImages(digits.validation.images.flip(3), digits.validation.labels)
        assert evaluate(model, mirrored, flips=True).loss == pytest.approx(found.loss, rel=1e-6)

    def test_an_empty_set_has_no_accuracy(self, digits):
        empty = TensorImages(digits.test.images[:0], digits.test.labels[:0])
        found = evaluate(network(), empty)
        assert found.n == 0
        assert math.isnan(found.accuracy)
        assert math.isnan(found.loss)

    def test_bfloat16_is_used_where_it_is_asked_for(self, digits):
        dtypes = []
        model = network()
        model.classifier.linear.register_forward_hook(
            lambda module, arguments, logits: dtypes.append(logits.dtype)
        )
        evaluate(model, digits.test, precision="bfloat16")
        evaluate(model, digits.test)
        assert set(dtypes[:3]) == {torch.bfloat16}
        assert set(dtypes[3:]) == {torch.float32}

    def test_errors(self, digits):
        message = r"precision must be one of \('float32', 'bfloat16'\), got 'float16'"
        with pytest.raises(ValueError, match=message):
            evaluate(network(), digits.test, precision="float16")
        with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
            evaluate(network(), digits.test, batch_size=0)

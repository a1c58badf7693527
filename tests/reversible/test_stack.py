import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import irevnet
from irevnet.analysis.memory import saved_bytes
from irevnet.reversible.coupling import CouplingBlock, couple
from irevnet.reversible.narrow import evaluate_keeping
from irevnet.reversible.stack import merged_stack, reversible_stack
from irevnet.reversible.streams import FixedPointStreams, FloatStreams
from networks import BIJECTIVE, IREVNETS, SMALL, images, small_irevnet


def both(name, **overrides):
    """The same small network with stored and reversible backward passes, in evaluation mode."""
    stored = small_irevnet(name, backward="stored", **overrides)
    reversible = irevnet.create_model(
        name, **{"num_classes": 5, **SMALL[name], **overrides, "backward": "reversible"}
    ).double()
    reversible.load_state_dict(stored.state_dict())
    return stored, reversible.eval()


def step(model, x):
    """Logits, gradients of the image and of every parameter, of one cross-entropy."""
    torch.manual_seed(1)  # for dropout
    x = x.clone().requires_grad_()
    logits = model(x)
    functional.cross_entropy(logits, torch.arange(len(x)) % 5).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), x.grad, gradients


def assert_same(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


class TestGradients:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", IREVNETS)
    def test_values_and_gradients_are_those_of_stored_activations(self, name, training):
        # Dropout stays as the zoo has it: the masks are drawn again.
        stored, reversible = (model.train(training) for model in both(name))
        x = images(stored, 4)
        for actual, expected in zip(step(reversible, x), step(stored, x), strict=True):
            assert_same(actual, expected)
        # Running statistics were updated once.
        for (buffer, actual), expected in zip(
            reversible.named_buffers(), stored.buffers(), strict=True
        ):
            assert_same(actual, expected)
            if buffer.endswith("num_batches_tracked"):
                assert actual == int(training)

    def test_dropout_of_any_strength(self):
        stored, reversible = (model.train() for model in both("irevnet_digits", dropout=0.5))
        x = images(stored, 4)
        for actual, expected in zip(step(reversible, x), step(stored, x), strict=True):
            assert_same(actual, expected)

    def test_the_random_state_after_backward_is_as_if_nothing_were_drawn_again(self):
        stored, reversible = (model.train() for model in both("irevnet_digits", dropout=0.5))
        x = images(stored, 4)
        step(stored, x)
        expected = torch.rand(3)
        step(reversible, x)
        assert torch.equal(torch.rand(3), expected)

    def test_frozen_parameters_have_none(self):
        stored, reversible = both("irevnet_digits_bijective")
        for model in (stored, reversible):
            model.blocks[1].requires_grad_(False)
            model.blocks[3].residual[0].weight.requires_grad_(False)
        x = images(stored, 4)
        (_, _, actual), (_, _, expected) = step(reversible, x), step(stored, x)
        for name, gradient in expected.items():
            if gradient is None:
                assert actual[name] is None
            else:
                assert_same(actual[name], gradient)
        assert sum(gradient is None for gradient in actual.values()) > 1

    def test_they_accumulate(self):
        stored, reversible = both("irevnet_digits_bijective")
        for _ in range(2):
            x = images(stored, 4)
            (_, _, actual), (_, _, expected) = step(reversible, x), step(stored, x)
        for name, gradient in expected.items():
            assert_same(actual[name], gradient)

    def test_through_the_inverse_of_a_reversible_network(self):
        _, model = both("irevnet_digits")
        x = images(model.eval()).requires_grad_()
        (gradient,) = torch.autograd.grad((model.inverse(model.encode(x)) ** 2).sum(), x)
        assert_same(gradient, 2 * x.detach())

    def test_without_gradients_nothing_is_kept(self):
        _, model = both("irevnet_digits")
        with torch.no_grad():
            assert not model(images(model)).requires_grad
        model.requires_grad_(False)
        assert not model(images(model)).requires_grad

    def test_under_autocast(self):
        stored, reversible = (model.float().train() for model in both("irevnet_digits_bijective"))
        x = images(stored, 8, dtype=torch.float32)
        actual, expected = [], []
        for model, results in ((reversible, actual), (stored, expected)):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            assert logits.dtype == torch.bfloat16
            functional.cross_entropy(logits.float(), torch.arange(8) % 5).backward()
            results += [parameter.grad.flatten() for parameter in model.parameters()]
        actual, expected = torch.cat(actual), torch.cat(expected)
        assert (actual - expected).norm() < 0.05 * expected.norm()

    def test_gradients_of_gradients_are_refused(self):
        _, model = both("irevnet_digits")
        x = images(model).requires_grad_()
        loss = model(x).square().sum()
        with pytest.raises(RuntimeError, match=r'no gradients of gradients.*backward="stored"'):
            torch.autograd.grad(loss, x, create_graph=True)

    def test_transforms_are_refused(self):
        _, model = both("irevnet_digits")
        with pytest.raises(RuntimeError, match=r'torch.func; use backward="stored"'):
            torch.func.grad(lambda x: model(x).sum())(images(model))


@pytest.mark.parametrize("name", ["irevnet_digits", *BIJECTIVE])
def test_saved_memory_does_not_grow_with_depth(name):
    stages = len(SMALL[name]["blocks"])

    def kept(blocks, backward):
        model = small_irevnet(name, blocks=(blocks,) * stages, backward=backward).train()
        x = images(model, 4)
        return saved_bytes(lambda: model.encode(x), model)

    shallow, deep = (kept(blocks, "reversible") for blocks in (4, 16))
    assert deep == shallow
    stored_shallow, stored_deep = (kept(blocks, "stored") for blocks in (4, 16))
    assert stored_deep > 3 * stored_shallow
    assert shallow < stored_shallow / 4


def test_a_stack_without_parameters_and_one_without_blocks():
    halves = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    blocks = [CouplingBlock(nn.Tanh()), CouplingBlock(nn.Softplus())]
    y_tilde, y = reversible_stack(blocks, *halves)
    (actual,) = torch.autograd.grad((y_tilde * y).sum(), halves)
    x_tilde, x = halves
    for block in blocks:
        x_tilde, x = block(x_tilde, x)
    (expected,) = torch.autograd.grad((x_tilde * x).sum(), halves)
    assert_same(actual, expected)
    assert_same(y, x)
    same = reversible_stack([], *halves)
    assert torch.equal(torch.stack(same), halves)


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("streams", [FloatStreams(), FixedPointStreams(20, torch.float64)])
def test_merged_halves_have_the_values_and_gradients_of_halves(streams, dim):
    torch.manual_seed(0)
    blocks = [CouplingBlock(nn.Sequential(nn.Linear(4, 4), nn.Tanh())).double() for _ in range(3)]
    halves = torch.rand(2, 2, 4, 4, dtype=torch.float64).requires_grad_()
    apart = reversible_stack(blocks, *halves, streams=streams, chunks=[2, 1])
    options = {"backward": "reversible", "dim": dim, "streams": streams}
    merged = merged_stack(blocks, *halves, **options, chunks=[2, 1])
    assert torch.equal(merged, torch.cat(apart, dim))
    inputs = [halves, *blocks[0].parameters()]
    weights = torch.rand_like(merged)
    expected = torch.autograd.grad((torch.cat(apart, dim) * weights).sum(), inputs)
    actual = torch.autograd.grad((merged * weights).sum(), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(merged_stack(blocks, *halves, **options), merged)


class Constant(nn.Module):
    """An F that does not read its input, with a trainable parameter or without."""

    def __init__(self, size, *, learned):
        super().__init__()
        self.value = nn.Parameter(torch.rand(size), requires_grad=learned)

    def forward(self, x):
        return self.value.expand_as(x)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("recomputed", [0, 1])
def test_a_constant_f(recomputed, learned):
    blocks = [CouplingBlock(Constant(4, learned=learned)), CouplingBlock(nn.Linear(4, 4))]
    halves = torch.rand(2, 3, 4).requires_grad_()
    inputs = [halves, *(p for block in blocks for p in block.parameters() if p.requires_grad)]
    results = []
    for function, options in ((couple, {}), (reversible_stack, {"recomputed": recomputed})):
        y_tilde, y = function(blocks, *halves, **options)
        results.append(torch.autograd.grad((y_tilde.sin() * y).sum(), inputs))
    torch.testing.assert_close(*results)


def test_an_unknown_backward_is_refused():
    message = r"backward must be one of \('stored', 'reversible', 'balanced'\), got 'magic'"
    with pytest.raises(ValueError, match=message):
        irevnet.create_model("irevnet_digits", backward="magic")


class TestBalanced:
    """The balanced backward pass, which keeps the narrow activations."""

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", IREVNETS)
    def test_values_and_gradients_are_those_of_stored_activations(self, name, training):
        stored, balanced = (model.train(training) for model in both(name))
        balanced.backward = "balanced"
        x = images(stored, 4)
        for result, expected in zip(step(balanced, x), step(stored, x), strict=True):
            assert_same(result, expected)
        for result, expected in zip(balanced.buffers(), stored.buffers(), strict=True):
            assert_same(result, expected)

    def test_backward_twice(self):
        stored, balanced = (model.train() for model in both("irevnet_digits", dropout=0.3))
        balanced.backward = "balanced"
        x = images(stored, 4)
        gradients = []
        for model in (stored, balanced):
            torch.manual_seed(1)
            loss = model(x).square().mean()
            loss.backward(retain_graph=True)
            loss.backward()
            gradients.append([p.grad for p in model.parameters()])
        assert_same(*gradients)

    def test_under_autocast(self):
        stored, balanced = (model.float().train() for model in both("irevnet_digits_bijective"))
        balanced.backward = "balanced"
        x = images(stored, 8, dtype=torch.float32)
        gradients = []
        for model in (balanced, stored):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            functional.cross_entropy(logits.float(), torch.arange(8) % 5).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()

    @pytest.mark.parametrize("first_is_in_place", [False, True])
    def test_other_layers(self, first_is_in_place):
        def residual():
            return nn.Sequential(
                nn.LayerNorm(6),
                nn.Linear(6, 3),
                nn.ReLU(inplace=first_is_in_place),
                nn.Linear(3, 4, bias=False),
                nn.Tanh(),
                nn.Linear(4, 6),
            ).double()

        blocks = [CouplingBlock(residual()) for _ in range(3)]
        parameters = [p for block in blocks for p in block.parameters()]
        halves = torch.rand(2, 5, 7, 6, dtype=torch.float64)
        gradients = []
        for keep_narrow in (False, True):
            x_tilde, x = reversible_stack(blocks, *halves, keep_narrow=keep_narrow)
            gradients.append(torch.autograd.grad((x_tilde * x).sum(), parameters))
        assert_same(*gradients)

    def gradients(self, residuals, halves, between=lambda _: None):
        """Gradients with all activations stored and with the narrow ones kept."""
        results = []
        for function in (couple, reversible_stack):
            copies = copy.deepcopy(residuals)
            blocks = [CouplingBlock(residual) for residual in copies]
            inputs = halves.clone().requires_grad_()
            options = {"keep_narrow": True} if function is reversible_stack else {}
            torch.manual_seed(1)  # for dropout
            y_tilde, y = function(blocks, *inputs, **options)
            between(copies)
            (y_tilde.sin() * y).sum().backward()
            results.append([inputs.grad, *(p.grad for p in copies.parameters())])
        return results

    @pytest.mark.parametrize(
        "layers",
        [
            lambda: [nn.SiLU(inplace=True)],
            lambda: [nn.Sequential(nn.SiLU(inplace=True))],
            lambda: [nn.Identity(), nn.SiLU(inplace=True)],
            lambda: [nn.Dropout(0.0), nn.SiLU(inplace=True)],
            lambda: [nn.Dropout(0.5).eval(), nn.SiLU(inplace=True)],
            lambda: [nn.BatchNorm1d(6), nn.SiLU(inplace=True)],
        ],
    )
    def test_activations_in_place_wherever_they_are(self, layers):
        residuals = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), *layers(), nn.Linear(6, 6), *layers()) for _ in range(7)
        ).double()
        halves = torch.randn(2, 5, 6, dtype=torch.float64)
        assert_same(*self.gradients(residuals, halves))

    def test_outputs_before_batch_norm_are_kept_without_a_copy(self):
        layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        linear = layers[0]
        outputs = []
        original = linear.forward
        residual = nn.Sequential(*layers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                nn.Linear, "forward", lambda s, x: outputs.append(original(x)) or outputs[-1]
            )
            _, kept, _ = evaluate_keeping(residual, torch.rand(3, 4))
        assert kept[0] is outputs[0]

    def test_a_layer_that_overwrites_what_is_kept_without_saying_so_is_refused(self):
        class Double(nn.Module):
            def forward(self, x):
                return x.mul_(2)

        block = CouplingBlock(nn.Sequential(nn.Linear(3, 3), Double(), nn.Linear(3, 3)))
        halves = torch.rand(2, 4, 3)
        with pytest.raises(RuntimeError, match="changes the output of a layer in place"):
            reversible_stack([block], *halves, keep_narrow=True)
        y_tilde, y = reversible_stack([block], *halves)
        (y_tilde * y).sum().backward()

    def test_hooks_that_come_after_the_forward_pass_change_nothing(self):
        residuals = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 4)
            )
            for _ in range(7)
        ).double()

        def register(residuals):
            for layer in itertools.chain(*residuals):
                layer.register_forward_hook(lambda _layer, _inputs, output: 2 * output)
                layer.register_forward_pre_hook(lambda _layer, inputs: (2 * inputs[0],))
                layer.register_full_backward_hook(lambda _layer, grads, _: (2 * grads[0],))

        halves = torch.rand(2, 5, 4, dtype=torch.float64)
        assert_same(*self.gradients(residuals, halves, register))

    @pytest.mark.parametrize("count", [1, 2])
    def test_batch_norm_refuses_one_value_a_channel(self, count):
        def residual():
            return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4))

        blocks = [CouplingBlock(residual())]
        halves = torch.rand(2, count, 4)
        if count == 1:
            with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
                reversible_stack(blocks, *halves, keep_narrow=True)
        else:
            reversible_stack(blocks, *halves, keep_narrow=True)
        assert blocks[0].residual[1].running_var.isfinite().all()

    def test_batch_norm_refuses_dimensions_that_it_does_not_take(self):
        residual = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Linear(4, 4))
        with pytest.raises(ValueError, match="expected 2D or 3D input"):
            reversible_stack(
                [CouplingBlock(residual)], *torch.rand(2, 2, 3, 5, 4), keep_narrow=True
            )

    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (lambda: nn.Linear(4, 4), (4,)),
            (lambda: nn.Conv1d(4, 4, 3, padding=1), (4, 5)),
            (lambda: nn.Conv2d(4, 4, 3, padding=1), (4, 5, 6)),
        ],
    )
    def test_inputs_without_a_dimension_for_the_batch(self, make, shape):
        residuals = nn.ModuleList(nn.Sequential(make(), nn.Tanh(), make()) for _ in range(7))
        halves = torch.rand(2, *shape, dtype=torch.float64)
        assert_same(*self.gradients(residuals.double(), halves))

    def test_f_that_is_not_a_sequence_of_layers_is_refused(self):
        halves = torch.rand(2, 1, 4, 3, 3)
        with pytest.raises(ValueError, match=r"plain nn.Sequential.*block 0 is a Conv2d: use"):
            reversible_stack([CouplingBlock(nn.Conv2d(4, 4, 1))], *halves, keep_narrow=True)


def test_gradients_of_a_stage_are_ready_before_the_stage_before_is_evaluated_again():
    """DistributedDataParallel communicates them in the meantime."""
    _, model = both("irevnet_digits", blocks=(3, 2, 2))
    stages = [0, 0, 0, 1, 1, 2, 2]
    events = []
    for stage, block in zip(stages, model.blocks, strict=True):
        block.residual.register_forward_hook(lambda *_, stage=stage: events.append(("F", stage)))
        for parameter in block.parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda _, stage=stage: events.append(("gradient", stage))
            )
    loss = model(images(model)).sum()
    events.clear()
    loss.backward()
    order = [event for event, _ in itertools.groupby(events)]
    assert order == [(what, stage) for stage in (2, 1, 0) for what in ("F", "gradient")]


def test_f_that_changes_its_input_is_refused():
    block = CouplingBlock(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)))
    with pytest.raises(RuntimeError, match="F of a block changes its input in place"):
        reversible_stack([block], *torch.rand(2, 4, 3))


def test_an_injective_network_saves_only_the_representation_and_the_image():
    name = "irevnet_cifar"
    model = small_irevnet(name, backward="reversible", blocks=(4, 4, 4)).train()
    x = images(model, 4)
    kept = saved_bytes(lambda: model.encode(x), model)
    state = model.encode(x).nbytes
    assert kept == state + x.nbytes

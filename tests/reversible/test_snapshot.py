"""Never a wrong gradient: each case that would make F another function in the backward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from irevnet import ReversibleSequential
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.stack import reversible_stack
from networks import images, small_irevnet

NAME = "irevnet_digits_bijective"


def pair(change=None, training=True):
    """The same network with stored activations and with a reversible backward, float64."""
    stored = small_irevnet(NAME)
    if change is not None:
        change(stored)
    reversible = copy.deepcopy(stored)
    reversible.backward = "reversible"
    return stored.train(training), reversible.train(training)


def loss_of(logits):
    return functional.cross_entropy(logits, torch.arange(len(logits)) % 5)


def gradients(model, x, between=lambda model: None):
    torch.manual_seed(1)
    loss = loss_of(model(x))
    between(model)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(result, expected, atol=1e-10):
    torch.testing.assert_close(result, expected, rtol=0, atol=atol)


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.3, self.training)


RANDOM = {
    "Dropout2d": lambda: nn.Dropout2d(0.3),
    "AlphaDropout": lambda: nn.AlphaDropout(0.3),
    "functional.dropout": FunctionalDropout,
    "StochasticDepth": lambda: StochasticDepth(0.5, "row"),
    "RReLU": lambda: nn.RReLU(0.1, 0.5),
}


def with_layer(make):
    """Inserts a layer after the first convolution of every F."""

    def change(model):
        for block in model.blocks:
            layers = list(block.residual)
            layers.insert(
                1 + next(i for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)), make()
            )
            block.residual = nn.Sequential(*layers).double()

    return change


@pytest.mark.parametrize("name", RANDOM)
def test_whatever_is_random_in_f_is_drawn_again(name):
    stored, reversible = pair(with_layer(RANDOM[name]))
    x = images(stored, 6)
    expected = gradients(stored, x)
    assert_same(gradients(reversible, x), expected)


@pytest.mark.parametrize("name", RANDOM)
def test_an_inverse_cannot_know_what_was_drawn(name):
    model, _ = pair(with_layer(RANDOM[name]))
    x = images(model, 6)
    with torch.no_grad(), pytest.raises(ValueError, match=r"block \d draws random numbers"):
        model.inverse(model.encode(x))
    model.eval()
    with torch.no_grad():
        assert_same(model.inverse(model.encode(x)), x)


def test_parameters_lent_by_functional_call_get_their_gradients():
    stored, reversible = pair()
    x = images(stored, 4)
    results = []
    for model in (stored, reversible):
        lent = {
            name: (0.5 * parameter.detach()).requires_grad_()
            for name, parameter in model.named_parameters()
        }
        loss = loss_of(functional_call(model, lent, (x,)))
        loss.backward()  # after the module has its own parameters again
        results.append({name: parameter.grad for name, parameter in lent.items()})
    assert_same(results[1], results[0])


def change_weights(model):
    with torch.no_grad():
        model.blocks[2].residual[-1].weight.mul_(2)


def change_statistics(model):
    model.blocks[2].residual[0].running_var.mul_(2)


@pytest.mark.parametrize(
    ("training", "change", "message"),
    [
        (True, change_weights, r"weight of a block was changed in place after the forward pass"),
        (False, change_weights, r"weight of a block was changed in place after the forward pass"),
        (False, change_statistics, r"running_var of a block was changed in place"),
    ],
)
def test_what_changes_between_the_passes_is_named(training, change, message):
    _, reversible = pair(training=training)
    with pytest.raises(RuntimeError, match=message):
        gradients(reversible, images(reversible, 4), change)


def test_another_forward_pass_in_between_changes_nothing():
    """Running statistics move on in training mode, but do not enter into the result."""
    stored, reversible = pair()
    x = images(stored, 4)
    other = images(stored, 4).flip(0) * 2

    def again(model):
        model(other)

    assert_same(gradients(reversible, x, again), gradients(stored, x, again))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_forward_pass(training):
    stored, reversible = pair(training=training)
    x = images(stored, 4)

    def switch(model):
        model.train(not training)

    assert_same(gradients(reversible, x, switch), gradients(stored, x, switch))
    assert {module.training for module in reversible.modules()} == {not training}


def test_a_forward_pass_in_training_mode_spoils_one_in_evaluation_mode():
    """The running statistics do not show it: batch norm changes them behind autograd's back."""
    _, reversible = pair(training=False)
    x = images(reversible, 4)
    with pytest.raises(RuntimeError, match="num_batches_tracked of a block was changed in place"):
        gradients(reversible, x, lambda model: model.train()(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalise", [spectral_norm, parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_norm_changes_f_at_every_evaluation(normalise, training):
    def change(model):
        for block in model.blocks:
            normalise(block.residual[-1])

    stored, reversible = pair(change, training)
    x = images(stored, 4)
    # Weights over a norm that has not converged in evaluation mode, and gradients, are large.
    assert_same(gradients(reversible, x), gradients(stored, x), atol=1e-7)
    for after, expected in zip(reversible.buffers(), stored.buffers(), strict=True):
        assert_same(after, expected)
    with torch.no_grad():
        if training:
            with pytest.raises(ValueError, match=r"every evaluation of block 5 changes its .*u"):
                reversible.inverse(reversible.encode(x))
        else:
            assert_same(reversible.inverse(reversible.encode(x)), x, atol=1e-7)


class SelfChanging(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(0.9)
        return super().forward(x)


def test_parameters_that_f_changes_itself_are_refused():
    block = CouplingBlock(SelfChanging(3, 3))
    with pytest.raises(RuntimeError, match="evaluating F changes its weight, so F"):
        reversible_stack([block], *torch.rand(2, 4, 3))


def compiled(model):
    for block in model.blocks:
        block.residual.compile(backend="eager")


def test_compiled_residuals_are_evaluated_in_place():
    stored, reversible = pair()
    compiled(reversible)
    x = images(stored, 4)
    assert_same(gradients(reversible, x), gradients(stored, x))
    for after, expected in zip(reversible.buffers(), stored.buffers(), strict=True):
        assert_same(after, expected)
    with pytest.raises(RuntimeError, match="of a compiled block is in evaluation mode, but was"):
        gradients(reversible, x, lambda model: model.eval())


def with_instance_norm(model):
    for block in model.blocks:
        channels = block.residual[-1].out_channels
        norm = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        block.residual.append(norm.double())


@pytest.mark.parametrize("is_compiled", [False, True])
def test_instance_norm_counts_once(is_compiled):
    stored, reversible = pair(with_instance_norm)
    if is_compiled:
        compiled(reversible)
    x = images(stored, 4).repeat(1, 1, 2, 2)
    assert_same(gradients(reversible, x), gradients(stored, x))
    with torch.no_grad():
        expected = copy.deepcopy(dict(stored.named_buffers()))
        assert_same(dict(reversible.named_buffers()), expected)
        for model in (stored, reversible):
            z = model.encode(x)
            expected = copy.deepcopy(dict(model.named_buffers()))
            assert_same(model.inverse(z), x)
            assert_same(dict(model.named_buffers()), expected)


def test_an_inverse_that_changes_compiled_residuals_says_so():
    model, _ = pair(
        lambda model: [parametrizations.spectral_norm(b.residual[-1]) for b in model.blocks]
    )
    compiled(model)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"evaluation of block 5 changes its .*_u"),
    ):
        model.inverse(model.encode(images(model, 4)))


class WithContext(nn.Linear):
    """Reads a tensor that is not a parameter."""

    def __init__(self, context, *, is_buffer=False):
        super().__init__(3, 3)
        if is_buffer:
            self.register_buffer("context", context)
        else:
            self.context = context

    def forward(self, x):
        return super().forward(x) * self.context


@pytest.mark.parametrize("is_buffer", [False, True])
@pytest.mark.parametrize("is_leaf", [False, True])
def test_tensors_that_need_gradients_and_are_no_parameters_are_refused(is_leaf, is_buffer):
    leaf = torch.rand(3).requires_grad_()
    context = leaf if is_leaf else 2 * leaf
    block = CouplingBlock(nn.Sequential(WithContext(context, is_buffer=is_buffer)))
    halves = torch.rand(2, 4, 3)
    with pytest.raises(RuntimeError, match="context of F requires a gradient but is not a param"):
        reversible_stack([block], *halves)
    # An inverse does not go through a custom backward pass: it has all gradients.
    inverse = ReversibleSequential(block).inverse(torch.rand(4, 6))
    assert torch.autograd.grad(inverse.sum(), leaf)[0].abs().min() > 0
    block.residual[0].context = context.detach()
    reversible_stack([block], *halves)[1].sum().backward()


def test_buffers_that_are_lent_and_need_gradients_are_refused():
    block = ReversibleSequential(WithContext(torch.rand(3), is_buffer=True))
    lent = {"blocks.0.residual.context": torch.rand(3).requires_grad_()}
    with pytest.raises(RuntimeError, match="context of F requires a gradient"):
        functional_call(block, lent, (torch.rand(4, 6),))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change", [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 3)]
)
def test_weights_that_hooks_make_of_parameters_have_their_gradients(change):
    model = small_irevnet(NAME).train()
    for block in model.blocks:
        change(block.residual[-1])
    x = images(model, 4)
    results = []
    for model.backward in ("stored", "reversible"):
        model.zero_grad()
        results.append(gradients(model, x))
    assert_same(*results)


class Dispatched(nn.Module):
    """Calls functions and modules that are stored in attributes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        object.__setattr__(self, "alias", self.norm)
        self.function = self.norm.forward
        self.impl = self._impl

    def _impl(self, x):
        scale = 2 if self.training else 1
        return scale * self.norm(x) + self.alias(x).tanh() + self.function(x) ** 2

    def forward(self, x):
        return self.impl(x)


def test_attributes_that_refer_to_modules_of_f_refer_to_those_of_the_copy():
    stored = ReversibleSequential(*(Dispatched() for _ in range(3)), backward="stored").double()
    reversible = ReversibleSequential(*(Dispatched() for _ in range(3))).double()
    x = torch.rand(4, 8, 3, 3, dtype=torch.float64)
    results = []
    for model in (stored, reversible):
        loss = model(x).sin().sum()
        model.eval()
        loss.backward()
        results.append([[p.grad for p in model.parameters()], list(model.buffers())])
        assert all(block.residual.norm.num_batches_tracked == 3 for block in model.blocks)
    assert_same(*results)


@pytest.mark.parametrize("reference", [lambda module: module, lambda module: module.forward])
def test_references_to_unregistered_modules_are_refused(reference):
    residual = nn.Sequential(nn.Linear(3, 3))
    object.__setattr__(residual[0], "other", reference(nn.BatchNorm1d(3)))
    block = CouplingBlock(residual)
    with pytest.raises(RuntimeError, match="attribute other of F refers to a module that is not"):
        reversible_stack([block], *torch.rand(2, 4, 3))


@pytest.mark.parametrize("name", [NAME, "irevnet_digits"])
def test_no_module_is_touched_by_an_inverse_or_a_backward_pass(name):
    """What another thread that trains the same network would see."""
    reversible = small_irevnet(name, dropout=0.0, backward="reversible").train()
    x = images(reversible, 4)
    loss = loss_of(reversible(x))
    z = reversible.encode(x).detach()
    before = [dict(vars(module)) for module in reversible.modules()]
    seen = []
    original = nn.BatchNorm2d.forward

    def watch(norm, x):
        seen.append([dict(vars(module)) for module in reversible.modules()] == before)
        return original(norm, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", watch)
        loss.backward()
        reversible.inverse(z)
    # Three in every F but the first, which has two; the first is evaluated for known values, too.
    in_network = 3 * len(reversible.blocks) - 1
    assert len(seen) == 2 * in_network + (0 if reversible.is_bijective else 2)
    assert all(seen)


def test_sharded_parameters_are_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        _, reversible = pair()
        mesh = dist.init_device_mesh("cpu", (1,))
        for block in reversible.blocks:
            fully_shard(block.residual, mesh=mesh)
        with pytest.raises(RuntimeError, match=r"sharded.*with FSDP.*backward=\"stored\""):
            reversible(images(reversible, 2))
        # Sharding the whole network at once works.
        stored, reversible = pair()
        x = images(stored, 4)
        expected = gradients(stored, x)
        fully_shard(reversible, mesh=mesh)
        for name, gradient in gradients(reversible, x).items():
            assert_same(gradient.full_tensor(), expected[name])
    finally:
        dist.destroy_process_group()


def test_frozen_layers_still_work():
    def change(model):
        for parameter in model.blocks[3].parameters():
            parameter.requires_grad_(False)

    stored, reversible = pair(change)
    x = images(stored, 4)
    assert_same(gradients(reversible, x), gradients(stored, x))


def test_operations_of_a_step_can_be_counted():
    """One more F per block: forward, recomputed, and two for gradients, instead of three parts."""
    counts = {}
    for model in pair():
        model.requires_grad_(True)
        x = images(model, 2).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            loss_of(model(x)).backward()
        counts[model.backward] = counter.get_total_flops()
    assert 1.25 < counts["reversible"] / counts["stored"] < 4 / 3 + 1e-6


def test_a_step_runs_on_the_meta_device():
    _, reversible = pair()
    reversible.to("meta")
    reversible(torch.rand(2, *reversible.in_shape, device="meta").double()).sum().backward()
    assert all(parameter.grad.is_meta for parameter in reversible.parameters())

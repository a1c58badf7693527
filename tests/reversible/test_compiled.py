"""torch.compile without graph breaks, with the gradients of eager execution; torch.export."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import irevnet
from networks import images, small_irevnet

NAMES = ["irevnet_digits", "irevnet_digits_bijective"]


def gradients(function, model, x):
    x = x.clone().requires_grad_()
    logits = function(x)
    functional.cross_entropy(logits, torch.arange(len(x)) % 5).backward()
    results = [logits.detach(), x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return results


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# A warning of the compiler's own code, which it hides unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("streams", ["float", "fixed"])
@pytest.mark.parametrize("backward", ["stored", "reversible"])
def test_a_step_has_the_gradients_of_eager_execution(backward, streams):
    """With stored activations, the step is a single graph."""
    name = "irevnet_digits" if streams == "fixed" else "irevnet_digits_bijective"
    model = small_irevnet(
        name, backward=backward, streams=streams, dropout=0.0, blocks=(1, 1, 1)
    ).train()
    x = images(model, 4)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = gradients(model, model, x)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=backward == "stored")
    for result, exact in zip(gradients(compiled, model, x), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=0, atol=1e-10)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, after[key], rtol=0, atol=1e-10)


@pytest.mark.parametrize("streams", ["float", "fixed"])
@pytest.mark.parametrize("name", NAMES)
def test_encode_and_inverse_are_one_graph_each(name, streams):
    model = small_irevnet(name, streams=streams, blocks=(2, 1, 1))
    x = images(model, 3)
    with torch.no_grad():
        encode = torch.compile(model.encode, backend="aot_eager", fullgraph=True)
        inverse = torch.compile(model.inverse, backend="aot_eager", fullgraph=True)
        z = encode(x)
        assert torch.equal(z, model.encode(x))
        torch.testing.assert_close(
            inverse(z), x, rtol=0, atol=2**-17 if streams == "fixed" else 1e-10
        )


def test_an_overflow_in_compiled_code_is_the_error_of_eager_execution():
    model = small_irevnet("irevnet_digits", streams="fixed", fraction_bits=24)
    with torch.no_grad():
        model.blocks[2].residual[-1].weight.fill_(1000.0)
        encode = torch.compile(model.encode, backend="aot_eager", fullgraph=True)
        with pytest.raises(ValueError, match=r"fixed-point overflow after block 2: magnitude"):
            encode(images(model))


class Coder(nn.Module):
    """One method of a network, for torch.export."""

    def __init__(self, network, method):
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, x):
        return getattr(self.network, self.method)(x)


@pytest.mark.parametrize("streams", ["float", "fixed"])
@pytest.mark.parametrize("name", NAMES)
def test_export_of_encode_and_inverse_with_any_batch_size(name, streams):
    model = small_irevnet(name, streams=streams, blocks=(2, 1, 1)).requires_grad_(False)
    x = images(model, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch},)
    encode = torch.export.export(Coder(model, "encode"), (x,), dynamic_shapes=shapes).module()
    z = model.encode(x)
    inverse = torch.export.export(Coder(model, "inverse"), (z,), dynamic_shapes=shapes).module()
    more = images(model, 7)
    z = model.encode(more)
    assert torch.equal(encode(more), z)
    torch.testing.assert_close(inverse(z), model.inverse(z, verify=False), rtol=0, atol=1e-12)


def test_an_exported_program_sees_an_overflow():
    model = small_irevnet("irevnet_digits", streams="fixed").requires_grad_(False)
    x = images(model, 4)
    program = torch.export.export(Coder(model, "encode"), (x,)).module()
    with pytest.raises(RuntimeError, match="fixed-point overflow: 16 fraction_bits are too many"):
        program(x * 1e9)


def test_fixed_streams_cannot_be_transformed():
    model = irevnet.create_model("irevnet_digits", streams="fixed").eval()
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r'torch\.func; use streams="float"'):
        torch.func.grad(lambda x: model(x).sum())(x)

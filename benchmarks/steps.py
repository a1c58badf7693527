"""Training steps, and the settings that determine their speed."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from irevnet.data import FolderImages, TensorImages, load_cifar10, load_digits
from irevnet.network.model import IRevNet

__all__ = [
    "Mode",
    "compile_residuals",
    "forward_pass",
    "gradients",
    "images_for",
    "relative_difference",
    "relu_signs",
    "smooth",
    "trainer",
]


@dataclass(frozen=True)
class Mode:
    """How a network is computed.

    Args:
        bfloat16: whether F and the classifier run under bfloat16 autocast.
        channels_last: whether images and weights are laid out channels last.
        compiled: whether every F is compiled.
    """

    bfloat16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = [
            "bfloat16 autocast" if self.bfloat16 else "float32",
            "channels last" if self.channels_last else "NCHW",
            *(["compiled F"] if self.compiled else []),
        ]
        return ", ".join(parts)

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """The context in which the forward pass runs."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


PLAIN = Mode()


def trainer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mode: Mode = PLAIN,
    optimiser: torch.optim.Optimizer | None = None,
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """One training step as a function without arguments, and its optimiser.

    A step consists of forward pass, cross-entropy, backward pass and stochastic gradient descent
    with momentum, always with the same batch. The function returns nothing, so that it does not
    wait for CUDA.

    Args:
        model: moved to the device of ``images`` and to the layout of ``mode``.
        images: ``(B, C, H, W)``.
        labels: ``(B,)``.
        mode: how to compute.
        optimiser: the model's optimiser, if it already has one.
    """
    model.to(images.device).to(memory_format=mode.memory_format).train()
    images = images.contiguous(memory_format=mode.memory_format)
    if mode.compiled:
        compile_residuals(model)
    optimiser = optimiser or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with mode.autocast(images.device):
            logits = model(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step, optimiser


def forward_pass(model: nn.Module, images: Tensor, mode: Mode) -> Callable[[], None]:
    """The forward pass of a step by itself, in training mode, without gradients."""
    images = images.contiguous(memory_format=mode.memory_format)

    def forward() -> None:
        with torch.no_grad(), mode.autocast(images.device):
            model(images)

    return forward


def compile_residuals(model: nn.Module) -> None:
    """Compiles every F by itself, but not the coupling around it.

    Raises:
        ValueError: if the network is not an i-RevNet.
    """
    if not isinstance(model, IRevNet):
        raise ValueError(f"model must be an IRevNet, got {type(model).__name__}")
    # One graph for each kind of block, for gradients on and off: more than torch expects.
    torch._dynamo.config.recompile_limit = 256
    for block in model.blocks:
        block.residual.compile()


def gradients(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode = PLAIN) -> Tensor:
    """Gradients of the loss with respect to all parameters, in one float64 vector.

    Random states and running statistics are restored, so that two models in the
    same state see the same dropout masks.

    Raises:
        ValueError: if the loss does not depend on a parameter.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        with mode.autocast(images.device):
            logits = model(images)
        functional.cross_entropy(logits.to(images.dtype), labels).backward()
    vectors = []
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise ValueError(f"model must use all of its parameters, got no gradient of {name}")
        vectors.append(parameter.grad.double().flatten())
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return torch.cat(vectors)


def smooth(model: nn.Module) -> nn.Module:
    """Replaces every ReLU layer by SiLU, because a kink turns rounding errors into jumps."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return model


@contextlib.contextmanager
def relu_signs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """By name, where each ReLU layer was active when last evaluated with gradients."""
    signs: dict[str, Tensor] = {}

    def note(name: str, out: Tensor) -> None:
        if torch.is_grad_enabled():
            signs[name] = out > 0

    hooks = [
        layer.register_forward_hook(lambda _layer, _x, out, name=name: note(name, out))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.ReLU)
    ]
    try:
        yield signs
    finally:
        for hook in hooks:
            hook.remove()


def relative_difference(measured: Tensor, exact: Tensor) -> float:
    """Euclidean distance of two vectors over the length of the second one."""
    return ((measured - exact).norm() / exact.norm()).item()


def images_for(
    in_shape: tuple[int, int, int], count: int, device: torch.device, folder: Path
) -> tuple[Tensor, Tensor, str]:
    """Training images of the network's size, their labels, and a name for the images.

    They are digits for the networks that read those, CIFAR-10 if it is in ``folder`` (nothing is
    downloaded), and otherwise noise.
    """
    if in_shape == (1, 8, 8):
        images, labels = load_digits().train.first(count)
        name = "digits"
    elif in_shape == (3, 32, 32) and (folder / "cifar-10-batches-py").is_dir():
        images, labels = _cifar10(folder).first(count)
        name = "CIFAR-10"
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(count, *in_shape, generator=generator)
        labels = torch.randint(10, (count,), generator=generator)
        name = "uniform noise"
    return images.to(device), labels.to(device), name


@functools.cache
def _cifar10(folder: Path) -> TensorImages | FolderImages:
    return load_cifar10(folder).train

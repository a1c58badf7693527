"""What is measured, one function a section; each writes into a dict as it goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import irevnet
from benchmarks.measure import (
    estimate,
    fit_line,
    interleave,
    largest,
    peak_bytes,
    ratios,
    resident_bytes,
)
from benchmarks.steps import (
    PLAIN,
    Mode,
    gradients,
    images_for,
    relative_difference,
    relu_signs,
    smooth,
    trainer,
)
from benchmarks.variants import LABELS, build
from irevnet.analysis.memory import saved_bytes

__all__ = [
    "SECTIONS",
    "Settings",
    "capacity",
    "gradient_agreement",
    "inverse_throughput",
    "memory",
    "step_time",
    "training_throughput",
]

Save = Callable[[], None]
Activation = Callable[[torch.nn.Module], torch.nn.Module]
GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        device: what to measure on.
        data: folder that may hold ``cifar-10-batches-py``.
        skip: variants that cannot be measured here.
        rounds: of every comparison of times.
        blocks: per network, blocks in each stage where depth is not what varies.
        depths: blocks in each stage of ``irevnet_cifar``, for times and peaks.
        byte_depths: the same for saved bytes.
        batch_size: images in a batch where that is not what varies.
        batches: batch sizes, for times and peaks.
        training_steps: before gradients are compared.
        throughput_batch: images in a batch where throughput is compared.
        inverse_batch: the same for ``irevnet_b`` at 64 pixels.
        compile: whether compiled F are tried.
        budgets: memory that something has to fit into, in GiB.
        overrides: per network, arguments that make it smaller; for tests.
    """

    device: torch.device
    data: Path = Path("data")
    skip: tuple[str, ...] = ()
    rounds: int = 5
    blocks: Mapping[str, int] = field(
        default_factory=lambda: {"irevnet_cifar": 18, "irevnet_cifar_bijective": 6}
    )
    depths: tuple[int, ...] = (2, 4, 8, 16)
    byte_depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    batch_size: int = 32
    batches: tuple[int, ...] = (8, 16, 32)
    training_steps: int = 30
    throughput_batch: int = 32
    inverse_batch: int = 8
    compile: bool = True
    budgets: tuple[int, ...] = (2, 8, 24, 80)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """What is measured."""
        return [variant for variant in LABELS if variant not in self.skip]

    def arguments(self, name: str, blocks: int | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Arguments of a network that has ``blocks`` blocks in each stage."""
        count = blocks or self.blocks.get(name)
        depth = {"blocks": (count,) * 3} if count else {}
        return {**depth, **self.overrides.get(name, {}), **more}

    def batch(self, model: torch.nn.Module, count: int) -> tuple[Tensor, Tensor, str]:
        """Images and labels for a network or a variant of one, and what they are."""
        network = getattr(model, "network", model)
        return images_for(network.in_shape, count, self.device, self.data)


def memory(settings: Settings, found: dict[str, Any], save: Save) -> None:
    """Saved bytes against depth; the peak of a whole step against depth and batch size."""
    found["saved"] = {}
    for name in settings.blocks:
        counts = found["saved"][name] = {
            "batch_size": settings.batch_size,
            "blocks_per_stage": list(settings.byte_depths),
            # memcnn keeps tensors where autograd cannot see them.
            "bytes": {v: [] for v in settings.variants if v != "memcnn"},
        }
        for blocks, variant in product(settings.byte_depths, counts["bytes"]):
            model = _built(settings, variant, name, blocks)
            images, _, _ = settings.batch(model, settings.batch_size)
            counts["bytes"][variant].append(saved_bytes(lambda m=model, x=images: m(x), model))
            save()
        native = _saved_at(settings, name, settings.blocks[name])
        counts["at_blocks_per_stage"] = settings.blocks[name]
        counts["at_bytes"] = native
    found["peak"] = {}
    name = "irevnet_cifar"
    for what, sizes in (("batch_size", settings.batches), ("blocks_per_stage", settings.depths)):
        counts = found["peak"][what] = {
            "network": name,
            "sizes": list(sizes),
            **(
                {"blocks_per_stage": settings.blocks[name]}
                if what == "batch_size"
                else {"batch_size": settings.batch_size}
            ),
            "peak": {variant: [] for variant in settings.variants},
            "resident": {variant: [] for variant in settings.variants},
        }
        for size, variant in product(sizes, settings.variants):
            blocks = size if what == "blocks_per_stage" else settings.blocks[name]
            batch_size = size if what == "batch_size" else settings.batch_size
            peak, resident = _step_bytes(settings, variant, name, blocks, batch_size)
            counts["peak"][variant].append(peak)
            counts["resident"][variant].append(resident)
            save()


def step_time(settings: Settings, found: dict[str, Any], save: Save) -> None:
    """Seconds of a training step of every variant, over depth, batch size and network."""
    released, bijective = settings.blocks
    native = settings.blocks[released]
    cases = [
        *((released, native, batch_size, {}) for batch_size in settings.batches),
        (released, native, settings.batch_size, {"dropout": 0.0}),
        (bijective, settings.blocks[bijective], settings.batch_size, {}),
        *((released, blocks, settings.batch_size, {}) for blocks in settings.depths),
    ]
    found["cases"] = []
    for name, blocks, batch_size, more in cases:
        steps = {}
        for variant in settings.variants:
            model = _built(settings, variant, name, blocks, **more)
            images, labels, _ = settings.batch(model, batch_size)
            steps[variant], _ = trainer(model, images, labels)
        seconds = interleave(steps, settings.rounds, settings.device)
        found["cases"].append(
            {
                "network": name,
                "dropout": more.get("dropout", 0.1 if name == released else 0.0),
                "blocks_per_stage": blocks,
                "batch_size": batch_size,
                "seconds": {v: estimate(values) for v, values in seconds.items()},
                "over_stored": _against(seconds, "stored"),
                "over_checkpoint": _against(seconds, "checkpoint"),
                "rounds": seconds,
            }
        )
        save()


def gradient_agreement(settings: Settings, found: dict[str, Any], save: Save) -> None:
    """Gradients of the reversible backward against those of stored activations."""
    found["networks"] = []
    for name in ("irevnet_digits", "irevnet_digits_bijective"):
        try:
            trained = irevnet.create_model(name, pretrained="digits")
        except ValueError as error:
            found.setdefault("left_out", {})[name] = str(error)
            continue
        weights = "trained, from the zoo"
        arguments = _overrides_of(name)
        found["networks"].append(_agreement(settings, name, arguments, trained, weights))
        save()
    released, bijective = settings.blocks
    # Dropout has no weights: those trained with it serve without it, too.
    for name, kinds in ((released, ({}, {"dropout": 0.0})), (bijective, ({},))):
        trained, weights = _trained(settings, name)
        for more in kinds:
            arguments = settings.arguments(name, **more)
            found["networks"].append(_agreement(settings, name, arguments, trained, weights))
            save()
    # What remains of the difference where no ReLU can open or close by a rounding error.
    found["smooth"] = []
    for name in settings.blocks:
        trained, weights = _trained(settings, name, dropout=0.0, activation=smooth)
        arguments = settings.arguments(name, dropout=0.0)
        row = _agreement(settings, name, arguments, trained, weights, activation=smooth)
        found["smooth"].append(row)
        save()


def training_throughput(settings: Settings, found: dict[str, Any], save: Save) -> None:
    """Images a second in training: the released code's way, and the best settings found here.

    A pilot tries all settings; what it chooses is then timed anew beside the released code's way,
    so that the choice does not flatter itself.
    """
    name = "irevnet_cifar"
    modes = [Mode(bfloat16, last) for bfloat16, last in product((False, True), repeat=2)]
    candidates = list(product(("stored", "reversible"), modes))
    pilot = _pilot(settings, name, candidates)
    found.update(
        network=name,
        batch_size=settings.throughput_batch,
        blocks_per_stage=settings.blocks[name],
        pilot={_title(*candidate): estimate(values) for candidate, values in pilot.items()},
    )
    save()
    best = _fastest(pilot)
    if settings.compile:
        compiled = [(v, Mode(m.bfloat16, m.channels_last, compiled=True)) for v, m in best]
        try:
            second = _pilot(settings, name, [*best, *compiled])
            best = _fastest(second)
            found["pilot_compiled"] = {_title(*c): estimate(t) for c, t in second.items()}
        except Exception as error:
            found["pilot_compiled"] = f"{type(error).__name__}: {error}".splitlines()[0]
        save()
    else:
        found["pilot_compiled"] = "not tried"
    chosen = [("stored", PLAIN), *(candidate for candidate in best if candidate[1] != PLAIN)]
    seconds = {_title(*c): t for c, t in _time(settings, name, chosen, settings.rounds).items()}
    released = _title("stored", PLAIN)
    found["chosen"] = {variant: _title(variant, mode) for variant, mode in best}
    found["released"] = released
    found["images_per_second"] = {
        title: estimate(settings.throughput_batch / t for t in values)
        for title, values in seconds.items()
    }
    found["over_released"] = {
        title: estimate(ratios(seconds[released], values)) for title, values in seconds.items()
    }
    found["rounds"] = seconds
    save()
    trained, _ = _trained(settings, name, dropout=0.0)
    found["gradient_difference"] = {
        _title(*candidate): _difference_from_released(settings, name, trained, *candidate)
        for candidate in chosen[1:]
    }
    save()


def inverse_throughput(settings: Settings, found: dict[str, Any], save: Save) -> None:
    """Images a second through ``encode`` and through ``inverse``, evaluation mode."""
    found["cases"] = []
    cases = [
        *((name, settings.arguments(name), settings.batch_size) for name in settings.blocks),
        (
            "irevnet_b",
            settings.arguments("irevnet_b", in_shape=(3, 64, 64)),
            settings.inverse_batch,
        ),
    ]
    for (name, arguments, batch_size), mode in product(cases, (PLAIN, Mode(bfloat16=True))):
        model = irevnet.create_model(name, **arguments).to(settings.device).eval()
        images, _, _ = settings.batch(model, batch_size)
        with torch.no_grad(), mode.autocast(settings.device):
            z = model.encode(images)
            tasks = {
                "encode": lambda m=model, x=images: m.encode(x),
                "inverse": lambda m=model, z=z: m.inverse(z),
            }
            seconds = interleave(tasks, 2 * settings.rounds, settings.device)
        found["cases"].append(
            {
                "network": name,
                "image": list(model.in_shape),
                "mode": str(mode),
                "batch_size": batch_size,
                "images_per_second": {
                    task: estimate(batch_size / t for t in values)
                    for task, values in seconds.items()
                },
                "inverse_over_encode": estimate(ratios(seconds["encode"], seconds["inverse"])),
                "rounds": seconds,
            }
        )
        save()


def capacity(settings: Settings, found: dict[str, Any], save: Save, peak: dict[str, Any]) -> None:
    """The largest batch and the deepest network that fit into so much memory.

    Between two steps there are parameters, buffers and the optimiser's momentum, within one the
    peak on top of them. On the CPU both are straight lines through measured sizes, extrapolated;
    on CUDA sizes are tried until memory runs out.

    Args:
        settings: sizes of the run.
        found: to be filled.
        save: called as it fills.
        peak: what :func:`memory` has found of peaks.
    """
    found["budgets"] = list(settings.budgets)
    found["how"] = (
        "tried until memory ran out"
        if settings.device.type == "cuda"
        else "extrapolated from measured slopes"
    )
    for what, counts in peak.items():
        rows = found[what] = {"lines": {}, "fits": {}}
        for variant in settings.variants:
            total = [
                a + b
                for a, b in zip(counts["peak"][variant], counts["resident"][variant], strict=True)
            ]
            line = fit_line(counts["sizes"], total)
            rows["lines"][variant] = line.as_dict()
            rows["fits"][variant] = [
                _search(settings, what, variant, budget)
                if settings.device.type == "cuda"
                else line.largest_within(budget * GIB)
                for budget in settings.budgets
            ]
            save()


SECTIONS: dict[str, Callable[..., None]] = {
    "memory": memory,
    "capacity": capacity,
    "gradients": gradient_agreement,
    "inverse": inverse_throughput,
    "step_time": step_time,
    "throughput": training_throughput,
}
"""In the order in which they run: what others need first, what takes longest last."""


def _built(
    settings: Settings,
    variant: str,
    name: str,
    blocks: int | None,
    **more: Any,  # noqa: ANN401
) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(variant, name, **settings.arguments(name, blocks, **more))
    return model.to(settings.device)


def _saved_at(settings: Settings, name: str, blocks: int) -> dict[str, int]:
    counts = {}
    for variant in settings.variants:
        if variant != "memcnn":
            model = _built(settings, variant, name, blocks)
            images, _, _ = settings.batch(model, settings.batch_size)
            counts[variant] = saved_bytes(lambda m=model, x=images: m(x), model)
    return counts


def _step_bytes(
    settings: Settings, variant: str, name: str, blocks: int, batch_size: int
) -> tuple[int, int]:
    """Peak of a training step above what is there before it, and what that is."""
    model = _built(settings, variant, name, blocks)
    images, labels, _ = settings.batch(model, batch_size)
    few, optimiser = trainer(model, images[:2], labels[:2])
    few()  # makes the momentum
    step, _ = trainer(model, images, labels, optimiser=optimiser)
    return peak_bytes(step, settings.device), resident_bytes(model, optimiser)


def _against(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float | int]]:
    return {
        variant: estimate(ratios(values, seconds[reference]))
        for variant, values in seconds.items()
        if variant != reference
    }


def _overrides_of(name: str) -> dict[str, Any]:
    """How the zoo's trained network of that name was built."""
    from irevnet.checkpoint import read_tensors
    from irevnet.zoo import pretrained_path

    return read_tensors(pretrained_path(name, "digits"))[1]["overrides"]


def _as_it_is(model: torch.nn.Module) -> torch.nn.Module:
    return model


def _trained(
    settings: Settings,
    name: str,
    activation: Activation = _as_it_is,
    **more: Any,  # noqa: ANN401
) -> tuple[torch.nn.Module, str]:
    """A network after a few steps on images, and how it came about."""
    model = activation(_built(settings, "stored", name, None, **more))
    size = settings.batch_size
    images, labels, data = settings.batch(model, size * settings.training_steps)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model, f"{settings.training_steps} steps with batches of {size}, {data}"


def _agreement(
    settings: Settings,
    name: str,
    arguments: dict[str, Any],
    trained: torch.nn.Module,
    weights: str,
    activation: Activation = _as_it_is,
) -> dict[str, Any]:
    """Relative differences of all parameters' gradients, in training mode, at given weights."""
    state = list(trained.state_dict().values())

    def gradient(dtype: torch.dtype, **how: str) -> tuple[Tensor, dict[str, Tensor]]:
        model = activation(irevnet.create_model(name, **{**arguments, **how}))
        # By order: the names count layers, and a network without dropout has fewer.
        model.load_state_dict(dict(zip(model.state_dict(), state, strict=True)))
        model.to(settings.device, dtype).train()
        images, labels, _ = settings.batch(model, settings.batch_size)
        with relu_signs(model) as signs:
            return gradients(model, images.to(dtype), labels), signs

    stored, signs = gradient(torch.float32)
    reversible, signs_again = gradient(torch.float32, backward="reversible")
    exact, _ = gradient(torch.float64)
    exact_again, _ = gradient(torch.float64, backward="reversible")
    fixed, _ = gradient(torch.float32, streams="fixed")
    fixed_again, _ = gradient(torch.float32, backward="reversible", streams="fixed")
    row = {
        "network": name,
        "dropout": arguments.get("dropout", 0.1 if name == "irevnet_cifar" else 0.0),
        "weights": weights,
        "batch_size": settings.batch_size,
        "float32": relative_difference(reversible, stored),
        "float64": relative_difference(exact_again, exact),
        "fixed": relative_difference(fixed_again, fixed),
        "relus": sum(sign.numel() for sign in signs.values()),
        "relus_that_flip": sum(
            (sign != signs_again[layer]).sum().item() for layer, sign in signs.items()
        ),
    }
    if row["dropout"] == 0:  # masks differ between types
        row["float32_stored_against_float64"] = relative_difference(stored, exact)
        row["float32_reversible_against_float64"] = relative_difference(reversible, exact)
        row["fixed_against_float64"] = relative_difference(fixed, exact)
    return row


Candidate = tuple[str, Mode]


def _title(variant: str, mode: Mode) -> str:
    return f"{variant}, {mode}"


def _time(
    settings: Settings, name: str, candidates: list[Candidate], rounds: int
) -> dict[Candidate, list[float]]:
    steps = {}
    for variant, mode in candidates:
        model = _built(settings, variant, name, None)
        images, labels, _ = settings.batch(model, settings.throughput_batch)
        steps[variant, mode], _ = trainer(model, images, labels, mode)
    return interleave(steps, rounds, settings.device)


def _pilot(
    settings: Settings, name: str, candidates: list[Candidate]
) -> dict[Candidate, list[float]]:
    return _time(settings, name, candidates, max(2, settings.rounds // 2))


def _fastest(pilot: Mapping[Candidate, list[float]]) -> list[Candidate]:
    """The fastest settings of each variant."""
    medians = {candidate: estimate(values)["value"] for candidate, values in pilot.items()}
    return [
        min((c for c in medians if c[0] == variant), key=medians.__getitem__)
        for variant in dict.fromkeys(variant for variant, _ in medians)
    ]


def _difference_from_released(
    settings: Settings, name: str, trained: torch.nn.Module, variant: str, mode: Mode
) -> float:
    """Of gradients without dropout, whose masks would differ, from those in float32."""
    vectors = []
    for how, settled in (("stored", PLAIN), (variant, mode)):
        model = _built(settings, how, name, None, dropout=0.0)
        model.load_state_dict(trained.state_dict())
        images, labels, _ = settings.batch(model, settings.throughput_batch)
        trainer(model, images, labels, settled)
        images = images.contiguous(memory_format=settled.memory_format)
        vectors.append(gradients(model, images, labels, settled))
    return relative_difference(vectors[1], vectors[0])


def _search(settings: Settings, what: str, variant: str, budget: int) -> int:
    """The largest size of which a CUDA device that had so many GiB could make a step."""
    name = "irevnet_cifar"
    total = torch.cuda.get_device_properties(settings.device).total_memory
    if budget * GIB > total:
        return 0

    def fits(size: int) -> bool:
        blocks = size if what == "blocks_per_stage" else settings.blocks[name]
        batch_size = size if what == "batch_size" else settings.batch_size
        try:
            _step_bytes(settings, variant, name, blocks, batch_size)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    torch.cuda.set_per_process_memory_fraction(budget * GIB / total, settings.device)
    try:
        return largest(fits, 512 if what == "blocks_per_stage" else 2**16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, settings.device)

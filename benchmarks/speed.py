"""Seconds of a training step, and images per second in training and through the inverse."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gradients import trained_network
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.settings import BIJECTIVE, RELEASED, Save, Settings, built
from benchmarks.steps import PLAIN, Mode, forward_pass, gradients, relative_difference, trainer
from benchmarks.variants import create_irevnet
from irevnet.zoo import model_arguments

__all__ = ["inverse_throughput", "step_time", "training_throughput"]

Candidate = tuple[str, Mode]


def step_time(settings: Settings, results: dict[str, Any], save: Save) -> None:
    """Seconds of a training step of every variant, over depth, batch size, network and mode.

    The forward pass alone, without gradients, is timed as well. Recovering activations evaluates
    every F once more, so a reversible step takes at least a stored step plus a forward pass.
    """
    native = settings.blocks[RELEASED]
    size = settings.batch_size
    fast = Mode(bfloat16=True, channels_last=True)
    cases = [
        *((RELEASED, native, batch_size, {}, PLAIN) for batch_size in settings.batches),
        (RELEASED, native, size, {"dropout": 0.0}, PLAIN),
        (RELEASED, native, size, {}, fast),
        *((BIJECTIVE, settings.blocks[BIJECTIVE], size, {}, mode) for mode in (PLAIN, fast)),
        *((RELEASED, blocks, size, {}, PLAIN) for blocks in settings.depths),
    ]
    results["cases"] = []
    for name, blocks, batch_size, more, mode in cases:
        arguments = settings.arguments(name, blocks, **more)
        steps = {}
        for variant in settings.variants:
            model = built(settings, variant, name, blocks, **more)
            images, labels, _ = settings.batch(model, batch_size)
            steps[variant], _ = trainer(model, images, labels, mode)
            if variant == "stored":
                steps["forward"] = forward_pass(model, images, mode)
        seconds = interleave(steps, settings.rounds, settings.device)
        forward = seconds.pop("forward")
        results["cases"].append(
            {
                "network": name,
                "dropout": model_arguments(name, **arguments)["dropout"],
                "blocks_per_stage": blocks,
                "batch_size": batch_size,
                "mode": str(mode),
                "seconds": {v: estimate(values) for v, values in seconds.items()},
                "forward_share": estimate(ratios(forward, seconds["stored"])),
                "over_stored": _against(seconds, "stored"),
                "over_checkpoint": _against(seconds, "checkpoint"),
                "rounds": seconds,
            }
        )
        save()


def training_throughput(settings: Settings, results: dict[str, Any], save: Save) -> None:
    """Training images per second, with the released code's settings and the best found here.

    A pilot tries all settings. The chosen ones are then timed again beside the released code's
    settings, so that the choice does not bias the comparison.
    """
    name = RELEASED
    modes = [Mode(bfloat16, last) for bfloat16, last in product((False, True), repeat=2)]
    candidates = list(product(("stored", "reversible"), modes))
    pilot = _pilot(settings, name, candidates)
    results.update(
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
            results["pilot_compiled"] = {_title(*c): estimate(t) for c, t in second.items()}
        except Exception as error:
            results["pilot_compiled"] = f"{type(error).__name__}: {error}".splitlines()[0]
        save()
    else:
        results["pilot_compiled"] = "not tried"
    chosen = [("stored", PLAIN), *(candidate for candidate in best if candidate[1] != PLAIN)]
    seconds = {_title(*c): t for c, t in _time(settings, name, chosen, settings.rounds).items()}
    released = _title("stored", PLAIN)
    results["chosen"] = {variant: _title(variant, mode) for variant, mode in best}
    results["released"] = released
    results["images_per_second"] = {
        title: estimate(settings.throughput_batch / t for t in values)
        for title, values in seconds.items()
    }
    results["over_released"] = {
        title: estimate(ratios(seconds[released], values)) for title, values in seconds.items()
    }
    results["rounds"] = seconds
    save()
    trained, _ = trained_network(settings, name, dropout=0.0)
    results["gradient_difference"] = {
        _title(*candidate): _difference_from_released(settings, name, trained, *candidate)
        for candidate in chosen[1:]
    }
    save()


def inverse_throughput(settings: Settings, results: dict[str, Any], save: Save) -> None:
    """Images per second through ``encode`` and through ``inverse``, in evaluation mode."""
    results["cases"] = []
    cases = [
        *((name, settings.arguments(name), settings.batch_size) for name in settings.blocks),
        (
            "irevnet_b",
            settings.arguments("irevnet_b", in_shape=(3, 64, 64)),
            settings.inverse_batch,
        ),
    ]
    for (name, arguments, batch_size), mode in product(cases, (PLAIN, Mode(bfloat16=True))):
        model = create_irevnet(name, **arguments).to(settings.device).eval()
        images, _, _ = settings.batch(model, batch_size)
        with torch.no_grad(), mode.autocast(settings.device):
            z = model.encode(images)
            tasks = {"encode": partial(model.encode, images), "inverse": partial(model.inverse, z)}
            seconds = interleave(tasks, 2 * settings.rounds, settings.device)
        results["cases"].append(
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


def _against(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float | int]]:
    return {
        variant: estimate(ratios(values, seconds[reference]))
        for variant, values in seconds.items()
        if variant != reference
    }


def _title(variant: str, mode: Mode) -> str:
    return f"{variant}, {mode}"


def _time(
    settings: Settings, name: str, candidates: list[Candidate], rounds: int
) -> dict[Candidate, list[float]]:
    steps = {}
    for variant, mode in candidates:
        model = built(settings, variant, name, None)
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
    """Difference of gradients from those in float32, without dropout, whose masks would differ."""
    vectors = []
    for compared, settled in (("stored", PLAIN), (variant, mode)):
        model = built(settings, compared, name, None, dropout=0.0)
        model.load_state_dict(trained.state_dict())
        images, labels, _ = settings.batch(model, settings.throughput_batch)
        trainer(model, images, labels, settled)
        images = images.contiguous(memory_format=settled.memory_format)
        vectors.append(gradients(model, images, labels, settled))
    return relative_difference(vectors[1], vectors[0])

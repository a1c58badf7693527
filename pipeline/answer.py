"""The short answer of the reproduction: verdicts counted, a scorecard, and what was tested on what.

``README.md`` and the book's first page show it; everything in it is read from
``results/<experiment>/``. An experiment counts once one of its claims has been tested.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.files import read_json
from pipeline.notation import counted, show_bound, show_metric, show_number

__all__ = [
    "SYMBOLS",
    "Budget",
    "Experiment",
    "both_inverses",
    "budget_of",
    "by_benchmark",
    "claims_of",
    "clause",
    "duration",
    "finding",
    "from_paper",
    "load_experiments",
    "read_results",
    "short_answer",
    "tested_on",
    "title",
]

SYMBOLS = {
    "consistent": "\N{CHECK MARK}",
    "inconsistent": "\N{MULTIPLICATION X}",
    "inconclusive": "\N{CIRCLE WITH LEFT HALF BLACK}",
    "not tested here": "\N{EN DASH}",
}
_PRIORITY = {"fails": 0, "open": 1}  # of conditions; the lowest decides
_OURS = "Not in the paper: "
# Names of data sets in params.yaml, and their spelling in a sentence.
_DATA_TITLES = {
    "cifar10": "CIFAR-10",
    "digits": "handwritten digits",
    "ilsvrc2012": "ILSVRC-2012",
    "imagenette": "Imagenette",
}


@dataclass(frozen=True)
class Budget:
    """The cost of an experiment's training.

    Args:
        networks: number of networks trained.
        epochs: of each network.
        seconds: of training, summed over the networks.
        machines: that trained the networks.
        test_images: number of images behind the accuracies; 0 if unknown.
    """

    networks: int
    epochs: tuple[int, ...]
    seconds: float
    machines: tuple[str, ...]
    test_images: int

    def epochs_text(self) -> str:
        """The number of epochs, ``"8"`` or ``"8 to 24"``."""
        low, high = min(self.epochs, default=0), max(self.epochs, default=0)
        return f"{high}" if low == high else f"{low} to {high}"

    def __str__(self) -> str:
        """Such as ``"12 networks of 8 epochs, 7.3 hours of training"``; empty without networks."""
        if not self.networks:
            return ""
        networks = counted(self.networks, "network")
        return f"{networks} of {self.epochs_text()} epochs, {duration(self.seconds)} of training"


@dataclass(frozen=True)
class Experiment:
    """An experiment and its claims.

    Args:
        name: its section in ``params.yaml``.
        title: see :func:`title`.
        rows: the rows of its ``claims.json``.
        budget: the cost of its training.
    """

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    budget: Budget

    def verdict(self, claim_id: str) -> str:
        """The verdict on a claim; ``"not tested here"`` if ``claims.json`` does not have it."""
        verdicts = {row["id"]: row["verdict"] for row in self.rows}
        return verdicts.get(claim_id, "not tested here")

    def judged(self) -> dict[str, str]:
        """Verdicts on the paper's claims by id, without those that benchmarks decide."""
        rows = [row for row in self.rows if from_paper(row) and not by_benchmark(row)]
        return {row["id"]: row["verdict"] for row in rows}

    def counts(self) -> dict[str, int]:
        """The number of claims in :meth:`judged` with each verdict."""
        verdicts = list(self.judged().values())
        return {verdict: verdicts.count(verdict) for verdict in SYMBOLS}


def load_experiments(root: Path) -> list[Experiment]:
    """The experiments with at least one tested claim, longest training first.

    Raises:
        ValueError: if a result file is damaged or incomplete; the message names it.
    """
    experiments = []
    for file in sorted(root.glob("results/*/claims/claims.json")):
        content = read_results(file)
        try:
            tested = [row for row in content["rows"] if row["verdict"] != "not tested here"]
            if tested:
                name = content["experiment"]
                shown = title(name, root)
                experiments.append(Experiment(name, shown, content["rows"], budget_of(name, root)))
        except KeyError as error:
            raise ValueError(f"{file} lacks {error}") from error
    return sorted(experiments, key=lambda one: (-one.budget.seconds, one.name))


def claims_of(experiments: Iterable[Experiment]) -> dict[str, dict[str, Any]]:
    """The rows of all claims by id, each from the first experiment that has the claim."""
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for one in experiments for row in one.rows):
        rows.setdefault(row["id"], row)
    return rows


def title(experiment: str, root: Path) -> str:
    """What readers see of an experiment, such as ``"CIFAR-10 with short training"``.

    Its ``title`` in ``params.yaml``; else the name of its images; else the experiment's name.
    """
    params = root / "params.yaml"
    sections = yaml.safe_load(params.read_text(encoding="utf-8")) if params.is_file() else {}
    section = sections.get(experiment, {})
    own = section.get("title") or _DATA_TITLES.get(section.get("data", {}).get("name"))
    return own or _DATA_TITLES.get(experiment, experiment)


def finding(experiments: Iterable[Experiment], claim_id: str) -> str:
    """Verdicts on a claim, each with the number that decides it; empty if none was tested.

    The number comes from the first condition that fails, else from the first open one, else from
    the first one.
    """
    parts = []
    for one in experiments:
        row = next((row for row in one.rows if row["id"] == claim_id), None)
        if row is None or row["verdict"] == "not tested here":
            continue
        condition = min(row["conditions"], key=lambda c: _PRIORITY.get(c["state"], len(_PRIORITY)))
        parts.append(
            f"**{row['verdict']}** on {one.title}: {_escape(condition['what'])} "
            f"{show_metric(condition)} (rule: {show_bound(condition)})"
        )
    return f"{claim_id} is {'; '.join(parts)}." if parts else ""


def short_answer(experiments: Iterable[Experiment]) -> str:
    """The number of claims with each verdict, by experiment, with the cost of its training."""
    experiments = list(experiments)
    if not experiments:
        return "No experiment has been run yet."
    verdicts = [item for one in experiments for item in one.judged().items()]
    tested = {claim_id for claim_id, verdict in verdicts if verdict != "not tested here"}
    sentences = [f"We tested {counted(len(tested), 'claim')} of the paper."]
    for one in experiments:
        budget = f" ({one.budget})" if one.budget.networks else ""
        names = {"not tested here": "not tested"}
        if one is experiments[0]:
            names["consistent"] = "consistent with our measurements"
        counts = (
            f"{count} {names.get(verdict, verdict)}"
            for verdict, count in one.counts().items()
            if count
        )
        sentences.append(f"On {one.title}{budget}: {', '.join(counts) or 'none'}.")
    sentences += [
        f"A benchmark, not an experiment, decides {claim_id}: {row['verdict']}."
        for claim_id, row in claims_of(experiments).items()
        if from_paper(row) and by_benchmark(row)
    ]
    return " ".join(sentences)


def both_inverses(experiments: Iterable[Experiment]) -> str:
    """Errors of the paper's inverse and of the one that puts known channels back; may be empty."""
    parts = []
    for one in experiments:
        measured = {c["metric"]: c for row in one.rows for c in row["conditions"] if "value" in c}
        plain, restored = (
            measured.get(f"inversion.irevnet.{name}relative_error") for name in ("plain.", "")
        )
        if plain and restored:
            errors = (show_number([c["value"]], 2).on_one_line() for c in (plain, restored))
            parts.append(f"{' and '.join(errors)} on {one.title}")
    if not parts:
        return ""
    return (
        "Mean relative error of reconstructions by an injective network, with the paper's inverse "
        f"and with channels that are the same for every image put back: {'; '.join(parts)}."
    )


def tested_on(experiments: Sequence[Experiment]) -> str:
    """Images, networks and hardware of each experiment, and what no experiment covers."""
    parts = []
    for one in experiments:
        images = f", {one.budget.test_images:,} test images" if one.budget.test_images else ""
        machines = f", trained on {', '.join(one.budget.machines)}" if one.budget.machines else ""
        budget = f": {one.budget}" if one.budget.networks else ""
        parts.append(f"`{one.name}` ({one.title}){budget}{images}{machines}.")
    if experiments and _DATA_TITLES["ilsvrc2012"] not in {one.title for one in experiments}:
        parts.append(
            f"Nothing was tested on {_DATA_TITLES['ilsvrc2012']} with its thousand classes, the "
            "source of the paper's evidence."
        )
    return " ".join(parts)


def clause(row: dict[str, Any]) -> str:
    """A claim up to its colon, followed by ``(ours)`` if the paper does not make it."""
    text = row["claim"].removeprefix(_OURS).partition(": ")[0].rstrip(". ")
    return f"{text[0].upper()}{text[1:]}{'' if from_paper(row) else ' (ours)'}"


def from_paper(row: dict[str, Any]) -> bool:
    """Whether the paper makes the claim; a few are ours."""
    return not row["claim"].startswith(_OURS)


def by_benchmark(row: dict[str, Any]) -> bool:
    """Whether a benchmark decides a claim, once for all experiments."""
    metrics = [condition["metric"] for condition in row["conditions"]]
    return bool(metrics) and all(metric.startswith("benchmarks.") for metric in metrics)


def _escape(text: str) -> str:
    return re.sub(r"([<*_`$])", r"\\\1", text)


def duration(seconds: float) -> str:
    """A duration in hours, minutes or seconds, rounded for a reader: ``"7.3 hours"``."""
    units = {"hour": 3600, "minute": 60, "second": 1}
    unit = next((unit for unit, length in units.items() if seconds >= length), "second")
    number = seconds / units[unit]
    digits = 1 if unit != "second" and number < 10 else 0
    return counted(f"{number:.{digits}f}".removesuffix(".0"), unit)


def read_results(file: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        ValueError: if it cannot be read; the message names it.
    """
    try:
        return read_json(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def budget_of(experiment: str, root: Path) -> Budget:
    """The cost of an experiment's training, from the records of its runs.

    Raises:
        ValueError: if a record is damaged; the message names it.
    """
    files = sorted(root.glob(f"results/{experiment}/train/*/provenance.json"))
    records = [read_results(file) for file in files]
    # Networks trained by others cost nothing here.
    runs = [run for run in records if "training" in run["parameters"]]
    metrics = [file.with_name("metrics.json") for file in files]
    images = [read_results(file).get("test_images", 0) for file in metrics if file.is_file()]
    machines = (re.sub(r"\(R\)", "", run["gpu"] or run["processor"]) for run in records)
    return Budget(
        networks=len(runs),
        epochs=tuple(run["parameters"]["training"]["epochs"] for run in runs),
        # Networks trained in parallel each count in full.
        seconds=sum(run.get("timing", {}).get("training", run["seconds"]) for run in runs),
        machines=tuple(dict.fromkeys(machines)),
        test_images=max(images, default=0),
    )

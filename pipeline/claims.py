"""The paper's claims, and verdicts on them by the rules of ``params.yaml``."""

import json
from pathlib import Path
from typing import Any

from pipeline.params import ROOT, Rule, load_params

__all__ = ["CLAIMS", "judge", "judge_claims"]

# What the paper claims and what it gives as evidence (Jacobsen, Smeulders, Oyallon, ICLR 2018,
# https://arxiv.org/abs/1802.07088). Numbers of the paper are quoted, ours are measured.
CLAIMS = {
    "C1": (
        "The input is recovered exactly from the last representation, with no training of an "
        "inverse.",
        "Reconstructed ILSVRC images; mean relative error about 5e-6 in float32 (quoted from "
        "memory of the text)",
    ),
    "C2": (
        "Keeping all information costs no accuracy: i-RevNet classifies like ResNet and RevNet of "
        "similar depth or size.",
        "ILSVRC top-1 error: ResNet-50 24.7%, RevNet-56 25.2%, i-RevNet (a) 24.7%, (b) 26.7%",
    ),
    "C3": (
        "Linear invertible downsampling replaces pooling and strides.",
        "The architecture trains at ILSVRC scale",
    ),
    "C4": (
        "Local inversion is ill-conditioned all the same: the Jacobian's singular values fall off "
        "fast, few directions carry most of the energy.",
        "Sorted, normalised singular values at several images",
    ),
    "C5": (
        "Linear interpolation between two final representations, inverted, is a path of images.",
        "Reconstructed paths on several image sets",
    ),
    "C6": (
        "Depth separates and contracts progressively: a linear SVM and a 1-nearest-neighbour "
        "classifier improve steadily with depth.",
        "Accuracy against depth for both classifiers",
    ),
    "C7": (
        "What discriminates lives in few dimensions: on few principal components of the final "
        "features both classifiers reach their plateau.",
        "Accuracy against number of components, beside the cumulated variance",
    ),
    "C8": (
        "Activations need not be stored in training: memory does not grow with depth.",
        "Stated; the released code does not do it",
    ),
    "C9": (
        "The inverse comes for free: it is an i-RevNet too.",
        "The algorithm's figure",
    ),
}


def judge_claims(experiment: str) -> list[dict[str, Any]]:
    """One row per claim: the paper's evidence, ours, the rule and the verdict.

    Args:
        experiment: a section of ``params.yaml`` whose other results are there.

    Returns:
        Rows with ``id``, ``claim``, ``paper``, ``ours``, ``n``, ``rule``, ``verdict``, ``source``
        and ``conditions``.
    """
    rules = load_params().sections[experiment].claims
    results = ROOT / "results" / experiment
    rows = []
    for claim_id, (claim, paper) in CLAIMS.items():
        conditions = [judge(rule, results) for rule in rules.get(claim_id, [])]
        sources = sorted({c["source"] for c in conditions if c["holds"] is not None})
        rows.append(
            {
                "id": claim_id,
                "claim": claim,
                "paper": paper,
                "ours": "; ".join(f"{c['what']}: {c['measured']}" for c in conditions),
                "n": max((c["n"] for c in conditions if c["n"] is not None), default=None),
                "rule": "; ".join(f"{c['what']} {c['bound']}" for c in conditions),
                "verdict": verdict([c["holds"] for c in conditions]),
                "source": sources,
                "conditions": conditions,
            }
        )
    return rows


def verdict(holds: list[bool | None]) -> str:
    """The verdict on a claim from which of its conditions hold; None is not measured."""
    if not holds or None in holds:
        return "not tested here"
    if all(holds):
        return "reproduced"
    return "partly" if any(holds) else "not reproduced"


def judge(rule: Rule, results: Path) -> dict[str, Any]:
    """One condition: the measured number against its bound.

    Args:
        rule: ``metric`` is ``QUESTION.KEY...``.
        results: folder of an experiment's results.

    Returns:
        ``what``, ``bound`` and ``measured`` as texts, ``value``, ``low`` and ``high``, ``n``,
        ``source`` (the file, relative to the experiment) and ``holds``, which is None where
        nothing was measured.
    """
    question, *keys = rule.metric.split(".")
    source = f"{question}/metrics.json"
    path = results / source
    measured: Any = json.loads(path.read_text()) if path.is_file() else None
    for key in keys:
        measured = measured.get(key) if isinstance(measured, dict) else None
    condition = {"what": rule.what, "metric": rule.metric, "bound": _bound(rule), "source": source}
    if measured is None:
        return condition | {"measured": "not measured", "n": None, "holds": None}
    if not isinstance(measured, dict):
        measured = {"value": measured, "low": measured, "high": measured, "n": None}
    holds = (rule.at_most is None or measured["high"] <= rule.at_most) and (
        rule.at_least is None or measured["low"] >= rule.at_least
    )
    return condition | measured | {"measured": _text(measured), "holds": holds}


def _bound(rule: Rule) -> str:
    bounds = []
    if rule.at_least is not None:
        bounds.append(f"at least {rule.at_least:g}")
    if rule.at_most is not None:
        bounds.append(f"at most {rule.at_most:g}")
    return " and ".join(bounds)


def _text(measured: dict[str, Any]) -> str:
    value = f"{measured['value']:.3g}"
    if measured["low"] == measured["high"]:
        return value
    return f"{value} [{measured['low']:.3g}, {measured['high']:.3g}]"

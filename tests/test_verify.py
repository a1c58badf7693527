"""Reruns in a copy and reports of changes, in a small repository whose pipeline is a script."""

import json
import subprocess

import pytest

from pipeline import verify
from pipeline.copies import copy_repository
from pipeline.verify import IDENTICAL, NOT_RUN, NUMBERS, VERDICTS, main

# Stands in for pipeline/repro.py: it writes the results that the file `settings` asks for.
REPRO = """
import json, os, pathlib, sys
results = pathlib.Path("results", sys.argv[1])
assert not (results / "claims").exists(), "results must be removed first"
assert os.environ["PYTHONPATH"] == os.getcwd()
value, verdict = pathlib.Path("settings").read_text().split()
if value == "image":
    value = pathlib.Path("data", "image").read_text()
if value == "fails":
    sys.exit("no such value")
(results / "claims").mkdir()
row = {"id": "C1", "verdict": verdict, "value": float(value)}
(results / "claims" / "claims.json").write_text(json.dumps({"rows": [row]}))
"""


def git(root, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(verify.tempfile, "tempdir", None)
    root = tmp_path / "a repository"
    (root / "pipeline").mkdir(parents=True)
    (root / "pipeline" / "__init__.py").touch()
    (root / "pipeline" / "repro.py").write_text(REPRO)
    (root / "settings").write_text("0.5 consistent")
    write(root, "digits", value=0.5, verdict="consistent")
    (root / "results" / "digits" / "dvc.lock").write_text("lock")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def write(root, experiment, value, verdict):
    folder = root / "results" / experiment / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    row = {"id": "C1", "verdict": verdict, "value": value}
    (folder / "claims.json").write_text(json.dumps({"rows": [row]}))


def commit(root, settings):
    (root / "settings").write_text(settings)
    git(root, "commit", "--quiet", "--all", "--message", "settings")


def test_equal_results_are_identical_and_the_copy_is_removed(repository, tmp_path, capfd):
    before = {path: path.read_bytes() for path in repository.rglob("results/**/*.json")}
    assert main(["--experiment", "digits"], repository) == IDENTICAL
    assert "digits: identical: all 1 result file" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in repository.rglob("results/**/*.json")} == before
    assert list(tmp_path.iterdir()) == [repository]


def test_a_number_that_differs_is_told_from_a_verdict(repository, capfd):
    commit(repository, "0.25 consistent")
    assert main(["--experiment", "digits"], repository) == NUMBERS
    assert "| rows.C1.value | 0.5 | 0.25 | 5.0e-01 |" in capfd.readouterr().out
    commit(repository, "0.25 inconclusive")
    assert main(["--experiment", "digits"], repository) == VERDICTS
    assert "| rows.C1.verdict | consistent | inconclusive |  |" in capfd.readouterr().out


def test_uncommitted_changes_are_not_verified_and_that_is_said(repository, capfd):
    (repository / "settings").write_text("0.75 inconclusive")
    assert main(["--experiment", "digits"], repository) == IDENTICAL
    assert "Uncommitted changes are not verified" in capfd.readouterr().out


def test_a_failing_stage_is_not_reported_as_a_difference(repository, capfd):
    commit(repository, "fails x")
    assert main(["--experiment", "digits"], repository) == NOT_RUN
    assert "pipeline.repro digits failed" in capfd.readouterr().err


def test_exit_statuses_of_python_and_argparse_mean_no_result(repository):
    """Python ends with 1 after an uncaught error, argparse with 2 after a wrong option."""
    assert NOT_RUN == 1
    assert not {1, 2}.intersection({IDENTICAL, NUMBERS, VERDICTS})


def test_a_copy_reads_the_images_of_the_repository(repository):
    (repository / "data").mkdir()
    (repository / "data" / "image").write_text("0.5")
    commit(repository, "image consistent")
    assert main(["--experiment", "digits"], repository) == IDENTICAL


def test_an_unknown_experiment_is_named(repository, capfd):
    assert main(["--experiment", "mnist"], repository) == NOT_RUN
    assert "mnist" in capfd.readouterr().err


def test_the_copy_can_be_kept(repository, tmp_path, capfd):
    assert main(["--experiment", "digits", "--keep"], repository) == IDENTICAL
    (kept,) = set(tmp_path.iterdir()) - {repository}
    assert f"The copy: {kept}" in capfd.readouterr().out
    assert (kept / "copy" / "settings").is_file()


def test_without_git_the_files_are_copied(repository, tmp_path):
    (repository / ".git").rename(tmp_path / "away")
    for name in (".venv", "data", "irevnet/data", "results/digits/data", "irevnet/__pycache__"):
        (repository / name).mkdir(parents=True)
        (repository / name / "file").touch()
    copy_repository(repository, tmp_path / "copy")
    # Only at the top is `data` the folder of images.
    assert (tmp_path / "copy/irevnet/data/file").is_file()
    assert (tmp_path / "copy/results/digits/data/file").is_file()
    assert not (tmp_path / "copy/irevnet/__pycache__").exists()
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "irevnet",
        "pipeline",
        "results",
        "settings",
    ]


def test_files_that_git_ignores_are_not_compared(repository, capfd):
    """For example weights that are not published, such as those of the trials of a recipe."""
    (repository / ".gitignore").write_text("weights.safetensors\n")
    (repository / "results/digits/weights.safetensors").write_bytes(b"of no commit")
    assert main(["--against", "HEAD"], repository) == IDENTICAL


def test_results_are_compared_with_those_of_a_commit(repository, capfd):
    assert main(["--against", "HEAD"], repository) == IDENTICAL
    write(repository, "digits", value=0.5, verdict="inconclusive")
    write(repository, "new", value=1.0, verdict="consistent")
    assert main(["--against", "HEAD"], repository) == VERDICTS
    report = capfd.readouterr().out
    assert "rows.C1.verdict | consistent | inconclusive" in report
    assert "new: 0 of 1 result files" in report
    assert main(["--against", "no-such-commit"], repository) == NOT_RUN
    assert "no-such-commit" in capfd.readouterr().err

"""Rehearsals on another kind of processor, in a small repository whose training is a script."""

import json
import subprocess

import pytest

from pipeline.rehearsal import published

NAME = "results/digits/rehearsal/resnet.json"
# Stands in for the training code: its bits depend on the machine, whose kind a file contains.
CODE = """
import json, pathlib
def rehearse(experiment, family):
    machine = pathlib.Path({machine!r}).read_text()
    return {{"weights": f"{bits} of {{family}} on {{machine}}"}}
"""


def git(root, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def machine(tmp_path):
    """The file with the kind of this machine's processor."""
    path = tmp_path / "machine"
    path.write_text("one")
    return path


@pytest.fixture
def repository(tmp_path, machine):
    root = tmp_path / "a repository"
    (root / "pipeline").mkdir(parents=True)
    (root / "pipeline/__init__.py").touch()
    (root / "pipeline/run.py").write_text("def notebook_environment(*_): return {}")
    (root / "pipeline/rehearsal.py").write_text(CODE.format(machine=str(machine), bits="bits"))
    (root / NAME).parent.mkdir(parents=True)
    (root / NAME).write_text(json.dumps({"weights": "bits of resnet on one"}))
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    (root / NAME).unlink()  # as DVC does before it runs a stage
    return root


def test_the_same_bits_are_the_published_ones(repository):
    result = {"weights": "bits of resnet on one"}
    assert published("digits", "resnet", result, repository) == result


def test_on_another_processor_code_that_computes_the_same_keeps_the_published_bits(
    repository, machine, capfd
):
    machine.write_text("two")
    kept = published("digits", "resnet", {"weights": "bits of resnet on two"}, repository)
    assert kept == {"weights": "bits of resnet on one"}
    assert "gives the same: kept" in capfd.readouterr().out


def test_code_that_computes_something_else_replaces_the_published_bits(repository, machine, capfd):
    machine.write_text("two")
    result = {"weights": "other bits of resnet on two"}
    assert published("digits", "resnet", result, repository) == result
    assert "the networks must be trained again" in capfd.readouterr().out


def test_the_code_that_counts_is_that_of_the_commit_of_the_published_file(repository, machine):
    """Commits since then may have changed bits; their code is not what trained."""
    code = CODE.format(machine=str(machine), bits="other bits")
    (repository / "pipeline/rehearsal.py").write_text(code)
    git(repository, "commit", "--quiet", "--message", "more", "pipeline")
    machine.write_text("two")
    result = {"weights": "other bits of resnet on two"}
    assert published("digits", "resnet", result, repository) == result


def test_if_the_published_code_does_not_run_the_result_is_new(repository, capfd):
    git(repository, "rm", "--quiet", "--cached", "pipeline/rehearsal.py")
    git(repository, "add", "--all", "results")
    (repository / NAME).parent.mkdir(parents=True, exist_ok=True)
    (repository / NAME).write_text("{}")
    git(repository, "add", "results")
    git(repository, "commit", "--quiet", "--message", "no code")
    assert published("digits", "resnet", {"weights": "b"}, repository) == {"weights": "b"}
    assert "does not run here" in capfd.readouterr().out


def test_without_git_or_a_published_file_the_result_stands(repository, tmp_path):
    assert published("digits", "revnet", {"weights": "b"}, repository) == {"weights": "b"}
    (repository / ".git").rename(tmp_path / "away")
    assert published("digits", "resnet", {"weights": "b"}, repository) == {"weights": "b"}


def test_a_damaged_published_file_is_named(repository, capfd):
    (repository / NAME).write_text('{"weights": ')
    git(repository, "add", "results")
    git(repository, "commit", "--quiet", "--message", "damaged")
    assert published("digits", "resnet", {"weights": "b"}, repository) == {"weights": "b"}
    assert f"{NAME}: the committed file is damaged" in capfd.readouterr().out

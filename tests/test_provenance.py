"""Records of runs, and that a rerun with equal results leaves git clean."""

import json
import os
import subprocess

import pytest

from pipeline import provenance, summary
from pipeline.provenance import describe_source, keep_committed
from pipeline.repro import allow_without_git
from pipeline.run import notebook_environment


def git(root, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def record(started, command="python -m pipeline.run inversion"):
    return json.dumps({"command": command, "parameters": {"n": 1}, "started": started})


@pytest.fixture
def folder(tmp_path):
    """The folder of a result in a git repository, with a record that a rerun has changed."""
    folder = tmp_path / "results" / "toy" / "in version"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("1")
    (folder / "provenance.json").write_text(record("Monday"))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "results")
    (folder / "provenance.json").write_text(record("Tuesday"))
    return folder


def started(folder):
    return json.loads((folder / "provenance.json").read_text())["started"]


def test_the_record_of_an_equal_result_stays_as_committed(folder, tmp_path):
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").write_text("1")
    assert keep_committed(folder, tmp_path)
    assert started(folder) == "Monday"
    assert git(tmp_path, "status", "--porcelain") == ""


def change_a_file(folder):
    (folder / "metrics.json").write_text("2")


def remove_a_file(folder):
    (folder / "metrics.json").unlink()


def add_a_file(folder):
    (folder / "new.png").touch()


def add_an_ignored_file(folder):
    (folder.parent.parent.parent / ".gitignore").write_text("*.safetensors\n")
    (folder / "weights.safetensors").touch()


def stage_a_change(folder):
    (folder / "metrics.json").write_text("2")
    git(folder, "add", ".")
    (folder / "provenance.json").write_text(record("Tuesday"))


def run_another_command(folder):
    (folder / "provenance.json").write_text(record("Tuesday", command="python other.py"))


def damage_the_record(folder):
    (folder / "provenance.json").write_text('{"started": "Tuesday"}')


@pytest.mark.parametrize(
    "change",
    [
        change_a_file,
        remove_a_file,
        add_a_file,
        add_an_ignored_file,
        stage_a_change,
        run_another_command,
        damage_the_record,
    ],
)
def test_the_record_of_a_changed_result_is_replaced(change, folder, tmp_path):
    change(folder)
    assert not keep_committed(folder, tmp_path)
    assert started(folder) == "Tuesday"


def test_without_a_repository_the_record_is_that_of_the_run(tmp_path):
    (tmp_path / "provenance.json").write_text(record("Tuesday"))
    assert not keep_committed(tmp_path, tmp_path)
    assert started(tmp_path) == "Tuesday"


def test_without_a_repository_the_source_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *arguments, root=None: None)
    assert describe_source("digits") == {"commit": None, "uncommitted_changes": None}


def test_the_summary_counts_what_was_computed_and_what_differs(folder, tmp_path):
    os.utime(folder / "metrics.json", (0, 0))
    summary.begin(tmp_path)
    line = summary.summary("toy", tmp_path)
    assert line.startswith("Results of toy: 1 file, all up to date, nothing computed. All equal")
    (folder / "metrics.json").write_text("1")
    assert "1 file, 1 recomputed. All equal" in summary.summary("toy", tmp_path)
    (folder / "metrics.json").write_text("2")
    (folder / "new.png").touch()
    line = summary.summary("toy", tmp_path)
    assert "2 files, 2 recomputed. Equal to the published ones, byte for byte: 0; " in line
    assert "different or missing: 2" in line


def test_the_summary_without_a_repository_says_so(tmp_path):
    (tmp_path / "results" / "toy").mkdir(parents=True)
    assert "Without a git repository" in summary.summary("toy", tmp_path)


def test_dvc_is_told_where_there_is_no_git(tmp_path):
    config = tmp_path / ".dvc" / "config.local"
    config.parent.mkdir()
    allow_without_git(tmp_path)
    assert "no_scm = true" in config.read_text()
    (tmp_path / ".git").mkdir()
    allow_without_git(tmp_path)
    assert not config.exists()
    config.write_text("[core]\n    remote = own\n")
    allow_without_git(tmp_path)
    assert "own" in config.read_text()


def test_notebooks_get_folders_that_do_not_depend_on_where_they_run(monkeypatch, tmp_path):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IREVNET_DATA", "images")
    environment = notebook_environment("data", "digits")
    # A relative path is relative to the root of the repository, wherever the command is given.
    assert environment["IREVNET_DATA"] == str(provenance.ROOT / "images")
    assert environment["MPLCONFIGDIR"] == str(provenance.ROOT / "scratch" / "matplotlib")

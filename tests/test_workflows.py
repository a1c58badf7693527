"""The files that GitHub, Zenodo and editors read: valid, consistent, and pinned."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read_yaml(path):
    return yaml.safe_load(path.read_text())


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_workflows_for_tests_results_every_month_and_releases():
    assert [path.stem for path in WORKFLOWS] == ["book", "monthly", "release", "results"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_complete_and_has_few_permissions(path):
    workflow = read_yaml(path)
    assert workflow["name"]
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True]
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert job["runs-on"] == "ubuntu-latest"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path):
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert len(uses) == sum("uses" in step for step in steps(read_yaml(path)))
    for action in uses:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_an_action_has_one_version_everywhere():
    uses = {use for path in WORKFLOWS for use in re.findall(r"uses: (.*)", path.read_text())}
    assert len({use.split("@")[0] for use in uses}) == len(uses)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_contain_no_text_that_others_write(path):
    for step in steps(read_yaml(path)):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_for(path):
    form = read_yaml(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form.keys() >= {"name", "description", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_what_zenodo_shows_is_what_the_citation_says():
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = read_yaml(ROOT / "CITATION.cff")
    for key in ("title", "license", "keywords"):
        assert zenodo[key] == citation[key]
    assert [one["name"] for one in zenodo["creators"]] == [a["name"] for a in citation["authors"]]
    (related,) = zenodo["related_identifiers"]
    assert related["identifier"] == citation["references"][0]["identifiers"][0]["value"]


def test_the_change_log_has_a_section_on_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == VERSION
    assert len(headings) == len(set(headings))


def test_the_development_container_has_an_allowed_python_and_makes_the_environment():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].startswith("python:3.11")
    assert container["postCreateCommand"] == "make environment"


def test_dependabot_watches_the_actions():
    (update,) = read_yaml(ROOT / ".github" / "dependabot.yml")["updates"]
    assert update["package-ecosystem"] == "github-actions"

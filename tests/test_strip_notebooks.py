import json

import nbformat
import pytest

from pipeline.strip_notebooks import main, strip_notebook


def code(source, **fields):
    return {
        "cell_type": "code",
        "execution_count": 3,
        "metadata": {},
        "outputs": [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}],
        "source": source,
        **fields,
    }


@pytest.fixture
def executed():
    """A notebook as VS Code and papermill may leave it."""
    return {
        "cells": [
            {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# T\n", "text"]},
            code("n = 1", id="p", metadata={"tags": ["parameters"], "execution": {"a": "b"}}),
            code("n", id="p", metadata={"collapsed": True, "tags": []}),
            code("n + 1"),
            code("n + 2", id="not valid!", metadata={"mystnb": {"figure": {"name": "f"}}}),
        ],
        "metadata": {
            "kernelspec": {"display_name": ".venv", "language": "python", "name": "my-kernel"},
            "language_info": {"name": "python", "version": "3.12.9"},
            "papermill": {"start_time": "now"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }


@pytest.fixture
def path(tmp_path, executed):
    path = tmp_path / "some question.ipynb"
    path.write_text(json.dumps(executed))
    return path


def test_what_a_run_leaves_is_removed_and_the_rest_stays(executed):
    cells = strip_notebook(executed, "question")["cells"]
    assert [cell["source"] for cell in cells] == [cell["source"] for cell in executed["cells"]]
    assert all(cell["outputs"] == [] for cell in cells[1:])
    assert all(cell["execution_count"] is None for cell in cells[1:])
    assert [cell["metadata"] for cell in cells] == [
        {},
        {"tags": ["parameters"]},
        {},
        {},
        {"mystnb": {"figure": {"name": "f"}}},
    ]


def test_metadata_does_not_depend_on_who_ran_it(executed):
    metadata = strip_notebook(executed, "question")["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}
    assert set(metadata) == {"kernelspec", "language_info"}


def test_good_ids_stay_and_others_are_made_from_name_and_position(executed):
    ids = [cell["id"] for cell in strip_notebook(executed, "a question")["cells"]]
    assert ids == ["title", "p", "a-question-2", "a-question-3", "a-question-4"]


def test_a_made_id_does_not_take_one_that_is_there(executed):
    executed["cells"][4]["id"] = "question-2"
    ids = [cell["id"] for cell in strip_notebook(executed, "question")["cells"]]
    assert ids == ["title", "p", "question-2x", "question-3", "question-2"]


def test_attachments_stay(executed):
    attachments = {"a.png": {"image/png": "iVBORw0KGgo="}}
    executed["cells"][0]["attachments"] = attachments
    assert strip_notebook(executed, "question")["cells"][0]["attachments"] == attachments


def test_the_file_is_a_valid_notebook_and_a_second_run_changes_nothing(path, capsys):
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"stripped {path}\n"
    text = path.read_text()
    assert text.endswith("}\n")
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text() == text


def test_check_names_the_file_and_changes_nothing(path, capsys):
    text = path.read_text()
    assert main(["--check", str(path)]) == 1
    assert f"{path} is not stripped" in capsys.readouterr().err
    assert path.read_text() == text
    main([str(path)])
    assert main(["--check", str(path)]) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "nbformat"),
        ('{"nbformat": 3, "worksheets": []}', "nbformat must be 4, got 3"),
        ('{"nbformat": 4, "cells": [{"cell_type": "odd", "source": ""}]}', "odd"),
    ],
)
def test_what_is_not_a_notebook_is_named_and_left(tmp_path, capsys, text, reason):
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert f"{path} is not a notebook" in error
    assert reason in error
    assert path.read_text() == text


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "missing.ipynb")]) == 1
    assert "missing.ipynb" in capsys.readouterr().err


def test_the_notebooks_of_the_repository_are_stripped():
    assert main(["--check"]) == 0

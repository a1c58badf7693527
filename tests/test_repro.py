"""Which stages run side by side, and how another experiment is chosen."""

import subprocess

import pytest
import yaml

from pipeline import repro as module
from pipeline.params import ROOT, ParamsError, load_params
from pipeline.repro import main, selected


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A copy of ``params.yaml`` that the module works on."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(module, "load_params", lambda given=path: load_params(given))
    return path


@pytest.fixture
def started(monkeypatch):
    """Commands instead of processes; each notes which ones were running when it began."""
    found = []

    class Process:
        status = 0

        def __init__(self, command, cwd):
            assert cwd == ROOT
            assert "--wait-for-lock" in command
            self.targets = command[command.index("repro") + 1 :]
            self.over = False
            found.append((self.targets, [p.targets for p in running if not p.over]))
            running.append(self)

        def wait(self):
            self.over = True
            return self.status if any("resnet" in target for target in self.targets) else 0

    running = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    return found, Process


def stages():
    return set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_every_stage_that_has_no_other_to_wait_for_runs_beside_others(params, started):
    found, _ = started
    assert module.repro(jobs=2) == 0
    targets = [target for command, _ in found for target in command if "@" in target]
    assert len(targets) == len(set(targets))
    assert {target.split("@")[0] for target in targets} == stages() - {"claims", "trivial"}
    assert sum(target.startswith("train@digits-") for target in targets) == 20
    assert [len(others) for _, others in found] == [0, 1, 0, 0, 1, 0]
    assert found[-1][0] == []  # all that is left


def test_nothing_waits_for_a_stage_that_runs_beside_it(params, started):
    found, _ = started
    module.repro(jobs=3)
    order = {target: n for n, (command, _) in enumerate(found) for target in command}
    beside = [
        {target.split("@")[0] for running in [command, *others] for target in running}
        for command, others in found
    ]
    assert order["train@digits-resnet-4"] < order["weights@digits"] < order["inversion@digits"]
    assert not any({"weights@digits", "train"} <= names for names in beside)


@pytest.mark.parametrize("status", [3, -9])
def test_a_failure_ends_the_run_with_its_status(params, started, status):
    found, process = started
    process.status = status
    assert module.repro(jobs=2) == status
    assert not any("weights@digits" in command for command, _ in found)


def test_force_is_passed_on(params, started):
    found, _ = started
    module.repro(jobs=1, force=True)
    assert all("--force" in command for command, _ in found[:-1])


def test_an_experiment_is_listed_for_as_long_as_it_runs(params):
    before = params.read_text()
    with selected("cifar10_cpu", params):
        inside = load_params(params)
        assert inside.experiments == ["cifar10_cpu"]
        assert inside.seeds == inside.sections["cifar10_cpu"].seeds == [0, 1, 2]
        assert inside.beyond.trivial == ["cifar10_cpu"]
        assert inside.beyond.stability == ["cifar10_cpu"]
        assert "# An experiment is a section" in params.read_text()
    assert params.read_text() == before


def test_a_section_that_an_experiment_does_not_have_is_not_listed(params):
    text = params.read_text()
    start = text.index("  trivial:\n", text.index("\ncifar10_cpu:\n"))
    params.write_text(text[:start] + text[text.index("  stability:\n", start) :])
    with selected("cifar10_cpu", params):
        inside = load_params(params)
        assert inside.beyond.trivial == []
        assert inside.beyond.stability == ["cifar10_cpu"]


def test_the_list_is_put_back_after_an_error(params):
    before = params.read_text()
    with pytest.raises(RuntimeError), selected("cifar10", params):
        raise RuntimeError
    assert params.read_text() == before


def test_an_unknown_experiment_is_named(params):
    with (
        pytest.raises(ParamsError, match=r"must be one of \['cifar10'.*got 'mnist'"),
        selected("mnist", params),
    ):
        pass


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_as_many_at_a_time_as_there_are_cores_but_not_more_than_four(monkeypatch, cores, jobs):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert module._default_jobs(load_params()) == jobs


def test_a_gpu_takes_one_at_a_time(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert module._default_jobs(load_params()) == 1


def test_no_jobs_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err

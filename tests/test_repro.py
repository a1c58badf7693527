"""Which stages run side by side, and how another experiment is chosen."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from pipeline import repro as module
from pipeline.params import ROOT, load_params
from pipeline.repro import main


@pytest.fixture
def started(monkeypatch):
    """Records commands instead of running them, each with those that were running at its start."""
    waves = []

    class Process:
        status = 0

        def __init__(self, command, cwd, start_new_session):
            assert cwd == ROOT
            assert start_new_session
            assert "--wait-for-lock" in command
            self.targets = command[command.index("repro") + 1 :]
            self.over = False
            waves.append((self.targets, [p.targets for p in running if not p.over]))
            running.append(self)

        def wait(self):
            self.over = True
            return self.status if any("resnet" in target for target in self.targets) else 0

    running = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    return waves, Process


def targets_of(waves):
    return [t.split(":")[1] for command, _ in waves for t in command if ":" in t]


def test_every_stage_runs_once_and_then_whatever_is_left(started):
    waves, _ = started
    assert module.repro("digits", jobs=2) == 0
    targets = targets_of(waves)
    assert len(targets) == len(set(targets))
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {target.split("@")[0] for target in targets} == set(stages)
    assert sum(target.startswith("train@") for target in targets) == 25
    assert max(len(others) for _, others in waves) == 1
    assert waves[-1][0] == ["dvc.yaml"]


def test_nothing_waits_for_a_stage_that_runs_beside_it(started):
    waves, _ = started
    module.repro("digits", jobs=3)
    order = {t.split(":")[1]: n for n, (c, _) in enumerate(waves) for t in c if ":" in t}
    concurrent = [
        {name.split("@")[0] for name in targets_of([(command, []), *((one, []) for one in others)])}
        for command, others in waves
    ]
    assert order["rehearsal@resnet"] < order["train@resnet-4"] < order["weights"]
    assert order["weights"] < order["question@separation"] < order["trivial"] < order["claims"]
    for first, second in (("rehearsal", "train"), ("train", "weights"), ("question", "trivial")):
        assert not any({first, second} <= names for names in concurrent)


@pytest.mark.parametrize("status", [3, -9])
def test_a_failure_ends_the_run_with_its_status(started, status):
    waves, process = started
    process.status = status
    assert module.repro("digits", jobs=2) == status
    assert "weights" not in targets_of(waves)


def test_force_is_passed_on(started):
    waves, _ = started
    module.repro("digits", jobs=1, force=True)
    assert all("--force" in command for command, _ in waves[:-1])


def test_another_experiment_has_a_pipeline_of_its_own_and_no_tracked_file_changes(started):
    before = {name: (ROOT / name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    waves, _ = started
    module.repro("cifar10", jobs=1)
    assert {t.split(":")[0] for command, _ in waves for t in command if not t.startswith("-")} == {
        "results/cifar10/dvc.yaml"
    }
    assert {name: (ROOT / name).read_bytes() for name in before} == before


def test_a_pipeline_that_is_not_what_params_yaml_says_is_not_run(started, monkeypatch):
    waves, _ = started
    params = load_params()
    params.section("digits").seeds.append(5)
    monkeypatch.setattr(module, "load_params", lambda: params)
    with pytest.raises(
        SystemExit, match=r"dvc\.yaml does not match .*run: python -m pipeline\.stages"
    ):
        main(["--jobs", "1"])
    assert waves == []


def test_a_second_run_of_an_experiment_does_not_start(started, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RAN", tmp_path / "ran")
    with module._alone("digits"):
        message = rf"digits is already running \(process {os.getpid()}\)"
        with pytest.raises(SystemExit, match=message):
            main(["--jobs", "1"])
    assert main(["--jobs", "1"]) == 0


PROGRAM = """
import signal, sys
from pipeline import repro
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, repro._stop)
# A shell that starts the tests in the background has SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# In one write: two children that print at the same time mix their lines.
child = "import os, time; os.write(1, f'{os.getpid()}{os.linesep}'.encode()); time.sleep(600)"
repro._side_by_side([sys.executable, "-c", child], [["a"], ["b"]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ends_the_run_ends_what_it_started(number):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            children = [int(process.stdout.readline()) for _ in range(2)]
            process.send_signal(number)
            assert process.wait(timeout=60) != 0
        finally:
            process.kill()
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_an_unknown_experiment_is_named():
    with pytest.raises(SystemExit, match=r"must be one of .*digits.*got 'mnist'"):
        main(["mnist"])


@pytest.mark.parametrize("ran", [False, True])
def test_the_first_run_in_a_checkout_computes_everything(started, monkeypatch, tmp_path, ran):
    waves, _ = started
    monkeypatch.setattr(module, "_RAN", tmp_path / "folder" / "ran")
    if ran:
        main(["--jobs", "1"])
        waves.clear()
    main(["--jobs", "1", "--first"])
    assert any("--force" in command for command, _ in waves) is not ran
    assert (tmp_path / "folder" / "ran").exists()


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_as_many_at_a_time_as_there_are_cores_but_not_more_than_four(monkeypatch, cores, jobs):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert module._default_jobs(load_params().section("digits").threads) == jobs


def test_a_gpu_takes_one_at_a_time(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert module._default_jobs(1) == 1


def test_zero_jobs_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_training_alone_stops_when_the_networks_are_trained(started, monkeypatch):
    niceness = []
    monkeypatch.setattr("os.nice", niceness.append)
    waves, _ = started
    main(["--jobs", "1", "--train"])
    assert {target.split("@")[0] for target in targets_of(waves)} == {"data", "rehearsal", "train"}
    assert niceness == [19]


@pytest.mark.parametrize(
    ("experiment", "capability", "gpu", "warned"),
    [
        ("cifar10_released", "AVX2", False, True),
        ("cifar10_released", "AVX512", False, False),
        ("cifar10_released", "AVX2", True, False),
        ("cifar10", "AVX2", False, False),
    ],
)
def test_a_processor_too_slow_for_the_recipe_gets_a_warning(
    started, monkeypatch, capsys, experiment, capability, gpu, warned
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr(os, "nice", lambda _: None)
    assert main([experiment, "--train", "--jobs", "1"]) == 0
    warning = f"recipe of {experiment} computes in bfloat16"
    assert (warning in capsys.readouterr().err) == warned

import pytest

from pipeline import train_parallel


@pytest.mark.parametrize(
    ("experiment", "family", "seed", "sentence"),
    [
        ("digit", "resnet", "0", "experiment must be one of cifar10,"),
        ("digits", "vgg", "0", "family must be one of ['irevnet', "),
        ("digits", "resnet", "9", "seed must be one of [0, 1, 2, 3, 4] for digits, got 9"),
        ("digits", "resnet", "0", "start this with torchrun"),
    ],
)
def test_invalid_choices_are_refused_in_a_sentence(
    experiment, family, seed, sentence, monkeypatch, capsys
):
    monkeypatch.delenv("RANK", raising=False)
    arguments = ["--experiment", experiment, "--family", family, "--seed", seed]
    assert train_parallel.main(arguments) == 1
    assert sentence in capsys.readouterr().err


def test_the_trained_run_is_the_one_that_the_pipeline_takes_up(monkeypatch, tmp_path):
    """Alone in its group it trains the notebook's run, bit for bit."""
    from irevnet.training import Trainer, TrainingConfig
    from pipeline.notebook import checkpoint_path, load_experiment_data, new_model
    from pipeline.run import notebook_parameters

    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "IREVNET_CHECKPOINTS": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Trainer, "run", lambda trainer, *_: trainer.save())
    run = {"experiment": "digits", "family": "resnet", "seed": 3}
    arguments = ["--experiment", "digits", "--family", "resnet", "--seed", "3"]
    assert train_parallel.main(arguments) == 0
    parameters = notebook_parameters("train", "digits", "resnet", 3)
    trainer = Trainer(
        new_model(**run),
        load_experiment_data("digits"),
        TrainingConfig(**parameters["training"]),
        seed=parameters["seed"],
        checkpoint=checkpoint_path(**run, output="results/digits/train/resnet-3"),
    )
    assert trainer.notes == ["resumed after epoch 0, step 0"]
    trainer.finish()

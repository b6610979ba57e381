"""Whole training runs with the options of large models: adapters, half precision, early stopping, logs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
import tiny  # noqa: E402
import transformers  # noqa: E402
from pipeline import call  # noqa: E402
from ugr_fast.lora import is_adapted  # noqa: E402
from ugr_fast.run import Learner, Run  # noqa: E402

LORA = ["--lora", 4, "--lora-alpha", 8]


def done(*args):
    outcome = call(*args)
    assert outcome.code == 0, outcome.err
    return outcome


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def adapted(pipeline, tmp_path_factory):
    """A language model, fine-tuned with adapters."""
    folder = tmp_path_factory.mktemp("adapted")
    tiny.language_model(folder / "model")
    done(*pipeline.sft_args(folder / "sft", "--model", folder / "model", "--lr", 1e-2, *LORA))
    return folder


def test_adapters_through_both_stages(pipeline, adapted, tmp_path):
    """What each stage saves is a plain model: the next one, evaluation and other programs need no adapters."""
    more = [*LORA, "--beta", 0.1, "--precision", "bfloat16", "--recompute", "--lr", 1e-2, "--inner-updates", 2]
    done(*pipeline.rl_args(tmp_path / "rl", "--run", adapted / "sft", *more))
    for folder in (adapted / "sft", tmp_path / "rl"):
        saved = Run.open(folder).load_model(torch.device("cpu"), "last")
        assert type(saved).__name__ == "Qwen3ForCausalLM"
        assert saved.get_input_embeddings().weight is saved.get_output_embeddings().weight
        assert not is_adapted(saved)
        losses = [line["loss"] for line in lines(folder) if "loss" in line]
        assert np.isfinite(losses).all()
    assert lines(adapted / "sft")[-1]["valid"]["hr@10"] > 0.2
    assert any(line["kl"] > 0 for line in lines(tmp_path / "rl") if "kl" in line)
    arguments = ["--run", tmp_path / "rl", "--data", pipeline.data, "--num-beams", 10, "--threads", 1]
    for precision in ("float32", "bfloat16"):
        done("confide", *arguments, "--precision", precision)
        done("eval", *arguments, "--precision", precision)
        found = json.loads((tmp_path / "rl" / "eval-test.json").read_text())
        assert (found["readout"], found["precision"]) == (True, precision)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_adapters_interrupted(pipeline, adapted, tmp_path, monkeypatch, stage):
    """Adapters, their optimiser and the average go on bit for bit."""
    arguments = {
        "sft": pipeline.sft_args("OUT", "--model", adapted / "model", *LORA),
        "rl": pipeline.rl_args("OUT", "--run", adapted / "sft", "--lr", 1e-2, *LORA),
    }[stage]
    whole, cut = ([tmp_path / name if word == "OUT" else word for word in arguments] for name in ("whole", "cut"))
    done(*whole)
    number = iter(range(100))
    original = Learner.descend

    def dies(self, clip_grad):
        if next(number) == (3 if stage == "sft" else 2):
            raise KeyboardInterrupt
        return original(self, clip_grad)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "descend", dies)
        assert call(*cut).code == 130
    done(*cut)
    for name in ("model/model.safetensors", "state.safetensors"):
        found = [sorted((tmp_path / run).glob(f"checkpoints/*/{name}"))[-1].read_bytes() for run in ("whole", "cut")]
        assert found[0] == found[1], name


def test_adapters_of_another_start_are_refused(pipeline, adapted, tmp_path):
    """They are worth nothing beside other weights, and the checkpoint does not hold those that are frozen."""
    shutil.copytree(adapted / "sft", tmp_path / "start")
    arguments = pipeline.rl_args(tmp_path / "rl", "--run", tmp_path / "start", *LORA)
    done(*arguments)
    run = Run.open(tmp_path / "start")
    model = run.load_model(torch.device("cpu"))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    folder = run.model_folder()
    model.save_pretrained(folder)
    (folder.parent / "SHA256SUMS").unlink()
    outcome = call(*arguments)
    assert outcome.code == 2
    assert "holds another run (environment: start '" in outcome.err


def test_a_sharded_or_foreign_reader_finds_what_was_trained(adapted):
    """The merged weights are those that were validated."""
    run = Run.open(adapted / "sft")
    folder = run.checkpoint(run.steps()[-1]) / "model"
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.isfinite(parameter).all() for parameter in again.parameters())
    assert not [path for path in folder.iterdir() if "adapter" in path.name]


def test_rl_stops_early(pipeline, tmp_path):
    done(*pipeline.rl_args(tmp_path / "rl", "--updates", 50, "--eval-every", 1, "--patience", 2, "--lr", 1e-9))
    assert lines(tmp_path / "rl")[-1]["step"] == 3  # the first trained is the best, and two are no better
    again = done(*pipeline.rl_args(tmp_path / "rl", "--updates", 50, "--eval-every", 1, "--patience", 2, "--lr", 1e-9))
    assert "best on valid: step 1," in again.out
    assert lines(tmp_path / "rl")[-1]["step"] == 3


def test_sft_says_where_more_epochs_may_help(pipeline, tmp_path):
    hint = "sft: validation was still improving; a new run with --epochs 4 may help\n"
    cases = {"better": [], "no better": ["--lr", 1e-9, "--muon-lr", 1e-9], "validated once": ["--eval-every", 2]}
    told = {name: done(*pipeline.sft_args(tmp_path / name, *more)).err for name, more in cases.items()}
    assert [name for name, err in told.items() if hint in err] == ["better"]


def test_the_start_of_rl_is_not_called_the_best(pipeline, tmp_path):
    told = done(*pipeline.rl_args(tmp_path / "rl")).err.splitlines()
    marked = [line.split(":")[0] for line in told if "(best so far)" in line]
    assert "rl update 0" in {line.split(":")[0] for line in told}
    assert "rl update 0" not in marked
    assert "rl update 2" in marked  # the first candidate


def test_rl_says_where_it_did_not_get_above_its_start(pipeline, tmp_path):
    """A learning rate that wrecks the model, and one that leaves it as it is."""
    said = {rate: done(*pipeline.rl_args(tmp_path / rate, "--lr", rate)).err for rate in ("3", "1e-9")}
    found = {rate: [line["valid"]["ndcg@10"] for line in lines(tmp_path / rate) if "valid" in line] for rate in said}
    for rate, values in found.items():
        below = max(values[1:]) < values[0]
        assert ("rl: none was as good on valid as the model it began with, whose NDCG@10 is" in said[rate]) == below
    assert max(found["3"][1:]) < found["3"][0]


def test_what_an_update_logs(pipeline):
    found = next(line for line in lines(pipeline.rl) if "loss" in line)
    for name in (
        *("loss", "policy_loss", "kl", "confidence_loss", "clip_share", "entropy", "grad_norm"),
        *("hit_rate", "hit_rate@1", "rollout_ndcg", "zero_advantage_groups", "difficulty_weight"),
        *("confidence_hits", "confidence_misses", "confidence_no_hit", "confidence_auroc"),
        *("seconds_rollout", "seconds_reward", "seconds_update", "prompts_per_second"),
    ):
        assert np.isfinite(found[name]), name
    assert found["entropy"] > 0


def test_tensorboard_shows_the_same_numbers(pipeline):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(pipeline.rl / "tensorboard"))
    reader.Reload()
    logged = lines(pipeline.rl)
    for name in ("loss", "hit_rate", "entropy"):
        expected = [(line["step"], line[name]) for line in logged if name in line]
        found = [(event.step, event.value) for event in reader.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert [event.step for event in reader.Scalars("valid/ndcg@10")] == [0, 2, 3]


@pytest.mark.parametrize("shape", ["linear", "constant"])
def test_other_schedules(shape):
    model = tiny.model(tiny.catalogue().vocabulary).float()
    learner = Learner.make(model, 1e-3, 0.0)
    rates = []
    for progress in (0.0, 0.025, 0.05, 0.5, 1.0):
        learner.schedule(progress, shape)
        rates.append(learner.optimizers[0].param_groups[0]["lr"] / 1e-3)
    after = {"linear": [0.9525, 0.525, 0.05], "constant": [1, 1, 1]}[shape]
    assert rates[2:] == pytest.approx(after)
    assert rates[0] < 0.01
    assert 0.4 < rates[1] < 0.6


def test_settings_change_what_they_name(pipeline, tmp_path):
    """Every policy option runs through the command, and none is silently ignored."""
    base = {"--updates": 3, "--inner-updates": 2, "--lr": 1e-2, "--rollout": "stochastic", "--normalize": "allowed"}
    cases = {
        "plain": {},
        "dapo": {"--loss": "dapo", "--clip-high": 0.28},
        "cispo": {"--loss": "cispo", "--clip-high": 5},
        "gspo": {"--loss": "gspo", "--clip": 0.001},
        "importance": {"--scale": "importance", "--loss": "dr_grpo"},
        "probability": {"--difficulty": "probability"},
        "sum": {"--reward": "match + 0.5*prefix_match"},
        "linear": {"--schedule": "linear"},
    }
    found = {}
    for name, more in cases.items():
        words = [word for pair in {**base, **more}.items() for word in pair]
        done(*pipeline.rl_args(tmp_path / name, *words))
        step = sorted((tmp_path / name / "checkpoints").iterdir())[-1]
        found[name] = (step / "model" / "model.safetensors").read_bytes()
    assert len(set(found.values())) == len(cases)


def test_fine_tuning_goes_on_from_a_run(pipeline, tmp_path):
    """It begins with the run's weights and goes on bit for bit when repeated; another learning rate leaves its mark."""
    gentle = ["--run", pipeline.sft, "--epochs", 1, "--lr", 1e-30, "--muon-lr", 0, "--average", 0, "--weight-decay", 0]
    done(*pipeline.sft_args(tmp_path / "still", *gentle))
    start, still = (Run.open(folder).load_model(torch.device("cpu")) for folder in (pipeline.sft, tmp_path / "still"))
    for name, weights in start.state_dict().items():
        torch.testing.assert_close(still.state_dict()[name], weights, rtol=0, atol=0, msg=name)
    line = next(line["valid"] for line in lines(tmp_path / "still") if "valid" in line)
    assert line["ndcg@10"] == Run.open(pipeline.sft).best()["ndcg@10"]
    done(*pipeline.sft_args(tmp_path / "moved", *gentle, "--lr", 1e-3))
    moved = Run.open(tmp_path / "moved").load_model(torch.device("cpu"))
    assert any(not torch.equal(moved.state_dict()[name], weights) for name, weights in start.state_dict().items())
    done("eval", "--run", tmp_path / "moved", "--data", pipeline.data, "--num-beams", 10, "--threads", 1)


def test_fine_tuning_refuses_a_start_that_does_not_fit(pipeline, adapted, tmp_path):
    done("sids", "--data", pipeline.data, "--out", tmp_path / "sids", "--source", "cooccurrence", "--codes", 4)
    refused = {
        "has others": ["--run", pipeline.sft, "--sids", tmp_path / "sids"],
        "began with a model": ["--run", adapted / "sft"],
        "must not be given beside": ["--run", pipeline.sft, "--model", adapted / "model"],
        "no such run": ["--run", tmp_path / "nowhere"],
    }
    for message, more in refused.items():
        outcome = call(*pipeline.sft_args(tmp_path / "out", *more))
        assert outcome.code == 2
        assert message in outcome.err or message == "no such run", outcome.err
        assert outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists()

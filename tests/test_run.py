"""Run directories: what is written comes back bit for bit, and an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny  # noqa: E402
import ugr_fast  # noqa: E402
from pipeline import call, snapshot  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from ugr_fast import configs, files, rl, sft  # noqa: E402
from ugr_fast.recommend import Recommender  # noqa: E402
from ugr_fast.run import Learner, Run, choose_device, load_model, set_threads  # noqa: E402

CPU = torch.device("cpu")


class KilledError(BaseException):
    """Stands for a process that ends in the middle of something."""


def results(folder):
    """All that a run must end with, without the times that it took."""
    found = {
        name: content for name, content in snapshot(folder).items() if name.endswith((".safetensors", "best.json"))
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [[key for key in line if "second" in key] for line in lines]
    assert all(times)
    found["metrics"] = [{key: line[key] for key in line if "second" not in key} for line in lines]
    found["states"] = [
        {**json.loads(path.read_text()), "seconds": 0} for path in sorted(folder.glob("checkpoints/*/state.json"))
    ]
    return found


def sft_config(pipeline, out, **more):
    settings = {"epochs": 3, "eval_every": 1, "hidden": 32, "layers": 1, "heads": 2, "threads": 1, "device": "cpu"}
    return configs.SftConfig(data=pipeline.data, sids=pipeline.sids, out=out, **{**settings, "patience": 0, **more})


def rl_config(pipeline, out, **more):
    settings = {"updates": 4, "eval_every": 2, "group": 4, "batch_size": 8, "threads": 1, "device": "cpu", "lr": 1e-2}
    return configs.RlConfig(run=pipeline.sft, data=pipeline.data, out=out, **{**settings, **more})


# ------------------------------------------------------------------------------------------------- interruptions


def dies_at(monkeypatch, module, name, number):
    """Let the call `number` of `module.name` end the process before it does anything."""
    original, calls = getattr(module, name), iter(range(10**6))

    def counted(*args, **kwargs):
        if next(calls) == number:
            raise KilledError
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_sft_interrupted_at_a_step(pipeline, tmp_path, monkeypatch, step):
    sft.train(sft_config(pipeline, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        dies_at(patch, Learner, "descend", step)
        with pytest.raises(KilledError):
            sft.train(sft_config(pipeline, tmp_path / "cut"))
    found = sft.train(sft_config(pipeline, tmp_path / "cut"))
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert found == json.loads((tmp_path / "whole" / "best.json").read_text())


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rl_interrupted_at_every_update(pipeline, tmp_path, monkeypatch, beta):
    whole, cut = (rl_config(pipeline, tmp_path / name, beta=beta) for name in ("whole", "cut"))
    found = rl.train(whole)
    for number in (0, 1, 1, 2):  # of the updates that are left
        with monkeypatch.context() as patch:
            dies_at(patch, Learner, "descend", number)
            try:
                again = rl.train(cut)
            except KilledError:
                continue
    again = rl.train(cut)
    assert results(cut.out) == results(whole.out)
    assert again == found


def test_killed_at_every_write(pipeline, tmp_path, monkeypatch):
    """Every file is synced once before it gets its name, so this goes through all moments between two files."""
    sft.train(sft_config(pipeline, tmp_path / "whole", epochs=2))
    number, finished = 0, False
    while not finished:
        cut = sft_config(pipeline, tmp_path / f"cut-{number}", epochs=2)
        with monkeypatch.context() as patch:
            dies_at(patch, files, "_sync", number)
            try:
                sft.train(cut)
                finished = True
            except KilledError:
                number += 1
        sft.train(cut)
        assert results(cut.out) == results(tmp_path / "whole")
        assert not [name for name in snapshot(cut.out) if name.endswith(".tmp")]
    assert number > 15


def test_killed_for_real_at_a_random_moment(pipeline, tmp_path):
    arguments = [str(argument) for argument in pipeline.sft_args(tmp_path / "cut", "--epochs", 16, "--patience", 0)]
    process = subprocess.Popen([sys.executable, "-m", "ugr_fast.cli", *arguments], stderr=subprocess.DEVNULL)
    log = tmp_path / "cut" / "metrics.jsonl"
    lines = random.randint(1, 28)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= lines):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert call(*arguments).code == 0
    arguments[arguments.index(str(tmp_path / "cut"))] = str(tmp_path / "whole")
    assert call(*arguments).code == 0
    assert results(tmp_path / "cut") == results(tmp_path / "whole"), f"killed after {lines} lines"
    assert not [name for name in snapshot(tmp_path) if name.endswith(".tmp")]


def test_patience_survives_an_interruption(pipeline, tmp_path, monkeypatch):
    settings = {"epochs": 30, "lr": 1e-9, "muon_lr": 0.0, "patience": 2}  # nothing gets better
    sft.train(sft_config(pipeline, tmp_path / "whole", **settings))
    for number in (3, 2):
        with monkeypatch.context() as patch:
            dies_at(patch, Learner, "descend", number)
            with pytest.raises(KilledError):
                sft.train(sft_config(pipeline, tmp_path / "cut", **settings))
    sft.train(sft_config(pipeline, tmp_path / "cut", **settings))
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert results(tmp_path / "cut")["metrics"][-1]["epoch"] < 10


def test_a_damaged_checkpoint_removed_goes_on_from_the_one_before(pipeline, tmp_path):
    config = rl_config(pipeline, tmp_path / "run", lr=1e-9)  # nothing gets better: the first trained stays the best
    assert rl.train(config)["step"] == config.eval_every  # never the start, which has no confidence
    whole = results(config.out)
    before, last = sorted(config.out.glob("checkpoints/*"))
    (last / "state.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"state.safetensors is truncated or altered.*; remove {last} to go on"):
        rl.train(config)
    for removed in ([last], [before, last]):  # back to the one before, then to the start
        for folder in removed:
            shutil.rmtree(folder)
        rl.train(config)
        assert results(config.out) == whole


# -------------------------------------------------------------------------------------------------- checkpoints


def made(seed=0, muon_lr=0.01, average=0.9):
    """The learner of a small float32 model that does not drop out."""
    model = tiny.model(tiny.catalogue().vocabulary, seed=seed).float()
    return Learner.make(model, 1e-3, 0.01, muon_lr=muon_lr, average=average)


def some_steps(learner, number):
    for step in range(number):
        learner.schedule(step / 10)
        tokens = torch.randint(learner.model.config.vocab_size, (2, 6))  # from the generator that a checkpoint keeps
        learner.model(input_ids=tokens, labels=tokens).loss.backward()
        learner.descend(1.0)


def new_run(folder):
    run = Run.create(folder, "sft", configs.SftConfig(Path("d"), Path("s"), folder), CPU)
    catalogue = tiny.catalogue()
    num_items = len(catalogue.item_tokens)
    names = [f"item {item}" for item in range(num_items)]
    codes = catalogue.item_tokens - catalogue.vocabulary.base - np.array([0, 5, 9])
    run.save_catalogue(catalogue.vocabulary, codes, names, names)
    return run


@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_round_trip_of_weights_optimisers_average_and_generator(tmp_path, muon_lr, average):
    run = new_run(tmp_path / "run")
    learner = made(muon_lr=muon_lr, average=average)
    some_steps(learner, 3)
    run.save_checkpoint(3, learner, {"epoch": 1}, {"step": 3, "ndcg@10": 0.5})
    some_steps(learner, 2)

    torch.manual_seed(99)
    again = made(seed=7, muon_lr=muon_lr, average=average)
    state = Run.open(tmp_path / "run").resume(again)
    assert state == {"epoch": 1, "step": 3, "best": {"step": 3, "ndcg@10": 0.5}}
    some_steps(again, 2)
    for one, other in ((learner.model, again.model), (learner.used, again.used)):
        assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    for one, other in zip(learner.optimizers, again.optimizers, strict=True):
        states = one.state_dict()["state"], other.state_dict()["state"]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][i][name], states[1][i][name]) for i in states[0] for name in states[0][i])


def test_only_the_best_and_the_last_are_kept(tmp_path):
    run = new_run(tmp_path / "run")
    learner = made()
    best = {"step": 0, "ndcg@10": 0.0}
    for step, value in enumerate([0.1, 0.3, 0.2, 0.25, 0.4, 0.1], start=1):
        some_steps(learner, 1)
        best = {"step": step, "ndcg@10": value} if value > best["ndcg@10"] else best
        run.save_checkpoint(step, learner, {}, best)
        assert run.steps() == sorted({step, best["step"]})
    assert run.steps() == [5, 6]
    last, fifth = (run.load_model(CPU, which) for which in ("last", "best"))
    assert all(torch.equal(*pair) for pair in zip(last.parameters(), learner.used.parameters(), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(fifth.parameters(), learner.used.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(1, made(), {}, {"step": 1})
    other = tiny.model(tiny.catalogue().vocabulary, "gpt2").float()
    with pytest.raises(ValueError, match="belongs to another model"):
        run.resume(Learner.make(other, 1e-3, 0.0))
    wider = tiny.model(tiny.catalogue(sizes=(9, 9, 9)).vocabulary).float()
    with pytest.raises(ValueError, match=r"remove .* to go on"):
        run.resume(Learner.make(wider, 1e-3, 0.0))


def test_catalogue_round_trip(tmp_path):
    run = new_run(tmp_path / "run")
    again, wanted = Run.open(tmp_path / "run").load_catalogue(), tiny.catalogue()
    assert again.vocabulary == wanted.vocabulary
    assert np.array_equal(again.item_tokens, wanted.item_tokens)
    names = [f"item {item}" for item in range(30)]
    assert run.load_items() == (names, names)
    run.check_items(names)
    with pytest.raises(ValueError, match=r"`data` has 'x' as item 3, and run .* trained on 'item 3' there"):
        run.check_items([*names[:3], "x", *names[4:]])


ALTERED = {  # file, what becomes of it, what is said
    "titles": (
        "items.json",
        lambda o: o | {"titles": o["titles"][1:]},
        "does not hold a title and an id of every item",
    ),
    "names": ("items.json", lambda o: o | {"ids": [[]] * 30}, "does not hold a title and an id of every item"),
    "fewer": (
        "items.json",
        lambda o: {name: o[name][1:] for name in o},
        r"must name 30 items, those with codes, got 29",
    ),
    "list": ("items.json", lambda o: [o], r"items.json must be an object with `titles` \(list\)"),
    "prefix": ("vocabulary.json", lambda o: o | {"prefix": ["x"]}, "`prefix` must hold whole numbers"),
    "suffix": ("vocabulary.json", lambda o: o | {"suffix": []}, "levels and suffix must not be empty"),
    "level": ("vocabulary.json", lambda o: o | {"level_sizes": 5}, "`level_sizes` must hold whole numbers"),
    "token": ("vocabulary.json", lambda o: o | {"positive": 2**40}, "`positive` must hold whole numbers"),
    "size": ("vocabulary.json", lambda o: o | {"size": 7}, "`size` must be above every token"),
    "rows": ("vocabulary.json", lambda o: o | {"size": 99}, "must have an embedding for each of 99 tokens, got 20"),
    "settings": ("config.json", lambda o: o | {"settings": 3}, "does not describe a run"),
    "history": ("config.json", lambda o: o | {"settings": {"history": None}}, "must have a `history` of 1 or more"),
    "best": ("best.json", lambda o: {"step": "1"}, r"best.json must be an object with `step` \(int\)"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_files_that_somebody_altered_and_sealed_anew_are_refused(tmp_path, case):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(1, made(), {}, {"step": 1})
    name, change, message = ALTERED[case]
    path = run.folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    files.write_checksums(run.folder, ["config.json", "vocabulary.json", "codes.safetensors", "items.json"])
    with pytest.raises(ValueError, match=message):
        Recommender.load(run.folder, "cpu")


@pytest.mark.parametrize("codes", [np.zeros((30, 3)), np.zeros(30, np.int32)])
def test_codes_of_another_kind_are_refused(tmp_path, codes):
    run = new_run(tmp_path / "run")
    save_file({"codes": codes}, run.folder / "codes.safetensors")
    with pytest.raises(ValueError, match=r"codes.safetensors .*`codes` must be whole numbers \(num_items, L\), got"):
        run.load_codes()


@pytest.mark.parametrize("state", ["[]", '{"step": 1}', '{"step": 1, "best": {}}', "[" * 9999])
def test_a_state_of_another_kind_is_refused(tmp_path, state):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(1, made(), {}, {"step": 1})
    (run.checkpoint(1) / "state.json").write_text(state)
    (run.checkpoint(1) / files.CHECKSUMS).unlink()
    with pytest.raises(ValueError, match=r"state.json .*; remove .*step-00000001 to go on from what came before"):
        run.resume(made())


def test_a_line_of_metrics_without_a_step_is_refused(tmp_path):
    run = new_run(tmp_path / "run")
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(
        ValueError, match=r"metrics.jsonl must have a `step` in every line, got .*loss.* in 2; remove it"
    ):
        run.resume(made())


def test_a_model_of_no_use_is_refused_in_one_kind(tmp_path):
    made().model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"initializer_range": 0}, {"hidden_act": "/silu"}, {"layer_types": ["x", "y"]}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=r"model .* is truncated or altered .*; make it again"):
            load_model(tmp_path, CPU)


def test_a_copy_of_a_checkpoint_is_left_alone(tmp_path):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(1, made(), {}, {"step": 1})
    shutil.copytree(run.checkpoint(1), run.folder / "checkpoints" / "step-00000001 copy")
    assert run.steps() == [1]


# --------------------------------------------------------------------------------------------------- directories


def test_metrics_tolerate_a_last_line_that_was_cut_off(tmp_path):
    run = new_run(tmp_path / "run")
    assert run.metrics() == []
    run.log(step=1, loss=0.5)
    run.log(step=2, valid={"hr@1": float("nan")})
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "run" / "metrics.jsonl").write_bytes(whole[:length])
        assert [line["step"] for line in run.metrics()] == [1, 2][: whole[: length + 1].count(b"\n")]


def test_another_environment_is_refused(pipeline, tmp_path):
    config = sft_config(pipeline, tmp_path / "run", threads=0)
    set_threads(1)
    sft.train(config)
    before = snapshot(tmp_path)
    try:
        set_threads(2)
        with pytest.raises(FileExistsError, match=r"holds another run \(environment: threads 1 -> 2\); choose"):
            sft.train(config)
    finally:
        set_threads(1)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_will_do_and_a_relative_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in (Path("empty"), Path("a/b/c")):
        config = configs.SftConfig(Path("d"), Path("s"), folder)
        assert Run.create(folder, "sft", config, CPU).config["command"] == "sft"
        Run.create(folder, "sft", config, CPU)
    assert sorted(os.listdir(tmp_path)) == ["a", "empty"]


def test_nothing_is_pickled(pipeline):
    """Neither by an import, nor by a function that pickles, nor in a file of a run."""
    for path in Path(ugr_fast.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                names = []
            assert not {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"} & {n.split(".")[0] for n in names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
    kinds = {Path(name).suffix for name in snapshot(pipeline.rl) if "tfevents" not in name}
    assert kinds <= {"", ".json", ".jsonl", ".safetensors"}
    tensors = load_file(next(pipeline.rl.glob("checkpoints/*/state.safetensors")))
    assert "rng" in tensors


# ----------------------------------------------------------------------------------------------------- small parts


def test_optimisers_share_out_the_parameters():
    learner = made()
    model, (adamw, muon) = learner.model, learner.optimizers
    groups = [*adamw.param_groups, *muon.param_groups]
    taken = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, taken)) == sorted(map(id, model.parameters()))
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert all(parameter.ndim == 2 and id(parameter) not in tables for parameter in muon.param_groups[0]["params"])
    assert all(group["weight_decay"] == 0 or all(p.ndim > 1 for p in group["params"]) for group in groups)
    only = Learner.make(model, 1e-3, 0.1).optimizers
    assert len(only) == 1
    assert sum(len(group["params"]) for group in only[0].param_groups) == len(list(model.parameters()))


def test_schedule_warms_up_and_falls_to_a_twentieth():
    learner = made()
    rates = []
    for progress in np.linspace(0, 1, 201):
        learner.schedule(progress)
        groups = [group for optimizer in learner.optimizers for group in optimizer.param_groups]
        rates.append([group["lr"] / group["peak"] for group in groups])
    assert np.ptp(rates, axis=1).max() < 1e-12  # one shape for all
    shape = np.array(rates)[:, 0]
    assert np.all(np.diff(shape[:10]) > 0)
    assert np.all(np.diff(shape[11:]) < 0)
    assert 0 < shape[0] < 0.01
    assert 0.98 < shape.max() <= 1
    assert shape[-1] == pytest.approx(0.05)


def test_descend_clips_and_says_how_long_the_gradient_was():
    layer = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert Learner(layer, [optimizer]).descend(1.0) == pytest.approx(5.0)
    assert torch.allclose(before - layer.weight, torch.tensor([[0.6, 0.8]]), atol=1e-5)
    assert layer.weight.grad is None
    kept = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[3.0, float("nan")]])
    with pytest.raises(ValueError, match="`lr` is too high: training diverged"):
        Learner(layer, [optimizer]).descend(1.0)
    assert torch.equal(layer.weight, kept)


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "", "cuda:", "cuda:-1", "cuda:x", "CPU", "meta", "mps", "cuda:99"):
        if name == "cuda:" and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match="`device`"):
            choose_device(name)


def test_models_from_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`model` must be a local folder with config\.json and weights"):
        load_model(tmp_path, CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is truncated or altered .*; make it again"):
        load_model(tmp_path, CPU)
    made().model.train().save_pretrained(tmp_path / "model")
    assert not load_model(tmp_path / "model", CPU).training

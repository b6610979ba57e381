from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy
from ugr_fast import data, sft
from ugr_fast.configs import SftConfig
from ugr_fast.model import Catalogue, SidVocabulary
from ugr_fast.run import Learner
from ugr_fast.team import ALONE


def config(**changes):
    return SftConfig(data=Path("data"), sids=Path("sids"), out=Path("out"), **changes)


def some_windows():
    histories = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    lengths = [len(history) for history in histories]
    return data.Windows(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate(histories),
        first_target=np.array([1, 1, 2]),
    )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_whole_sequences_equal_one_row_per_target(architecture):
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    windows = some_windows()
    tokens, targets = sft.collate(catalogue, windows, np.arange(3))
    loss = sft.loss_of(model, tokens, targets)

    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(3):
        items = windows.items[windows.offsets[row] : windows.offsets[row + 1]].tolist()
        for number in range(windows.first_target[row], len(items)):
            prompt = catalogue.prompt(items[:number])
            sid = [token for token in catalogue.item_tokens[items[number]].tolist() if token >= 0]
            logits = model(torch.tensor([[*prompt, *sid]])).logits[0, len(prompt) - 1 : -1].float()
            total = total + cross_entropy(logits, torch.tensor(sid), reduction="sum")
            count += len(sid)
    torch.testing.assert_close(loss.double(), total / count, rtol=1e-6, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_any_split_into_micro_batches_gives_the_same_gradient(recompute):
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    tokens, targets = sft.collate(catalogue, some_windows(), np.arange(3))
    sft.loss_of(model, tokens, targets, 0.1).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    learner = Learner.make(model, 1e-3, 0.0)
    for size in (0, 1, 2):
        model.zero_grad()
        settings = config(micro_batch_size=size, recompute=recompute)
        loss = sft.backward(settings, learner, tokens, targets)
        assert loss == pytest.approx(sft.loss_of(model, tokens, targets, 0.1).item(), rel=1e-10)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_batches_hold_every_window_once_and_like_lengths_together():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, size=1003)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    windows = data.Windows(offsets, np.zeros(offsets[-1], dtype=np.int64), np.ones(1003, dtype=np.int64))
    found = sft.batches(windows, 32, np.random.default_rng(1))
    assert sorted(np.concatenate(found).tolist()) == list(range(1003))
    assert {len(batch) for batch in found} == {32, 1003 % 32}
    spread = np.mean([np.ptp(lengths[batch]) for batch in found])
    assert spread < np.ptp(lengths) / 3
    again = sft.batches(windows, 32, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_dropout_is_for_training_only():
    vocabulary = SidVocabulary.from_scratch((4, 4))
    model = sft.small_decoder(config(hidden=32, layers=1, heads=2), vocabulary)
    sft.add_dropout(model, 0.5)
    tokens = torch.tensor([[1, 5, 9]])
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


def test_every_weight_has_one_optimizer_and_the_schedule_ends_low():
    vocabulary = SidVocabulary.from_scratch((4, 4))
    model = sft.small_decoder(config(hidden=32, layers=2, heads=2), vocabulary)
    learner = sft.make_learner(config(), model, ALONE)
    optimizers = learner.optimizers
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    assert len(optimizers) == 2
    rates = []
    for progress in np.linspace(0, 1, 101):
        learner.schedule(float(progress))
        rates.append([group["lr"] / group["peak"] for optimizer in optimizers for group in optimizer.param_groups])
    shape = np.asarray(rates)
    np.testing.assert_allclose(shape, np.broadcast_to(shape[:, :1], shape.shape), rtol=1e-12)
    assert shape[0, 0] < 0.01
    assert shape[5:, 0].max() > 0.98
    assert (np.diff(shape[6:, 0]) < 0).all()
    assert shape[-1, 0] == pytest.approx(0.05)
    given = sft.make_learner(config(model=Path("some")), model, ALONE)
    assert len(given.optimizers) == 1
    assert given.optimizers[0].param_groups[0]["peak"] == 2e-4


def test_the_average_follows_the_weights_with_the_stated_decay():
    model = sft.small_decoder(config(hidden=32, layers=1, heads=2), SidVocabulary.from_scratch((4, 4)))
    learner = Learner.make(model, 1e-2, 0.0, average=0.9)
    expected = None
    for seen in range(14):
        model(torch.tensor([[1, 5, 9]])).logits.square().mean().backward()
        learner.descend(clip_grad=1.0)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        decay = min(0.9, seen / (seen + 1))  # a plain mean of the first ten
        expected = weights if expected is None else decay * expected + (1 - decay) * weights
    averaged = torch.cat([p.detach().flatten() for p in learner.used.parameters()])
    torch.testing.assert_close(averaged, expected)
    assert Learner.make(model, 1e-2, 0.0).used is model


@pytest.mark.parametrize(("given", "smoothing"), [({}, 0.1), ({"model": Path("some")}, 0.0)])
def test_labels_are_smoothed_over_semantic_ids_and_not_over_words(given, smoothing):
    assert sft.smoothing_of(config(**given)) == smoothing
    assert sft.smoothing_of(config(label_smoothing=0.25, **given)) == 0.25
    assert sft.smoothing_of(config(label_smoothing=0.0, **given)) == 0.0


def test_fine_tuning_learns_a_rule():
    """Item i is always followed by i + 1: the loss falls close to zero and the next item is ranked first."""
    from ugr_fast.recommend import rank

    torch.manual_seed(0)
    codes = [[item // 4, item % 4] for item in range(16)]
    vocabulary = SidVocabulary.from_scratch((4, 4))
    catalogue = Catalogue.build(vocabulary, codes)
    model = sft.small_decoder(config(hidden=32, layers=1, heads=2), vocabulary)
    learner = Learner.make(model, 1e-2, 0.0, muon_lr=0.02)
    offsets = np.arange(17) * 6
    items = (np.arange(16)[:, None] + np.arange(6)) % 16
    windows = data.Windows(offsets, items.reshape(-1), np.ones(16, dtype=np.int64))
    tokens, targets = sft.collate(catalogue, windows, np.arange(16))
    for _ in range(60):
        loss = sft.loss_of(model, tokens, targets)
        loss.backward()
        learner.descend(clip_grad=1.0)
    assert loss.item() < 0.1
    ranking = rank(model.eval(), catalogue, [[3, 4, 5], [15, 0]], num_beams=4)
    assert ranking.items[:, 0].tolist() == [6, 1]


def test_a_language_model_gains_tokens_and_keeps_its_words(tmp_path):
    """From a local language model: tokens added, confidence rows from " correct" and " wrong", tied stays tied."""
    model, words = tiny.language_model(tmp_path)
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    started, vocabulary = sft.start_model(config(model=tmp_path), codes)
    assert vocabulary.sid_range == (len(words), len(words) + 4)
    assert vocabulary.size == started.get_input_embeddings().weight.shape[0] == len(words) + 6
    table = started.get_input_embeddings().weight
    assert started.get_output_embeddings().weight is table
    assert torch.equal(table[: len(words)], model.get_input_embeddings().weight)
    assert torch.equal(table[vocabulary.positive], table[words.index("correct")])
    assert torch.equal(table[vocabulary.negative], table[words.index("wrong")])
    catalogue = Catalogue.build(vocabulary, codes)
    assert catalogue.prompt([2])[0] == words.index("<s>")


def test_warm_start_places_like_items_alike_and_leaves_the_rest():
    torch.manual_seed(0)
    vocabulary = SidVocabulary.from_scratch((3, 2, 2))
    vectors = [np.float32([[5, 0, 0], [5, 1, 0], [-9, 0, 3]]), np.float32([[1, 0, 0], [-1, 0, 0]])]
    model = sft.small_decoder(config(hidden=32, layers=1, heads=2), vocabulary)
    before = model.get_input_embeddings().weight.clone()
    sft.warm_start(model, vocabulary, vectors, scale=1.0)
    table = model.get_input_embeddings().weight
    first, second = table[5:8], table[8:10]
    alike = torch.nn.functional.cosine_similarity
    assert alike(first[0], first[1], dim=0) > alike(first[0], first[2], dim=0) + 0.5
    assert alike(second[0], second[1], dim=0) < 0
    assert torch.equal(table[:5], before[:5])
    assert torch.equal(table[10:], before[10:])  # the extra level
    assert model.get_output_embeddings().weight is table
    sft.warm_start(model, vocabulary, [], scale=1.0)
    assert torch.equal(table[:5], before[:5])
    with pytest.raises(ValueError, match=r"`vectors` must be one for each of \(3, 2, 2\) codes, got \(3, 1\); make"):
        sft.warm_start(model, vocabulary, [vectors[0], vectors[1][:1]], scale=1.0)

from __future__ import annotations

import numpy as np
import pytest
import reference
import tiny
import torch
from ugr_fast.decode import beam_search
from ugr_fast.model import pad_left

HISTORIES = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]


def prompts_of(catalogue):
    return [catalogue.prompt(history) for history in HISTORIES]


def search(model, catalogue, **settings):
    ids, mask = pad_left(prompts_of(catalogue), catalogue.vocabulary.pad)
    return beam_search(model, ids, mask, catalogue.trie, vocabulary=catalogue.vocabulary, **settings)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("num_beams", [1, 3, 16])
def test_equals_generate_with_a_prefix_function(architecture, num_beams):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, architecture)
    ids, mask = pad_left(prompts_of(catalogue), catalogue.vocabulary.pad)
    width = ids.shape[1]

    def allowed(_row, tokens):
        return catalogue.trie.children(tokens[width:].tolist()).tolist()

    beams = {} if num_beams == 1 else {"length_penalty": 0.0, "early_stopping": "never"}
    theirs = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=3,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **beams,
    )
    ours = search(model, catalogue, num_beams=num_beams)
    assert torch.equal(ours.tokens, theirs[:, width:].reshape(len(ids), num_beams, 3))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_slow_reference(architecture, normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture)
    ours = search(model, catalogue, num_beams=8, normalize=normalize)
    with torch.no_grad():
        for row, prompt in enumerate(prompts_of(catalogue)):
            columns = tiny.columns_of(normalize, catalogue)
            slow = reference.model_beam_search(model, prompt, tiny.sids_of(catalogue), 8, columns)
            found = [tuple(t for t in sid if t >= 0) for sid in ours.tokens[row].tolist()]
            assert found == [sid for _, sid in slow]
            np.testing.assert_allclose(ours.scores[row], [score for score, _ in slow], rtol=1e-12)
    np.testing.assert_allclose(ours.logprobs.sum(2), ours.scores, rtol=1e-12)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("ragged", [False, True])
def test_confidence_equals_the_unpacked_forward(architecture, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    ours = search(model, catalogue, num_beams=6, confidence=True)
    with torch.no_grad():
        for row, prompt in enumerate(prompts_of(catalogue)):
            for beam, sid in enumerate(ours.tokens[row].tolist()):
                real = [token for token in sid if token >= 0]
                logit = reference.confidence_logit(model, prompt, real, catalogue.vocabulary)
                torch.testing.assert_close(ours.confidence[row, beam], torch.sigmoid(logit), rtol=1e-10, atol=0)
    assert ours.confidence.std() > 1e-3


def test_padding_side_and_batch_do_not_matter():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    together = search(model, catalogue, num_beams=5, confidence=True)
    for row, prompt in enumerate(prompts_of(catalogue)):
        ids = torch.tensor([prompt + [0] * 7])
        mask = torch.tensor([[1] * len(prompt) + [0] * 7])
        alone = beam_search(
            model, ids, mask, catalogue.trie, num_beams=5, vocabulary=catalogue.vocabulary, confidence=True
        )
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.confidence[0], together.confidence[row], rtol=1e-12, atol=0)


def test_fewer_items_than_beams_gives_padding_and_never_a_duplicate():
    catalogue = tiny.catalogue(num_items=6)
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left([catalogue.prompt([1, 2])], 0)
    found = beam_search(
        model, ids, mask, catalogue.trie, num_beams=10, vocabulary=catalogue.vocabulary, confidence=True
    )
    assert sorted(found.items[0, :6].tolist()) == list(range(6))
    assert (found.items[0, 6:] == -1).all()
    assert (found.tokens[0, 6:] == -1).all()
    assert torch.isneginf(found.scores[0, 6:]).all()
    assert found.confidence[0, :6].isfinite().all()
    assert found.confidence[0, 6:].isnan().all()


def test_every_beam_is_an_item_of_the_catalogue():
    catalogue = tiny.catalogue(num_items=50)
    found = search(tiny.model(catalogue.vocabulary), catalogue, num_beams=50)
    for beams in found.tokens.tolist():
        assert len({tuple(sid) for sid in beams}) == 50
        assert {tuple(sid) for sid in beams} == set(tiny.sids_of(catalogue))


def test_generation_config_has_no_influence():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    before = search(model, catalogue, num_beams=8)
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.1, temperature=9.0, num_beams=3)
    after = search(model, catalogue, num_beams=8)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.scores, after.scores)


def test_expand_items_lists_all_items_of_a_sid_by_ascending_id():
    from ugr_fast.model import Catalogue, SidVocabulary

    codes = [[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]]
    catalogue = Catalogue.build(SidVocabulary.from_scratch((2, 2)), codes)
    ids, mask = pad_left([catalogue.prompt([1])], 0)
    found = beam_search(tiny.model(catalogue.vocabulary), ids, mask, catalogue.trie, num_beams=3)
    ranked = found.expand_items(catalogue.trie, 6)[0].tolist()
    place = ranked.index(0)
    assert ranked[place : place + 3] == [0, 2, 4]
    assert sorted(ranked) == [-1, 0, 1, 2, 3, 4]
    assert found.expand_items(catalogue.trie, 2).shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.zeros(1, 3, dtype=torch.long)}, "`attention_mask` must leave"),
        ({"attention_mask": torch.ones(1, 2, dtype=torch.long)}, "must share one shape"),
        ({"normalize": "some"}, "`normalize` must be"),
        ({"normalize": "sid", "vocabulary": None}, "`vocabulary` must be given"),
        ({"num_beams": 0}, "`num_beams`"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    catalogue = tiny.catalogue()
    settings = {
        "input_ids": torch.tensor([[1, 5, 10]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "num_beams": 2,
        "vocabulary": catalogue.vocabulary,
    } | change
    with pytest.raises(ValueError, match=message):
        beam_search(tiny.model(catalogue.vocabulary), trie=catalogue.trie, **settings)

"""`DeviceSearch` equals `BeamSearch` beam for beam, and never makes the host wait."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import in_threads
from torch.utils._python_dispatch import TorchDispatchMode
from ugr_fast import BeamSearch, SidTrie
from ugr_fast.decode import beam_search
from ugr_fast.device import DeviceSearch, DeviceTrie, _best
from ugr_fast.model import pad_left

END = 5  # the tokens before it make SIDs
COLUMNS = END + 2  # the last one belongs to no token
COARSE = [-math.inf, -2.0, -1.0, -1.0, -0.5, 0.0, -0.0, -0.1, -0.7, 3.0]  # ties, forbidden tokens, sums that round
NORMALIZERS = ["full", "allowed", (0, END + 1)]
rows_of_sids = st.lists(st.lists(st.integers(0, END - 1), min_size=1, max_size=4).map(tuple), min_size=1, max_size=25)
some_items = st.lists(st.integers(0, 1000), min_size=25, max_size=25, unique=True)


def catalogue(rows, kind, items):
    """SIDs of one length; of several lengths, closed by a token; or of several, none of which begins another."""
    if kind == "equal":
        rows = [row[: min(map(len, rows))] for row in rows]
    if kind == "ragged":
        rows = [row for row in rows if not any(row == other[: len(row)] != other for other in rows)]
    return SidTrie.build(rows, items[: len(rows)], end=END if kind == "end" else None)


tries = st.builds(catalogue, rows_of_sids, st.sampled_from(["equal", "end", "ragged"]), some_items)


@st.composite
def filters(draw, trie, batch):
    """The same lists, twice or not at all, with unknown items, padding and repeats: for the host and for the device."""
    device = DeviceTrie(trie, "cpu")
    if draw(st.booleans()):
        return device, None, None
    ids = st.sampled_from([*trie.sids()[1].tolist(), -1, 1001, 2**40])
    num_rows = draw(st.sampled_from([1, batch]))
    lists = st.none() | st.lists(st.lists(ids, max_size=30), min_size=num_rows, max_size=num_rows)
    allow, deny = draw(lists), draw(lists)
    return device, trie.filter(allow, deny), device.filter(allow, deny)


def assert_same_beams(host, device):
    for name in ("nodes", "parents", "last_tokens", "tokens", "live"):
        np.testing.assert_array_equal(getattr(device, name).numpy(), getattr(host, name), err_msg=name)
    for ours, theirs in zip(device.candidates.tolist(), host.candidates.tolist(), strict=True):
        assert [token for token in ours if token >= 0] == [token for token in theirs if token >= 0]


def assert_same_result(ours, theirs, rtol=0.0):
    for name in ("tokens", "items"):
        np.testing.assert_array_equal(getattr(ours, name).numpy(), getattr(theirs, name), err_msg=name)
    for name in ("scores", "logprobs"):
        found, expected = getattr(ours, name).numpy(), getattr(theirs, name)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol, err_msg=name)
    for num_items in (1, 4, 40):
        np.testing.assert_array_equal(ours.expand_items(num_items).numpy(), theirs.expand_items(num_items))


def columns_of(scores, candidates):
    """The scores of the candidates, NaN where there is none."""
    return np.where(candidates < 0, np.nan, np.take_along_axis(scores, np.maximum(candidates, 0), axis=1))


def hidden(scores, host):
    """The scores with NaN wherever the step has no business to read."""
    if host.normalize in (None, "allowed"):
        shown = np.zeros(scores.shape, bool)
        np.put_along_axis(shown, np.where(host.candidates < 0, COLUMNS - 1, host.candidates), True, axis=1)
        scores = np.where(shown, scores, np.nan)
    return np.where(host.nodes.reshape(-1, 1) < 0, np.nan, scores)


def search_both(host, device, scores_for, over_candidates=False):
    """Take all steps of both and compare them after each; the results, the device's first."""
    while not host.done:
        scores = hidden(scores_for(host.num_rows), host)
        nothing = torch.full((device.num_rows, COLUMNS), torch.nan, dtype=torch.from_numpy(scores).dtype)
        if over_candidates:
            host.step(columns_of(scores, host.candidates).astype(scores.dtype), over="candidates")
            ours = columns_of(scores, device.candidates.numpy()).astype(scores.dtype)
            device.step(torch.from_numpy(ours), over="candidates")
        else:
            host.step(scores)
            device.step(torch.from_numpy(scores))
        assert_same_beams(host, device)
    while not device.done:  # every beam has ended, so nothing is read
        device.step(nothing[:1].expand(device.num_rows, -1))
    return device.result(), host.result()


@settings(max_examples=400)
@given(st.data(), tries, st.integers(1, 3), st.integers(1, 30), st.sampled_from([np.float32, np.float64]))
def test_equals_the_kernel_bit_for_bit(data, trie, batch, num_beams, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    device, host_filter, device_filter = data.draw(filters(trie, batch))
    found = search_both(
        BeamSearch(trie, batch, num_beams, filter=host_filter),
        DeviceSearch(device, batch, num_beams, filter=device_filter),
        lambda rows: rng.choice(COARSE, (rows, COLUMNS)).astype(dtype),
        over_candidates=data.draw(st.booleans()),
    )
    assert_same_result(*found)


@settings(max_examples=200)
@given(st.data(), tries, st.integers(1, 3), st.integers(1, 30), st.sampled_from(NORMALIZERS))
def test_equals_the_kernel_where_it_normalises(data, trie, batch, num_beams, normalize):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    forbidden = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    device, host_filter, device_filter = data.draw(filters(trie, batch))
    settings = {"normalize": normalize, "temperature": data.draw(st.sampled_from([1.0, 0.7]))}

    def scores_for(rows):
        scores = rng.normal(size=(rows, COLUMNS), scale=3)  # sums of different beams do not come near one another
        return np.where(rng.random(scores.shape) < forbidden, -np.inf, scores)

    found = search_both(
        BeamSearch(trie, batch, num_beams, filter=host_filter, **settings),
        DeviceSearch(device, batch, num_beams, filter=device_filter, **settings),
        scores_for,
        over_candidates=normalize == "allowed" and data.draw(st.booleans()),
    )
    assert_same_result(*found, rtol=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_normalises_in_float32(normalize):
    rng = np.random.default_rng(0)
    trie = SidTrie.build(rng.integers(0, END, (200, 4)))
    found = search_both(
        BeamSearch(trie, 3, 8, normalize=normalize),
        DeviceSearch(DeviceTrie(trie, "cpu"), 3, 8, normalize=normalize),
        lambda rows: rng.normal(size=(rows, COLUMNS)).astype(np.float32),
    )
    assert_same_result(*found, rtol=2e-6)


@given(st.data(), st.integers(1, 4), st.integers(1, 40), st.integers(1, 50))
def test_the_best_are_those_of_a_stable_sort(data, rows, num_keys, num_best):
    values = st.sampled_from([-math.inf, -1.0, -0.5, 0.0])
    row = st.lists(values, min_size=num_keys, max_size=num_keys)
    keys = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    found, columns = _best(keys, num_best)
    expected, order = keys.sort(dim=1, descending=True, stable=True)
    kept = min(num_best, num_keys)
    assert torch.equal(found[:, :kept], expected[:, :num_best])
    assert torch.equal(columns[:, :kept], order[:, :num_best])
    assert found.shape == columns.shape == (rows, num_best)
    assert (found[:, kept:] == -torch.inf).all()


def test_large_codes_and_items_keep_their_value():
    trie = SidTrie.build([[2**32 - 2], [70_000], [70_000]], items=[2**40, 2**33, 5])
    device = DeviceTrie(trie, "cpu")
    search = DeviceSearch(device, 1, 2, filter=device.filter(deny=[5, 2**50]))
    search.step(torch.tensor([[0.0, -1.0]]), over="candidates")
    assert search.tokens.tolist() == [[[70_000], [2**32 - 2]]]
    assert search.result().items.tolist() == [[2**33, 2**40]]


def test_changes_are_compacted():
    trie = SidTrie.build([[1, 2], [1, 3], [4, 0]]).add([[1, 2], [2, 2]], [7, 9]).remove([1])
    host, device = BeamSearch(trie, 1, 4), DeviceSearch(DeviceTrie(trie, "cpu"), 1, 4)
    scores = np.random.default_rng(0).normal(size=(4, COLUMNS))
    for search, step in ((host, host.step), (device, lambda scores: device.step(torch.from_numpy(scores)))):
        while not search.done:
            step(scores[: search.num_rows])
    assert_same_result(device.result(), host.result())


def test_one_list_serves_all_rows_of_the_other():
    trie = SidTrie.build([[0], [1], [2], [3]])
    device = DeviceTrie(trie, "cpu")
    table = torch.tensor([[0, 1, 2], [2, 3, -1]])
    for allow, deny in ((table, [2]), (table, torch.tensor([2])), (table, np.array([[2], [2]]))):
        search = DeviceSearch(device, 2, 1, filter=device.filter(allow, deny))
        assert search.candidates.tolist() == [[0, 1, -1, -1], [-1, -1, -1, 3]]
    search = DeviceSearch(device, 2, 1, filter=device.filter(deny=table, allow=[1, 3]))
    assert search.candidates.tolist() == [[-1, -1, -1, 3], [-1, 1, -1, -1]]


# ---- no step waits for the device


class NoWaiting(TorchDispatchMode):
    """Refuses operations for which the host needs the numbers of a tensor; `tolist` on the CPU is none of torch's."""

    WAITING = ("local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select", "unique", "repeat")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name.lstrip("_").startswith(self.WAITING):
            raise AssertionError(f"{function} waits for the device")
        if name.startswith("index") and any(is_mask(index) for index in args[1] or () if index is not None):
            raise AssertionError(f"{function} counts a mask")
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if "copy" in name and "device" in kwargs and torch.device(kwargs["device"]) != tensors[0].device:
            raise AssertionError(f"{function} leaves the device")
        return function(*args, **kwargs)


def is_mask(index):
    return index.dtype in (torch.bool, torch.uint8)


WAITING = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool(x.any()),
    "mask": lambda x: x[x > 0],
    "masked write": lambda x: x.__setitem__(x > 0, x[:1].clone()),
    "masked select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "equal": lambda x: torch.equal(x, x.clone()),
    "copy": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_the_guard_sees_what_waits(call):
    x = torch.ones(3)
    with NoWaiting(), pytest.raises(AssertionError):
        call(x)


def every_search(device, allow, deny):
    """Searches with all settings, on a trie of several lengths with shared SIDs."""
    rows = [[1], [2, 3], [2, 4], [2, 4], [3, 0, 1], [3, 0, 2]]
    trie = DeviceTrie(SidTrie.build(rows, items=[8, 6, 4, 2, 1, 0]), device)
    for filtered in (False, True):
        for normalize in (None, *NORMALIZERS):
            yield lambda trie=trie, filtered=filtered, normalize=normalize: DeviceSearch(
                trie, 2, 4, filter=trie.filter(allow, deny) if filtered else None, normalize=normalize
            )


def all_steps(search, scores):
    """A whole search, all that can be asked of it included, up to its result."""
    while not search.done:
        rows = scores[: search.num_rows]
        if search.depth % 2 and search.normalize in (None, "allowed"):
            search.step(rows[:, : search.candidates.shape[1]], over="candidates")
        else:
            search.step(rows)
        _ = search.nodes, search.parents, search.live, search.last_tokens, search.tokens, search.candidates
    return search


def lists_on(device):
    return torch.tensor([[8, 6, 4, 2, 1, 0, -1]], device=device), torch.tensor([[8, -1], [4, 2]], device=device)


def test_no_step_reads_a_tensor():
    scores = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(0))
    for make in every_search("cpu", *lists_on("cpu")):
        with NoWaiting():
            search = all_steps(make(), scores)
        assert (search.result().items >= 0).sum() >= 4


def test_no_step_has_numbers_to_read():
    """A tensor on the device "meta" has a shape and no numbers: whatever depends on numbers raises."""
    scores = torch.empty(8, COLUMNS, device="meta")
    for make in every_search("meta", *lists_on("meta")):
        search = all_steps(make(), scores)
        assert search.tokens.shape == (2, 4, 3)
        with pytest.raises(NotImplementedError, match="nonzero"):
            search.result()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_no_step_waits_for_an_accelerator():
    scores = torch.randint(-3, 1, (8, COLUMNS), generator=torch.Generator().manual_seed(0)).double()
    on_device, pairs = scores.cuda(), []
    lists = lists_on("cuda")
    for make, make_here in zip(every_search("cuda", *lists), every_search("cpu", *lists_on("cpu")), strict=True):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        search = all_steps(make(), on_device)
        torch.cuda.set_sync_debug_mode("default")
        pairs.append((search.result(), all_steps(make_here(), scores).result()))
    for found, expected in pairs:
        assert torch.equal(found.tokens.cpu(), expected.tokens)
        assert torch.equal(found.items.cpu(), expected.items)
        torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-12, atol=0)


# ---- with a model


@pytest.mark.parametrize("ragged", [False, True])
def test_both_searches_drive_a_model_alike(ragged):
    made = tiny.catalogue(ragged=ragged)
    model = tiny.model(made.vocabulary)
    prompts = [made.prompt(history) for history in ([1, 2, 3], [4, 9], [7])]
    ids, mask = pad_left(prompts, made.vocabulary.pad)
    host, device = BeamSearch(made.trie, 3, 6), DeviceSearch(DeviceTrie(made.trie, "cpu"), 3, 6)
    with torch.no_grad():
        while not host.done:
            logprobs = next_logprobs(model, ids, mask, device.tokens)
            device.step(logprobs)
            host.step(logprobs.numpy())
            assert_same_beams(host, device)
        found = beam_search(model, ids, mask, made.trie, num_beams=6)
    assert device.done
    assert_same_result(device.result(), host.result())
    assert torch.equal(device.result().tokens, found.tokens)
    assert torch.equal(device.result().items, found.items)
    torch.testing.assert_close(device.result().scores, found.scores, rtol=1e-12, atol=0)


def next_logprobs(model, ids, mask, tokens):
    """(B * W, V) from whole sequences: every prompt with each of its beams' tokens (B, W, depth)."""
    _, width, depth = tokens.shape
    beams = tokens.flatten(0, 1)
    ids = torch.cat([ids.repeat_interleave(width, 0), beams.clamp(min=0)], 1)
    mask = torch.cat([mask.repeat_interleave(width, 0), torch.ones(len(beams), depth, dtype=mask.dtype)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1].log_softmax(1)


# ---- what is refused


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [None, "full", "allowed"])
def test_nan_and_inf_are_refused_in_the_end(value, normalize):
    search = DeviceSearch(DeviceTrie(SidTrie.build([[1, 0], [2, 1]]), "cpu"), 3, 2, normalize=normalize)
    search.step(torch.zeros(3, 3))
    scores = torch.zeros(6, 3)
    scores[2, :2] = value  # the first beam of the second row, where 0 is allowed
    search.step(scores)
    with pytest.raises(ValueError, match=r"`scores` must be finite or -inf .* in step 1 for row 1 of the batch"):
        search.result()


def test_a_sum_that_overflows_is_refused():
    search = DeviceSearch(DeviceTrie(SidTrie.build([[0, 0]]), "cpu"), 1, 1)
    search.step(torch.full((1, 1), 3e38))
    search.step(torch.full((1, 1), 3e38))
    with pytest.raises(ValueError, match="`scores` must be finite"):
        search.result()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"`trie` must have no SID .* `end=`"):
        DeviceTrie(SidTrie.build([[1], [1, 2]]), "cpu")
    trie = DeviceTrie(SidTrie.build([[1, 1], [2, 1]]), "cpu")
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            DeviceSearch(trie, *sizes)
    for wrong, message in (
        ({"normalize": "sid"}, '`normalize` must be None, "full", "allowed" or'),
        ({"temperature": 2.0}, "`temperature` must be 1 for log-probabilities"),
        ({"temperature": 0.0, "normalize": "full"}, "`temperature` must be finite and above 0"),
        ({"filter": DeviceTrie(SidTrie.build([[1]]), "cpu").filter()}, "`filter` must be made by the trie"),
        ({"filter": trie.filter(deny=[[0]] * 3)}, "`filter` must have 1 row or `batch_size` 2, got 3 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            DeviceSearch(trie, 2, 2, **wrong)
    with pytest.raises(ValueError, match="`allow` must have as many rows as `deny`, 3, or one of them 1, got 2"):
        trie.filter([[0]] * 2, [[0]] * 3)
    with pytest.raises(TypeError, match="`deny` must hold integers"):
        trie.filter(deny=torch.tensor([0.5]))


def test_wrong_calls_are_refused():
    search = DeviceSearch(DeviceTrie(SidTrie.build([[1, 1], [2, 1]]), "cpu"), 2, 2)
    with pytest.raises(RuntimeError, match="`result` needs a search that is done"):
        search.result()
    for scores, over, message in (
        (torch.zeros(1, 3), "vocabulary", r"`scores` must have shape \(2, columns\), got \(1, 3\)"),
        (torch.zeros(2), "vocabulary", r"`scores` must have shape \(2, columns\), got \(2,\)"),
        (torch.zeros(2, 2), "vocabulary", "at least 3 columns for the tokens of the trie, got 2"),
        (torch.zeros(2, 1), "candidates", "must have 2 columns, as `candidates` has, got 1"),
        (torch.zeros(2, 3), "all", '`over` must be "vocabulary" or "candidates"'),
        (torch.zeros(2, 3, device="meta"), "vocabulary", "on the device of the trie, cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            search.step(scores, over)
    with pytest.raises(TypeError, match=r"`scores` must be torch.float32 or torch.float64, got torch.float16"):
        search.step(torch.zeros(2, 3).half())
    search.step(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"must be torch.float32, got torch.float64"):
        search.step(torch.zeros(4, 3).double())
    search.step(torch.zeros(4, 3))
    with pytest.raises(RuntimeError, match="the search is done"):
        search.step(torch.zeros(4, 3))
    full = DeviceSearch(search.trie, 2, 2, normalize=(1, 9))
    with pytest.raises(ValueError, match='`over` must be "vocabulary" to normalise'):
        full.step(torch.zeros(2, 2), over="candidates")
    with pytest.raises(ValueError, match=r"`normalize` must be a range of the 3 columns, got \(1, 9\)"):
        full.step(torch.zeros(2, 3))


def test_a_second_thread_is_refused_during_a_step(monkeypatch):
    search = DeviceSearch(DeviceTrie(SidTrie.build([[0], [1]]), "cpu"), 1, 2)
    scores = torch.tensor([[0.5, 0.25]]).log()

    def meanwhile(*_) -> None:
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match="`step` must be called by one thread at a time"):
            in_threads(lambda: search.step(scores.flip(1)))

    monkeypatch.setattr(search, "_check_scores", meanwhile)
    search.step(scores)
    assert search.result().items.tolist() == [[0, 1]]


def test_properties_follow_the_search():
    search = DeviceSearch(DeviceTrie(SidTrie.build([[1], [2, 3], [2, 4]]), "cpu"), 1, 3)
    assert (search.width, search.num_rows, search.depth, search.done) == (1, 1, 0, False)
    assert search.tokens.shape == (1, 1, 0)
    assert (search.candidates.tolist(), search.last_tokens.tolist()) == ([[1, 2]], [[-1]])
    search.step(torch.zeros(1, 5))
    assert (search.width, search.num_rows, search.depth, search.done) == (3, 3, 1, False)


def test_a_large_negative_id_is_padding_too():
    trie = DeviceTrie(SidTrie.build([[4, 7], [4, 9], [6, 7]]), "cpu")
    search = DeviceSearch(trie, 1, 3, filter=trie.filter(deny=[-(2**32), 1]))
    while not search.done:
        search.step(torch.zeros(search.num_rows, 10))
    assert search.result().items.tolist() == [[0, 2, -1]]

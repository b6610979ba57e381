"""The slow truth: every kernel and every loss once more, as plain and obvious loops."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import torch

# ---- trie and beam search


def trie_children(sids: list[tuple[int, ...]], prefix: tuple[int, ...]) -> list[int]:
    """The tokens that follow a prefix in some SID."""
    depth = len(prefix)
    return sorted({sid[depth] for sid in sids if len(sid) > depth and sid[:depth] == prefix})


def trie_items(sids: list[tuple[int, ...]], items: list[int], sid: tuple[int, ...]) -> list[int]:
    """The items of a SID."""
    return sorted(item for other, item in zip(sids, items, strict=True) if other == sid)


def beam_step(sids, beams, logprobs, num_beams):
    """The best expansions of `beams`, a list of (tokens, score) or None for a dead one.

    `logprobs[i][t]` belongs to token t after beam i. Returns a list of (parent, token, logprob, score),
    best first, padded with None; token -1 is a finished beam that is carried on.
    """
    expansions = []
    for parent, beam in enumerate(beams):
        if beam is None:
            continue
        tokens, score = beam
        if tokens in sids:
            expansions.append((parent, -1, score * 0, score))
        for token in trie_children(sids, tokens):
            logprob = logprobs[parent][token]
            expansions += [(parent, token, logprob, score + logprob)]
    possible = [expansion for expansion in expansions if expansion[3] != -math.inf]
    possible.sort(key=lambda expansion: (-expansion[3], expansion[0], expansion[1]))
    return (possible + [None] * num_beams)[:num_beams]


def beam_search(sids, items, step_fn, num_beams, zero):
    """All of a search for one row: a list of (tokens, logprobs, score, item), best first, padded with None.

    `step_fn(list of beams' tokens, None for dead) -> logprobs`; `zero` sets the type of the sums.
    """
    beams, paths = [((), zero)], [((), ())]
    while any(beam is not None and beam[0] not in sids for beam in beams):
        logprobs = step_fn([beam and beam[0] for beam in beams])
        best = beam_step(sids, beams, logprobs, num_beams)
        paths = [step and _extended(paths[step[0]], step) for step in best]
        beams = [path and (path[0], step[3]) for path, step in zip(paths, best, strict=True)]
    return [
        beam and (*path, beam[1], trie_items(sids, items, beam[0])[0]) for beam, path in zip(beams, paths, strict=True)
    ]


def _extended(path, step):
    tokens, logprobs = path
    _, token, logprob, _ = step
    return path if token == -1 else ((*tokens, token), (*logprobs, logprob))


# ---- packing, advantages, rewards, metrics


def tree(prompt, candidates, suffix):
    """The nodes that a row needs, as a set of (kind, path): every node is named by the path from the root.

    A suffix node is named apart from a completion node with the same tokens: it belongs to one candidate.
    """
    nodes = {("prompt", tuple(prompt[: n + 1])) for n in range(len(prompt))}
    for candidate in candidates:
        if candidate:
            needed = len(candidate) - (0 if suffix else 1)
            nodes |= {("completion", (*prompt, *candidate[:n])) for n in range(1, needed + 1)}
            nodes |= {("suffix", (*prompt, *candidate), tuple(suffix[:n])) for n in range(1, len(suffix) + 1)}
    return nodes


def paths(tokens, position, mask):
    """The tokens from the root to each node, read from the attention mask alone."""
    rows = []
    for j in range(len(tokens)):
        seen = [i for i in range(len(tokens)) if mask[j][i]]
        seen.sort(key=lambda i: position[i])
        assert [position[i] for i in seen] == list(range(len(seen)))
        rows.append([tokens[i] for i in seen])
    return rows


def advantages(rewards, scale="std", eps=1e-4, ddof=1, batch=()):
    """One group, with exact sums."""
    kept = [Fraction(r) for r in rewards if r == r]
    if len(kept) < 2 or max(kept) == min(kept):
        return [0.0] * len(rewards)
    mean = sum(kept) / len(kept)
    divisor = {
        "std": lambda: deviation(kept, ddof) + eps,
        "none": lambda: 1.0,
        "leave_one_out": lambda: (len(kept) - 1) / len(kept),
        "batch": lambda: deviation([Fraction(r) for r in batch if r == r], ddof) + eps,
    }[scale]()
    return [float(Fraction(r) - mean) / divisor if r == r else 0.0 for r in rewards]


def deviation(values, ddof):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof))


def uncertainty_weighted(hits, scores, temperature=1.0):
    """One group without absent candidates; `scores` already normalised."""
    if not any(hits):
        return [0.0] * len(hits)
    misses = [s for hit, s in zip(hits, scores, strict=True) if not hit]
    top = max(misses, default=0.0)
    if top == -math.inf:
        return [1.0 if hit else 0.0 for hit in hits]
    total = sum(math.exp((s - top) / temperature) for s in misses)
    return [
        1.0 if hit else 0.0 - math.exp((s - top) / temperature) / total for hit, s in zip(hits, scores, strict=True)
    ]


def difficulty_weight(hits, scores, alpha_min=0.0):
    order = sorted(range(len(hits)), key=lambda i: (-scores[i], i))
    ranks = [rank for rank, i in enumerate(order) if hits[i]]
    if not ranks:
        return 1.0
    return alpha_min + (1 - alpha_min) * (ranks[0] / (len(hits) - 1) if len(hits) > 1 else 0.0)


def width_bin(confidence, bins, dtype):
    """The largest k whose edge, k / bins rounded to `dtype`, is not above the confidence."""
    return max(k for k in range(bins) if dtype(k) / dtype(bins) <= dtype(confidence))


def mass_bins(confidence, bins):
    """Groups of sample numbers: cuts at ranks floor(k n / bins), moved to the end of a run of ties."""
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])
    groups, start = [], 0
    for k in range(1, bins + 1):
        end = k * len(order) // bins
        while 0 < end < len(order) and confidence[order[end]] == confidence[order[end - 1]]:
            end += 1
        if end > start:
            groups.append(order[start:end])
            start = end
    return groups


def gaps(groups, confidence, correct):
    """Share of the samples and |mean confidence - mean outcome| of each group of sample numbers."""
    rows = []
    for group in groups:
        c = sum(Fraction(float(confidence[i])) for i in group) / len(group)
        y = sum(Fraction(float(correct[i])) for i in group) / len(group)
        rows.append((Fraction(len(group), len(confidence)), abs(c - y)))
    return rows


def auroc(score, correct):
    hits = [s for s, hit in zip(score, correct, strict=True) if hit]
    misses = [s for s, hit in zip(score, correct, strict=True) if not hit]
    pairs = list(itertools.product(hits, misses))
    if not pairs:
        return math.nan
    return sum(2 if a > b else int(a == b) for a, b in pairs) / (2 * len(pairs))


def aurc(confidence, correct):
    """Mean over all orders of tied samples of the mean selective risk."""
    orders = [
        order
        for order in itertools.permutations(range(len(correct)))
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))
    ]
    total = Fraction(0)
    for order in orders:
        errors = 0
        for j, i in enumerate(order, 1):
            errors += not correct[i]
            total += Fraction(errors, j) / len(order)
    return float(total / len(orders))


# ---- data and baselines


def kept_by_core(events, core):
    """The (user, item) events left when those of a rare user or item are removed, one at a time, until none is."""
    events = list(events)
    while True:
        users, items = [user for user, _ in events], [item for _, item in events]
        rare = [e for e in events if users.count(e[0]) < core or items.count(e[1]) < core]
        if not rare:
            return events
        events.remove(rare[0])


def split_rows(events, split, history):
    """Rows (user, history, item) of train, valid and test, from (user, item, time) events in file order."""
    rows = []
    for user in sorted({user for user, _, _ in events}):
        mine = sorted([e for e in events if e[0] == user], key=lambda e: e[2])
        for place, (_, item, time) in enumerate(mine):
            before = [e[1] for e in mine[:place]][-history:]
            from_end = len(mine) - 1 - place if len(mine) >= 3 else 2
            rows += [(user, before, item, time, min(from_end, 2))] if before else []
    if split == "leave-one-out":
        parts = [[row for row in rows if row[4] == place] for place in (2, 1, 0)]
    else:
        rows.sort(key=lambda row: row[3])
        first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
        parts = [rows[:first], rows[first:second], rows[second:]]
    return [[row[:3] for row in part] for part in parts]


def markov_ranking(sequences, num_items, history, k):
    """Items by how often they followed the last one, then by how often they occur, then by number."""
    followers = [b for s in sequences for a, b in itertools.pairwise(s) if a == history[-1]]
    seen = [item for s in sequences for item in s]
    return sorted(range(num_items), key=lambda i: (-followers.count(i), -seen.count(i), i))[:k]


# ---- decoding and training, unpacked: one full sequence per candidate, no cache, no packing


def next_logprobs(model, tokens, columns):
    """Log-probs of the next token over `columns` (all if None), as {token: log p}."""
    logits = model(torch.tensor([tokens])).logits[0, -1]
    columns = range(len(logits)) if columns is None else list(columns)
    return dict(zip(columns, torch.log_softmax(logits[list(columns)], 0), strict=True))


def model_beam_search(model, prompt, sids, num_beams, columns_of):
    """Beams [(score, sid)] best first; `columns_of(prefix)` is what the log-probs are normalised over."""
    beams = [(0.0, ())]
    depth = max(len(sid) for sid in sids)
    for _ in range(depth):
        grown = []
        for parent, (score, prefix) in enumerate(beams):
            children = trie_children(sids, prefix)
            if not children:
                grown.append((-score, parent, -1, prefix))
                continue
            logprobs = next_logprobs(model, [*prompt, *prefix], columns_of(prefix))
            grown += [(-(score + logprobs[t].item()), parent, t, (*prefix, t)) for t in children]
        beams = [(-negative, prefix) for negative, _, _, prefix in sorted(grown)[:num_beams]]
    return beams


def sid_logprobs(model, prompt, sid, columns_of):
    """(len(sid),) log-probs of the tokens of one candidate, with gradient, from one unpacked sequence."""
    logits = model(torch.tensor([[*prompt, *sid]])).logits[0]
    rows = []
    for level, token in enumerate(sid):
        row = logits[len(prompt) - 1 + level]
        columns = columns_of(sid[:level])
        total = torch.logsumexp(row if columns is None else row[list(columns)], 0)
        rows.append(row[token] - total)
    return torch.stack(rows)


def confidence_logit(model, prompt, sid, vocabulary):
    """z_positive - z_negative after the suffix of one candidate, from one unpacked sequence."""
    logits = model(torch.tensor([[*prompt, *sid, *vocabulary.suffix]])).logits[0, -1]
    return logits[vocabulary.positive] - logits[vocabulary.negative]

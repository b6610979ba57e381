"""The slow truth: every kernel and every loss once more, as plain and obvious loops."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

# ---- trie


def trie_children(sids: list[tuple[int, ...]], prefix: tuple[int, ...]) -> list[int]:
    """The tokens that follow a prefix in some SID."""
    depth = len(prefix)
    return sorted({sid[depth] for sid in sids if len(sid) > depth and sid[:depth] == prefix})


def trie_items(sids: list[tuple[int, ...]], items: list[int], sid: tuple[int, ...]) -> list[int]:
    """The items of a SID."""
    return sorted(item for other, item in zip(sids, items, strict=True) if other == sid)


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


def difficulty_weight(hits, scores, alpha_min=0.0, kind="rank"):
    """One group without absent candidates."""
    if not any(hits):
        return 1.0
    order = sorted(range(len(hits)), key=lambda i: (-scores[i], i))
    rank, last = min(rank for rank, i in enumerate(order) if hits[i]), len(hits) - 1
    if kind == "probability":
        kept = [s for s in scores if s != -math.inf]
        terms = [math.exp(s - max(kept)) for s in scores] if kept else [0.0]
        own = math.fsum(t for t, hit in zip(terms, hits, strict=False) if hit)
        difficulty = 1 - own / (math.fsum(terms) or 1)
    elif last == 0:
        difficulty = 0.0
    elif kind == "rank":
        difficulty = rank / last
    else:
        difficulty = (1 - 1 / math.log2(rank + 2)) / (1 - 1 / math.log2(last + 2))
    return alpha_min + (1 - alpha_min) * difficulty


def prefix_match(candidate, target):
    """Of tuples without padding."""
    shared = 0
    while shared < min(len(candidate), len(target)) and candidate[shared] == target[shared]:
        shared += 1
    return shared / max(len(candidate), len(target), 1)


def ndcg(hits):
    """One group without absent candidates."""
    discounts = [1 / math.log2(i + 2) for i in range(len(hits))]
    return [0.0 if hit or not any(hits) else -d / sum(discounts) for hit, d in zip(hits, discounts, strict=True)]


def rule_of_strings(completions, targets):
    """MiniOneRec's reward `rule`: blanks, line ends and quotes at both ends do not count."""
    return [
        float(text.strip('\n" ') == target.strip('\n" ')) for text, target in zip(completions, targets, strict=True)
    ]


def ndcg_of_strings(completions, targets, size):
    """MiniOneRec's reward `ranking_only`: here blanks do count, and a last group of fewer than `size` gets nothing."""
    discounts = [1 / math.log2(i + 2) for i in range(size)]
    rewards = []
    for first in range(0, len(completions) - size + 1, size):
        hits = [completions[i].strip('\n"') == targets[i].strip('\n"') for i in range(first, first + size)]
        rewards += [
            0.0 if hit or not any(hits) else -d / sum(discounts) for hit, d in zip(hits, discounts, strict=True)
        ]
    return rewards


def uncertainty_of_strings(completions, targets, scores, size):
    """The reward of UGR's released code; scores are whatever beam search returned."""
    rewards = []
    for first in range(0, len(completions), size):
        group = range(first, first + size)
        misses = [scores[i] for i in group if completions[i] != targets[i]]
        top = max(misses, default=0.0)
        shares = [math.exp(scores[i] - top) / sum(math.exp(s - top) for s in misses) if misses else 0.0 for i in group]
        hits = [completions[i] == targets[i] for i in group]
        rewards += [0.0 if not any(hits) else 1.0 if hit else -p for hit, p in zip(hits, shares, strict=True)]
    return rewards


def weighted_sum(rewards, weights, missing):
    """One candidate; NaN is missing."""
    there = [(Fraction(r), Fraction(w)) for r, w in zip(rewards, weights, strict=True) if r == r and w]
    if not there:
        return math.nan
    total = sum(r * w for r, w in there)
    renormalised = total * sum(map(Fraction, weights)) / sum(w for _, w in there)
    return float(renormalised if missing == "renormalise" else total)


def importance_weighted(rewards, probabilities, inclusion, normalize):
    """One group, in exact arithmetic, as the sums of the papers are written."""
    kept = [i for i, r in enumerate(rewards) if r == r]
    r, p, q = ([Fraction(x) if x == x else None for x in xs] for xs in (rewards, probabilities, inclusion))
    mass = sum(p[i] / q[i] for i in kept)
    baseline = sum(p[i] / q[i] * r[i] for i in kept)
    advantages = [0.0] * len(r)
    for i in kept:
        if normalize:
            own_mass = mass - p[i] / q[i] + p[i]
            advantages[i] = float(p[i] / q[i] / own_mass * (r[i] - baseline / mass))
        else:
            advantages[i] = float(p[i] / q[i] * (r[i] * (1 - p[i] + p[i] / q[i]) - baseline))
    return advantages


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


def average_precision(score, correct):
    """Over every score as a threshold: share of the hits that have just that score, times the precision there."""
    total, sum_ = sum(correct), 0.0
    for threshold in set(score):
        kept = [hit for s, hit in zip(score, correct, strict=True) if s >= threshold]
        gained = sum(hit for s, hit in zip(score, correct, strict=True) if s == threshold)
        sum_ += gained * sum(kept) / len(kept)
    return sum_ / total if total else math.nan


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


def next_logprobs(model, tokens, columns, temperature=1.0):
    """Log-probs of the next token over `columns` (all if None), as {token: log p}."""
    logits = model(torch.tensor([tokens])).logits[0, -1] / temperature
    columns = range(len(logits)) if columns is None else list(columns)
    return dict(zip(columns, torch.log_softmax(logits[list(columns)], 0), strict=True))


def model_beam_search(model, prompt, sids, num_beams, columns_of, temperature=1.0):
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
            logprobs = next_logprobs(model, [*prompt, *prefix], columns_of(prefix), temperature)
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


def branching_entropy(model, prompt, candidates, sids):
    """One group: mean over the prefixes that its candidates pass and that branch, of the entropy over the branches."""
    prefixes = {sid[:depth] for sid in candidates for depth in range(len(sid))}
    entropies = []
    for prefix in sorted(prefixes):
        children = trie_children(sids, prefix)
        if len(children) > 1:
            logprobs = next_logprobs(model, [*prompt, *prefix], children)
            entropies.append(-sum(logprob.exp() * logprob for logprob in logprobs.values()).item())
    return sum(entropies) / len(entropies) if entropies else 0.0


# ---- losses: a batch is a list of groups, a group its present candidates (A, [(log p, old log p), ...])


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def ratios(pairs, loss):
    """The ratio that each token's loss sees."""
    moved = [new - old for new, old in pairs]
    if loss == "gspo":
        moved = [mean(moved)] * len(moved)
    return [math.exp(min(difference, 20.0)) for difference in moved]


def token_losses(advantage, pairs, loss, low, high, delta=math.inf):
    """The loss of every token of one candidate."""
    if loss == "cispo":
        return [-min(r, high) * advantage * new for r, (new, _) in zip(ratios(pairs, loss), pairs, strict=True)]
    return [-min(min(r, delta) * advantage, max(low, min(r, high)) * advantage) for r in ratios(pairs, loss)]


def policy_loss(batch, loss, length, low, high, delta=math.inf):
    """The loss of a batch whose candidates have at most `length` tokens."""
    tokens = [[token_losses(*candidate, loss, low, high, delta) for candidate in group] for group in batch]
    if loss in ("dapo", "cispo"):
        every = [value for group in tokens for values in group for value in values]
        return mean(every)
    if loss == "dr_grpo":
        return mean(mean(sum(values) / length for values in group) for group in tokens)
    return mean(mean(mean(values) for values in group) for group in tokens)


def clip_share(group, loss, low, high):
    """One group."""
    held = []
    for advantage, pairs in group:
        row = [(advantage < 0 and r < low) or (advantage > 0 and r > high) for r in ratios(pairs, loss)]
        held += row[:1] if loss == "gspo" else row
    return mean(held)


def kl(group):
    """One group; here a pair is (log p, reference log p)."""
    distances = [[min(other - new, 20.0) for new, other in pairs] for _, pairs in group]
    return mean(mean(math.expm1(d) - d for d in row) for row in distances)


# ---- trie, filters and changes


def kept_items(items, allow, deny):
    """The items that the lists of one row leave; None is no list."""
    return {item for item in items if (allow is None or item in allow) and (deny is None or item not in deny)}


def kept_rows(sids, items, kept):
    """A catalogue without the items that are not kept."""
    rows = [(sid, item) for sid, item in zip(sids, items, strict=True) if item in kept]
    return [sid for sid, _ in rows], [item for _, item in rows]


def list_of_row(lists, row):
    """What `SidTrie.filter` takes as the list of a row: ids for all rows, one list for all, or one for each."""
    if lists is None:
        return None
    if all(isinstance(entry, int) for entry in lists):
        return lists
    return lists[0] if len(lists) == 1 else lists[row]


def item_ranking(sids, items, found, num_items):
    """The items of the found SIDs, ascending within one, padded with -1."""
    ranking = [item for sid in found for item in trie_items(sids, items, sid)]
    return (ranking + [-1] * num_items)[:num_items]


def changed_catalogue(catalogue, change):
    """A catalogue {item: sid} after a change: ("add", {item: sid}) or ("remove", [item])."""
    kind, what = change
    if kind == "add":
        return catalogue | what
    return {item: sid for item, sid in catalogue.items() if item not in what}


# ---- search rules: normalisation, length penalty, diverse groups, draws


class Beam(NamedTuple):
    """A prefix, the log-probability of each of its tokens, their sum, and the sum over the length penalty."""

    tokens: tuple
    logprobs: tuple
    total: Any
    score: Any


def log_softmax(logits, columns, temperature=1.0):
    """{token: log-probability} over `columns` in float64, from an exact sum; -inf if no logit is above it."""
    scaled = {token: float(logits[token]) / temperature for token in columns}
    top = max(scaled.values(), default=-math.inf)
    if top == -math.inf:
        return scaled
    log_sum = math.log(math.fsum(math.exp(x - top) for x in scaled.values()))
    return {token: x - top - log_sum for token, x in scaled.items()}


def expansions(sids, beam, logprobs_of, weight):
    """All (token, beam) that a beam can become; token -1 is a finished beam that is carried on."""
    if beam.tokens in sids:
        return [(-1, beam)]
    logprobs = logprobs_of(beam.tokens)
    grown = []
    for token in trie_children(sids, beam.tokens):
        total = beam.total + logprobs[token]
        if total != -math.inf:
            path = (*beam.tokens, token), (*beam.logprobs, logprobs[token])
            grown.append((token, Beam(*path, total, total * weight)))
    return grown


def beam_step(sids, beams, logprobs_of, num_beams, weight, num_groups, diversity):
    """The beams after `beams`, each a Beam or None, one group after the other and each group best first."""
    size = num_beams // num_groups
    chosen = []  # (token, beam) or None
    for group in range(num_groups):
        earlier = [choice for choice in chosen if choice]
        own = [0] if len(beams) == 1 else [i for i in range(group * size, (group + 1) * size) if beams[i]]
        ranked = []
        for parent in own:
            for token, beam in expansions(sids, beams[parent], logprobs_of, weight):
                if beam.tokens in sids and any(beam.tokens == other.tokens for _, other in earlier):
                    continue
                penalty = diversity * type(beam.total)(sum(token == other for other, _ in earlier))
                ranked.append((-(beam.score - penalty), parent, token, beam))
        best = [(token, beam) for _, _, token, beam in sorted(ranked, key=lambda r: r[:3])][:size]
        chosen += best + [None] * (size - len(best))
    return [choice and choice[1] for choice in chosen]


def beam_search(sids, logprobs_of, num_beams, zero, *, length_penalty=0, num_groups=1, diversity=0):
    """The finished beams of one row, best first; `zero` sets the type of the sums.

    `logprobs_of(prefix)` gives {token: log-probability} for at least all allowed tokens.
    """
    beams, kind, length = [Beam((), (), zero, zero)], type(zero), 0
    while any(beam and beam.tokens not in sids for beam in beams):
        length += 1
        weight = kind(float(length) ** -length_penalty)
        beams = beam_step(sids, beams, logprobs_of, num_beams, weight, num_groups, kind(diversity))
    return sorted([beam for beam in beams if beam], key=lambda beam: -beam.score)


def sid_probabilities(sids, logprobs_of):
    """{SID: probability} of drawing it token by token."""
    return {sid: math.exp(sum(logprobs_of(sid[:depth])[token] for depth, token in enumerate(sid))) for sid in sids}


def draw_order_probability(order, probabilities):
    """The probability that the first draws without replacement are `order`."""
    left, result = 1.0, 1.0
    for sid in order:
        result *= probabilities[sid] / left
        left -= probabilities[sid]
    return result


# ---- recalibration, abstention


def isotonic(confidence, correct, weight):
    """Distinct confidences and their fitted values, by the formula max over i <= k of min over j >= k of mean(i..j)."""
    points = sorted(set(confidence))
    rows = [[(y, w) for c, y, w in zip(confidence, correct, weight, strict=True) if c == point] for point in points]
    heavy = [sum(Fraction(w) for _, w in row) for row in rows]
    total = [sum(Fraction(y) * Fraction(w) for y, w in row) for row in rows]

    def between(i, j):
        return sum(total[i : j + 1]) / sum(heavy[i : j + 1])

    last = len(points) - 1
    values = [max(min(between(i, j) for j in range(k, last + 1)) for i in range(k + 1)) for k in range(last + 1)]
    return points, values


def interpolated(x, knots, values, step):
    """At x, between the knots on both sides of it or, with `step`, that of the left."""
    if x <= knots[0]:
        return values[0]
    left = max(k for k, knot in enumerate(knots) if knot <= x)
    if step or left == len(knots) - 1:
        return values[left]
    part = (Fraction(x) - Fraction(knots[left])) / (Fraction(knots[left + 1]) - Fraction(knots[left]))
    return values[left] + part * (values[left + 1] - values[left])


def log_loss(confidence, correct, weight):
    """Mean negative log-likelihood; infinite where a certain prediction is wrong."""

    def log(p):
        return math.log(p) if p > 0 else -math.inf

    terms = [
        -w * ((y * log(c) if y else 0) + ((1 - y) * log(1 - c) if y < 1 else 0))
        for c, y, w in zip(confidence, correct, weight, strict=True)
    ]
    return sum(terms) / sum(weight)


def readout(states, logprobs, hits, strength, counts=None, slight=1e-6):
    """Weight, slope and bias of the penalised logistic regression, to the rows that count: plain Newton steps."""
    n, width = states.shape
    counts = [True] * n if counts is None else counts
    mean = [math.fsum(column) / n for column in states.T]
    spread = [math.sqrt(math.fsum((x - m) ** 2 for x in column) / n) for column, m in zip(states.T, mean, strict=True)]
    width = 0 if strength == math.inf else width
    rows = []
    for state, logprob in zip(states, logprobs, strict=True):
        p = min(max(math.exp(logprob), 1e-7), 1 - 1e-7)
        scaled = [(x - m) / s for x, m, s in zip(state, mean, spread, strict=True)]
        rows.append([math.log(p / (1 - p)), 1.0, *scaled[:width]])
    rows = np.array([row for row, count in zip(rows, counts, strict=True) if count])
    came_true = np.array([hit for hit, count in zip(hits, counts, strict=True) if count], float)
    start = np.array([1.0, 0.0, *[0.0] * width])
    pull, found = np.array([slight, slight, *[strength] * width]), start
    for _ in range(30):
        said = 1 / (1 + np.exp(-rows @ found))
        gradient = rows.T @ (said - came_true) / len(rows) + 2 * pull * (found - start)
        curvature = rows.T @ np.diag(said * (1 - said)) @ rows / len(rows) + np.diag(2 * pull)
        found = found - np.linalg.solve(curvature, gradient)
    slope, bias, *weight = found.tolist()
    weight = [w / s for w, s in itertools.zip_longest(weight, spread, fillvalue=0.0)]
    return np.array(weight), slope, bias - math.fsum(w * m for w, m in zip(weight, mean, strict=True))


def binomial_cdf(k, n, p):
    p = Fraction(p)
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


# ---- decisions


def value_kept(signal, value, amount):
    """Mean, over all orders of equal signals, of the value of the first `amount` entries, in highest-first order."""
    entries = sorted(zip(signal, map(Fraction, value), strict=True), key=lambda entry: -entry[0])
    total, left = Fraction(0), amount
    for _, block in itertools.groupby(entries, key=lambda entry: entry[0]):
        values = [value for _, value in block]
        taken = min(left, len(values))
        draws = list(itertools.combinations(values, taken))
        total += sum(map(sum, draws)) / len(draws) if draws else 0
        left -= taken
    return total


def place_after(value, place):
    """Where the entry at `place` comes to stand when a list is sorted by value, highest first, equals as they were."""
    return sorted(range(len(value)), key=lambda entry: -value[entry]).index(place)


def constrained_scores(scores, prefixes, sids, columns, temperature, eos, pad, raw=False):
    """What a logits processor gives: per row, what may follow its prefix; `columns` None: these tokens themselves."""
    result = []
    for row, prefix, legal in zip(scores, prefixes, sids, strict=True):
        following = {sid[len(prefix)] for sid in legal if len(sid) > len(prefix) and list(sid[: len(prefix)]) == prefix}
        forced = not following
        if forced:
            following = {pad if eos in prefix else eos}
        inside = following if columns is None else columns
        total = math.log(sum(math.exp(row[token] / temperature) for token in inside))
        value = {token: row[token] if raw else row[token] / temperature - total for token in following}
        if forced and (columns is None or len(columns) < len(row)):  # no choice over what is normalised
            value = dict.fromkeys(following, 0.0)
        result.append([value.get(token, -math.inf) for token in range(len(row))])
    return result

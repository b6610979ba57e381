//! The best candidates of a row.

use std::cmp::Ordering;

use super::{Score, is_valid};

/// In place of a child: the beam was finished before.
pub(super) const FINISHED: usize = u32::MAX as usize;

/// An expansion of beam `parent` by its child at position `j`.
#[derive(Clone, Copy)]
pub(super) struct Candidate<S> {
    pub key: S,
    pub total: S,
    pub logprob: S,
    pub parent: u32,
    pub j: u32,
}

impl<S: Score> Candidate<S> {
    /// Best first. Siblings ascend by token as by position; keys are never NaN here.
    fn rank(&self, other: &Self) -> Ordering {
        let by_key = other.key.partial_cmp(&self.key).unwrap_or(Ordering::Equal);
        by_key.then((self.parent, self.j).cmp(&(other.parent, other.j)))
    }
}

/// Up to this many kept candidates are in order at all times; more are a buffer of twice their number.
const FEW: usize = 128;

/// The best `size` candidates of those offered, which must come by ascending parent and token.
pub(super) struct Top<S> {
    size: usize,
    kept: Vec<Candidate<S>>,
    /// Only what is better than this can enter.
    pub bar: S,
}

impl<S: Score> Top<S> {
    pub fn new(size: usize) -> Self {
        Self {
            size,
            kept: Vec::new(),
            bar: S::NEG_INFINITY,
        }
    }

    /// Lets a candidate in if it may be among the best; false if its key is NaN or +inf.
    ///
    /// One comparison turns away all that cannot enter and lets NaN and +inf through to `enter`, which
    /// refuses them: checking every candidate costs nothing.
    #[inline]
    pub fn offer(&mut self, key: S, candidate: impl FnOnce() -> Candidate<S>) -> bool {
        key <= self.bar || self.enter(candidate())
    }

    #[inline(never)]
    pub fn enter(&mut self, candidate: Candidate<S>) -> bool {
        if !is_valid(candidate.key) {
            return false;
        }
        if self.size > FEW {
            self.kept.push(candidate);
            if self.kept.len() >= self.size.saturating_mul(2) {
                self.halve();
            }
            return true;
        }
        if self.kept.len() < self.size {
            self.kept.push(candidate);
        }
        // Worse ones make room, the last of too many falls off. What equals the candidate came before it, and stays.
        let mut place = self.kept.len() - 1;
        while place > 0 && self.kept[place - 1].key < candidate.key {
            self.kept[place] = self.kept[place - 1];
            place -= 1;
        }
        self.kept[place] = candidate;
        if self.kept.len() == self.size {
            self.bar = self.kept[self.size - 1].key;
        }
        true
    }

    fn halve(&mut self) {
        self.kept
            .select_nth_unstable_by(self.size - 1, Candidate::rank);
        self.kept.truncate(self.size);
        self.bar = self.kept[self.size - 1].key;
    }

    /// Whether no candidate with a key of at most `limit` that comes after all so far can enter.
    pub fn excludes(&mut self, limit: S) -> bool {
        // A bar that is a little stale turns away a little less; to renew it for every beam would cost more.
        let fresh = self.bar == S::NEG_INFINITY && self.kept.len() >= self.size;
        if fresh || self.kept.len() >= self.size.saturating_add(self.size / 2).max(2) {
            self.halve();
        }
        limit <= self.bar
    }

    /// The best ones in order; leaves this empty, for the next row.
    pub fn drain(&mut self) -> impl Iterator<Item = Candidate<S>> {
        self.kept.sort_unstable_by(Candidate::rank);
        self.kept.truncate(self.size);
        self.bar = S::NEG_INFINITY;
        self.kept.drain(..)
    }
}

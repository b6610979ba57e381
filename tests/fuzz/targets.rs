//! What is fuzzed of the kernels: any bytes go in, and whatever they stand for, nothing panics.
//!
//! `cargo fuzz` runs these with bytes that it makes up as it sees which branches they take; `cargo test` runs them with
//! those in `corpus/`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    dead_code, // each of the programs that include this calls one of the two
    reason = "the numbers are small"
)]

use std::collections::{BTreeMap, BTreeSet};

use ugr_fast::beam::{Beams, Draw, Level, Normalize, Over, Rule, Seed, step};
use ugr_fast::filter::{Filter, Lists};
use ugr_fast::trie::changes::Changes;
use ugr_fast::trie::index::Index;
use ugr_fast::trie::{Arrays, Built, NONE, SidTrie};

const COLUMNS: usize = 9;

/// The six arrays of a file: refused, or exactly those of a trie; and unchecked they answer whatever is asked.
pub fn arrays(data: &[u8]) {
    let mut bytes = Bytes(data);
    let built = bytes.arrays();
    let checked = built.view().check().is_ok();
    if checked {
        is_built_again(built.view());
    }
    let index = Index::new(built.view());
    let base = SidTrie::from(built.view());
    let known = [base.base.known, index.known()][usize::from(bytes.flag())];
    let trie = SidTrie::from(Arrays { known, ..base.base });
    ask(&trie, &index, bytes, checked);
    let slot = |item| index.slot(item, trie.base.items);
    let (added, listed) = (bytes.catalogue(3), bytes.items());
    let added = added.into_iter().map(|(item, sid)| (sid, item));
    let changes = [
        Changes::add(&trie, added, slot),
        Changes::remove(&trie, &listed, slot),
    ];
    for changes in changes.iter().flatten() {
        let changes = Some(changes);
        ask(&SidTrie { changes, ..trie }, &index, bytes, checked);
    }
}

/// Items that come and go, over a trie that was built: it holds what a map from items to SIDs holds.
pub fn changes(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut held = bytes.catalogue(8);
    let Some(built) = build(&held) else {
        return;
    };
    let index = Index::new(built.view());
    let known = index.known();
    let base = Arrays {
        known,
        ..built.view()
    };
    let mut last: Option<Changes> = None;
    for _ in 0..4 {
        let changes = last.as_ref();
        let trie = SidTrie { base, changes };
        holds(&trie, &held);
        ask(&trie, &index, bytes, true);
        let slot = |item| index.slot(item, base.items);
        let (added, removed) = (bytes.catalogue(3), bytes.items());
        let next = if bytes.flag() {
            let rows = added.clone().into_iter().map(|(item, sid)| (sid, item));
            let next = Changes::add(&trie, rows, slot);
            let fits = added.keys().all(|item| !held.contains_key(item));
            assert_eq!(next.is_ok(), fits, "{next:?}");
            held.extend(added.into_iter().filter(|_| fits));
            next
        } else {
            let next = Changes::remove(&trie, &removed, slot);
            let gone: BTreeSet<i64> = removed.iter().copied().collect();
            let there = gone.len() == removed.len() && gone.iter().all(|i| held.contains_key(i));
            let fits = there && gone.len() < held.len();
            assert_eq!(next.is_ok(), fits, "{next:?}");
            held.retain(|item, _| !fits || !gone.contains(item));
            next
        };
        last = next.ok().or(last);
    }
}

/// Checked arrays are, but for their width, those that are built of the SIDs that they hold.
fn is_built_again(arrays: Arrays<'_>) {
    let (table, items) = SidTrie::from(arrays).sids().expect("small");
    let width = table.len() / items.len();
    let again = Built::build(&table, width, &items, None, 1).expect("its own SIDs");
    let again = again.view();
    assert!(arrays.tokens.iter().eq(again.tokens.iter()));
    assert!(arrays.items.iter().eq(again.items.iter()));
    let rest =
        |of: Arrays<'_>| [of.first_child, of.ends, of.ranks, of.item_offsets].map(<[u32]>::to_vec);
    assert_eq!(rest(arrays), rest(again));
}

/// The trie holds these items with these SIDs, and counts them so.
fn holds(trie: &SidTrie<'_>, held: &BTreeMap<i64, Vec<u32>>) {
    let (table, items) = trie.sids().expect("small");
    assert!(items.iter().eq(held.keys()));
    let longest = held.values().map(Vec::len).max().unwrap_or(0);
    assert_eq!((trie.num_items(), trie.depth()), (held.len(), longest));
    let sids: BTreeSet<&Vec<u32>> = held.values().collect();
    assert_eq!(trie.num_sids(), sids.len());
    let extended = |sid: &&&Vec<u32>| {
        sids.iter()
            .any(|other| other.len() > sid.len() && other.starts_with(sid))
    };
    assert_eq!(trie.num_prefixes(), sids.iter().filter(extended).count());
    for (row, sid) in table.chunks_exact(longest).zip(held.values()) {
        assert!(
            row.iter().take_while(|&&token| token != NONE).eq(sid
                .iter()
                .map(|&token| i64::from(token))
                .collect::<Vec<_>>()
                .iter())
        );
    }
    let nodes = trie
        .walk(&table, longest, held.len())
        .expect("its own SIDs");
    for (&node, (item, sid)) in nodes.iter().zip(held) {
        let share = held.iter().filter(|entry| entry.1 == sid);
        assert!(
            trie.items_at(node as u32)
                .iter()
                .eq(share.map(|entry| entry.0)),
            "{item}"
        );
    }
}

/// Asks all that can be asked; of a trie that was `checked`, a search finds what the trie and the filter hold.
fn ask(trie: &SidTrie<'_>, index: &Index, mut bytes: Bytes<'_>, checked: bool) {
    let _ = (
        trie.num_sids(),
        trie.num_prefixes(),
        trie.token_span(),
        trie.sids(),
    );
    let nodes: Vec<i64> = (NONE..trie.num_nodes() as i64).collect();
    let _ = (trie.allowed(&nodes), trie.lowest_items(&nodes, 1, None));
    let _ = trie.walk(&bytes.items(), 1, 3);
    for node in (0..trie.num_nodes() as u32 + 2).chain([u32::MAX]) {
        let _ = (trie.items_at(node), trie.children(node).tokens.len());
    }
    search(trie, None, bytes);
    ask_filtered(trie, index, bytes, checked);
}

/// Asks what a filter leaves.
fn ask_filtered(trie: &SidTrie<'_>, index: &Index, mut bytes: Bytes<'_>, checked: bool) {
    let nodes: Vec<i64> = (NONE..trie.num_nodes() as i64).collect();
    let (allowed, denied) = (bytes.items(), bytes.items());
    let list = |items| Lists {
        items,
        ends: &[i64::MAX],
    };
    let whole = |items: &[i64]| [items.len() as i64];
    let (ends, other) = (whole(&allowed), whole(&denied));
    let (allow, deny) = (
        Lists {
            items: &allowed,
            ends: &ends,
        },
        Lists {
            items: &denied,
            ends: &other,
        },
    );
    let slot = |item| {
        let base = index.slot(item, trie.base.items);
        trie.changes
            .map_or(base, |changes| changes.slot(item, base))
    };
    assert!(Filter::new(trie, None, Some(list(&denied)), slot).is_err());
    let kept = |item: &i64, lists: u8| {
        (lists & 1 == 0 || allowed.contains(item)) && (lists & 2 == 0 || !denied.contains(item))
    };
    for lists in 0..4 {
        let given = |bit, list| (lists & bit > 0).then_some(list);
        let Ok(filter) = Filter::new(trie, given(1, allow), given(2, deny), slot) else {
            continue;
        };
        let live = trie.allowed_by(&nodes, 1, &filter);
        assert!(live.is_ok());
        let found = search(trie, Some(&filter), bytes);
        let items = trie
            .expand(&found, found.len(), 4, Some(&filter))
            .expect("its own nodes");
        let lowest = trie
            .lowest_items(&found, found.len(), Some(&filter))
            .expect("its own nodes");
        if checked {
            assert!(items.iter().all(|item| *item == NONE || kept(item, lists)));
            assert!(
                lowest
                    .iter()
                    .zip(&found)
                    .all(|(item, node)| (*item == NONE) == (*node == NONE)),
                "{found:?} {lowest:?}"
            );
        }
    }
}

/// Steps until an error or the end; the nodes of the SIDs found.
fn search(trie: &SidTrie<'_>, filter: Option<&Filter>, mut bytes: Bytes<'_>) -> Vec<i64> {
    let rule = bytes.rule(*trie, filter);
    let (mut nodes, mut totals, mut keys) = (vec![0], vec![0.0], vec![0.0]);
    for depth in 0.. {
        assert!(depth <= trie.num_nodes(), "a search without end");
        let (width, beams) = (nodes.len(), &nodes);
        let beams = Beams {
            nodes: beams,
            totals: &totals,
            keys: &keys,
            width,
            depth,
        };
        let listed = match (rule.over, filter) {
            (Over::Vocabulary, _) => Ok((Vec::new(), COLUMNS)),
            (_, None) => trie.allowed(&nodes),
            (_, Some(filter)) => trie.allowed_by(&nodes, width, filter),
        };
        let Ok((_, columns)) = listed else {
            return Vec::new(); // arrays that nobody checked may lack even the root
        };
        let scores: Vec<f32> = (0..width * columns).map(|_| bytes.score()).collect();
        let Ok(level) = step(&rule, beams, &scores, columns) else {
            return Vec::new();
        };
        is_whole(&level, trie, width);
        let live = level.live.contains(&true);
        (nodes, totals, keys) = (level.nodes, level.totals, level.keys);
        if !live {
            break;
        }
    }
    nodes
}

/// The beams of a level are nodes of the trie, or padding in all that is said of them.
fn is_whole(level: &Level<f32>, trie: &SidTrie<'_>, width: usize) {
    for (i, &node) in level.nodes.iter().enumerate() {
        let padding = (
            NONE,
            NONE,
            NONE,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            0.0,
            false,
        );
        let beam = (
            level.parents[i],
            level.tokens[i],
            node,
            level.totals[i],
            level.keys[i],
            level.logprobs[i],
            level.live[i],
        );
        assert!(node >= 0 || beam == padding, "{beam:?}");
        assert!(
            node < trie.num_nodes() as i64 && level.parents[i] < width as i64,
            "{beam:?}"
        );
    }
}

fn build(held: &BTreeMap<i64, Vec<u32>>) -> Option<Built> {
    let width = held.values().map(Vec::len).max()?;
    let padded = |sid: &Vec<u32>| {
        sid.iter()
            .map(|&token| token.into())
            .chain(std::iter::repeat(NONE))
            .take(width)
            .collect::<Vec<i64>>()
    };
    let table: Vec<i64> = held.values().flat_map(padded).collect();
    let items: Vec<i64> = held.keys().copied().collect();
    Some(Built::build(&table, width, &items, None, 1).expect("valid SIDs"))
}

/// Bytes taken one after the other; 0 where there are no more.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 > 0
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    /// A small number, or one of the sixteen largest.
    fn number(&mut self, largest: u32) -> u32 {
        match self.byte() {
            small @ ..240 => small.into(),
            large => largest - u32::from(u8::MAX - large),
        }
    }

    fn item(&mut self) -> i64 {
        match self.byte() {
            small @ ..240 => small.into(),
            large @ ..248 => i64::MAX - i64::from(large - 240),
            negative => i64::from(negative) - 256,
        }
    }

    fn items(&mut self) -> Vec<i64> {
        (0..self.below(6)).map(|_| self.item()).collect()
    }

    fn score(&mut self) -> f32 {
        match self.byte() {
            253 => f32::NAN,
            254 => f32::INFINITY,
            255 => f32::NEG_INFINITY,
            other => f32::from(other) / -8.0,
        }
    }

    /// Up to `limit` items and their SIDs, of small tokens so that many are shared.
    fn catalogue(&mut self, limit: u8) -> BTreeMap<i64, Vec<u32>> {
        let mut sid = |()| {
            let item = self.item() & i64::MAX;
            let sid = (0..=self.below(4)).map(|_| match self.byte() {
                wide @ 253.. => u32::MAX - u32::from(wide - 252),
                token => u32::from(token) % COLUMNS as u32,
            });
            (item, sid.collect())
        };
        let count = sid(()).0 as u8 % (limit + 1);
        (0..count).map(|_| sid(())).collect()
    }

    /// Six lengths, then what the arrays hold.
    fn arrays(&mut self) -> Built {
        let (wide_tokens, wide_items) = (self.flag(), self.flag());
        let lengths = [(); 6].map(|()| self.byte());
        let mut column = |i: usize| {
            (0..lengths[i])
                .map(|_| self.number(u32::MAX))
                .collect::<Vec<_>>()
        };
        let tokens = column(0);
        let [first_child, ends, ranks, item_offsets] = [1, 2, 3, 4].map(column);
        let items: Vec<i64> = (0..lengths[5]).map(|_| self.item()).collect();
        Built {
            tokens: widened(tokens, wide_tokens),
            first_child,
            ends,
            ranks,
            item_offsets,
            items: widened(items, wide_items),
        }
    }

    fn rule<'t>(&mut self, trie: SidTrie<'t>, filter: Option<&'t Filter>) -> Rule<'t, f32> {
        let seed = Seed {
            seed: self.byte().into(),
            first_row: 0,
        };
        let groups = usize::from(self.below(3)) + 1;
        Rule {
            trie,
            filter,
            num_beams: groups * [1, 2, 3, 130][usize::from(self.below(4))],
            over: if self.flag() {
                Over::Candidates
            } else {
                Over::Vocabulary
            },
            normalize: match self.below(3) {
                0 => Normalize::Given,
                1 => Normalize::Live,
                _ => Normalize::Columns(self.below(3).into(), COLUMNS - usize::from(self.below(3))),
            },
            sharpness: [1.0, 0.5, 1e30, 1e-30][usize::from(self.below(4))],
            weight: [1.0, 0.5][usize::from(self.flag())],
            draw: [Draw::Best, Draw::Perturbed(seed), Draw::Sampled(seed)]
                [usize::from(self.below(3))],
            groups,
            diversity: f32::from(self.below(3)),
            num_threads: 1,
        }
    }
}

/// Numbers as a file holds them, which may be wider than they need to be.
fn widened<N: TryFrom<W>, W: Copy>(values: Vec<W>, wide: bool) -> ugr_fast::ints::IntVec<N, W> {
    if wide {
        ugr_fast::ints::IntVec::Wide(values)
    } else {
        values.into()
    }
}

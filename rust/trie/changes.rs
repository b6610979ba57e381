//! Items added and removed, laid over a trie that stays as it is.
//!
//! ```text
//! base                  + (4,8): item 9, − (6,7)        what is searched
//!           0                   0'  ─ 4 ─ 1'                   0'
//!        4 / \ 6                                            4 /
//!         1   2                 1'  ─ 7 ─ 3                  1'
//!      7 / \9  \ 7                  ─ 8 ─ 6'              7/ 8| \9
//!       3   4   5                   ─ 9 ─ 4               3   6' 4
//! ```
//!
//! Every node on the path to a change is copied with the list of its children; all other nodes are shared.
//! A node whose last item went is gone, so no search meets a dead end. The nodes of the changes are numbered
//! behind those of the base, and the new root answers to 0.
//!
//! Cost: the sum of the children of all copied nodes, 8 bytes and about 1 ns each: for a thousand changes
//! to a million items some 3 MB. It is paid again, for all changes so far, at every further
//! change, and it goes when a new trie is built. Reading is as fast as before.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use super::{Arrays, MAX_DEPTH, SidTrie, len_u32};
use crate::{Error, Result};

/// The SIDs of items that came (true) or went (false).
type Moves = BTreeMap<(i64, bool), Vec<u32>>;

/// An item that comes or goes.
struct Change<'a> {
    sid: &'a [u32],
    item: i64,
    added: bool,
}

/// The difference between a catalogue and the trie below it; see the module page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    moves: Moves,
    base_nodes: u32,
    base_slots: u32,
    // Of every copied node, in the order in which they were finished; the root is the last.
    child_offsets: Vec<u32>,
    tokens: Vec<u32>,
    nodes: Vec<u32>,
    item_offsets: Vec<u32>,
    /// The node of the base that each one replaces, if any, and the first copied node below it: they are finished
    /// children first, so those below a node are neighbours.
    twins: Vec<Option<u32>>,
    below: Vec<u32>,
    items: Vec<i64>,
    /// Slots of `items`, by item.
    slots: Vec<(i64, u32)>,
    /// Slots of the base that copied nodes have replaced, ascending.
    replaced: Vec<u32>,
    num_items: usize,
    num_sids: usize,
    num_prefixes: usize,
    depth: usize,
}

impl Changes {
    /// Adds items with their SIDs to `trie`, which may have changes already. `base_slot` finds the items of
    /// the base.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for an item that is there already.
    pub fn add(
        trie: &SidTrie<'_>,
        added: impl Iterator<Item = (Vec<u32>, i64)>,
        base_slot: impl Fn(i64) -> Option<u32>,
    ) -> Result<Self> {
        let mut moves = trie.moves();
        for (index, (sid, item)) in added.enumerate() {
            let stays = base_slot(item).is_some() && !moves.contains_key(&(item, false));
            match moves.entry((item, true)) {
                Entry::Vacant(entry) if !stays && item >= 0 => entry.insert(sid),
                _ => {
                    let rule =
                        "must be >= 0, unique and new to the catalogue; remove the old one first";
                    return Err(Error::value("items", index, rule, item));
                }
            };
        }
        Self::lay(trie.base, moves)
    }

    /// Removes items from `trie`, which may have changes already. `base_slot` finds the items of the base.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for an item that is not there, or if none would be left.
    pub fn remove(
        trie: &SidTrie<'_>,
        removed: &[i64],
        base_slot: impl Fn(i64) -> Option<u32>,
    ) -> Result<Self> {
        let mut moves = trie.moves();
        for (index, &item) in removed.iter().enumerate() {
            if moves.remove(&(item, true)).is_some() {
                continue;
            }
            let (Some(slot), Entry::Vacant(entry)) = (base_slot(item), moves.entry((item, false)))
            else {
                let rule = "must name items of the catalogue, each once";
                return Err(Error::value("items", index, rule, item));
            };
            entry.insert(trie.base.sid_of(slot));
        }
        Self::lay(trie.base, moves)
    }

    fn lay(base: Arrays<'_>, moves: Moves) -> Result<Self> {
        let mut list: Vec<Change<'_>> = moves
            .iter()
            .map(|(&(item, added), sid)| Change { sid, item, added })
            .collect();
        list.sort_by(|a, b| a.sid.cmp(b.sid));
        let longest = list
            .iter()
            .map(|change| change.sid.len())
            .max()
            .unwrap_or(0);
        let mut per_depth: Vec<i64> = base.sids_per_depth().into_iter().map(i64::from).collect();
        per_depth.resize(per_depth.len().max(longest + 1), 0);
        let changes = Self {
            base_nodes: base.num_nodes().max(1), // the root is 0 even where nobody checked that there is one
            base_slots: len_u32(base.items.len()),
            child_offsets: vec![0],
            item_offsets: vec![0],
            num_items: base.items.len(),
            num_prefixes: base.num_prefixes(),
            ..Self::default()
        };
        let mut layer = Layer {
            base,
            changes,
            per_depth,
        };
        if layer.copy(Some(0), &list, 0).is_none() {
            let rule = "must leave at least one item in the catalogue";
            return Err(Error::value("items", 0, rule, "all of them"));
        }
        let changes = layer.finish();
        Ok(Self { moves, ..changes })
    }

    /// The number of copied nodes.
    #[must_use]
    pub fn num_nodes(&self) -> usize {
        self.child_offsets.len() - 1
    }

    pub(super) fn num_items(&self) -> usize {
        self.num_items
    }

    pub(super) fn num_sids(&self) -> usize {
        self.num_sids
    }

    pub(super) fn num_prefixes(&self) -> usize {
        self.num_prefixes
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The items of the copied nodes; their slots follow those of the base.
    pub(super) fn items(&self) -> &[i64] {
        &self.items
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The place of a node among the copied ones.
    fn copied(&self, node: u32) -> Option<usize> {
        match node {
            0 => Some(self.num_nodes() - 1),
            _ => Some(node.checked_sub(self.base_nodes)? as usize),
        }
    }

    /// The tokens and nodes of the children of a copied node.
    pub(super) fn children(&self, node: u32) -> Option<(&[u32], &[u32])> {
        let range = span(&self.child_offsets, self.copied(node)?);
        Some((&self.tokens[range.clone()], &self.nodes[range]))
    }

    /// The slots of the items at a copied node.
    pub(super) fn slots_at(&self, node: u32) -> Option<Range<u32>> {
        let range = span(&self.item_offsets, self.copied(node)?);
        Some(self.base_slots + len_u32(range.start)..self.base_slots + len_u32(range.end))
    }

    /// The slot of an item, if the changes know better than the base, where it is in `slot`.
    #[must_use]
    pub fn slot(&self, item: i64, slot: Option<u32>) -> Option<u32> {
        let kept = slot.filter(|slot| self.replaced.binary_search(slot).is_err());
        let here = self.slots.binary_search_by_key(&item, |entry| entry.0);
        here.map(|place| self.slots[place].1).ok().or(kept)
    }

    /// What a copied node stands for: the node of the base that it replaces, and the slots of all items below it that
    /// are not the base's.
    pub(crate) fn stands_for(&self, node: u32) -> Option<(Option<u32>, Range<u32>)> {
        let k = self.copied(node)?;
        let slots = |k: usize| self.item_offsets.get(k).map(|&slot| self.base_slots + slot);
        let first = *self.below.get(k)? as usize;
        Some((self.twins[k], slots(first)?..slots(k + 1)?))
    }

    /// The slots of the base that no search can reach any more, ascending.
    pub(crate) fn replaced(&self) -> &[u32] {
        &self.replaced
    }

    /// Whether `node` is a copied one.
    pub(crate) fn holds(&self, node: u32) -> bool {
        self.copied(node).is_some()
    }
}

/// The range of copied node `k`; none for a number that is no node.
fn span(offsets: &[u32], k: usize) -> Range<usize> {
    match offsets.get(k..k + 2) {
        Some(ends) => ends[0] as usize..ends[1] as usize,
        None => 0..0,
    }
}

/// Changes in the making.
struct Layer<'a> {
    base: Arrays<'a>,
    changes: Changes,
    /// How many SIDs have each length.
    per_depth: Vec<i64>,
}

impl Layer<'_> {
    /// Copies a node at `depth`, whose twin in the base may not exist, with what `list` changes below it;
    /// none if no item is left there.
    fn copy(&mut self, twin: Option<u32>, list: &[Change<'_>], depth: usize) -> Option<u32> {
        let first = len_u32(self.changes.num_nodes());
        let (here, below) = list.split_at(list.partition_point(|change| change.sid.len() == depth));
        let (tokens, nodes) = self.copy_children(twin, below, depth);
        let items = self.items(twin, here);
        self.count(twin, depth, !tokens.is_empty(), items.len());
        if tokens.is_empty() && items.is_empty() {
            return None;
        }
        let changes = &mut self.changes;
        changes.tokens.extend(tokens);
        changes.nodes.extend(nodes);
        changes.items.extend(items);
        changes.twins.push(twin);
        changes.below.push(first);
        changes.child_offsets.push(len_u32(changes.tokens.len()));
        changes.item_offsets.push(len_u32(changes.items.len()));
        Some(changes.base_nodes + len_u32(changes.num_nodes() - 1))
    }

    fn copy_children(
        &mut self,
        twin: Option<u32>,
        below: &[Change<'_>],
        depth: usize,
    ) -> (Vec<u32>, Vec<u32>) {
        let old = twin.map_or(0..0, |node| self.base.children(node));
        let old_tokens = self.base.tokens.slice(old.start as usize..old.end as usize);
        let (mut tokens, mut nodes) = (Vec::new(), Vec::new());
        let mut next = 0; // the first old child that is not taken yet
        for group in below.chunk_by(|a, b| a.sid[depth] == b.sid[depth]) {
            let token = group[0].sid[depth];
            let place = old_tokens.partition_point(|other| other < token);
            tokens.extend(old_tokens.slice(next..place).iter());
            nodes.extend((old.start..).take(place).skip(next));
            let twin = (old_tokens.get(place) == Some(token)).then(|| old.start + len_u32(place));
            if let Some(node) = self.copy(twin, group, depth + 1) {
                tokens.push(token);
                nodes.push(node);
            }
            next = place + usize::from(twin.is_some());
        }
        tokens.extend(old_tokens.slice(next..old_tokens.len()).iter());
        nodes.extend(old.skip(next));
        (tokens, nodes)
    }

    /// The items of a node after the changes to it, ascending.
    fn items(&mut self, twin: Option<u32>, here: &[Change<'_>]) -> Vec<i64> {
        let slots = twin.map_or(0..0, |node| self.base.slots_at(node));
        self.changes.replaced.extend(slots.clone());
        let old = self
            .base
            .items
            .slice(slots.start as usize..slots.end as usize);
        let gone = here.iter().filter(|change| !change.added);
        let gone: Vec<i64> = gone.map(|change| change.item).collect(); // ascending, as all changes to a SID are
        let kept = |item: &i64| gone.binary_search(item).is_err();
        let mut items: Vec<i64> = old.iter().filter(kept).collect();
        items.extend(
            here.iter()
                .filter(|change| change.added)
                .map(|change| change.item),
        );
        items.sort_unstable();
        items
    }

    /// Keeps the counts: what the twin had goes, what the copy has comes.
    fn count(&mut self, twin: Option<u32>, depth: usize, extended: bool, num_items: usize) {
        let slots = twin.map_or(0..0, |node| self.base.slots_at(node));
        let had_children = twin.is_some_and(|node| !self.base.children(node).is_empty());
        let changes = &mut self.changes;
        let less = |count: usize, gone| count.saturating_sub(gone); // below 0 only in arrays that nobody checked
        changes.num_items = less(changes.num_items + num_items, slots.len());
        changes.num_prefixes += usize::from(extended && num_items > 0);
        let gone = usize::from(had_children && !slots.is_empty());
        changes.num_prefixes = less(changes.num_prefixes, gone);
        self.per_depth[depth] += i64::from(num_items > 0) - i64::from(!slots.is_empty());
    }

    fn finish(self) -> Changes {
        let mut changes = self.changes;
        changes.replaced.sort_unstable();
        let slots = (changes.base_slots..).zip(&changes.items);
        changes.slots = slots.map(|(slot, &item)| (item, slot)).collect();
        changes.slots.sort_unstable();
        let num_sids = self.per_depth.iter().sum::<i64>();
        changes.num_sids = usize::try_from(num_sids).unwrap_or(0);
        changes.depth = self
            .per_depth
            .iter()
            .rposition(|&count| count > 0)
            .unwrap_or(0);
        changes
    }
}

impl SidTrie<'_> {
    fn moves(&self) -> Moves {
        self.changes
            .map_or_else(Moves::new, |changes| changes.moves.clone())
    }
}

impl Arrays<'_> {
    /// The SID of the item in `slot`: at every node, the child whose items include it.
    fn sid_of(&self, slot: u32) -> Vec<u32> {
        let (mut sid, mut node) = (Vec::new(), 0);
        for _ in 0..MAX_DEPTH {
            if self.slots_at(node).contains(&slot) {
                break;
            }
            let children = self.children(node);
            let (mut low, mut high) = (children.start, children.end); // the last that starts at or before slot
            while high - low > 1 {
                let middle = low.midpoint(high);
                if self.span_start(middle) <= slot {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            let Some(token) = self
                .tokens
                .get(low as usize)
                .filter(|_| !children.is_empty())
            else {
                break; // only in arrays that nobody checked
            };
            sid.push(token);
            node = low;
        }
        sid
    }
}

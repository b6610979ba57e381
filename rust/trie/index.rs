//! From item ids to their slots, the places of items in [`super::Arrays::items`], and from the upper nodes to theirs.
//!
//! A table over ids where they are dense, else open addressing over a table of at least twice as many
//! slots as items: 4 bytes or 8 to 16 bytes per item. Made when it is first needed.

use super::{Arrays, Items, Known, len_u32};
use crate::random::mix;

const EMPTY: u32 = u32::MAX;

/// Levels are tabulated from the top as long as their nodes are no more than this: 256 KB.
const TABULATED: u32 = 1 << 16;

/// Finds the slot of an item, and where the items of the upper nodes start.
#[derive(Debug)]
pub struct Index {
    slots: Slots,
    starts: Vec<u32>,
    num_prefixes: usize,
}

#[derive(Debug)]
enum Slots {
    /// By item id.
    Dense(Vec<u32>),
    /// By hash of the item id, linear probing, a power of two long.
    Hashed(Vec<u32>),
}

impl Index {
    /// Indexes the items of a trie.
    #[must_use]
    pub fn new(trie: Arrays<'_>) -> Self {
        let mut level = 0..1.min(trie.num_nodes());
        while !level.is_empty() && level.end <= TABULATED {
            level = level.end..trie.children(level.end - 1).end.max(level.end);
        }
        Self {
            slots: Slots::new(trie.items),
            starts: (0..level.start).map(|node| trie.span_start(node)).collect(),
            num_prefixes: trie.num_prefixes(),
        }
    }

    /// What [`Arrays::known`] may then be.
    #[must_use]
    pub fn known(&self) -> Known<'_> {
        Known {
            starts: &self.starts,
            num_prefixes: Some(self.num_prefixes),
        }
    }

    /// The slot of `item` among `items`, those that were indexed.
    #[must_use]
    pub fn slot(&self, item: i64, items: Items<'_>) -> Option<u32> {
        self.slots.find(item, items)
    }
}

impl Slots {
    fn new(items: Items<'_>) -> Self {
        let largest = items
            .iter()
            .max()
            .and_then(|item| usize::try_from(item).ok());
        match largest {
            Some(largest) if largest < items.len().saturating_mul(2) => Self::dense(items, largest),
            _ => Self::hashed(items),
        }
    }

    fn dense(items: Items<'_>, largest: usize) -> Self {
        let mut slots = vec![EMPTY; largest + 1];
        for (slot, item) in items.iter().enumerate() {
            if let Some(entry) = usize::try_from(item)
                .ok()
                .and_then(|item| slots.get_mut(item))
            {
                *entry = len_u32(slot);
            }
        }
        Self::Dense(slots)
    }

    fn hashed(items: Items<'_>) -> Self {
        let size = (2 * items.len()).next_power_of_two();
        let mut slots = vec![EMPTY; size];
        for (slot, item) in items.iter().enumerate() {
            let mut place = hash(item) & (size - 1);
            while slots[place] != EMPTY {
                place = (place + 1) & (size - 1);
            }
            slots[place] = len_u32(slot);
        }
        Self::Hashed(slots)
    }

    fn find(&self, item: i64, items: Items<'_>) -> Option<u32> {
        match self {
            Self::Dense(slots) => {
                let slot = slots.get(usize::try_from(item).ok()?);
                slot.copied().filter(|&slot| slot != EMPTY)
            }
            Self::Hashed(slots) => {
                let probes = (hash(item)..).take(slots.len());
                let slots = probes.map(|place| slots[place & (slots.len() - 1)]);
                let mut taken = slots.take_while(|&slot| slot != EMPTY);
                taken.find(|&slot| items.get(slot as usize) == Some(item))
            }
        }
    }
}

#[expect(clippy::cast_sign_loss, reason = "a hash keeps any bits")]
fn hash(item: i64) -> usize {
    (mix(item as u64) >> 32) as usize
}

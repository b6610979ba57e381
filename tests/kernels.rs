//! The kernels against slow, obvious code.

// The numbers of a test are small.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::float_cmp
)]

// ---- trie, filters, changes and beam

/// Catalogues and tries that several modules share.
mod catalogue {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::trie::index::Index;
    use ugr_fast::trie::{Arrays, Built, MAX_TOKEN, NONE, SidTrie};

    pub const VOCABULARY: usize = 4;
    pub const END: u32 = VOCABULARY as u32;

    pub type Sid = Vec<i64>;

    /// Ragged SIDs of few tokens, so that some are shared and some are prefixes of others.
    pub fn sids() -> impl Strategy<Value = Vec<Sid>> {
        vec(vec(0..VOCABULARY as i64, 1..5), 1..30)
    }

    /// As [`sids`], with tokens around every limit of their types.
    pub fn wide_sids() -> impl Strategy<Value = Vec<Sid>> {
        let limits = [0xffff, 0x1_0000, 0x8000_0000, MAX_TOKEN - 1, MAX_TOKEN].map(i64::from);
        vec(
            vec(
                prop_oneof![0..3_i64, prop::sample::select(limits.to_vec())],
                1..5,
            ),
            1..30,
        )
    }

    /// Distinct item ids in no order, some beyond 32 bits if `wide`.
    pub fn items(num_items: usize, wide: bool) -> Vec<i64> {
        let last = num_items as i64 - 1;
        let id = |i: i64| {
            if wide {
                (last - i) << 31
            } else {
                (i * 7 + 3) % 997
            }
        };
        (0..=last).map(id).collect()
    }

    pub fn table(sids: &[Sid]) -> (Vec<i64>, usize) {
        let width = sids.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |sid: &Sid| {
            sid.iter()
                .copied()
                .chain(std::iter::repeat(NONE))
                .take(width)
                .collect::<Sid>()
        };
        (sids.iter().flat_map(padded).collect(), width)
    }

    pub fn build_with(sids: &[Sid], items: &[i64], end: Option<u32>) -> Built {
        let (table, width) = table(sids);
        Built::build(&table, width, items, end, 1).expect("valid SIDs")
    }

    /// Row numbers for items.
    pub fn build(sids: &[Sid], end: Option<u32>) -> Built {
        let items: Vec<i64> = (0..).take(sids.len()).collect();
        build_with(sids, &items, end)
    }

    /// All prefixes, in the order of the nodes.
    pub fn prefixes(sids: &[Sid]) -> Vec<Sid> {
        let all = sids
            .iter()
            .flat_map(|sid| (0..=sid.len()).map(|n| (n, sid[..n].to_vec())));
        all.collect::<BTreeSet<_>>()
            .into_iter()
            .map(|(_, prefix)| prefix)
            .collect()
    }

    pub fn node_of(trie: &SidTrie<'_>, prefix: &[i64]) -> i64 {
        trie.walk(prefix, prefix.len(), 1).expect("valid prefix")[0]
    }

    pub fn child_tokens(trie: &SidTrie<'_>, node: u32) -> Vec<u32> {
        trie.children(node).tokens.iter().collect()
    }

    /// What finds the slot of an item of `trie`, as filters need it; `index` is that of the base.
    pub fn slot(trie: &SidTrie<'_>, index: &Index, item: i64) -> Option<u32> {
        let base = index.slot(item, trie.base.items);
        trie.changes
            .map_or(base, |changes| changes.slot(item, base))
    }

    /// Arrays to be damaged: all as vectors of the wide type.
    #[derive(Debug, Clone)]
    pub struct Raw {
        pub columns: [Vec<u32>; 5],
        pub items: Vec<i64>,
    }

    impl Raw {
        pub fn of(built: &Built) -> Self {
            let arrays = built.view();
            let columns = [
                arrays.tokens.iter().collect(),
                built.first_child.clone(),
                built.ends.clone(),
                built.ranks.clone(),
                built.item_offsets.clone(),
            ];
            Self {
                columns,
                items: arrays.items.iter().collect(),
            }
        }

        /// Sets, inserts or cuts at a place in one of the arrays.
        pub fn damage(&mut self, array: usize, place: prop::sample::Index, edit: u8, value: u32) {
            let Some(column) = self.columns.get_mut(array) else {
                return change(&mut self.items, place, edit, i64::from(value) - 1);
            };
            change(column, place, edit, value);
        }

        pub fn built(self) -> Built {
            let [tokens, first_child, ends, ranks, item_offsets] = self.columns;
            let (tokens, items) = (tokens.into(), self.items.into());
            Built {
                tokens,
                first_child,
                ends,
                ranks,
                item_offsets,
                items,
            }
        }
    }

    fn change<T>(column: &mut Vec<T>, place: prop::sample::Index, edit: u8, value: T) {
        let place = place.index(column.len() + 1);
        match edit {
            0 => column.truncate(place),
            1 => column.insert(place, value),
            _ if place < column.len() => column[place] = value,
            _ => {}
        }
    }

    /// Arrays of any kind, and those of a trie with a few edits.
    pub fn hostile() -> impl Strategy<Value = Built> {
        let small = |limit: u32| vec(0..limit, 0..8);
        let columns = [small(4), small(9), small(9), small(6), small(6)];
        let anything = (columns, vec(-1..5_i64, 0..8));
        let value = prop_oneof![0..9_u32, Just(u32::MAX)];
        let edits = vec(
            (0..6_usize, any::<prop::sample::Index>(), 0..4_u8, value),
            1..5,
        );
        let damaged =
            (sids(), prop::option::of(Just(END)), edits).prop_map(|(sids, end, edits)| {
                let mut raw = Raw::of(&build(&sids, end));
                for (array, place, edit, value) in edits {
                    raw.damage(array, place, edit, value);
                }
                raw
            });
        let anything = anything.prop_map(|(columns, items)| Raw { columns, items });
        prop_oneof![1 => anything, 2 => damaged].prop_map(Raw::built)
    }

    pub fn same(a: Arrays<'_>, built: &Built) -> bool {
        a == built.view()
    }
}

mod trie {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::beam::{Beams, Draw, Normalize, Over, Rule, step};
    use ugr_fast::filter::{Filter, Lists};
    use ugr_fast::ints::Ints;
    use ugr_fast::trie::changes::Changes;
    use ugr_fast::trie::index::Index;
    use ugr_fast::trie::{Built, MAX_TOKEN, NONE, SidTrie};

    use super::catalogue::{
        END, Sid, VOCABULARY, build, build_with, child_tokens, hostile, items, node_of, prefixes,
        same, sids, slot, table, wide_sids,
    };

    proptest! {
        #[test]
        fn nodes_are_the_prefixes_in_breadth_first_order(sids in prop_oneof![sids(), wide_sids()]) {
            let built = build(&sids, None);
            let trie = SidTrie::from(built.view());
            let prefixes = prefixes(&sids);
            prop_assert_eq!(trie.num_nodes(), prefixes.len());
            for (node, prefix) in (0..).zip(&prefixes) {
                prop_assert_eq!(node_of(&trie, prefix), node);
                let extends = |other: &&Sid| other.split_last().is_some_and(|(_, start)| start == prefix);
                let children = prefixes.iter().filter(extends).map(|other| other[prefix.len()] as u32);
                prop_assert_eq!(child_tokens(&trie, node as u32), children.collect::<Vec<_>>());
                let items = (0..).zip(&sids).filter(|(_, sid)| *sid == prefix).map(|(item, _)| item);
                prop_assert_eq!(trie.items_at(node as u32), items.collect::<Vec<i64>>());
            }
        }

        #[test]
        fn counts_are_those_of_the_sets(sids in sids(), end in prop::option::of(Just(END))) {
            let built = build(&sids, end);
            let trie = SidTrie::from(built.view());
            let full = |sid: &Sid| sid.iter().copied().chain(end.map(i64::from)).collect();
            let full: Vec<Sid> = sids.iter().map(full).collect();
            let set: std::collections::BTreeSet<&Sid> = full.iter().collect();
            let is_prefix = |sid: &&&Sid| set.iter().any(|other| other.len() > sid.len() && other.starts_with(sid));
            prop_assert_eq!(trie.num_items(), sids.len());
            prop_assert_eq!(trie.num_sids(), set.len());
            prop_assert_eq!(trie.num_prefixes(), set.iter().filter(is_prefix).count());
            prop_assert_eq!(Some(trie.depth()), set.iter().map(|sid| sid.len()).max());
        }

        /// The checked arrays of a catalogue pass, are as narrow as they can be, and are built again from the SIDs that
        /// they hold, whatever the order of the rows.
        #[test]
        fn arrays_round_trip(
            sids in prop_oneof![sids(), wide_sids()],
            end in prop::option::of(Just(77)),
            wide in any::<bool>(),
            seed in any::<prop::sample::Index>(),
        ) {
            let ids = items(sids.len(), wide);
            let built = build_with(&sids, &ids, end);
            prop_assert_eq!(built.view().check(), Ok(()));
            let large = |limit: i64, values: Vec<i64>| values.into_iter().any(|value| value > limit);
            prop_assert_eq!(matches!(built.view().tokens, Ints::Wide(_)), large(0xffff, sids.concat()));
            prop_assert_eq!(matches!(built.view().items, Ints::Wide(_)), large(0xffff_ffff, ids));
            let (table, mut ids) = SidTrie::from(built.view()).sids().expect("small");
            let width = table.len() / ids.len();
            prop_assert!(same(built.view(), &Built::build(&table, width, &ids, None, 1).expect("its own SIDs")));
            let turn = seed.index(ids.len());
            ids.rotate_left(turn);
            let table = [&table[turn * width..], &table[..turn * width]].concat();
            prop_assert!(same(built.view(), &Built::build(&table, width, &ids, None, 1).expect("its own SIDs")));
        }

        /// Whatever the arrays hold, they are refused or are exactly those of a trie.
        #[test]
        fn arrays_from_anywhere_are_refused_or_a_trie(built in hostile()) {
            let arrays = built.view();
            if arrays.check().is_ok() {
                let (table, items) = SidTrie::from(arrays).sids().expect("small");
                let width = table.len() / items.len();
                prop_assert!(same(arrays, &Built::build(&table, width, &items, None, 1).expect("its own SIDs")));
            }
        }

        /// Unchecked, they may give any answer, but they do give one.
        #[test]
        fn arrays_from_anywhere_answer_all_questions(
            built in hostile(),
            added in vec(vec(0..5_u32, 1..5), 0..4),
            listed in vec(-1..40_i64, 0..12),
        ) {
            let index = Index::new(built.view());
            let trie = SidTrie::from(built.view());
            ask_everything(&trie, &index, &listed);
            let base_slot = |item| slot(&trie, &index, item);
            let added = added.into_iter().zip(1000..);
            if let Ok(changes) = Changes::add(&trie, added, base_slot) {
                ask_everything(&SidTrie { changes: Some(&changes), ..trie }, &index, &listed);
            }
            let there: Vec<i64> = listed.iter().copied().filter(|&item| base_slot(item).is_some()).collect();
            let there: std::collections::BTreeSet<i64> = there.into_iter().collect();
            for removed in [there.iter().copied().take(2).collect::<Vec<_>>(), there.into_iter().collect()] {
                if let Ok(changes) = Changes::remove(&trie, &removed, base_slot) {
                    ask_everything(&SidTrie { changes: Some(&changes), ..trie }, &index, &listed);
                }
            }
        }
    }

    fn ask_everything(trie: &SidTrie<'_>, index: &Index, listed: &[i64]) {
        let _ = (
            trie.num_items(),
            trie.num_sids(),
            trie.depth(),
            trie.num_prefixes(),
        );
        let _ = trie.sids();
        let _ = trie.walk(&[0, 1, 2, 3, NONE, NONE, 1, 1, 1], 3, 3);
        let nodes: Vec<i64> = (NONE..trie.num_nodes() as i64).collect();
        for &node in &nodes {
            let node = u32::try_from(node).unwrap_or(u32::MAX);
            let _ = (trie.items_at(node), child_tokens(trie, node));
        }
        let _ = trie.allowed(&nodes);
        let lists = Lists {
            items: listed,
            ends: &[listed.len() as i64],
        };
        let filters = [None, Some((Some(lists), None)), Some((None, Some(lists)))];
        for lists in filters {
            let made = lists.map(|(allow, deny)| {
                Filter::new(trie, allow, deny, |item| slot(trie, index, item))
            });
            let Ok(filter) = made.transpose() else {
                continue;
            };
            let _ = trie.lowest_items(&nodes, 1, filter.as_ref());
            let _ = trie.expand(&nodes, 1, 3, filter.as_ref());
            if let Some(filter) = &filter {
                let _ = trie.allowed_by(&nodes, 1, filter);
            }
            for normalize in [Normalize::Given, Normalize::Live] {
                search(trie, filter.as_ref(), normalize);
            }
        }
    }

    /// Steps until an error, the end, or more levels than there are nodes.
    fn search(trie: &SidTrie<'_>, filter: Option<&Filter>, normalize: Normalize) {
        const COLUMNS: usize = VOCABULARY + 1;
        let rule = Rule {
            trie: *trie,
            filter,
            num_beams: 3,
            over: Over::Vocabulary,
            normalize,
            sharpness: 1.0,
            weight: 1.0,
            draw: Draw::Best,
            groups: 1,
            diversity: 0.0,
            num_threads: 1,
        };
        let (mut nodes, mut totals) = (vec![0], vec![0.0]);
        for depth in 0.. {
            assert!(depth <= trie.num_nodes(), "a search without end");
            let beams = Beams {
                nodes: &nodes,
                totals: &totals,
                keys: &totals,
                width: nodes.len(),
                depth,
            };
            let scores = vec![-1.0; nodes.len() * COLUMNS];
            match step(&rule, beams, &scores, COLUMNS) {
                Ok(level) if level.live.contains(&true) => {
                    (nodes, totals) = (level.nodes, level.totals);
                }
                _ => return,
            }
        }
    }

    /// Rows enough for several chunks, most of them alike in what the first sort key holds.
    #[test]
    fn any_number_of_threads_builds_the_same_trie() {
        let num_rows: usize = 70_000;
        let mut state = 1_u64;
        let mut draw = |limit: u64| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            ((state >> 33) % limit) as i64
        };
        let mut row = |_| {
            let rare = draw(50) == 0;
            let last = if rare { NONE } else { draw(3000) };
            [
                i64::from(MAX_TOKEN),
                if rare { draw(9) } else { 5 },
                draw(40),
                last,
            ]
        };
        let table: Vec<i64> = (0..num_rows).flat_map(&mut row).collect();
        let items = (0..num_rows as i64).rev().collect::<Vec<_>>();
        let alone = Built::build(&table, 4, &items, None, 1).expect("valid SIDs");
        assert_eq!(alone.view().check(), Ok(()));
        assert!(
            alone.item_offsets.len() > 1000 && alone.ends.len() > 100,
            "shared and ragged SIDs"
        );
        for num_threads in [2, 3, 100_000] {
            assert_eq!(
                Built::build(&table, 4, &items, None, num_threads).as_ref(),
                Ok(&alone)
            );
        }
    }

    #[test]
    fn the_longest_sid_is_added_and_removed() {
        let long: Sid = (0..1024).map(|token| token % 3).collect();
        let built = build(&[vec![7], long.clone()], None);
        let index = Index::new(built.view());
        let trie = SidTrie::from(built.view());
        let slot_of = |item| slot(&trie, &index, item);
        let gone = Changes::remove(&trie, &[1], slot_of).expect("it is there");
        let gone = SidTrie {
            changes: Some(&gone),
            ..trie
        };
        assert_eq!((gone.depth(), gone.num_items()), (1, 1));
        let sid: Vec<u32> = long.iter().map(|&token| token as u32).collect();
        let back = Changes::add(&gone, std::iter::once((sid, 1)), slot_of).expect("it is new");
        let back = SidTrie {
            changes: Some(&back),
            ..trie
        };
        assert_eq!(back.sids(), trie.sids());
        let deny = Lists {
            items: &[1],
            ends: &[1],
        };
        let filter =
            Filter::new(&back, None, Some(deny), |item| slot(&back, &index, item)).expect("valid");
        assert_eq!(back.allowed_by(&[0], 1, &filter), Ok((vec![7], 1)));
    }

    #[test]
    fn the_largest_token_is_a_token() {
        let built = Built::build(&[MAX_TOKEN.into(), 0], 1, &[0, 1], None, 1).expect("valid");
        assert_eq!(child_tokens(&built.view().into(), 0), [0, MAX_TOKEN]);
        let beyond = Built::build(&[i64::from(MAX_TOKEN) + 1], 1, &[0], None, 1);
        assert!(matches!(
            beyond,
            Err(Error::Value {
                name: "sids",
                index: 0,
                ..
            })
        ));
    }

    #[test]
    fn tables_of_another_size_are_refused() {
        assert!(matches!(
            Built::build(&[1, 2, 3], 2, &[0], None, 1),
            Err(Error::Length { .. })
        ));
        let (table, width) = table(&[vec![1, 2]]);
        assert!(Built::build(&table, width, &[0, 1], None, 1).is_err());
        let built = build(&[vec![1]], None);
        let trie = SidTrie::from(built.view());
        assert!(matches!(
            trie.walk(&[1], 2, 1),
            Err(Error::Length {
                name: "prefixes",
                ..
            })
        ));
    }
}

mod filter {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::filter::{Filter, Lists};
    use ugr_fast::trie::changes::Changes;
    use ugr_fast::trie::index::Index;
    use ugr_fast::trie::{Arrays, Known, NONE, SidTrie};

    use super::catalogue::{Sid, build, build_with, node_of, slot};

    type Catalogue = Vec<(Sid, i64)>;

    /// Two levels with several hundred children somewhere, SIDs with up to three items, ids in no order.
    fn wide_catalogue() -> impl Strategy<Value = Catalogue> {
        let sizes = vec(prop_oneof![1..5_usize, 200..400_usize], 1..4);
        (sizes, 1..4_usize).prop_map(|(sizes, shared)| {
            let sids = (0..)
                .zip(sizes)
                .flat_map(|(first, size)| (0..size as i64).map(move |token| vec![first, token]));
            let times = |sid: &Sid| if sid[1] % 3 == 0 { shared } else { 1 };
            let sids: Vec<Sid> = sids
                .flat_map(|sid| vec![sid.clone(); times(&sid)])
                .collect();
            let total = sids.len() as i64;
            let ids = (0..total).map(|i| (i * 7919 + 5) % total * 2);
            sids.into_iter().zip(ids).collect()
        })
    }

    /// Item ids: some intervals of rows and some rows anywhere, with ids that nobody has among them.
    fn listed(
        catalogue: &Catalogue,
        intervals: &[(prop::sample::Index, usize)],
        singles: usize,
    ) -> Vec<i64> {
        let last = catalogue.len() - 1;
        let rows = intervals.iter().flat_map(|(start, len)| {
            let start = start.index(catalogue.len());
            start..=last.min(start + len)
        });
        let singles = (0..singles).map(|i| (i * 37 + 11) % catalogue.len());
        let ids = rows.chain(singles).map(|row| catalogue[row].1);
        ids.chain([NONE, 1, 1_000_001, i64::MAX]).collect()
    }

    /// The tokens of the children of `prefix` that keep an item.
    fn live_tokens(catalogue: &Catalogue, prefix: &[i64], keeps: impl Fn(i64) -> bool) -> Vec<i64> {
        let live = catalogue.iter().filter(|(sid, item)| {
            sid.len() > prefix.len() && sid.starts_with(prefix) && keeps(*item)
        });
        let tokens: BTreeSet<i64> = live.map(|(sid, _)| sid[prefix.len()]).collect();
        tokens.into_iter().collect()
    }

    /// Asks for the live children of every prefix with at most one token, and of a whole SID.
    fn check(
        trie: &SidTrie<'_>,
        catalogue: &Catalogue,
        filter: &Filter,
        keeps: impl Fn(i64) -> bool,
    ) -> Result<(), TestCaseError> {
        let first: BTreeSet<i64> = catalogue.iter().map(|(sid, _)| sid[0]).collect();
        let prefixes = first
            .into_iter()
            .map(|token| vec![token])
            .chain([vec![], catalogue[0].0.clone()]);
        for prefix in prefixes {
            let expected = live_tokens(catalogue, &prefix, &keeps);
            let (tokens, width) = trie
                .allowed_by(&[node_of(trie, &prefix)], 1, filter)
                .expect("a node");
            prop_assert_eq!(width, expected.len().max(1));
            prop_assert_eq!(
                &tokens[..expected.len()],
                &expected[..],
                "after {:?}",
                prefix
            );
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// A few long runs are found from the runs, many short ones from the children: both as brute force has it.
        #[test]
        fn live_children_are_those_that_keep_an_item(
            catalogue in wide_catalogue(),
            intervals in vec((any::<prop::sample::Index>(), 0..300_usize), 0..4),
            singles in prop_oneof![Just(0_usize), 1..5_usize, 50..200_usize],
            allow in any::<bool>(),
            removed in vec(any::<prop::sample::Index>(), 0..4),
            added in vec((0..5_i64, 0..500_i64), 0..4),
            tabulated in any::<bool>(),
        ) {
            let (sids, ids): (Vec<Sid>, Vec<i64>) = catalogue.iter().cloned().unzip();
            let built = build_with(&sids, &ids, None);
            let index = Index::new(built.view());
            let known = if tabulated { index.known() } else { Known::default() };
            let trie = SidTrie::from(Arrays { known, ..built.view() });
            let listed = listed(&catalogue, &intervals, singles);
            let lists = Lists { items: &listed, ends: &[listed.len() as i64] };
            let set: BTreeSet<i64> = listed.iter().copied().collect();
            let keeps = |item: i64| set.contains(&item) == allow;
            let make = |trie: &SidTrie<'_>| {
                let (allow, deny) = if allow { (Some(lists), None) } else { (None, Some(lists)) };
                Filter::new(trie, allow, deny, |item| slot(trie, &index, item)).expect("valid")
            };
            check(&trie, &catalogue, &make(&trie), keeps)?;

            let gone: BTreeSet<i64> = removed.iter().map(|row| catalogue[row.index(catalogue.len())].1).collect();
            prop_assume!(gone.len() < catalogue.len());
            let gone: Vec<i64> = gone.into_iter().collect();
            let less = Changes::remove(&trie, &gone, |item| slot(&trie, &index, item)).expect("they are there");
            let less = SidTrie { changes: Some(&less), ..trie };
            let new: Catalogue = added.iter().zip(0..).map(|(&(a, b), i)| (vec![a, b], 1_000_001 + i)).collect();
            let rows = new.iter().map(|(sid, item)| (sid.iter().map(|&token| token as u32).collect(), *item));
            let changes = Changes::add(&less, rows, |item| index.slot(item, trie.base.items)).expect("they are new");
            let changed = SidTrie { changes: Some(&changes), ..trie };
            let mut catalogue = catalogue;
            catalogue.retain(|(_, item)| !gone.contains(item));
            catalogue.extend(new);
            check(&changed, &catalogue, &make(&changed), keeps)?;
        }
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let built = build(&[vec![0], vec![1]], None);
        let trie = SidTrie::from(built.view());
        let make = |allow, deny| {
            Filter::new(&trie, allow, deny, |item| {
                u32::try_from(item).ok().filter(|&slot| slot < 2)
            })
        };
        let lists = |ends| Lists {
            items: &[0, 1],
            ends,
        };
        for ends in [&[3][..], &[-1], &[2, 1]] {
            assert!(matches!(
                make(None, Some(lists(ends))),
                Err(Error::Value { name: "deny", .. })
            ));
        }
        let refused = make(Some(lists(&[1, 2])), Some(lists(&[1, 2, 2])));
        assert!(matches!(
            refused,
            Err(Error::Length {
                name: "allow",
                expected: 3,
                got: 2
            })
        ));
        let filter = make(None, Some(lists(&[1, 2]))).expect("valid");
        assert!(matches!(
            trie.allowed_by(&[0, 0, 0], 1, &filter),
            Err(Error::Length { name: "filter", .. })
        ));
        assert_eq!(trie.allowed_by(&[0, 0], 1, &filter), Ok((vec![1, 0], 1)));
        let ragged = build(&[vec![0], vec![0, 1]], None);
        let refused = Filter::new(&ragged.view().into(), None, None, |_| None);
        assert!(matches!(refused, Err(Error::Value { name: "trie", .. })));
    }
}

mod beam {
    use std::cmp::Ordering;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Debug;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::beam::{Beams, Draw, Level, Normalize, Over, Rule, Score, Seed, step};
    use ugr_fast::filter::{Filter, Lists};
    use ugr_fast::trie::index::Index;
    use ugr_fast::trie::{NONE, SidTrie};

    use super::catalogue::{END, build, child_tokens, node_of, prefixes, sids};

    const COLUMNS: usize = END as usize + 1;

    /// The rule that every test varies.
    const SEED: Seed = Seed {
        seed: 5,
        first_row: 0,
    };

    fn plain(trie: SidTrie<'_>) -> Rule<'_, f64> {
        Rule {
            trie,
            filter: None,
            num_beams: 3,
            over: Over::Vocabulary,
            normalize: Normalize::Given,
            sharpness: 1.0,
            weight: 1.0,
            draw: Draw::Best,
            groups: 1,
            diversity: 0.0,
            num_threads: 1,
        }
    }

    /// An expansion: key, parent, token, node, sum and log-probability.
    type Expansion<S> = (S, i64, i64, i64, S, S);

    /// Every expansion of one row of beams that the rule allows, in groups, each sorted whole. `live` names the nodes
    /// that keep an item.
    fn expansions<S: Score>(
        rule: &Rule<'_, S>,
        beams: &Beams<'_, S>,
        scores: &[S],
        live: &BTreeSet<i64>,
    ) -> Vec<Option<Expansion<S>>> {
        let size = rule.num_beams / rule.groups;
        let (mut found, mut times, mut finished) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        for group in 0..rule.groups {
            let mut all = Vec::new();
            for (parent, &node) in beams
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| **node >= 0)
            {
                if rule.groups > 1 && beams.width > 1 && parent / size != group {
                    continue;
                }
                all.extend(of_beam(rule, beams, scores, live, parent, node));
            }
            for expansion in &mut all {
                let times: &i16 = times.get(&expansion.2).unwrap_or(&0);
                expansion.0 = expansion.0 - rule.diversity * S::nearest(f64::from(*times));
            }
            all.retain(|expansion| expansion.0 > S::NEG_INFINITY);
            all.retain(|expansion| expansion.2 == NONE || !finished.contains(&expansion.3));
            all.sort_by(|a, b| {
                let by_key = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
                by_key.then((a.1, a.2).cmp(&(b.1, b.2)))
            });
            all.truncate(size);
            for expansion in all.iter_mut().filter(|_| rule.groups > 1) {
                let carried = expansion.2 == NONE;
                let key = beams.keys[expansion.1 as usize];
                expansion.0 = if carried {
                    key
                } else {
                    expansion.4 * rule.weight
                }; // without diversity
            }
            for expansion in &all {
                *times.entry(expansion.2).or_insert(0) += 1;
                if rule.trie.children(expansion.3 as u32).tokens.is_empty() {
                    finished.insert(expansion.3);
                }
            }
            let missing = size - all.len();
            found.extend(
                all.into_iter()
                    .map(Some)
                    .chain(std::iter::repeat_n(None, missing)),
            );
        }
        found
    }

    /// The live children of one beam; the beam itself if it is finished.
    fn of_beam<S: Score>(
        rule: &Rule<'_, S>,
        beams: &Beams<'_, S>,
        scores: &[S],
        live: &BTreeSet<i64>,
        parent: usize,
        node: i64,
    ) -> Vec<Expansion<S>> {
        let origin = parent as i64;
        let (row, children) = (
            &scores[parent * COLUMNS..][..COLUMNS],
            rule.trie.children(node as u32),
        );
        if children.tokens.is_empty() {
            return vec![(
                beams.keys[parent],
                origin,
                NONE,
                node,
                beams.totals[parent],
                S::ZERO,
            )];
        }
        let pairs = (0..children.tokens.len()).zip(children.tokens.iter());
        let pairs: Vec<(i64, u32)> = pairs
            .map(|(j, token)| (children.node(j).into(), token))
            .collect();
        let pairs: Vec<(i64, u32)> = pairs
            .into_iter()
            .filter(|(child, _)| live.contains(child))
            .collect();
        let over: Vec<S> = match rule.normalize {
            Normalize::Given => vec![],
            Normalize::Columns(low, high) => row[low..high].to_vec(),
            Normalize::Live => pairs
                .iter()
                .map(|&(_, token)| row[token as usize])
                .collect(),
        };
        let normalizer = match (rule.normalize, over.as_slice()) {
            (Normalize::Given, _) => S::ZERO,
            (_, [only]) => *only * rule.sharpness, // a forced token has log-probability 0
            (_, over) => S::nearest(S::log_sum_exp(over, rule.sharpness)),
        };
        if normalizer <= S::NEG_INFINITY {
            return Vec::new();
        }
        let expansion = |(child, token): (i64, u32)| {
            let logprob = row[token as usize] * rule.sharpness - normalizer;
            let total = beams.totals[parent] + logprob;
            (
                total * rule.weight,
                origin,
                token.into(),
                child,
                total,
                logprob,
            )
        };
        pairs.into_iter().map(expansion).collect()
    }

    fn check<S: Score + Debug>(
        level: &Level<S>,
        expected: Vec<Option<Expansion<S>>>,
    ) -> Result<(), TestCaseError> {
        prop_assert_eq!(level.nodes.len(), expected.len());
        let padding = (S::NEG_INFINITY, NONE, NONE, NONE, S::NEG_INFINITY, S::ZERO);
        for (i, expected) in expected.into_iter().enumerate() {
            let got = (
                level.keys[i],
                level.parents[i],
                level.tokens[i],
                level.nodes[i],
                level.totals[i],
                level.logprobs[i],
            );
            prop_assert_eq!(got, expected.unwrap_or(padding), "beam {}", i);
        }
        Ok(())
    }

    /// One way to make log-probabilities; ranges that leave tokens out are among them.
    fn normalize() -> impl Strategy<Value = Normalize> {
        let range = (0..COLUMNS, 1..=COLUMNS)
            .prop_map(|(low, len)| Normalize::Columns(low, COLUMNS.min(low + len)));
        prop_oneof![
            Just(Normalize::Given),
            Just(Normalize::Live),
            Just(Normalize::Columns(0, COLUMNS)),
            range
        ]
    }

    /// A beam before the step: a node, whether it is alive, its sum and its key.
    type Start = (prop::sample::Index, bool, i32, i32);

    /// A random rule on a random catalogue.
    #[derive(Debug, Clone)]
    struct Case {
        sids: Vec<Vec<i64>>,
        beams: Vec<Start>,
        entries: Vec<f64>,
        normalize: Normalize,
        sharpness: f64,
        weight: f64,
        groups: usize,
        diversity: f64,
        deny: Option<Vec<i64>>,
    }

    impl Case {
        /// The beams at nodes that keep an item or at the root; the others are dead.
        fn nodes(&self, trie: &SidTrie<'_>, live: &BTreeSet<i64>) -> Vec<i64> {
            let node = |(pick, alive, ..): &Start| {
                let node = pick.index(trie.num_nodes()) as i64;
                if *alive && (live.contains(&node) || node == 0) {
                    node
                } else {
                    NONE
                }
            };
            self.beams.iter().map(node).collect()
        }

        fn filter(&self, trie: &SidTrie<'_>) -> Option<Filter> {
            let index = Index::new(trie.base);
            let deny = self.deny.as_ref()?;
            let lists = Lists {
                items: deny,
                ends: &[deny.len() as i64],
            };
            let filter = Filter::new(trie, None, Some(lists), |item| {
                index.slot(item, trie.base.items)
            });
            Some(filter.expect("valid"))
        }

        fn rule<'a, S: Score>(&self, trie: SidTrie<'a>, filter: Option<&'a Filter>) -> Rule<'a, S> {
            Rule {
                trie,
                filter,
                num_beams: 6,
                over: Over::Vocabulary,
                normalize: self.normalize,
                sharpness: S::nearest(self.sharpness),
                weight: S::nearest(self.weight),
                draw: Draw::Best,
                groups: self.groups,
                diversity: S::nearest(self.diversity),
                num_threads: 1,
            }
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let beam = (
            any::<prop::sample::Index>(),
            prop::bool::weighted(0.8),
            -3..1_i32,
            -3..1_i32,
        );
        let entry = prop_oneof![4 => (-3..2_i32).prop_map(f64::from), 1 => Just(f64::NEG_INFINITY)];
        let beams = prop_oneof![vec(beam.clone(), 1), vec(beam.clone(), 6), vec(beam, 2..9)];
        let scale = |values: [f64; 3]| prop::sample::select(values.to_vec());
        let numbers = (
            scale([1.0, 0.5, 2.0]),
            scale([1.0, 1.0, 0.25]),
            prop::sample::select(vec![1, 1, 2, 3]),
        );
        let rest = (
            scale([0.0, 0.5, 1.0]),
            prop::option::of(vec(-1..32_i64, 0..25)),
        );
        (
            sids(),
            beams,
            vec(entry, 9 * COLUMNS),
            normalize(),
            numbers,
            rest,
        )
            .prop_map(
                |(
                    sids,
                    beams,
                    entries,
                    normalize,
                    (sharpness, weight, groups),
                    (diversity, deny),
                )| {
                    let fits = beams.len() == 1 || beams.len() == 6;
                    let groups = if fits { groups } else { 1 };
                    Case {
                        sids,
                        beams,
                        entries,
                        normalize,
                        sharpness,
                        weight,
                        groups,
                        diversity,
                        deny,
                    }
                },
            )
    }

    /// The nodes on the path to an item that is not denied.
    fn live_nodes(trie: &SidTrie<'_>, sids: &[Vec<i64>], denied: &[i64]) -> BTreeSet<i64> {
        let full = |sid: &Vec<i64>| {
            sid.iter()
                .copied()
                .chain([END.into()])
                .collect::<Vec<i64>>()
        };
        let kept: Vec<_> = (0..)
            .zip(sids)
            .filter(|(item, _)| !denied.contains(item))
            .map(|(_, sid)| full(sid))
            .collect();
        prefixes(&kept)
            .iter()
            .map(|prefix| node_of(trie, prefix))
            .collect()
    }

    fn numbers<S: Score>(values: impl Iterator<Item = i32>) -> Vec<S> {
        values.map(|value| S::nearest(value.into())).collect()
    }

    fn run<S: Score + Debug>(case: &Case) -> Result<(), TestCaseError> {
        let built = build(&case.sids, Some(END));
        let trie = SidTrie::from(built.view());
        let filter = case.filter(&trie);
        let live = live_nodes(&trie, &case.sids, case.deny.as_deref().unwrap_or(&[]));
        let nodes = case.nodes(&trie, &live);
        let totals = numbers(case.beams.iter().map(|beam| beam.2));
        let keys = numbers(case.beams.iter().map(|beam| beam.3));
        let width = nodes.len();
        let beams = Beams {
            nodes: &nodes,
            totals: &totals,
            keys: &keys,
            width,
            depth: 0,
        };
        let entries = &case.entries[..width * COLUMNS];
        let scores: Vec<S> = entries.iter().map(|&entry| S::nearest(entry)).collect();
        let rule = case.rule(trie, filter.as_ref());
        let level = step(&rule, beams, &scores, COLUMNS).expect("valid");
        check(&level, expansions(&rule, &beams, &scores, &live))?;
        let grows = |&node: &i64| node >= 0 && !child_tokens(&trie, node as u32).is_empty();
        prop_assert_eq!(
            &level.live,
            &level.nodes.iter().map(grows).collect::<Vec<_>>()
        );
        if !matches!(case.normalize, Normalize::Columns(..)) {
            let (scores, columns) = beside_candidates(&rule, &nodes, &scores);
            let rule = Rule {
                over: Over::Candidates,
                ..rule
            };
            prop_assert_eq!(step(&rule, beams, &scores, columns), Ok(level));
        }
        Ok(())
    }

    /// The scores of the live children of every beam, and how many columns they take.
    fn beside_candidates<S: Score>(
        rule: &Rule<'_, S>,
        nodes: &[i64],
        scores: &[S],
    ) -> (Vec<S>, usize) {
        let (tokens, columns) = match rule.filter {
            Some(filter) => rule
                .trie
                .allowed_by(nodes, nodes.len(), filter)
                .expect("nodes"),
            None => rule.trie.allowed(nodes).expect("nodes"),
        };
        let entry = |(i, &token): (usize, &i64)| match usize::try_from(token) {
            Ok(token) => scores[i / columns * COLUMNS + token],
            Err(_) => S::INFINITY, // must not be read
        };
        (tokens.iter().enumerate().map(entry).collect(), columns)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_step_is_the_top_of_a_full_sort(case in cases()) {
            run::<f64>(&case)?;
            run::<f32>(&case)?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// More beams than are kept in order at all times, and ties across their bar.
        #[test]
        fn many_beams_are_the_top_of_a_full_sort(
            num_beams in 100..400_usize,
            weight in prop::sample::select(vec![1.0, 0.5]),
            normalize in normalize(),
            entries in vec((-3..2_i32).prop_map(f64::from), 125 * COLUMNS),
        ) {
            let sids: Vec<Vec<i64>> = (0..625).map(|i| vec![i / 125, i / 25 % 5, i / 5 % 5, i % 5]).collect();
            let built = build(&sids, None);
            let trie = SidTrie::from(built.view());
            let nodes: Vec<i64> = (31..156).collect(); // all of depth 3
            let zeros = vec![0.0; nodes.len()];
            let beams = Beams { nodes: &nodes, totals: &zeros, keys: &zeros, width: nodes.len(), depth: 3 };
            let rule = Rule { num_beams, weight, normalize, ..plain(trie) };
            let level = step(&rule, beams, &entries, COLUMNS).expect("valid");
            let all = (0..trie.num_nodes() as i64).collect();
            check(&level, expansions(&rule, &beams, &entries, &all))?;
        }

        #[test]
        fn any_number_of_threads_finds_the_same_beams(
            sids in sids(),
            draw in prop::sample::select(vec![Draw::Best, Draw::Perturbed(SEED), Draw::Sampled(SEED)]),
            entries in vec((-3..2_i32).prop_map(f64::from), 7 * COLUMNS),
        ) {
            let built = build(&sids, Some(END));
            let rule = Rule { draw, normalize: Normalize::Live, ..plain(built.view().into()) };
            let beams = Beams { nodes: &[0; 7], totals: &[0.0; 7], keys: &[0.0; 7], width: 1, depth: 0 };
            let alone = step(&rule, beams, &entries, COLUMNS);
            prop_assert!(alone.is_ok());
            for num_threads in [0, 2, 3, 50] {
                let rule = Rule { num_threads, ..rule };
                prop_assert_eq!(&step(&rule, beams, &entries, COLUMNS), &alone);
            }
        }
    }

    const BEAMS: Beams<'_, f64> = Beams {
        nodes: &[0, 0],
        totals: &[0.0, 0.0],
        keys: &[0.0, 0.0],
        width: 2,
        depth: 0,
    };

    /// What a step of two tokens refuses.
    fn refused(
        change: impl Fn(Rule<'_, f64>) -> Rule<'_, f64>,
        beams: Beams<'_, f64>,
        entries: usize,
        columns: usize,
    ) -> Error {
        let built = build(&[vec![0], vec![1]], None);
        let rule = change(Rule {
            num_beams: 1,
            ..plain(built.view().into())
        });
        step(&rule, beams, &vec![0.0; entries], columns).expect_err("it does not fit")
    }

    fn name(error: &Error) -> &'static str {
        match error {
            Error::Length { name, .. }
            | Error::Value { name, .. }
            | Error::TooLarge { name, .. } => name,
            _ => "another error",
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert_eq!(name(&refused(|rule| rule, BEAMS, 3, 2)), "scores");
        let columns = Error::Columns { needed: 2, got: 1 };
        assert_eq!(refused(|rule| rule, BEAMS, 2, 1), columns);
        assert_eq!(
            refused(
                |rule| Rule {
                    over: Over::Candidates,
                    ..rule
                },
                BEAMS,
                2,
                1
            ),
            columns
        );
        for (expected, beams) in [
            (
                "totals",
                Beams {
                    totals: &[0.0],
                    ..BEAMS
                },
            ),
            (
                "keys",
                Beams {
                    keys: &[0.0],
                    ..BEAMS
                },
            ),
            ("nodes", Beams { width: 3, ..BEAMS }),
            (
                "nodes",
                Beams {
                    nodes: &[0, 3],
                    ..BEAMS
                },
            ),
            ("num_beams", Beams { width: 0, ..BEAMS }),
            (
                "totals",
                Beams {
                    totals: &[0.0, f64::NAN],
                    ..BEAMS
                },
            ),
            (
                "totals",
                Beams {
                    keys: &[0.0, f64::INFINITY],
                    ..BEAMS
                },
            ),
        ] {
            assert_eq!(name(&refused(|rule| rule, beams, 4, 2)), expected);
        }
    }

    #[test]
    fn rules_that_do_not_fit_are_refused() {
        let named =
            |change: &dyn Fn(Rule<'_, f64>) -> Rule<'_, f64>| name(&refused(change, BEAMS, 4, 2));
        assert_eq!(
            named(&|rule| Rule {
                num_beams: 0,
                ..rule
            }),
            "num_beams"
        );
        assert_eq!(named(&|rule| Rule { groups: 0, ..rule }), "num_groups");
        assert_eq!(
            named(&|rule| Rule {
                num_beams: 3,
                groups: 2,
                ..rule
            }),
            "num_groups"
        );
        for normalize in [Normalize::Columns(1, 1), Normalize::Columns(0, 3)] {
            assert_eq!(named(&|rule| Rule { normalize, ..rule }), "normalize");
        }
        assert_eq!(
            named(&|rule| Rule {
                num_beams: 4,
                groups: 2,
                ..rule
            }),
            "beams"
        );
        let draw = Draw::Sampled(SEED);
        assert_eq!(
            named(&|rule| Rule {
                num_beams: 4,
                draw,
                ..rule
            }),
            "beams"
        );
    }
}

mod logsumexp {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::logsumexp;

    /// ln of a plain sum, of scores small enough for it.
    fn plain(scores: impl Iterator<Item = f64>) -> f64 {
        scores.map(f64::exp).sum::<f64>().ln()
    }

    fn equal(a: f64, b: f64, tolerance: f64) -> bool {
        a == b || (a - b).abs() <= tolerance || (a.is_nan() && b.is_nan())
    }

    /// Scores of both types against the plain sum, scaled.
    fn check(scores: &[f32], scale: f32) -> Result<(), TestCaseError> {
        let wide: Vec<f64> = scores.iter().map(|&x| x.into()).collect();
        // The product is made in the type of the scores.
        let expected = plain(scores.iter().map(|&x| f64::from(x * scale)));
        let got = logsumexp::f32(scores, scale);
        prop_assert!(equal(got, expected, 2e-6), "{} for {}", got, expected);
        let expected = plain(wide.iter().map(|&x| x * f64::from(scale)));
        let got = logsumexp::f64(&wide, scale.into());
        prop_assert!(equal(got, expected, 1e-9), "{} for {}", got, expected);
        Ok(())
    }

    fn score() -> impl Strategy<Value = f32> {
        prop_oneof![8 => -50.0_f32..50.0, 1 => Just(f32::NEG_INFINITY), 1 => (-4..4_i8).prop_map(f32::from)]
    }

    /// Scores of every spread from one number and a few to draw among.
    fn many(len: usize, seed: &[f32]) -> Vec<f32> {
        let jitter = |i: usize| (i * 7919 % 1009) as f32 / 1009.0;
        (0..len)
            .map(|i| (seed[i % seed.len()] - jitter(i)).max(-50.0))
            .collect()
    }

    proptest! {
        #[test]
        fn few_scores_equal_the_plain_sum(
            scores in vec(score(), 0..70),
            scale in prop::sample::select(vec![1.0_f32, 0.5, 0.1, 1.7]),
        ) {
            check(&scores, scale)?;
        }

        #[test]
        fn an_odd_score_gives_what_it_is(
            mut scores in vec(score(), 1..3000),
            place in any::<prop::sample::Index>(),
            odd in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
        ) {
            let place = place.index(scores.len());
            scores[place] = odd;
            let wide: Vec<f64> = scores.iter().map(|&x| x.into()).collect();
            for got in [logsumexp::f32(&scores, 1.0), logsumexp::f64(&wide, 1.0)] {
                prop_assert!(got.is_nan() || got == f64::INFINITY, "{}", got);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn many_scores_equal_the_plain_sum(
            len in prop_oneof![1000..1060_usize, 2000..10_000_usize, 150_000..200_000_usize],
            seed in vec(-50.0_f32..50.0, 1..40),
            scale in prop::sample::select(vec![1.0_f32, 0.5]),
        ) {
            check(&many(len, &seed), scale)?;
        }

        #[test]
        fn rows_are_one_sum_each(columns in 1..70_usize, num_rows in 0..9_usize, seed in vec(score(), 1..40)) {
            let scores = many(columns * num_rows, &seed);
            let each: Vec<f64> = scores.chunks(columns).map(|row| logsumexp::f32(row, 1.0)).collect();
            for num_threads in [0, 1, 2, 3, 20] {
                prop_assert_eq!(&logsumexp::rows(&scores, columns, num_threads), &each);
            }
        }
    }

    #[test]
    fn nothing_above_negative_infinity_is_negative_infinity() {
        for len in [0, 1, 15, 16, 17, 1024, 1025, 5000] {
            assert_eq!(
                logsumexp::f32(&vec![f32::NEG_INFINITY; len], 1.0),
                f64::NEG_INFINITY
            );
            assert_eq!(
                logsumexp::f64(&vec![f64::NEG_INFINITY; len], 1.0),
                f64::NEG_INFINITY
            );
            for place in 0..len.min(40) {
                let mut scores = vec![f32::NEG_INFINITY; len];
                scores[len - 1 - place] = -3.0;
                assert_eq!(logsumexp::f32(&scores, 1.0), -3.0);
            }
        }
        assert_eq!(logsumexp::rows(&[], 0, 1), [0.0_f64; 0]);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(
            logsumexp::f32(&[f32::MAX, f32::MIN], 1.0),
            f64::from(f32::MAX)
        );
        assert_eq!(logsumexp::f64(&[f64::MAX, f64::MIN], 1.0), f64::MAX);
    }
}

// ---- packing, advantages, rewards, calibration

mod packing {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::packing::{Batch, Packed, pack};

    const DEPTH: usize = 3;

    fn pad(candidates: &[Vec<i64>]) -> Vec<i64> {
        let row = |c: &Vec<i64>| c.iter().copied().chain([-1; DEPTH]).take(DEPTH).collect();
        candidates
            .iter()
            .flat_map(|c| -> Vec<i64> { row(c) })
            .collect()
    }

    fn pack_one(prompt: &[i64], candidates: &[Vec<i64>], suffix: &[i64]) -> Packed {
        let batch = Batch {
            prompts: prompt,
            offsets: &[0, i64::try_from(prompt.len()).expect("short")],
            completions: &pad(candidates),
            group: candidates.len(),
            depth: DEPTH,
            suffix,
        };
        pack(batch, 0).expect("valid input")
    }

    /// The tokens of the nodes that `node` sees.
    fn path(packed: &Packed, node: i64) -> Vec<i64> {
        let seen = (0..=node).zip(packed.tokens.iter().zip(&packed.exit));
        seen.filter(|&(_, (_, &exit))| node < exit)
            .map(|(_, (&token, _))| token)
            .collect()
    }

    proptest! {
        #[test]
        fn every_index_spells_its_path(
            prompt in vec(0_i64..3, 1..4),
            candidates in vec(vec(0_i64..3, 0..=DEPTH), 0..6),
            suffix in vec(0_i64..3, 0..3),
        ) {
            let packed = pack_one(&prompt, &candidates, &suffix);
            for (g, candidate) in candidates.iter().enumerate() {
                for length in 0..DEPTH {
                    let node = packed.logit_index[g * DEPTH + length];
                    prop_assert_eq!(node >= 0, length < candidate.len());
                    if node >= 0 {
                        prop_assert_eq!(path(&packed, node), [&prompt[..], &candidate[..length]].concat());
                    }
                }
                let node = packed.suffix_index[g];
                prop_assert_eq!(node >= 0, !suffix.is_empty() && !candidate.is_empty());
                if node >= 0 {
                    prop_assert_eq!(path(&packed, node), [&prompt[..], candidate, &suffix].concat());
                }
            }
        }

        #[test]
        fn no_node_is_spare(
            prompt in vec(0_i64..3, 1..4),
            candidates in vec(vec(0_i64..3, 0..=DEPTH), 0..6),
            suffix in vec(0_i64..3, 0..3),
        ) {
            let present: BTreeSet<_> = candidates.iter().filter(|c| !c.is_empty()).collect();
            let needed = |c: &&Vec<i64>| c.len() - usize::from(suffix.is_empty());
            let inner: BTreeSet<_> =
                present.iter().flat_map(|c| (1..=needed(c)).map(|n| &c[..n])).collect();
            let nodes = prompt.len() + inner.len() + present.len() * suffix.len();
            prop_assert_eq!(pack_one(&prompt, &candidates, &suffix).width, nodes);
        }

        #[test]
        fn anything_is_packed_or_refused(
            prompts in vec(-1_i64..3, 0..6),
            offsets in vec(-1_i64..7, 0..4),
            completions in vec(-2_i64..3, 0..13),
            group in 0_usize..4,
            depth in 0_usize..4,
        ) {
            let batch = Batch {
                prompts: &prompts,
                offsets: &offsets,
                completions: &completions,
                group,
                depth,
                suffix: &[1],
            };
            let _ = pack(batch, 0); // no panic
        }
    }

    #[test]
    fn refuses_a_size_that_overflows() {
        let batch = Batch {
            prompts: &[1],
            offsets: &[0, 1],
            completions: &[],
            group: usize::MAX,
            depth: 2,
            suffix: &[],
        };
        assert!(matches!(pack(batch, 0), Err(Error::Length { .. })));
        let no_rows = Batch {
            prompts: &[],
            offsets: &[0],
            ..batch
        };
        assert_eq!(pack(no_rows, 0).map(|packed| packed.width), Ok(0));
    }
}

mod advantage {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::advantage::{Scale, group_advantages};

    const SCALES: [Scale; 4] = [Scale::Std, Scale::None, Scale::LeaveOneOut, Scale::Batch];

    proptest! {
        #[test]
        fn a_constant_group_is_exactly_zero(constant in -1e37_f32..1e37, n in 1_usize..66) {
            let offsets = [0, i64::try_from(n).expect("short")];
            for scale in SCALES {
                let got = group_advantages(&vec![constant; n], &offsets, scale, 0.0, 1).expect("valid");
                prop_assert!(got.iter().all(|a| a.to_bits() == 0));
            }
        }

        #[test]
        fn equals_two_plain_passes(rewards in vec(-2.0_f64..2.0, 2..20), eps in 0.0_f64..0.1) {
            let n = rewards.len() as f64;
            let mean = rewards.iter().sum::<f64>() / n;
            let std = (rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            let offsets = [0, i64::try_from(rewards.len()).expect("short")];
            let got = group_advantages(&rewards, &offsets, Scale::Std, eps, 1).expect("valid");
            for (a, r) in got.iter().zip(&rewards) {
                prop_assert!((a - (r - mean) / (std + eps)).abs() < 1e-9);
            }
        }

        #[test]
        fn anything_finite_gives_something_finite(
            rewards in vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(1.0)], 0..9),
            offsets in vec(-1_i64..10, 0..5),
        ) {
            for scale in SCALES {
                if let Ok(got) = group_advantages(&rewards, &offsets, scale, 0.0, 1) {
                    prop_assert!(got.iter().all(|a| a.is_finite()));
                }
            }
        }

        #[test]
        fn an_empty_group_is_none(rewards in vec(-2.0_f64..2.0, 3..9), at in 0_usize..3) {
            let len = i64::try_from(rewards.len()).expect("short");
            let plain = [0, 2, len];
            let mut offsets = plain.to_vec();
            offsets.insert(at, plain[at]);
            for scale in SCALES {
                let advantages = |offsets| group_advantages(&rewards, offsets, scale, 0.0, 1);
                prop_assert_eq!(advantages(&offsets), advantages(&plain));
            }
        }
    }

    #[test]
    fn offsets_out_of_order_or_out_of_range_are_refused() {
        let refused =
            |offsets: &[i64]| group_advantages(&[1.0, 0.0], offsets, Scale::Std, 0.0, 1).is_err();
        for offsets in [
            &[][..],
            &[0],
            &[0, 1],
            &[1, 2],
            &[0, 3],
            &[0, 2, 1, 2],
            &[0, -1, 2],
            &[0, i64::MAX, 2],
        ] {
            assert!(refused(offsets), "{offsets:?}");
        }
    }
}

mod reward {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::advantage::{Rule, Scale, group_advantages};
    use ugr_fast::reward::{
        Candidates, Difficulty, Groups, Settings, difficulty_weight, signal, uncertainty_weighted,
    };

    const SETTINGS: Settings = Settings {
        by_length: true,
        temperature: 0.5,
        kind: Difficulty::Rank,
        alpha_min: 0.25,
        rule: Rule {
            scale: Scale::Std,
            eps: 1e-4,
            ddof: 1,
        },
    };
    const KINDS: [Difficulty; 3] = [
        Difficulty::Rank,
        Difficulty::Discount,
        Difficulty::Probability,
    ];

    /// One group of which all are present.
    fn group<'a>(scores: &'a [f64], hits: &'a [bool]) -> Groups<'a, f64> {
        let (shape, lengths, present) = ([1, scores.len()], None, None);
        Groups {
            shape,
            scores,
            hits,
            lengths,
            present,
        }
    }

    /// Depth, groups, tokens of targets and then of candidates, scores; depths with and without a loop of their own.
    fn batches() -> impl Strategy<Value = (usize, usize, Vec<i64>, Vec<f32>)> {
        (1_usize..7, 1_usize..5, 1_usize..12).prop_flat_map(|(depth, rows, size)| {
            let tokens = vec(-1_i64..2, (size + 1) * rows * depth);
            let score =
                prop_oneof![4 => -9.0_f32..0.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(-1.0)];
            (Just(depth), Just(rows), tokens, vec(score, rows * size))
        })
    }

    proptest! {
        #[test]
        fn the_exponential_is_exact_to_the_last_digits(x in prop_oneof![-1.0_f64..0.0, -40.0..0.0, -700.0..0.0]) {
            let rewards = uncertainty_weighted(group(&[0.0, 0.0, x], &[true, false, false]), 1.0).expect("valid");
            let share = x.exp() / (1.0 + x.exp());
            prop_assert!((rewards[2] + share).abs() <= 2e-15 * share, "{} {}", rewards[2], share);
        }

        #[test]
        fn one_call_is_the_four((depth, rows, tokens, scores) in batches(), by_length: bool) {
            let (target, tokens) = tokens.split_at(rows * depth);
            let size = scores.len() / rows;
            let candidate = |i: usize| &tokens[i * depth..(i + 1) * depth];
            let length = |i| candidate(i).iter().filter(|&&token| token >= 0).count();
            let all = || 0..scores.len();
            let present: Vec<bool> = all().map(|i| length(i) > 0).collect();
            let goal = |i| &target[i / size * depth..(i / size + 1) * depth];
            let hits: Vec<bool> = all().map(|i| present[i] && candidate(i) == goal(i)).collect();
            let lengths: Vec<f64> = all().map(|i| if by_length { length(i) as f64 } else { 1.0 }).collect();
            let groups = Groups {
                shape: [rows, size],
                scores: &scores,
                hits: &hits,
                lengths: Some(&lengths),
                present: Some(&present),
            };
            let rewards = uncertainty_weighted(groups, SETTINGS.temperature).expect("valid");
            let offsets: Vec<i64> = (0..=rows).map(|row| (row * size) as i64).collect();
            for kind in KINDS {
                let settings = Settings { by_length, kind, ..SETTINGS };
                let candidates = Candidates { shape: [rows, size, depth], tokens, target, mask: None };
                let got = signal(candidates, &scores, settings).expect("valid");
                let weight = difficulty_weight(Groups { lengths: None, ..groups }, kind, settings.alpha_min);
                let advantages = group_advantages(&rewards, &offsets, Scale::Std, 1e-4, 1);
                prop_assert_eq!(&got.hits, &hits);
                prop_assert_eq!(bits(&got.rewards), bits(&rewards));
                prop_assert_eq!(got.weight, weight.expect("valid"));
                prop_assert_eq!(bits(&got.advantages), bits(&advantages.expect("valid")));
            }
        }

        #[test]
        fn anything_is_rewarded_or_refused(
            shape in [0_usize..4, 0..4, 0..4],
            tokens in vec(any::<i64>(), 0..28),
            target in vec(any::<i64>(), 0..10),
            scores in vec(any::<f64>(), 0..10),
            hits in vec(any::<bool>(), 0..10),
            temperature: f64,
            alpha_min: f64,
        ) {
            let [rows, size, depth] = shape;
            let fit = |len: usize, needed: usize| if len > needed { needed } else { len };
            let scores = &scores[..fit(scores.len(), rows * size)];
            let hits = &hits[..fit(hits.len(), rows * size)];
            let candidates = Candidates {
                shape,
                tokens: &tokens[..fit(tokens.len(), rows * size * depth)],
                target: &target[..fit(target.len(), rows * depth)],
                mask: Some(hits),
            };
            let groups = Groups { shape: [rows, size], scores, hits, lengths: Some(scores), present: Some(hits) };
            let _ = uncertainty_weighted(groups, temperature); // no panic
            for kind in KINDS {
                let _ = difficulty_weight(groups, kind, alpha_min);
                let _ = signal(candidates, scores, Settings { temperature, kind, alpha_min, ..SETTINGS });
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_share_too_small_for_a_normal_number_is_zero() {
        for x in [-709.0, -1e300, f64::NEG_INFINITY] {
            let scores = [0.0, 0.0, x];
            let groups = group(&scores, &[true, false, false]);
            let rewards = uncertainty_weighted(groups, 1.0).expect("valid");
            assert_eq!(rewards, [1.0, -1.0, 0.0]);
            assert_eq!(rewards[2].to_bits(), 0);
        }
    }

    #[test]
    fn refuses_a_size_that_overflows() {
        let shape = [usize::MAX, 2];
        let groups = Groups::<f64> {
            shape,
            ..group(&[], &[])
        };
        assert!(matches!(
            uncertainty_weighted(groups, 1.0),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            difficulty_weight(groups, Difficulty::Rank, 0.0),
            Err(Error::Length { .. })
        ));
        let candidates = Candidates {
            shape: [1 << 40, 1 << 40, 1],
            tokens: &[],
            target: &[],
            mask: None,
        };
        assert!(matches!(
            signal::<f32>(candidates, &[], SETTINGS),
            Err(Error::Length { .. })
        ));
        let wide = Candidates {
            shape: [0, usize::MAX, 1],
            ..candidates
        };
        assert!(signal::<f32>(wide, &[], SETTINGS).is_ok_and(|signal| signal.hits.is_empty()));
    }
}

mod calibration {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Result;
    use ugr_fast::calibration::{
        Closed, MAX_BINS, Outcome, Sums, add_width, equal_mass, merge, totals,
    };
    use ugr_fast::float::Float;

    fn width<C: Float, Y: Outcome>(c: &[C], y: &[Y], bins: usize) -> Result<Vec<Sums>> {
        let mut sums = vec![Sums::default(); bins];
        add_width(&mut sums, c, y, None, Closed::Left).map(|()| sums)
    }

    fn counts(sums: &[Sums]) -> Vec<u128> {
        sums.iter().map(|bin| bin[0]).collect()
    }

    proptest! {
        #[test]
        fn counts_and_sums_add_up(
            samples in vec((0.0_f32..=1.0, 0_u8..=1), 1..5000),
            bins in 1_usize..70,
        ) {
            let (confidence, correct): (Vec<f32>, Vec<u8>) = samples.into_iter().unzip();
            for sums in [
                width(&confidence, &correct, bins).expect("valid"),
                equal_mass(&confidence, &correct, bins).expect("valid").sums,
            ] {
                prop_assert_eq!(counts(&sums).iter().sum::<u128>(), confidence.len() as u128);
                let [w, ww, c, y, _, _, yy, gap] =
                    totals(&sums).map(|row| row.iter().sum::<f64>());
                prop_assert_eq!((w, ww), (confidence.len() as f64, w));
                let sum: f64 = confidence.iter().map(|&c| f64::from(c)).sum();
                prop_assert!((c - sum).abs() < 1e-9);
                let hits: f64 = correct.iter().map(|&y| f64::from(y)).sum();
                prop_assert_eq!((y, yy), (hits, hits));
                prop_assert!((gap - (sum - hits)).abs() < 1e-9);
            }
        }

        /// C3, C4; hard outcomes and soft ones of 0 and 1 are one thing.
        #[test]
        fn parts_merge_to_the_same_bits(
            samples in vec((0.0_f64..=1.0, 0_u8..=1), 0..5000),
            cut in 0_usize..5000,
            bins in 1_usize..70,
        ) {
            let (confidence, correct): (Vec<f64>, Vec<u8>) = samples.into_iter().unzip();
            let cut = cut.min(confidence.len());
            let whole = width(&confidence, &correct, bins).expect("valid");
            let mut sums = width(&confidence[cut..], &correct[cut..], bins).expect("valid");
            let other = width(&confidence[..cut], &correct[..cut], bins).expect("valid");
            merge(&mut sums, &other).expect("as many bins");
            prop_assert_eq!(&sums, &whole);
            let soft: Vec<f64> = correct.iter().map(|&y| y.into()).collect();
            prop_assert_eq!(&width(&confidence, &soft, bins).expect("valid"), &whole);
            let ones = vec![1.0; soft.len()];
            let mut weighted = vec![Sums::default(); bins];
            add_width(&mut weighted, &confidence, &soft, Some(&ones), Closed::Left).expect("valid");
            prop_assert_eq!(counts(&weighted), counts(&whole));
            for (a, b) in totals(&weighted).concat().iter().zip(totals(&whole).concat()) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }

        #[test]
        fn anything_is_binned_or_refused(
            confidence in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            correct in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            bins in prop_oneof![0_usize..20, Just(MAX_BINS), Just(MAX_BINS + 1)],
        ) {
            let _ = width(&confidence, &correct, bins); // no panic
            let _ = equal_mass(&confidence, &correct, bins);
        }
    }

    #[test]
    fn every_edge_opens_its_bin() {
        for bins in 1_u16..=1024 {
            let edge = |k: u16| f32::from(k) / f32::from(bins);
            let at: Vec<f32> = (0..bins).map(edge).collect();
            let below: Vec<f32> = (1..=bins).map(|k| edge(k).next_down()).collect();
            for samples in [at, below] {
                let sums = width(&samples, &vec![1_u8; samples.len()], bins.into());
                let counts = counts(&sums.expect("valid"));
                assert!(counts.iter().all(|&count| count == 1), "{bins} bins");
            }
        }
    }
}

mod ranks {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::ranks::Ranks;

    /// Scores of both signs, with ties, and enough of them for the radix sort.
    fn samples() -> impl Strategy<Value = (Vec<f32>, Vec<bool>)> {
        let score = prop_oneof![
            (-3_i8..=3).prop_map(|x| f32::from(x) / 4.0),
            -1.0_f32..1.0,
            Just(f32::NEG_INFINITY),
        ];
        let lists = prop_oneof![
            vec((score.clone(), any::<bool>()), 0..40),
            vec((score, any::<bool>()), 1024..1500)
        ];
        lists.prop_map(|samples| samples.into_iter().unzip())
    }

    proptest! {
        /// C26, C33.
        #[test]
        fn areas_equal_counted_pairs((scores, correct) in samples()) {
            let ranks = Ranks::new(&scores, &correct).expect("valid");
            let of = |hit: bool| -> Vec<f32> {
                let samples = scores.iter().zip(&correct);
                samples.filter(|sample| *sample.1 == hit).map(|sample| *sample.0).collect()
            };
            let (hits, errors) = (of(true), of(false));
            let wins: u64 = hits
                .iter()
                .flat_map(|a| errors.iter().map(move |b| u64::from(a > b) + u64::from(a >= b)))
                .sum();
            let pairs = 2 * hits.len() * errors.len();
            if pairs > 0 {
                prop_assert_eq!(ranks.auroc(), wins as f64 / pairs as f64);
            } else {
                prop_assert!(ranks.auroc().is_nan());
            }
            let (n, k) = (scores.len() as f64, errors.len() as f64);
            if n > 0.0 {
                let lost = (pairs as u64 - wins) as f64 / 2.0;
                prop_assert!((ranks.augrc() - (lost + k * (k + 1.0) / 2.0) / (n * n)).abs() < 1e-14);
            }
        }

        /// C29; both types sort alike.
        #[test]
        fn every_threshold_keeps_what_it_says((scores, correct) in samples()) {
            let ranks = Ranks::new(&scores, &correct).expect("valid");
            let curve = ranks.curve();
            prop_assert!(curve.threshold.is_sorted_by(|a, b| a > b));
            prop_assert_eq!(curve.kept.last().copied().unwrap_or(0), scores.len() as u64);
            let places = (0..curve.kept.len()).step_by(1 + curve.kept.len() / 20);
            for j in places {
                let kept = |s: &f32| f64::from(*s) >= curve.threshold[j];
                let wrong = scores.iter().zip(&correct).filter(|(s, hit)| kept(s) && !**hit).count();
                prop_assert_eq!(curve.kept[j], scores.iter().filter(|s| kept(s)).count() as u64);
                prop_assert_eq!(curve.errors[j], wrong as u64);
            }
            let wide: Vec<f64> = scores.iter().map(|&s| s.into()).collect();
            prop_assert_eq!(Ranks::new(&wide, &correct).expect("valid").curve(), curve);
        }
    }

    #[test]
    fn nan_and_lengths_are_refused() {
        let error = |scores: &[f64], correct: &[bool]| {
            Ranks::new(scores, correct)
                .map(|_| ())
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(
            error(&[0.0, f64::NAN], &[true, true]),
            "`confidence` must not be NaN; got NaN at index 1"
        );
        assert_eq!(error(&[0.0], &[]), "`correct` must have length 1, got 0");
    }
}

mod isotonic {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::isotonic::{Knots, isotonic, isotonic_weighted};

    /// The value at each confidence, the lowest first: max over i <= k of min over j >= k of the mean of i..=j.
    fn plain(samples: &[(f32, u8)]) -> Vec<(f32, f64)> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let points: Vec<(f32, u32, u32)> = sorted
            .chunk_by(|a, b| a.0 >= b.0)
            .map(|run| {
                (
                    run[0].0,
                    run.iter().map(|s| u32::from(s.1)).sum(),
                    run.len() as u32,
                )
            })
            .collect();
        let mean = |i: usize, j: usize| {
            let hits: u32 = points[i..=j].iter().map(|p| p.1).sum();
            let all: u32 = points[i..=j].iter().map(|p| p.2).sum();
            f64::from(hits) / f64::from(all)
        };
        let value = |k: usize| {
            let least = |i: usize| (k..points.len()).map(|j| mean(i, j)).fold(1.0, f64::min);
            (0..=k).map(least).fold(0.0, f64::max)
        };
        (0..points.len()).map(|k| (points[k].0, value(k))).collect()
    }

    fn ends(fitted: &[(f32, f64)]) -> Knots {
        let blocks = fitted.chunk_by(|a, b| a.1 >= b.1);
        let ends = blocks.flat_map(|block| {
            let (first, last) = (block[0], block[block.len() - 1]);
            let two = (last.0 > first.0).then_some(last);
            std::iter::once(first).chain(two)
        });
        let (confidence, value) = ends.map(|(c, v)| (f64::from(c), v)).unzip();
        Knots { confidence, value }
    }

    fn confidence() -> impl Strategy<Value = f32> {
        let coarse = (0_u8..=8).prop_map(|k| f32::from(k) / 8.0);
        prop_oneof![
            coarse,
            0.0_f32..=1.0,
            Just(f32::from_bits(1)),
            Just(1.0_f32.next_down())
        ]
    }

    proptest! {
        #[test]
        fn knots_are_the_ends_of_the_formulas_blocks(samples in vec((confidence(), 0_u8..=1), 0..20)) {
            let (c, y): (Vec<f32>, Vec<u8>) = samples.iter().copied().unzip();
            let wide: Vec<f64> = c.iter().map(|&c| f64::from(c)).collect();
            let soft: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
            let expected = ends(&plain(&samples));
            prop_assert_eq!(&isotonic(&c, &y).expect("valid"), &expected);
            prop_assert_eq!(&isotonic(&wide, &y).expect("valid"), &expected);
            prop_assert_eq!(&isotonic_weighted(&wide, &soft, &vec![3.0; c.len()]).expect("valid"), &expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn many_samples_in_any_precision_give_the_same_knots(
            samples in vec((confidence(), 0_u8..=1), 2000..4000),
        ) {
            let (c, y): (Vec<f32>, Vec<u8>) = samples.into_iter().unzip();
            let wide: Vec<f64> = c.iter().map(|&c| f64::from(c)).collect();
            let knots = isotonic(&c, &y).expect("valid");
            prop_assert!(knots.confidence.is_sorted_by(|a, b| a < b));
            prop_assert!(knots.value.is_sorted());
            prop_assert_eq!(knots, isotonic(&wide, &y).expect("valid"));
        }
    }

    proptest! {
        #[test]
        fn anything_is_fitted_or_refused(
            confidence in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            correct in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            weight in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            hard in vec(any::<u8>(), 0..9),
        ) {
            let single: Vec<f32> = confidence.iter().map(|&c| c as f32).collect();
            let _ = isotonic(&single, &hard); // no panic
            let _ = isotonic(&confidence, &hard);
            let _ = isotonic_weighted(&confidence, &correct, &weight);
        }
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        let refused = |result: ugr_fast::Result<Knots>| result.expect_err("refused").to_string();
        assert_eq!(
            refused(isotonic(&[0.5, f32::NAN], &[0, 1])),
            "`confidence` must lie in [0, 1]; got NaN at index 1"
        );
        assert_eq!(
            refused(isotonic(&[0.5], &[2])),
            "`correct` must lie in [0, 1]; got 2 at index 0"
        );
        assert_eq!(
            refused(isotonic(&[0.5], &[])),
            "`correct` must have length 1, got 0"
        );
        assert_eq!(
            refused(isotonic_weighted(&[0.5], &[1.0], &[-1.0])),
            "`weight` must be 0 or lie in [1e-100, 1e100]; got -1 at index 0"
        );
    }
}

mod simd {
    #[test]
    fn it_is_a_set_that_the_documentation_names() {
        assert!(["v3", "neon", "scalar"].contains(&ugr_fast::simd::name().as_str()));
    }
}

//! The kernels against slow, obvious code.

// The numbers of a test are small.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::float_cmp
)]

// ---- trie and beam

mod trie_and_beam {
    use std::cmp::Ordering;
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::Error;
    use ugr_fast::beam::{Beams, Over, step};
    use ugr_fast::trie::{MAX_TOKEN, NONE, SidTrie};

    const VOCABULARY: usize = 4;
    const END: u32 = VOCABULARY as u32;
    const COLUMNS: usize = VOCABULARY + 1;
    const NUM_BEAMS: usize = 3;

    type Sid = Vec<i64>;

    fn sids() -> impl Strategy<Value = Vec<Sid>> {
        vec(vec(0..VOCABULARY as i64, 1..5), 1..30)
    }

    fn build(sids: &[Sid], end: Option<u32>) -> SidTrie {
        let width = sids.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |sid: &Sid| {
            let mut row = sid.clone();
            row.resize(width, NONE);
            row
        };
        let table: Vec<i64> = sids.iter().flat_map(padded).collect();
        let items: Vec<i64> = (0..).take(sids.len()).collect();
        SidTrie::build(&table, width, &items, end).expect("valid SIDs")
    }

    /// All prefixes, in the order of the nodes.
    fn prefixes(sids: &[Sid]) -> Vec<Sid> {
        let all = sids
            .iter()
            .flat_map(|sid| (0..=sid.len()).map(|n| (n, sid[..n].to_vec())));
        all.collect::<BTreeSet<_>>()
            .into_iter()
            .map(|(_, prefix)| prefix)
            .collect()
    }

    fn node_of(trie: &SidTrie, prefix: &[i64]) -> i64 {
        trie.walk(prefix, prefix.len(), 1).expect("valid prefix")[0]
    }

    /// Every expansion of the beams, sorted whole: (score, parent, token, node).
    fn expansions(
        trie: &SidTrie,
        nodes: &[i64],
        scores: &[f64],
        logprobs: &[f64],
    ) -> Vec<(f64, i64, i64, i64)> {
        let mut all = Vec::new();
        for (parent, &node) in nodes.iter().enumerate().filter(|(_, node)| **node >= 0) {
            let origin = parent as i64;
            let children = trie.children(node as u32);
            if children.is_empty() {
                all.push((scores[parent], origin, NONE, node));
            }
            for child in children {
                let token = trie.tokens()[child as usize];
                let score = scores[parent] + logprobs[parent * COLUMNS + token as usize];
                all.push((score, origin, token.into(), child.into()));
            }
        }
        all.retain(|expansion| expansion.0 > f64::NEG_INFINITY);
        all.sort_by(|a, b| {
            let by_score = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
            by_score.then((a.1, a.2).cmp(&(b.1, b.2)))
        });
        all.truncate(NUM_BEAMS);
        all
    }

    proptest! {
        #[test]
        fn nodes_are_the_prefixes_in_breadth_first_order(sids in sids()) {
            let trie = build(&sids, None);
            let prefixes = prefixes(&sids);
            prop_assert_eq!(trie.num_nodes(), prefixes.len());
            for (node, prefix) in (0..).zip(&prefixes) {
                prop_assert_eq!(node_of(&trie, prefix), node);
                let extends = |other: &&Sid| other.split_last().is_some_and(|(_, start)| start == prefix);
                let children = prefixes.iter().filter(extends).map(|other| other[prefix.len()] as u32);
                prop_assert_eq!(trie.child_tokens(node as u32), children.collect::<Vec<_>>());
                let items = (0..).zip(&sids).filter(|(_, sid)| *sid == prefix).map(|(item, _)| item);
                prop_assert_eq!(trie.items_at(node as u32), items.collect::<Vec<i64>>());
            }
        }

        #[test]
        fn arrays_round_trip(sids in sids()) {
            let trie = build(&sids, None);
            let copy = SidTrie::from_arrays(
                trie.tokens().to_vec(),
                trie.first_child().to_vec(),
                trie.terminals().to_vec(),
                trie.item_offsets().to_vec(),
                trie.items().to_vec(),
            );
            prop_assert_eq!(copy, Ok(trie));
        }

        /// Whatever the arrays hold, there is an error or a trie whose questions can all be asked.
        #[test]
        fn arrays_from_anywhere_do_not_panic(
            tokens in vec(0..4_u32, 0..6),
            first_child in vec(0..7_u32, 0..7),
            terminals in vec(0..7_u32, 0..4),
            item_offsets in vec(0..5_u32, 0..5),
            items in vec(-1..5_i64, 0..5),
        ) {
            if let Ok(trie) = SidTrie::from_arrays(tokens, first_child, terminals, item_offsets, items) {
                let (table, items) = trie.sids().expect("small");
                let rebuilt = SidTrie::build(&table, trie.depth(), &items, None);
                prop_assert_eq!(rebuilt, Ok(trie));
            }
        }

        #[test]
        fn a_step_is_the_top_of_a_full_sort(
            sids in sids(),
            beams in vec((any::<prop::sample::Index>(), any::<bool>(), -3..1_i32), 1..5),
            entries in vec(prop_oneof![(-3..2_i32).prop_map(f64::from), Just(f64::NEG_INFINITY)], 4 * COLUMNS),
        ) {
            let trie = build(&sids, Some(END));
            let node = |(pick, alive, _): &(prop::sample::Index, bool, i32)| {
                if *alive { pick.index(trie.num_nodes()) as i64 } else { NONE }
            };
            let nodes: Vec<i64> = beams.iter().map(node).collect();
            let scores: Vec<f64> = beams.iter().map(|beam| beam.2.into()).collect();
            let logprobs = &entries[..nodes.len() * COLUMNS];
            let beams = Beams { nodes: &nodes, scores: &scores, width: nodes.len() };
            let level = step(&trie, beams, logprobs, COLUMNS, Over::Vocabulary, NUM_BEAMS);
            let level = level.expect("valid");
            let mut expected = expansions(&trie, &nodes, &scores, logprobs);
            expected.resize(NUM_BEAMS, (f64::NEG_INFINITY, NONE, NONE, NONE));
            for (i, (score, parent, token, node)) in expected.into_iter().enumerate() {
                prop_assert_eq!(level.scores[i], score);
                prop_assert_eq!((level.parents[i], level.tokens[i], level.nodes[i]), (parent, token, node));
            }
        }
    }

    #[test]
    fn the_largest_token_is_a_token() {
        let trie = SidTrie::build(&[MAX_TOKEN.into(), 0], 1, &[0, 1], None).expect("valid");
        assert_eq!(trie.child_tokens(0), [0, MAX_TOKEN]);
        let beyond = SidTrie::build(&[i64::from(MAX_TOKEN) + 1], 1, &[0], None);
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
    fn sizes_that_do_not_fit_are_refused() {
        let trie = build(&[vec![0], vec![1]], None);
        let beams = Beams {
            nodes: &[0, 0],
            scores: &[0.0, 0.0],
            width: 2,
        };
        let refused = |beams, entries: usize, columns| {
            step(
                &trie,
                beams,
                &vec![0.0; entries],
                columns,
                Over::Vocabulary,
                1,
            )
            .expect_err("sizes")
        };
        assert!(matches!(
            refused(beams, 3, 2),
            Error::Length { name: "scores", .. }
        ));
        assert_eq!(refused(beams, 2, 1), Error::Columns { needed: 2, got: 1 });
        let short = Beams {
            scores: &[0.0],
            ..beams
        };
        assert!(matches!(
            refused(short, 4, 2),
            Error::Length { name: "totals", .. }
        ));
        let odd = Beams { width: 3, ..beams };
        assert!(matches!(
            refused(odd, 4, 2),
            Error::Length { name: "nodes", .. }
        ));
        let outside = Beams {
            nodes: &[0, 3],
            ..beams
        };
        assert!(matches!(
            refused(outside, 4, 2),
            Error::Value {
                name: "nodes",
                index: 1,
                ..
            }
        ));
        assert!(matches!(
            SidTrie::build(&[1, 2, 3], 2, &[0], None),
            Err(Error::Length { .. })
        ));
    }
}

// ---- packing, advantages, calibration

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
    }
}

mod calibration {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ugr_fast::calibration::{MAX_BINS, equal_mass, equal_width};

    proptest! {
        #[test]
        fn counts_and_means_add_up(
            samples in vec((0.0_f32..=1.0, 0_u8..=1), 1..5000),
            bins in 1_usize..70,
        ) {
            let (confidence, correct): (Vec<f32>, Vec<u8>) = samples.into_iter().unzip();
            for result in [
                equal_width(&confidence, &correct, bins).expect("valid"),
                equal_mass(&confidence, &correct, bins).expect("valid"),
            ] {
                prop_assert_eq!(result.count.iter().sum::<u64>(), confidence.len() as u64);
                let total = |means: &[f64]| -> f64 {
                    let filled = means.iter().zip(&result.count).filter(|(_, n)| **n > 0);
                    filled.map(|(mean, n)| mean * *n as f64).sum()
                };
                let sum: f64 = confidence.iter().map(|&c| f64::from(c)).sum();
                prop_assert!((total(&result.confidence) - sum).abs() < 1e-9);
                let hits: f64 = correct.iter().map(|&y| f64::from(y)).sum();
                prop_assert!((total(&result.accuracy) - hits).abs() < 1e-9);
            }
        }

        #[test]
        fn anything_is_binned_or_refused(
            confidence in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            correct in vec(prop_oneof![any::<f64>(), 0.0..=1.0], 0..9),
            bins in prop_oneof![0_usize..20, Just(MAX_BINS), Just(usize::MAX)],
        ) {
            let _ = equal_width(&confidence, &correct, bins); // no panic
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
                let result =
                    equal_width(&samples, &vec![1_u8; samples.len()], bins.into()).expect("valid");
                assert!(result.count.iter().all(|&count| count == 1), "{bins} bins");
            }
        }
    }
}

//! The kernels alone, without Python: `cargo bench`.

#![allow(clippy::cast_possible_truncation)] // the numbers of a benchmark are small

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ugr_fast::advantage::{self, Scale, group_advantages};
use ugr_fast::beam::{Beams, Draw, Normalize, Over, Rule, step};
use ugr_fast::calibration::{Closed, add_width, equal_mass};
use ugr_fast::packing::{Batch, pack};
use ugr_fast::ranks::Ranks;
use ugr_fast::reward::{Candidates, Difficulty, Settings, signal};
use ugr_fast::trie::{Built, SidTrie};
use ugr_fast::{filter::Filter, logsumexp};

/// A small generator (splitmix64), so that runs repeat without another dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

// ---- trie and beam

const DEPTH: usize = 8;
const VOCABULARY: u64 = 2048;

fn random_sids(num_items: usize) -> Vec<i64> {
    let mut random = Random(1);
    let token = |_| i64::try_from(random.below(VOCABULARY)).unwrap_or(0);
    (0..num_items * DEPTH).map(token).collect()
}

fn random_trie(num_items: i64) -> Built {
    let items: Vec<i64> = (0..num_items).collect();
    Built::build(&random_sids(items.len()), DEPTH, &items, None, 1).expect("valid input")
}

fn trie(c: &mut Criterion) {
    let items: Vec<i64> = (0..100_000).collect();
    let sids = random_sids(items.len());
    c.bench_function("trie/build 1e5 x 8", |b| {
        b.iter(|| Built::build(black_box(&sids), DEPTH, &items, None, 1));
    });
    let built = Built::build(&sids, DEPTH, &items, None, 1).expect("valid input");
    let trie = SidTrie::from(built.view());
    c.bench_function("trie/walk 1e5 x 8", |b| {
        b.iter(|| trie.walk(black_box(&sids), DEPTH, items.len()));
    });
}

/// 140 rows, as 14 prompts of 10 beams, at depths 1, 2 and 4 of a million random SIDs.
fn beam(c: &mut Criterion) {
    const BATCH: usize = 14;
    const NUM_BEAMS: usize = 10;
    let columns = VOCABULARY as usize;
    let built = random_trie(1_000_000);
    let mut random = Random(2);
    let mut logprobs = |rows: usize| -> Vec<f32> {
        let mut entry = |_| random.unit().ln() as f32;
        (0..rows * columns).map(&mut entry).collect()
    };
    let rule = |normalize| Rule {
        trie: SidTrie::from(built.view()),
        filter: None::<&Filter>,
        num_beams: NUM_BEAMS,
        over: Over::Vocabulary,
        normalize,
        sharpness: 1.0_f32,
        weight: 1.0,
        draw: Draw::Best,
        groups: 1,
        diversity: 0.0,
        num_threads: 1,
    };
    let (mut nodes, mut totals, mut width) = (vec![0; BATCH], vec![0.0; BATCH], 1);
    for depth in 0..=4 {
        let entries = logprobs(BATCH * width);
        let (reached, sums) = (nodes.clone(), totals.clone());
        let beams = Beams {
            nodes: &reached,
            totals: &sums,
            keys: &sums,
            width,
            depth,
        };
        let ways = [
            ("given", Normalize::Given),
            ("allowed", Normalize::Live),
            ("full", Normalize::Columns(0, columns)),
        ];
        for (name, normalize) in ways {
            if [1, 2, 4].contains(&depth) {
                c.bench_function(&format!("beam/step at depth {depth}, {name}"), |b| {
                    b.iter(|| step(&rule(normalize), beams, black_box(&entries), columns));
                });
            }
        }
        let level = step(&rule(Normalize::Given), beams, &entries, columns).expect("valid input");
        (nodes, totals, width) = (level.nodes, level.totals, NUM_BEAMS);
    }
}

fn log_sum_exp(c: &mut Criterion) {
    let mut random = Random(6);
    for columns in [2048, 151_936] {
        let scores: Vec<f32> = (0..columns).map(|_| 8.0 * random.unit() as f32).collect();
        c.bench_function(&format!("logsumexp/f32 x {columns}"), |b| {
            b.iter(|| logsumexp::f32(black_box(&scores), 1.0));
        });
    }
}

// ---- packing, advantages, calibration

/// 64 prompts of 150 tokens with 16 candidates of 4 tokens (8 codes each) and a suffix of 4.
fn packing(c: &mut Criterion) {
    const ROWS: usize = 64;
    let mut random = Random(3);
    let mut tokens = |n: usize, limit: u64| -> Vec<i64> {
        let token = |_| i64::try_from(random.below(limit)).unwrap_or(0);
        (0..n).map(token).collect()
    };
    let (prompts, completions) = (tokens(ROWS * 150, 2048), tokens(ROWS * 16 * 4, 8));
    let offsets: Vec<i64> = (0..=64).map(|row| row * 150).collect();
    let batch = Batch {
        prompts: &prompts,
        offsets: &offsets,
        completions: &completions,
        group: 16,
        depth: 4,
        suffix: &[1, 2, 3, 4],
    };
    c.bench_function("packing/64 x (150 + 16 x 4 + 4)", |b| {
        b.iter(|| pack(black_box(batch), 0));
    });
}

fn advantage(c: &mut Criterion) {
    let mut random = Random(4);
    let rewards: Vec<f32> = (0..8192 * 64).map(|_| random.unit() as f32).collect();
    let offsets: Vec<i64> = (0..=8192).map(|group| group * 64).collect();
    c.bench_function("advantage/8192 x 64", |b| {
        b.iter(|| group_advantages(black_box(&rewards), &offsets, Scale::Std, 1e-4, 1));
    });
}

/// From tokens to advantages; a third of the groups has a hit.
fn reward(c: &mut Criterion) {
    let mut random = Random(6);
    let shape = [8192, 64, 4];
    let code = |random: &mut Random| i64::try_from(random.below(256)).unwrap_or(0);
    let tokens: Vec<i64> = (0..8192 * 64 * 4).map(|_| code(&mut random)).collect();
    let mut target = vec![-1; 8192 * 4];
    for row in (0..8192).step_by(3) {
        target[row * 4..][..4].copy_from_slice(&tokens[row * 256 + 8..][..4]);
    }
    let scores: Vec<f32> = (0..8192 * 64).map(|_| random.unit().ln() as f32).collect();
    let candidates = Candidates {
        shape,
        tokens: &tokens,
        target: &target,
        mask: None,
    };
    let settings = Settings {
        by_length: true,
        temperature: 1.0,
        kind: Difficulty::Rank,
        alpha_min: 0.0,
        rule: advantage::Rule {
            scale: Scale::Std,
            eps: 1e-4,
            ddof: 1,
        },
    };
    c.bench_function("reward/8192 x 64 x 4, from tokens", |b| {
        b.iter(|| signal(black_box(candidates), &scores, settings));
    });
}

fn calibration(c: &mut Criterion) {
    let mut random = Random(5);
    let confidence: Vec<f32> = (0..1_000_000).map(|_| random.unit() as f32).collect();
    let correct: Vec<u8> = (0..1_000_000)
        .map(|_| u8::from(random.unit() < 0.5))
        .collect();
    c.bench_function("calibration/equal width, 1e6", |b| {
        b.iter(|| {
            let mut sums = [[0; 8]; 15];
            add_width(
                &mut sums,
                black_box(&confidence),
                &correct,
                None,
                Closed::Left,
            )
        });
    });
    c.bench_function("calibration/equal mass, 1e6", |b| {
        b.iter(|| equal_mass(black_box(&confidence), &correct, 15));
    });
    let correct: Vec<bool> = correct.iter().map(|&hit| hit == 1).collect();
    c.bench_function("ranks/sort, 1e6", |b| {
        b.iter(|| Ranks::new(black_box(&confidence), &correct));
    });
    let ranks = Ranks::new(&confidence, &correct).expect("valid input");
    c.bench_function("ranks/AUROC, 1e6, sorted", |b| b.iter(|| ranks.auroc()));
    c.bench_function("ranks/AURC, 1e6, sorted", |b| b.iter(|| ranks.aurc()));
}

criterion_group!(
    benches,
    trie,
    beam,
    log_sum_exp,
    packing,
    advantage,
    reward,
    calibration
);
criterion_main!(benches);

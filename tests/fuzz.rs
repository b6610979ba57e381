//! What fuzzing has found worth keeping, run once more: see `make fuzz`.

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;

/// Runs `target` with every line of its corpus, bytes in hexadecimal.
fn replay(name: &str, target: fn(&[u8])) {
    let path = format!(
        "{}/tests/fuzz/corpus/{name}.hex",
        env!("CARGO_MANIFEST_DIR")
    );
    let corpus = fs::read_to_string(path).expect("a corpus");
    let byte = |digits: &[u8]| {
        u8::from_str_radix(str::from_utf8(digits).expect("ASCII"), 16).expect("hexadecimal")
    };
    for line in corpus.lines() {
        target(&line.as_bytes().chunks(2).map(byte).collect::<Vec<_>>());
    }
    assert!(corpus.lines().count() > 100, "a corpus");
}

#[test]
fn arrays() {
    replay("arrays", targets::arrays);
}

#[test]
fn changes() {
    replay("changes", targets::changes);
}

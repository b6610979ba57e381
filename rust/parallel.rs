//! Several threads, when the caller asks for them.
//!
//! Threads are started for a call and joined before it returns: about 20 µs each, against the milliseconds
//! of work that they are worth. Nothing outlives the call, so a `fork` between two calls finds nothing
//! to inherit. Work is cut by position, never by who comes first: results do not depend on the number of threads.

use std::ops::Range;
use std::thread;

/// More threads than any processor has cores would only fail to start.
const MAX_THREADS: usize = 256;

/// Applies `work` to as many chunks of `values` as there are threads.
pub(crate) fn in_chunks<T: Send>(
    values: &mut [T],
    num_threads: usize,
    work: impl Fn(&mut [T]) + Sync,
) {
    let size = values
        .len()
        .div_ceil(num_threads.clamp(1, MAX_THREADS))
        .max(1);
    if size >= values.len() {
        return work(values);
    }
    let failed: Vec<usize> = thread::scope(|scope| {
        let work = &work;
        let start = |chunk| thread::Builder::new().spawn_scoped(scope, move || work(chunk));
        let started = values.chunks_mut(size).map(start).enumerate();
        started
            .filter_map(|(i, thread)| thread.err().map(|_| i))
            .collect()
    });
    for i in failed {
        let end = values.len().min((i + 1) * size);
        work(&mut values[i * size..end]); // the system had no thread to give
    }
}

/// The results of `work` on as many ranges of `0..len` as there are threads, in order.
pub(crate) fn over_ranges<R: Send>(
    len: usize,
    num_threads: usize,
    work: impl Fn(Range<usize>) -> R + Sync,
) -> Vec<R> {
    let size = len.div_ceil(num_threads.clamp(1, MAX_THREADS)).max(1);
    if size >= len {
        return vec![work(0..len)];
    }
    let range = |start: usize| start..len.min(start + size);
    thread::scope(|scope| {
        let work = &work;
        let start = |start: usize| {
            let thread = thread::Builder::new().spawn_scoped(scope, move || work(range(start)));
            thread.map_err(|_| start)
        };
        let threads: Vec<_> = (0..len).step_by(size).map(start).collect();
        let join =
            |thread: std::result::Result<thread::ScopedJoinHandle<'_, R>, usize>| match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(start) => work(range(start)), // the system has no thread to give
            };
        threads.into_iter().map(join).collect()
    })
}

//! What it costs to hand over: a core to another thread, and a cache line to another core.

use crate::bench::host;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SWITCHES: usize = 400;
const FLAGS: usize = 4000;

/// Two threads pass a token to and fro; seconds for each time that it changes hands.
///
/// `wait` passes the time until another look at the token is worth it, `tell` follows the token's way to the other thread.
fn pass_token(
    cores: [usize; 2],
    times: usize,
    wait: impl Fn() + Sync,
    tell: impl Fn(&std::thread::Thread) + Sync,
) -> f64 {
    let token = AtomicUsize::new(0);
    let play = |me: usize, other: &std::thread::Thread| {
        host::pin(cores[me]);
        // The first changes of hands belong to the start.
        let mut started = Instant::now();
        for turn in 0..times {
            while token.load(Ordering::Acquire) != 2 * turn + me {
                wait();
            }
            if turn == times / 8 {
                started = Instant::now();
            }
            token.store(2 * turn + me + 1, Ordering::Release);
            tell(other);
        }
        started.elapsed().as_secs_f64()
    };
    let play = &play;
    let seconds = std::thread::scope(|scope| {
        // Both are threads of their own, because they are going to be pinned.
        let first = scope.spawn(move || {
            let me = std::thread::current();
            let second = scope.spawn(move || play(1, &me));
            play(0, second.thread())
        });
        first.join().unwrap_or_default()
    });
    seconds / (2 * (times - times / 8)) as f64
}

/// Seconds until another thread of the same core runs: the quicker of yielding the core and of sleeping on a futex (which
/// is what parking a thread is).
pub(super) fn switch(core: usize) -> f64 {
    let by_yield = pass_token([core; 2], SWITCHES, std::thread::yield_now, |_| ());
    let by_futex = pass_token(
        [core; 2],
        SWITCHES,
        // The limit is for wake-ups that came before the sleep began, which parking remembers anyway.
        || std::thread::park_timeout(Duration::from_millis(100)),
        std::thread::Thread::unpark,
    );
    by_yield.min(by_futex)
}

/// Seconds until a core sees what another one stored; 0 if there is no other core.
pub(super) fn flag(cores: &[usize]) -> f64 {
    match *cores {
        [first, second, ..] => pass_token([first, second], FLAGS, std::hint::spin_loop, |_| ()),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handing_over_takes_between_nanoseconds_and_milliseconds() {
        let cores = host::cores();
        let switch = switch(cores[0]);
        assert!(1e-8 < switch && switch < 1e-2, "{switch}");
        let flag = flag(&cores);
        assert!(cores.len() < 2 && flag == 0.0 || 1e-9 < flag && flag < 1e-2, "{flag}");
    }
}

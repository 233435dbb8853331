//! Which vector instructions this machine has. Every loop is compiled once for each level, and the bits are the same.

/// A loop over elements. `run` must be `#[inline(always)]`, so that it takes on the instructions of its caller.
pub(super) trait Loop {
    fn run(self);
}

/// Sets of instructions that are used together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What every machine of this architecture has.
    Baseline,
    /// AVX2 and the half-precision conversions.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 as server processors have had it since 2017.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best that this machine can do. The standard library asks the processor once and remembers.
    #[inline]
    pub(super) fn of_this_machine() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                return Level::Avx2;
            }
        }
        Level::Baseline
    }
}

/// Runs the loop with the best instructions there are.
#[inline]
pub(super) fn dispatch<L: Loop>(work: L) {
    match Level::of_this_machine() {
        Level::Baseline => work.run(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        Level::Avx2 => unsafe { with_avx2(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        Level::Avx512 => unsafe { with_avx512(work) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<L: Loop>(work: L) {
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<L: Loop>(work: L) {
    work.run();
}

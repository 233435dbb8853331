//! The decision: a pure function with a reason.

use super::knowledge::{Knowledge, Origin};
use crate::collective::registry::{COLLECTIVE_NAMES, Native, collective_by_name};
use crate::collective::{Collective, Operation, Order};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// What the transport's own collectives can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeReach {
    /// There are none, or none for this operation.
    #[default]
    Absent,
    /// They sum in an order of their own, at a cost that only a measurement tells (MPI).
    Opaque,
    /// Shared memory: every operation, in every order, and usually the fastest.
    Shared,
}

/// What is to be chosen for.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The operation; the order `auto` means `canonical`.
    pub operation: Operation,
    /// Elements of a rank's vector.
    pub count: usize,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Whether `native` competes.
    pub native: NativeReach,
}

impl Question {
    /// A question about algorithms that have schedules; `native` does not compete.
    pub fn new(operation: Operation, count: usize, element_bytes: usize) -> Self {
        let order = match operation.order {
            Order::Auto if operation.kind.reduces() => Order::Canonical,
            order => order,
        };
        Question { operation: operation.with_order(order), count, element_bytes, native: NativeReach::Absent }
    }

    /// The same, and `native` competes as far as it reaches.
    pub fn with_native(self, native: NativeReach) -> Self {
        Question { native, ..self }
    }

    fn bytes(&self) -> u64 {
        (self.count * self.element_bytes) as u64
    }
}

/// The second-best algorithm and its seconds, if there is a second.
pub type Second = Option<(&'static str, f64)>;

/// Why an algorithm was chosen. Prints as the rest of a sentence.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// The quickest of those that were measured.
    Measured {
        /// Seconds, interpolated between measured sizes.
        seconds: f64,
        /// The second, with its seconds.
        next: Second,
    },
    /// The quickest in the cost model.
    Predicted {
        /// Seconds, without the entry.
        seconds: f64,
        /// The second, with its seconds.
        next: Second,
        /// Whose figures the model was given.
        origin: Origin,
    },
    /// The ranks share memory.
    SharedMemory,
    /// There is nothing to do: one rank, or no element.
    Nothing,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = |f: &mut fmt::Formatter<'_>, next: &Option<(&str, f64)>| match next {
            Some((name, seconds)) => write!(f, "; next {name} {}", ShownSeconds(*seconds)),
            None => write!(f, "; no other does it"),
        };
        match self {
            Reason::Measured { seconds, next } => {
                write!(f, "{} measured on this cluster", ShownSeconds(*seconds))?;
                second(f, next)
            }
            Reason::Predicted { seconds, next, origin } => {
                write!(f, "{} predicted from {origin}", ShownSeconds(*seconds))?;
                second(f, next)
            }
            Reason::SharedMemory => f.write_str("the ranks share memory"),
            Reason::Nothing => f.write_str("there is nothing to move"),
        }
    }
}

/// Seconds with three digits and a fitting unit.
pub(crate) struct ShownSeconds(pub(crate) f64);

impl fmt::Display for ShownSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            s if s < 1e-3 => (s * 1e6, "µs"),
            s if s < 1.0 => (s * 1e3, "ms"),
            s => (s, "s"),
        };
        let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
        write!(f, "{value:.decimals$} {unit}")
    }
}

/// What was chosen, and why. Prints as a sentence.
#[derive(Clone)]
pub struct Decision {
    /// The algorithm.
    pub collective: Arc<dyn Collective>,
    /// The operation as the algorithm is to do it, with its order settled.
    pub operation: Operation,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.collective.name(), self.reason)
    }
}

impl Knowledge {
    /// Chooses.
    ///
    /// ```
    /// use esync::collective::auto::{Knowledge, Question};
    /// use esync::collective::{Kind, Operation};
    ///
    /// let knowledge = Knowledge::usual("mpi", &["a", "a", "b", "b"], 2);
    /// let short = knowledge.decide(&Question::new(Operation::new(Kind::AllReduce), 1, 4))?;
    /// assert_eq!(short.collective.name(), "recursive-doubling");
    /// assert!(short.to_string().starts_with("recursive-doubling: "));
    /// # Ok::<(), esync::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Refused` if no algorithm does the operation.
    pub fn decide(&self, question: &Question) -> Result<Decision> {
        let candidates = self.candidates(question)?;
        let chosen = |collective: &Arc<dyn Collective>, reason| Decision {
            collective: collective.clone(),
            operation: question.operation,
            reason,
        };
        if (self.cluster.size() == 1 || question.count == 0)
            && let Some(first) = candidates.first()
        {
            return Ok(chosen(first, Reason::Nothing));
        }
        // Operations through shared memory and by messages have different ways to meet, so ranks that called different
        // things would not find out by what was measured for the one and the other.
        let native = candidates.iter().find(|candidate| candidate.name() == Native.name());
        if let (Some(native), NativeReach::Shared) = (native, question.native) {
            return Ok(chosen(native, Reason::SharedMemory));
        }
        let mut measured = self.measured_times(question, &candidates);
        if let Some((place, seconds, next)) = best_two(&mut measured, &candidates) {
            return Ok(chosen(&candidates[place], Reason::Measured { seconds, next }));
        }
        let mut predicted = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            if candidate.name() != Native.name() {
                predicted.push((place, self.predict(&**candidate, question)?));
            }
        }
        match best_two(&mut predicted, &candidates) {
            Some((place, seconds, next)) => {
                let origin = self.origin.clone();
                Ok(chosen(&candidates[place], Reason::Predicted { seconds, next, origin }))
            }
            None => Err(Error::Refused {
                collective: "auto",
                operation: question.operation.to_string(),
                reason: "no algorithm does it; ask for another order".into(),
            }),
        }
    }

    /// The algorithms that do the operation, in the registry's order.
    fn candidates(&self, question: &Question) -> Result<Vec<Arc<dyn Collective>>> {
        let mut candidates = Vec::new();
        for name in COLLECTIVE_NAMES {
            let candidate = collective_by_name(name, None)?;
            let is_able = match (candidate.name() == Native.name(), question.native) {
                (true, NativeReach::Absent) => false,
                (true, NativeReach::Opaque) => Native.check_back_end(&question.operation).is_ok(),
                (true, NativeReach::Shared) => true,
                // A length of one element for each rank shows what an algorithm refuses, and costs nothing.
                (false, _) => {
                    candidate.schedule(&question.operation, &self.topology, 0, self.cluster.size()).is_ok()
                }
            };
            if is_able {
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    /// The places of those candidates that were measured, with their seconds for this length.
    fn measured_times(&self, question: &Question, candidates: &[Arc<dyn Collective>]) -> Vec<(usize, f64)> {
        let operation = question.operation.kind.to_string();
        let order = match question.operation.kind.reduces() {
            true => question.operation.order.to_string(),
            false => String::new(),
        };
        let place = |name: &str| candidates.iter().position(|candidate| candidate.name() == name);
        self.measured(&operation, &order)
            .filter_map(|measured| {
                Some((place(&measured.collective)?, interpolated(&measured.times, question.bytes())?))
            })
            .collect()
    }
}

/// Sorts by seconds, and names the first two.
fn best_two(times: &mut [(usize, f64)], candidates: &[Arc<dyn Collective>]) -> Option<(usize, f64, Second)> {
    // A stable sort: what is equally quick stays in the registry's order, on every rank.
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (place, seconds) = *times.first()?;
    let next = times.iter().find(|(other, _)| *other != place);
    Some((place, seconds, next.map(|(other, seconds)| (candidates[*other].name(), *seconds))))
}

/// Beyond so many times the largest measured size the model knows more: what decides there, the links' rates, it was given,
/// and short messages show little of.
const MEASURED_REACH: u64 = 2;

/// Seconds for `bytes`: linear in the logarithms between measured sizes, constant below them, proportional a little above;
/// `None` further on.
pub(super) fn interpolated(times: &[(u64, f64)], bytes: u64) -> Option<f64> {
    let above = times.iter().position(|(size, _)| *size >= bytes);
    Some(match above {
        Some(0) => times[0].1,
        Some(place) => {
            let ((b0, t0), (b1, t1)) = (times[place - 1], times[place]);
            let share = (bytes as f64 / b0.max(1) as f64).ln() / (b1 as f64 / b0.max(1) as f64).ln();
            t0 * (t1 / t0).powf(share)
        }
        None => {
            let (size, seconds) = *times.last()?;
            if bytes > size.saturating_mul(MEASURED_REACH) {
                return None;
            }
            seconds * bytes as f64 / size.max(1) as f64
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_interpolated_in_logarithms() {
        let times = [(100, 1e-6), (10_000, 1e-4)];
        for (bytes, seconds) in [(4, 1e-6), (100, 1e-6), (1_000, 1e-5), (10_000, 1e-4), (20_000, 2e-4)] {
            let found = interpolated(&times, bytes).unwrap();
            assert!((found / seconds - 1.0).abs() < 1e-9, "{bytes}: {found:e}");
        }
        assert_eq!(interpolated(&times, 20_001), None, "that is the model's");
        assert_eq!(interpolated(&[], 5), None);
    }

    #[test]
    fn durations_have_three_digits() {
        let shown = [1.234e-6, 12.34e-6, 123.4e-6, 1.206e-3, 2.5].map(|s| ShownSeconds(s).to_string());
        assert_eq!(shown, ["1.23 µs", "12.3 µs", "123 µs", "1.21 ms", "2.50 s"]);
    }
}

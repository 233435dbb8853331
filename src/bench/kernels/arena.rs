//! The memory of one check: all vectors in a row, poisoned and guarded, and what they must be afterwards.

use super::machine::{Machine, Memory};
use super::numbers::{rounding, wide};
use crate::error::{Error, Result};
use crate::reduce::ElementType;
use cudarc::driver::sys::CUdeviceptr;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What memory holds that nobody has written: as a number of any type neither zero nor small.
const POISON: u8 = 0xa5;

/// Untouched bytes on both sides of a vector.
const GUARD_BYTES: usize = 64;

/// A vector's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    start: usize,
    bytes: usize,
}

/// What is compared of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    /// All.
    All,
    /// All, but a NaN may have others.
    OfNumbers(ElementType),
}

/// All vectors of one start of a kernel.
#[derive(Debug, Default)]
pub(super) struct Arena {
    before: Vec<u8>,
    after: Vec<u8>,
    loose: Vec<(Place, ElementType)>,
    near: Vec<Near>,
    description: String,
}

/// A vector that must lie near to numbers in f64.
#[derive(Debug)]
struct Near {
    place: Place,
    element: ElementType,
    /// Numbers, and by how much each may differ.
    numbers: Vec<(f64, f64)>,
}

impl Arena {
    /// `description` says what is checked, if it is wrong.
    pub(super) fn new(description: String) -> Self {
        Arena { description, ..Arena::default() }
    }

    /// A vector that begins `residue` bytes after a multiple of 16.
    pub(super) fn vector(&mut self, bytes: &[u8], residue: usize) -> Place {
        let start = (self.before.len() + GUARD_BYTES).next_multiple_of(16) + residue;
        self.before.resize(start, POISON);
        self.before.extend_from_slice(bytes);
        Place { start, bytes: bytes.len() }
    }

    /// A vector that is only written.
    pub(super) fn output(&mut self, bytes: usize, residue: usize) -> Place {
        self.vector(&vec![POISON; bytes], residue)
    }

    /// What a vector must be afterwards. All others stay as they are. To be called when all vectors are there.
    pub(super) fn expect(&mut self, place: Place, bytes: &[u8], bits: Bits) {
        self.after.extend_from_slice(&self.before[self.after.len()..]);
        self.after[place.start..place.start + place.bytes].copy_from_slice(bytes);
        if let Bits::OfNumbers(element) = bits {
            self.loose.push((place, element));
        }
    }

    /// Near to which numbers a vector must lie: each with the sum of magnitudes that were added, of which every one of
    /// `roundings` roundings may take its part.
    pub(super) fn expect_near(
        &mut self,
        place: Place,
        element: ElementType,
        roundings: f64,
        numbers: impl IntoIterator<Item = (f64, f64)>,
    ) {
        let (relative, absolute) = rounding(element);
        let allowed = |(number, magnitude): (f64, f64)| {
            (number, roundings * (relative * magnitude.max(number.abs()) + absolute))
        };
        self.near.push(Near { place, element, numbers: numbers.into_iter().map(allowed).collect() });
    }

    /// The same with the errors that are allowed.
    pub(super) fn expect_within(
        &mut self,
        place: Place,
        element: ElementType,
        numbers: impl IntoIterator<Item = (f64, f64)>,
    ) {
        self.near.push(Near { place, element, numbers: numbers.into_iter().collect() });
    }
}

/// The machine, its memory, and the numbers.
pub(super) struct Tester<'m, M: Machine> {
    pub(super) machine: &'m M,
    pub(super) random: ChaCha8Rng,
    memory: Option<(M::Memory, usize)>,
}

impl<'m, M: Machine> Tester<'m, M> {
    pub(super) fn new(machine: &'m M) -> Self {
        Tester { machine, random: ChaCha8Rng::seed_from_u64(5), memory: None }
    }

    /// Brings the vectors to the machine, lets `start` start the kernel (it is given where a place is), and compares. The result
    /// is the largest error in units of what is allowed.
    pub(super) fn run(
        &mut self,
        mut arena: Arena,
        start: impl FnOnce(&M, &M::Stream, &dyn Fn(Place) -> CUdeviceptr) -> Result<()>,
    ) -> Result<f64> {
        arena.before.resize(arena.before.len() + GUARD_BYTES, POISON);
        arena.after.extend_from_slice(&arena.before[arena.after.len()..]);
        let machine = self.machine;
        let memory = self.memory_of(arena.before.len())?;
        memory.write(&arena.before)?;
        let base = memory.address();
        start(machine, machine.stream(), &|place: Place| base + place.start as CUdeviceptr)?;
        machine.wait()?;
        let mut found = vec![0; arena.before.len()];
        memory.read(&mut found)?;
        arena.compare(&mut found)?;
        arena.largest_error(&found)
    }

    fn memory_of(&mut self, bytes: usize) -> Result<&mut M::Memory> {
        if self.memory.as_ref().is_none_or(|(_, there)| *there < bytes) {
            self.memory = None;
            self.memory = Some((self.machine.allocate(2 * bytes)?, 2 * bytes));
        }
        match &mut self.memory {
            Some((memory, _)) => Ok(memory),
            None => Err(Error::Internal("memory was just allocated".into())),
        }
    }
}

impl Arena {
    /// Every byte, also those that no kernel should have touched.
    fn compare(&mut self, found: &mut [u8]) -> Result<()> {
        for (place, element) in &self.loose {
            let all = place.start..place.start + place.bytes;
            for bytes in [&mut found[all.clone()], &mut self.after[all]] {
                for number in bytes.chunks_exact_mut(element.size()) {
                    if wide(*element, number)[0].is_nan() {
                        number.fill(0xff);
                    }
                }
            }
        }
        match found.iter().zip(&self.after).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(at) => {
                let (found, expected) = (found[at], self.after[at]);
                let what = if self.before[at] == expected { "which was not to be written, " } else { "" };
                Err(self.wrong(format!(
                    "byte {at} of the memory, {what}is {found:#04x} instead of {expected:#04x} (before: {:#04x})",
                    self.before[at]
                )))
            }
        }
    }

    fn largest_error(&self, found: &[u8]) -> Result<f64> {
        let mut largest = 0f64;
        for Near { place, element, numbers } in &self.near {
            let values = wide(*element, &found[place.start..place.start + place.bytes]);
            for (index, (&value, &(number, allowed))) in values.iter().zip(numbers).enumerate() {
                let error = (value - number).abs();
                if value != number && (error.is_nan() || error > allowed) {
                    return Err(self.wrong(format!(
                        "element {index} is {value}, and in f64 it is {number}: more than {allowed} apart"
                    )));
                }
                if error > 0.0 {
                    largest = largest.max(error / allowed);
                }
            }
        }
        Ok(largest)
    }

    fn wrong(&self, what: String) -> Error {
        Error::Internal(format!(
            "kernel {}: {what}; vectors begin at bytes {:?}",
            self.description,
            self.starts()
        ))
    }

    /// Where vectors begin and end, as far as they are expected to change.
    fn starts(&self) -> Vec<(usize, usize)> {
        self.near.iter().map(|near| (near.place.start, near.place.start + near.place.bytes)).collect()
    }
}

/// Memory that is aligned for every element.
pub(super) struct Aligned {
    words: Vec<u64>,
    bytes: usize,
}

impl Aligned {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut aligned = Aligned { words: vec![0; bytes.len().div_ceil(8)], bytes: bytes.len() };
        aligned.bytes_mut().copy_from_slice(bytes);
        aligned
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbers::wide_number;
    use super::*;

    #[test]
    fn poison_is_a_number_that_no_result_is() {
        for element in ElementType::ALL {
            let bits = u64::from_le_bytes([POISON; 8]) >> (64 - 8 * element.size());
            let number = wide_number(element, bits);
            assert!(number.is_finite() && number != 0.0, "{element}: {number}");
        }
    }
}

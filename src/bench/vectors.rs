//! The vectors of one size: what every iteration begins with, and where its result goes.

use super::numbers::{Contributions, Number, fill_random};
use super::{Flags, Refresh};
use crate::buffer::FlatBuffer;
use crate::collective::{Communicator, SharedBuffer};
#[cfg(feature = "cuda")]
use crate::device::{DeviceBuffer, DeviceSliceMut};
use crate::error::Result;
use std::ops::{Deref, DerefMut};

/// Vectors that are rotated through need not hold more bytes together than this: no cache does.
const ROTATED_BYTES: usize = 128 << 20;
const MOST_ROTATED: usize = 8;

/// Memory of either sort.
pub(super) enum Vector<T: Number> {
    Private(FlatBuffer<T>),
    Registered(SharedBuffer<T>),
}

impl<T: Number> Vector<T> {
    fn new(communicator: &Communicator, registered: bool, count: usize) -> Result<Self> {
        Ok(match registered {
            true => Vector::Registered(communicator.alloc(count)?),
            false => Vector::Private(FlatBuffer::new(count)),
        })
    }

    fn is_registered(&self) -> bool {
        matches!(self, Vector::Registered(buffer) if buffer.is_registered())
    }
}

impl<T: Number> Deref for Vector<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Vector::Private(buffer) => buffer,
            Vector::Registered(buffer) => buffer,
        }
    }
}

impl<T: Number> DerefMut for Vector<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Vector::Private(buffer) => buffer,
            Vector::Registered(buffer) => buffer,
        }
    }
}

/// Vectors of one sort of memory, shared by all rows that use that sort.
pub(super) struct Vectors<T: Number> {
    inputs: Vec<Vector<T>>,
    outputs: Vec<Vector<T>>,
    next: usize,
    /// On a GPU, one for each input, which is then only what the GPU's begins as.
    #[cfg(feature = "cuda")]
    on_gpu: Vec<DeviceBuffer<T>>,
}

/// How many vectors each rank has of each use.
pub(super) fn rotated(refresh: Refresh, ranks: usize, bytes: usize) -> usize {
    match refresh {
        Refresh::Rotate => ROTATED_BYTES.div_ceil((ranks * bytes).max(1)).clamp(2, MOST_ROTATED),
        Refresh::None | Refresh::Rewrite => 1,
    }
}

impl<T: Number> Vectors<T> {
    pub(super) fn new(
        communicator: &Communicator,
        flags: &Flags,
        registered: bool,
        out_of_place: bool,
        count: usize,
    ) -> Result<Self> {
        let vectors = rotated(flags.refresh, communicator.size(), count * size_of::<T>());
        let of = |number: usize| -> Result<Vec<Vector<T>>> {
            (0..number).map(|_| Vector::new(communicator, registered, count)).collect()
        };
        Ok(Vectors {
            inputs: of(vectors)?,
            outputs: of(if out_of_place { vectors } else { 0 })?,
            next: 0,
            #[cfg(feature = "cuda")]
            on_gpu: match communicator.gpu() {
                Some(gpu) => (0..vectors).map(|_| DeviceBuffer::new(gpu, count)).collect::<Result<_>>()?,
                None => Vec::new(),
            },
        })
    }

    /// Whether other ranks can reach all of them.
    pub(super) fn are_registered(&self) -> bool {
        self.inputs.iter().chain(&self.outputs).all(Vector::is_registered)
    }

    /// Back to the first ones, with what the checks expect.
    pub(super) fn begin(&mut self, contributions: &Contributions<T>, master: &[T]) -> Result<()> {
        self.next = 0;
        // What is to arrive must not be there before.
        for output in &mut self.outputs {
            output.fill(T::small(77));
        }
        self.rewrite(contributions, master)
    }

    /// Numbers whose sums depend on the order of summation.
    pub(super) fn begin_random(&mut self, rank: usize) -> Result<()> {
        self.next = 0;
        fill_random(&mut self.inputs[0], rank);
        self.upload()
    }

    /// All zero: results stay zero however often an operation is repeated on them, and every sort of number takes its
    /// usual time.
    pub(super) fn begin_zero(&mut self) -> Result<()> {
        for vector in self.inputs.iter_mut().chain(&mut self.outputs) {
            vector.fill(T::small(0));
        }
        self.upload()
    }

    /// Each rank writes its input, as it did at the beginning.
    pub(super) fn rewrite(&mut self, contributions: &Contributions<T>, master: &[T]) -> Result<()> {
        for input in &mut self.inputs {
            input.copy_from_slice(master);
            contributions.forget_others(input);
        }
        self.upload()
    }

    /// What the host has written, to the GPU.
    fn upload(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        for (buffer, input) in self.on_gpu.iter_mut().zip(&self.inputs) {
            buffer.as_mut_slice().copy_from(input)?;
        }
        Ok(())
    }

    /// The result, from the GPU.
    pub(super) fn download(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(buffer) = self.on_gpu.first() {
            buffer.as_slice().copy_to(&mut self.inputs[0])?;
        }
        Ok(())
    }

    /// The vector of the next call, if it lies on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu(&mut self) -> Option<DeviceSliceMut<'_, T>> {
        self.on_gpu.get_mut(self.next).map(DeviceBuffer::as_mut_slice)
    }

    /// The vectors of the next call: the input, and the output where there is one.
    pub(super) fn pair(&mut self) -> (&mut [T], Option<&mut [T]>) {
        (&mut self.inputs[self.next], self.outputs.get_mut(self.next).map(|output| &mut output[..]))
    }

    /// Goes on to the next ones.
    pub(super) fn advance(&mut self) {
        self.next = (self.next + 1) % self.inputs.len();
    }

    /// The elements of this rank that a result is made of.
    pub(super) fn result(&self, in_place: bool) -> &[T] {
        if in_place { &self.inputs[0] } else { &self.outputs[0] }
    }

    /// How many elements of an input that should be as it was are not.
    pub(super) fn changed(&self, master: &[T]) -> u64 {
        let differs = |(found, expected): (&T, &T)| bytemuck::bytes_of(found) != bytemuck::bytes_of(expected);
        self.inputs[0].iter().zip(master).filter(|&pair| differs(pair)).count() as u64
    }
}

/// The bytes of one rank that all vectors of one size take.
pub(super) fn bytes_needed(flags: &Flags, ranks: usize, bytes: usize, sorts: usize, uses: usize) -> usize {
    // One more holds what inputs begin with.
    bytes.saturating_mul(1 + sorts * uses * rotated(flags.refresh, ranks, bytes))
}

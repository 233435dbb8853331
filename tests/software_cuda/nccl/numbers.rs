//! Arithmetic of the native collectives. 16-bit types are widened for every operation, and rounded after it.

use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use half::{bf16, f16};

/// An element as it lies in memory.
trait Number: Copy {
    const BYTES: usize;
    fn read(from: &[u8]) -> Self;
    fn write(self, to: &mut [u8]);
    fn combined(self, with: ncclRedOp_t, other: Self) -> Self;
    fn divided(self, by: usize) -> Self;
}

macro_rules! number {
    ($type:ty, $wide:ty, $to_wide:expr, $narrow:expr, $sum:expr, $product:expr) => {
        impl Number for $type {
            const BYTES: usize = size_of::<Self>();

            fn read(from: &[u8]) -> Self {
                Self::from_ne_bytes(from.try_into().expect("one element"))
            }

            fn write(self, to: &mut [u8]) {
                to.copy_from_slice(&self.to_ne_bytes());
            }

            fn combined(self, with: ncclRedOp_t, other: Self) -> Self {
                let (left, right): ($wide, $wide) = ($to_wide(self), $to_wide(other));
                $narrow(match with {
                    ncclRedOp_t::ncclProd => $product(left, right),
                    ncclRedOp_t::ncclMax => left.max(right),
                    ncclRedOp_t::ncclMin => left.min(right),
                    _ => $sum(left, right),
                })
            }

            fn divided(self, by: usize) -> Self {
                $narrow($to_wide(self) / by as $wide)
            }
        }
    };
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        number!($type, $type, std::convert::identity, std::convert::identity, <$type>::wrapping_add, <$type>::wrapping_mul);
    )*};
}

macro_rules! floats {
    ($($type:ty, $wide:ty, $to_wide:expr, $narrow:expr;)*) => {$(
        number!($type, $wide, $to_wide, $narrow, std::ops::Add::add, std::ops::Mul::mul);
    )*};
}

integers!(i8, u8, i32, u32, i64, u64);
floats! {
    f32, f32, std::convert::identity, std::convert::identity;
    f64, f64, std::convert::identity, std::convert::identity;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
}

/// Runs a function for a type that is known only now.
macro_rules! for_type {
    ($of:expr, $function:ident($($argument:expr),*)) => {
        match $of {
            ncclDataType_t::ncclInt8 => Some($function::<i8>($($argument),*)),
            ncclDataType_t::ncclUint8 => Some($function::<u8>($($argument),*)),
            ncclDataType_t::ncclInt32 => Some($function::<i32>($($argument),*)),
            ncclDataType_t::ncclUint32 => Some($function::<u32>($($argument),*)),
            ncclDataType_t::ncclInt64 => Some($function::<i64>($($argument),*)),
            ncclDataType_t::ncclUint64 => Some($function::<u64>($($argument),*)),
            ncclDataType_t::ncclFloat16 => Some($function::<f16>($($argument),*)),
            ncclDataType_t::ncclFloat32 => Some($function::<f32>($($argument),*)),
            ncclDataType_t::ncclFloat64 => Some($function::<f64>($($argument),*)),
            ncclDataType_t::ncclBfloat16 => Some($function::<bf16>($($argument),*)),
            _ => None,
        }
    };
}

fn bytes_of<T: Number>() -> usize {
    T::BYTES
}

/// Bytes of an element; none for types that are not supported.
pub(super) fn bytes(of: ncclDataType_t) -> Option<usize> {
    for_type!(of, bytes_of())
}

fn combine_as<T: Number>(with: ncclRedOp_t, into: &mut [u8], other: &[u8]) {
    for (into, other) in into.chunks_exact_mut(T::BYTES).zip(other.chunks_exact(T::BYTES)) {
        T::read(into).combined(with, T::read(other)).write(into);
    }
}

/// Combines the elements of one rank with those of the next.
pub(super) fn combine(of: ncclDataType_t, with: ncclRedOp_t, into: &mut [u8], other: &[u8]) {
    for_type!(of, combine_as(with, into, other)).expect("types are checked before");
}

fn divide_as<T: Number>(result: &mut [u8], ranks: usize) {
    result.chunks_exact_mut(T::BYTES).for_each(|element| T::read(element).divided(ranks).write(element));
}

/// What is left to do when all ranks are combined.
pub(super) fn finish(of: ncclDataType_t, with: ncclRedOp_t, result: &mut [u8], ranks: usize) {
    if with == ncclRedOp_t::ncclAvg {
        for_type!(of, divide_as(result, ranks)).expect("types are checked before");
    }
}

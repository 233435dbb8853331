//! Element types, operators, and the element-wise reduction that every collective uses.
//!
//! Numerics (`ARCHITECTURE.md`, "Bits"):
//! - 16-bit types are added in `f32` and rounded to the type once per reduction, wherever a value is stored.
//! - `Min` and `Max` are IEEE 754-2019 `minimum` and `maximum`: NaN wins, −0 < +0.
//! - A NaN result is always the canonical quiet NaN, so that bits do not depend on how the compiler orders operands.
//! - Integers wrap; their average truncates toward zero.

mod arithmetic;
mod average;
#[cfg(feature = "cuda")]
pub mod cuda;
mod fused;
mod half_precision;
mod kernels;
mod level;
mod many;
mod store;
pub mod wire;

pub use average::scale_for_average;
pub use kernels::{Target, reduce_into};
pub use many::{ReduceMany, Tree, reduce_many};
pub use store::Store;
pub use wire::WireFormat;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a vector's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// 32-bit signed integer, wrapping.
    I32,
    /// 64-bit signed integer, wrapping.
    I64,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    BF16,
}

impl ElementType {
    /// Every type.
    pub const ALL: [ElementType; 6] = [Self::F32, Self::F64, Self::I32, Self::I64, Self::F16, Self::BF16];

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a reduction does with two elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operator {
    /// `a + b`.
    Sum,
    /// The sum, times 1/n once at the end.
    Average,
    /// IEEE 754-2019 `minimum`.
    Min,
    /// IEEE 754-2019 `maximum`.
    Max,
    /// `a · b`.
    Product,
}

impl Operator {
    /// Every operator.
    pub const ALL: [Operator; 5] = [Self::Sum, Self::Average, Self::Min, Self::Max, Self::Product];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Average => "average",
            Self::Min => "min",
            Self::Max => "max",
            Self::Product => "product",
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type whose vectors can be reduced: `f32`, `f64`, `i32`, `i64`, [`half::f16`], [`half::bf16`].
pub trait Element: sealed::Sealed + bytemuck::Pod + Default + PartialEq + fmt::Debug + Send + Sync {
    /// The run-time name of this type.
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($rust:ty => $name:ident),+) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$name;
        }
    )+};
}
elements!(f32 => F32, f64 => F64, i32 => I32, i64 => I64, f16 => F16, bf16 => BF16);

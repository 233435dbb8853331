//! Narrow wire formats: how `f32` vectors are written for the way between ranks.
//!
//! | format | bytes per element | error of one element, at most | beyond its range |
//! |---|---|---|---|
//! | `f32` | 4 | none | – |
//! | `f16` | 2 | 2⁻¹¹ of its magnitude, 2⁻²⁵ below 2⁻¹⁴ | from 65,520 on it arrives as infinity |
//! | `bf16` | 2 | 2⁻⁸ of its magnitude | the largest numbers (above 255.5 · 2¹²⁰) arrive as infinity |
//! | `int8` | 1 + 1/64 | 1/254 of the largest magnitude in its block (and a ten thousandth of that) | – |
//!
//! Rounding is to nearest, ties to even. `int8` is symmetric: blocks of [`BLOCK`] elements, each behind a scale in `f32`,
//! which is the block's largest magnitude / 127.
//!
//! What is not a number never vanishes. In `f16` and `bf16` an infinity arrives as itself and a NaN as the canonical quiet
//! NaN. A block of `int8` that holds an infinity or a NaN arrives as NaN in every element, so that a diverged
//! rank is noticed by all. A block of `int8` in which nothing reaches 2⁻¹¹⁹ arrives as zeros: scales are never
//! subnormal, so that the bits do not depend on whether a processor flushes subnormals.
//!
//! Bits are the same on every machine: little-endian, and every step is one IEEE operation.

mod codec;
mod combine;

pub(crate) use combine::{Arithmetic, Operands, Sums, combine};

use super::ElementType;
use crate::error::{Error, Result};
use codec::{Codec, Job, dispatch};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Elements that share a scale in `int8`. Vectors are cut between ranks at multiples of it in every format.
///
/// 256 elements keep the scale's share of the bytes below 2%, and a block in the first cache while it is summed.
pub const BLOCK: usize = 256;

/// How `f32` vectors are written for the way between ranks. See the [module](self) for what each format loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    /// Nothing is narrowed: vectors travel in their own type.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
    /// 8-bit integers with a scale for each [`BLOCK`].
    Int8,
}

impl WireFormat {
    /// Every format.
    pub const ALL: [WireFormat; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Whether vectors of `element` must be converted for this wire. `f32` converts nothing, nor does a 16-bit wire for
    /// vectors of its own type.
    pub fn narrows(self, element: ElementType) -> bool {
        match self {
            Self::F32 => false,
            Self::F16 => element != ElementType::F16,
            Self::Bf16 => element != ElementType::BF16,
            Self::Int8 => true,
        }
    }

    /// How many bytes `len` elements take, of which the first begins a block.
    ///
    /// ```
    /// use esync::reduce::WireFormat;
    /// assert_eq!(WireFormat::Int8.encoded_bytes(1000), 1000 + 4 * 4);
    /// assert_eq!(WireFormat::Bf16.encoded_bytes(1000), 2000);
    /// ```
    pub fn encoded_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 | Self::Bf16 => 2 * len,
            Self::Int8 => len + codec::SCALE_BYTES * len.div_ceil(BLOCK),
        }
    }

    /// The largest error of one way through this format, for an element of a block in which no magnitude exceeds
    /// `largest`, a finite number. Infinite where elements may arrive as infinity.
    pub fn error_bound(self, largest: f32) -> f64 {
        let largest = f64::from(largest.abs());
        match self {
            Self::F32 => 0.0,
            Self::F16 if largest >= 65520.0 => f64::INFINITY,
            Self::F16 => (largest / 2048.0).max(2f64.powi(-25)),
            Self::Bf16 if largest >= 255.5 * 2f64.powi(120) => f64::INFINITY,
            Self::Bf16 => (largest / 256.0).max(2f64.powi(-134)),
            Self::Int8 if largest < f64::from(codec::SMALLEST) => largest,
            Self::Int8 => largest / 254.0 * 1.0001,
        }
    }

    /// Writes `values` into `into`.
    ///
    /// ```
    /// use esync::reduce::WireFormat;
    /// let values = [1.0f32, -0.5, 0.25];
    /// let mut encoded = vec![0; WireFormat::Int8.encoded_bytes(values.len())];
    /// let mut decoded = [0.0; 3];
    /// WireFormat::Int8.encode(&values, &mut encoded);
    /// WireFormat::Int8.decode(&encoded, &mut decoded);
    /// assert!(values.iter().zip(decoded).all(|(value, again)| (value - again).abs() <= 1.0 / 253.9));
    /// ```
    ///
    /// # Panics
    /// If `into` is not [`encoded_bytes`](Self::encoded_bytes) long.
    pub fn encode(self, values: &[f32], into: &mut [u8]) {
        assert_eq!(into.len(), self.encoded_bytes(values.len()));
        dispatch(self, Encode { values, into });
    }

    /// Reads what [`encode`](Self::encode) wrote. Any bytes can be read; those that nobody wrote are some numbers.
    ///
    /// # Panics
    /// If `from` is not [`encoded_bytes`](Self::encoded_bytes) of the elements of `into` long.
    pub fn decode(self, from: &[u8], into: &mut [f32]) {
        assert_eq!(from.len(), self.encoded_bytes(into.len()));
        dispatch(self, Decode { from, into });
    }
}

impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WireFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            Error::Usage(format!(
                "there is no wire format `{text}`; choose one of `f32`, `f16`, `bf16`, `int8`"
            ))
        })
    }
}

struct Encode<'a> {
    values: &'a [f32],
    into: &'a mut [u8],
}

impl Job for Encode<'_> {
    #[inline(always)]
    fn run<C: Codec>(self) {
        for (values, into) in self.values.chunks(BLOCK).zip(self.into.chunks_mut(C::BLOCK_BYTES)) {
            C::encode(values, into);
        }
    }
}

struct Decode<'a> {
    from: &'a [u8],
    into: &'a mut [f32],
}

impl Job for Decode<'_> {
    #[inline(always)]
    fn run<C: Codec>(self) {
        for (from, into) in self.from.chunks(C::BLOCK_BYTES).zip(self.into.chunks_mut(BLOCK)) {
            C::read::<false>(from, into);
        }
    }
}

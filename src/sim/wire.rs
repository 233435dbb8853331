//! What a narrow wire does to numbers, and how many bytes they are.

use crate::reduce::WireFormat;
use crate::transport::Rank;
use std::collections::BTreeMap;

/// What rounding took from vectors that are exchanged again and again, to be added the next time.
#[derive(Default)]
pub(super) struct Feedback {
    contributions: BTreeMap<Rank, Vec<f32>>,
    /// Of the sum. Each part of it is kept by the rank that owns it, and together they are this.
    pub(super) result: Vec<f32>,
}

impl Feedback {
    /// Of a rank's contributions.
    pub(super) fn of(&mut self, rank: Rank) -> &mut Vec<f32> {
        self.contributions.entry(rank).or_default()
    }
}

/// How much larger than the model that trains is the one that travels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale(f64);

impl Scale {
    /// With which `elements` f32 count as `model_bytes`, if that is given.
    pub(super) fn new(model_bytes: Option<u64>, elements: usize) -> Self {
        let own = (size_of::<f32>() * elements.max(1)) as f64;
        Scale(model_bytes.map_or(1.0, |bytes| bytes as f64 / own))
    }

    /// What so many elements, or bytes, count as.
    pub(super) fn apply(self, count: u64) -> u64 {
        (self.0 * count as f64).round() as u64
    }
}

/// A wire with its own scratch space.
pub(super) struct Wire {
    format: WireFormat,
    scale: Scale,
    scratch: Vec<u8>,
}

impl Wire {
    pub(super) fn new(format: WireFormat, scale: Scale) -> Self {
        Wire { format, scale, scratch: Vec::new() }
    }

    /// What these values are when they arrive. `left` is what was rounded off the last time, and then what is now.
    pub(super) fn round(&mut self, values: &mut [f32], left: Option<&mut Vec<f32>>) {
        if self.format == WireFormat::F32 {
            return;
        }
        self.scratch.resize(self.format.encoded_bytes(values.len()), 0);
        let Some(left) = left else {
            self.format.encode(values, &mut self.scratch);
            return self.format.decode(&self.scratch, values);
        };
        left.resize(values.len(), 0.0);
        for (value, left) in values.iter_mut().zip(&mut *left) {
            *value += *left;
            *left = *value;
        }
        self.format.encode(values, &mut self.scratch);
        self.format.decode(&self.scratch, values);
        for (left, value) in left.iter_mut().zip(&*values) {
            let error = *left - value;
            *left = if error.is_finite() { error } else { 0.0 };
        }
    }

    /// Bytes of a vector of `len` elements, of which the first `trainable` are narrowed.
    pub(super) fn bytes(&self, len: usize, trainable: usize) -> u64 {
        let statistics = size_of::<f32>() * (len - trainable);
        self.scale.apply((self.format.encoded_bytes(trainable) + statistics) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_wire_rounds() {
        let own = Scale::new(None, 3);
        let mut values = [0.1_f32, 1.0, -3.3];
        Wire::new(WireFormat::F32, own).round(&mut values, None);
        assert_eq!(values, [0.1, 1.0, -3.3]);
        let mut wire = Wire::new(WireFormat::F16, own);
        wire.round(&mut values, None);
        assert!(values[0] != 0.1 && (values[0] - 0.1).abs() < 1e-4 && values[1] == 1.0);
        assert_eq!(wire.bytes(5, 3), 3 * 2 + 2 * 4);
    }

    #[test]
    fn what_is_rounded_off_comes_the_next_time() {
        let mut wire = Wire::new(WireFormat::Int8, Scale::new(None, 2));
        // A step of the block is 1, of which 0.3 is too little to be sent before it has come four times.
        let (mut left, mut sent) = (Vec::new(), 0.0);
        let mut arrivals = Vec::new();
        for _ in 0..10 {
            let mut values = [127.0, 0.3];
            wire.round(&mut values, Some(&mut left));
            sent += values[1];
            arrivals.push(values[1]);
        }
        assert_eq!(arrivals[0], 0.0);
        assert!(arrivals.contains(&1.0) && (sent - 3.0_f32).abs() <= 0.5, "{arrivals:?}");
        let mut lost = [127.0, 0.3];
        wire.round(&mut lost, None);
        assert_eq!(lost[1], 0.0);
    }

    #[test]
    fn a_model_can_count_as_a_larger_one() {
        let scale = Scale::new(Some(4_000_000), 100);
        let bytes = |format, len| Wire::new(format, scale).bytes(len, len);
        assert_eq!(bytes(WireFormat::F32, 100), 4_000_000);
        assert_eq!(bytes(WireFormat::F32, 25), 1_000_000, "a part of it");
        assert_eq!(bytes(WireFormat::F16, 100), 2_000_000);
        assert_eq!(bytes(WireFormat::F32, 0), 0);
        assert_eq!(Scale::new(None, 7).apply(u64::from(u32::MAX)), u64::from(u32::MAX));
    }
}

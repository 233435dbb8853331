//! What a narrow wire does to numbers.

use crate::reduce::WireFormat;

/// A wire with its own scratch space.
pub(super) struct Wire {
    format: WireFormat,
    scratch: Vec<u8>,
}

impl Wire {
    pub(super) fn new(format: WireFormat) -> Self {
        Wire { format, scratch: Vec::new() }
    }

    /// What these values are when they arrive.
    pub(super) fn round(&mut self, values: &mut [f32]) {
        if self.format == WireFormat::F32 {
            return;
        }
        self.scratch.resize(self.format.encoded_bytes(values.len()), 0);
        self.format.encode(values, &mut self.scratch);
        self.format.decode(&self.scratch, values);
    }

    /// Bytes of a vector of `len` elements, of which the first `trainable` are narrowed.
    pub(super) fn bytes(&self, len: usize, trainable: usize) -> u64 {
        let statistics = size_of::<f32>() * (len - trainable);
        (self.format.encoded_bytes(trainable) + statistics) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_wire_rounds() {
        let mut values = [0.1_f32, 1.0, -3.3];
        Wire::new(WireFormat::F32).round(&mut values);
        assert_eq!(values, [0.1, 1.0, -3.3]);
        let mut wire = Wire::new(WireFormat::F16);
        wire.round(&mut values);
        assert!(values[0] != 0.1 && (values[0] - 0.1).abs() < 1e-4 && values[1] == 1.0);
        assert_eq!(wire.bytes(5, 3), 3 * 2 + 2 * 4);
    }
}

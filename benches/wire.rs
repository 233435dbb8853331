//! The wire formats: bytes of the `f32` vector per second, written and read.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use esync::buffer::FlatBuffer;
use esync::reduce::WireFormat;

fn main() {
    divan::main();
}

/// In the first cache, in the second, and in memory.
const LENGTHS: [usize; 3] = [1 << 11, 1 << 16, 1 << 22];

fn vector(len: usize) -> FlatBuffer<f32> {
    let mut values = FlatBuffer::new(len);
    values.iter_mut().enumerate().for_each(|(index, value)| *value = (index as f32).sin());
    values
}

#[divan::bench(consts = LENGTHS, args = WireFormat::ALL)]
fn encode<const LEN: usize>(bencher: Bencher, format: WireFormat) {
    let (values, mut encoded) = (vector(LEN), vec![0; format.encoded_bytes(LEN)]);
    bencher.counter(BytesCount::of_many::<f32>(LEN)).bench_local(|| {
        format.encode(black_box(&values), black_box(&mut encoded));
    });
}

#[divan::bench(consts = LENGTHS, args = WireFormat::ALL)]
fn decode<const LEN: usize>(bencher: Bencher, format: WireFormat) {
    let (mut values, mut encoded) = (vector(LEN), vec![0; format.encoded_bytes(LEN)]);
    format.encode(&values, &mut encoded);
    bencher.counter(BytesCount::of_many::<f32>(LEN)).bench_local(|| {
        format.decode(black_box(&encoded), black_box(&mut values));
    });
}

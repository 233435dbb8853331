//! The element-wise kernels, which bound every reduction: bytes of one operand per second.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use esync::buffer::FlatBuffer;
use esync::reduce::{Element, Operator, Target, reduce_into, scale_for_average};
use half::{bf16, f16};

fn main() {
    divan::main();
}

/// In the first cache, in the second, and in memory.
const LENGTHS: [usize; 3] = [1 << 11, 1 << 16, 1 << 22];

fn bytes<T: Element>(len: usize) -> BytesCount {
    BytesCount::of_many::<T>(len)
}

#[divan::bench(types = [f32, f64, i32, i64, f16, bf16], args = LENGTHS)]
fn sum<T: Element>(bencher: Bencher, len: usize) {
    let (mut left, right) = (FlatBuffer::<T>::new(len), FlatBuffer::<T>::new(len));
    bencher.counter(bytes::<T>(len)).bench_local(|| {
        let left = bytemuck::cast_slice_mut(black_box(&mut left[..]));
        reduce_into(T::TYPE, Operator::Sum, Target::Left { left, right: bytemuck::cast_slice(&right) });
    });
}

#[divan::bench(args = [Operator::Min, Operator::Max, Operator::Product])]
fn other_operators(bencher: Bencher, operator: Operator) {
    let len = LENGTHS[1];
    let (mut left, right) = (FlatBuffer::<f32>::new(len), FlatBuffer::<f32>::new(len));
    bencher.counter(bytes::<f32>(len)).bench_local(|| {
        let left = bytemuck::cast_slice_mut(black_box(&mut left[..]));
        reduce_into(f32::TYPE, operator, Target::Left { left, right: bytemuck::cast_slice(&right) });
    });
}

#[divan::bench(types = [f32, i32, bf16])]
fn average<T: Element>(bencher: Bencher) {
    let len = LENGTHS[1];
    let mut values = FlatBuffer::<T>::new(len);
    bencher.counter(bytes::<T>(len)).bench_local(|| {
        scale_for_average(T::TYPE, bytemuck::cast_slice_mut(black_box(&mut values[..])), 7);
    });
}

//! The element-wise kernels, which bound every reduction: bytes of one operand per second.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use esync::buffer::FlatBuffer;
use esync::reduce::{
    Element, Operator, ReduceMany, Store, Target, Tree, reduce_into, reduce_many, scale_for_average,
};
use half::{bf16, f16};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// All-reduce in place over several buffers, as the ranks of one host do it together; bytes read and written.
#[divan::bench(args = [
    (2, 1 << 10), (8, 1 << 10), (2, 1 << 20), (8, 1 << 20), (2, 1 << 26), (8, 1 << 26),
], consts = [1, 2])]
fn many<const THREADS: usize>(bencher: Bencher, (ranks, bytes): (usize, usize)) {
    in_place::<f32>(bencher, THREADS, ranks, bytes, Store::Ordinary);
}

/// [`many`] with stores that go past the caches.
#[divan::bench(args = [(2, 1 << 20), (8, 1 << 20), (2, 1 << 26), (8, 1 << 26)], consts = [1, 2])]
fn many_streaming<const THREADS: usize>(bencher: Bencher, (ranks, bytes): (usize, usize)) {
    in_place::<f32>(bencher, THREADS, ranks, bytes, Store::Streaming);
}

/// [`many`] of eight ranks with every type.
#[divan::bench(types = [f64, i32, i64, f16, bf16])]
fn many_types<T: Element>(bencher: Bencher) {
    in_place::<T>(bencher, 1, 8, 1 << 20, Store::Ordinary);
}

/// What the threads claim from the buffers, as the collectives do.
const CHUNK_BYTES: usize = 64 * 1024;

fn in_place<T: Element>(bencher: Bencher, threads: usize, ranks: usize, bytes: usize, store: Store) {
    let mut buffers: Vec<_> = (0..ranks).map(|_| FlatBuffer::<T>::new(bytes / size_of::<T>())).collect();
    let addresses: Vec<usize> = buffers.iter_mut().map(|buffer| buffer.as_mut_ptr() as usize).collect();
    let (next, round) = (AtomicUsize::new(0), Barrier::new(threads));
    let work = || {
        let mut targets = vec![ptr::null_mut::<u8>(); ranks];
        loop {
            let at = next.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
            if at >= bytes {
                return;
            }
            for (target, address) in targets.iter_mut().zip(&addresses) {
                *target = (*address as *mut u8).wrapping_add(at);
            }
            let sources: Vec<*const u8> = targets.iter().map(|target| target.cast_const()).collect();
            let (element, bytes) = (T::TYPE, CHUNK_BYTES.min(bytes - at));
            let job = ReduceMany {
                element,
                operator: Operator::Sum,
                tree: Tree::Canonical,
                sources: &sources,
                targets: &targets,
                bytes,
                store,
            };
            // SAFETY: chunks lie inside the buffers, and each is claimed by one thread.
            unsafe { reduce_many(&job) };
        }
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                loop {
                    round.wait();
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    work();
                    round.wait();
                }
            });
        }
        bencher.counter(BytesCount::new(2 * ranks * bytes)).bench_local(|| {
            next.store(0, Ordering::Relaxed);
            round.wait();
            work();
            round.wait();
        });
        is_over.store(true, Ordering::Relaxed);
        round.wait();
    });
    drop(buffers);
}

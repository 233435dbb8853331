//! `reduce_many` against the same tree, evaluated node by node with `reduce_into`: every type, operator, order and number of
//! sources, ragged lengths and starts, in place and not, with NaNs, infinities, zeros of both signs and subnormals.

use esync::reduce::{
    ElementType, Operator, ReduceMany, Store, Target, Tree, reduce_into, reduce_many, scale_for_average,
};
use proptest::prelude::*;
use std::ops::Range;

/// Memory that is aligned for every element, of which a vector takes a part.
fn memory(bytes: usize) -> Vec<u64> {
    vec![0; bytes.div_ceil(8) + 1]
}

/// Bit patterns in which everything that is awkward is frequent.
fn awkward(element: ElementType, seed: u64) -> u64 {
    let hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let special: [f64; 10] =
        [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0, -1.0, 3e38, 7e4];
    let value = match hash >> 60 {
        0..=3 => special[(hash >> 8) as usize % special.len()],
        4..=9 => (hash >> 20 & 0xfff) as f64 / 7.0 - 250.0,
        // Any bits at all: subnormal numbers, NaNs with payloads, huge and tiny numbers.
        10..=13 => return hash.rotate_left(13),
        // The smallest numbers.
        _ => return hash & 0xff | hash >> 40 & 1 << 15,
    };
    match element {
        ElementType::F32 => u64::from((value as f32).to_bits()),
        ElementType::F64 => value.to_bits(),
        ElementType::F16 => u64::from(half::f16::from_f64(value).to_bits()),
        ElementType::BF16 => u64::from(half::bf16::from_f64(value).to_bits()),
        ElementType::I32 | ElementType::I64 => hash,
    }
}

/// The tree by its definition, one node after the other.
fn tree(
    element: ElementType,
    operator: Operator,
    tree_of: Tree,
    vectors: &[Vec<u64>],
    bytes: usize,
) -> Vec<u64> {
    fn node(
        element: ElementType,
        operator: Operator,
        mut left: Vec<u64>,
        right: &[u64],
        bytes: usize,
    ) -> Vec<u64> {
        let target = Target::Left {
            left: &mut bytemuck::cast_slice_mut(&mut left)[..bytes],
            right: &bytemuck::cast_slice(right)[..bytes],
        };
        reduce_into(element, operator, target);
        left
    }
    fn pairwise(
        element: ElementType,
        operator: Operator,
        ranks: Range<usize>,
        vectors: &[Vec<u64>],
        bytes: usize,
    ) -> Vec<u64> {
        if ranks.len() == 1 {
            return vectors[ranks.start].clone();
        }
        let middle = ranks.start + ranks.len() / 2;
        let left = pairwise(element, operator, ranks.start..middle, vectors, bytes);
        let right = pairwise(element, operator, middle..ranks.end, vectors, bytes);
        node(element, operator, left, &right, bytes)
    }
    let n = vectors.len();
    match tree_of {
        Tree::RankOrder => vectors[1..]
            .iter()
            .fold(vectors[0].clone(), |sum, vector| node(element, operator, sum, vector, bytes)),
        Tree::Canonical => {
            let mut blocks = Vec::new();
            let mut start = 0;
            for log in (0..usize::BITS).rev().filter(|log| n >> log & 1 == 1) {
                blocks.push(pairwise(element, operator, start..start + (1 << log), vectors, bytes));
                start += 1 << log;
            }
            let last = blocks.pop().unwrap();
            blocks.into_iter().rev().fold(last, |sum, block| node(element, operator, block, &sum, bytes))
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    element: ElementType,
    operator: Operator,
    tree: Tree,
    n: usize,
    len: usize,
    /// Elements between the start of the memory and that of a vector.
    offset: usize,
    in_place: bool,
    store: Store,
    seed: u64,
}

fn check(case: Case) {
    let Case { element, operator, n, len, offset, in_place, store, seed, .. } = case;
    let size = element.size();
    let bytes = len * size;
    let vectors: Vec<Vec<u64>> = (0..n)
        .map(|rank| {
            let mut vector = memory(bytes);
            let all: &mut [u8] = bytemuck::cast_slice_mut(&mut vector);
            for i in 0..len {
                let bits = awkward(element, seed ^ (rank as u64) << 40 ^ i as u64);
                all[i * size..(i + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
            }
            vector
        })
        .collect();
    let mut expected = tree(element, operator, case.tree, &vectors, bytes);
    if operator == Operator::Average {
        scale_for_average(element, &mut bytemuck::cast_slice_mut(&mut expected)[..bytes], n);
    }
    let expected = &bytemuck::cast_slice::<u64, u8>(&expected)[..bytes];

    // Every vector starts at another place, and its surroundings must stay as they are.
    const GUARD: u8 = 0xa5;
    let start = |rank: usize| (offset + rank * 3) * size;
    let place = |rank: usize| start(rank)..start(rank) + bytes;
    let mut inputs: Vec<Vec<u64>> = (0..n).map(|rank| memory(start(rank) + bytes + 64)).collect();
    let mut outputs: Vec<Vec<u64>> = (0..n).map(|rank| memory(start(rank + 5) + bytes + 64)).collect();
    for memory in inputs.iter_mut().chain(&mut outputs) {
        bytemuck::cast_slice_mut::<u64, u8>(memory).fill(GUARD);
    }
    for (rank, input) in inputs.iter_mut().enumerate() {
        let vector = &bytemuck::cast_slice::<u64, u8>(&vectors[rank])[..bytes];
        bytemuck::cast_slice_mut::<u64, u8>(input)[place(rank)].copy_from_slice(vector);
    }
    let address =
        |memory: &mut Vec<u64>, at: usize| bytemuck::cast_slice_mut::<u64, u8>(memory)[at..].as_mut_ptr();
    let in_inputs: Vec<*mut u8> =
        inputs.iter_mut().enumerate().map(|(rank, input)| address(input, start(rank))).collect();
    let sources: Vec<*const u8> = in_inputs.iter().map(|input| input.cast_const()).collect();
    let in_outputs: Vec<*mut u8> =
        outputs.iter_mut().enumerate().map(|(rank, output)| address(output, start(rank + 5))).collect();
    let targets = if in_place { in_inputs } else { in_outputs };
    let job =
        ReduceMany { element, operator, tree: case.tree, sources: &sources, targets: &targets, bytes, store };
    // SAFETY: every address is that of `bytes` bytes inside a vector of its own, and in place they are the sources'.
    unsafe { reduce_many(&job) };

    for rank in 0..n {
        let (memory, at) =
            if in_place { (&inputs[rank], start(rank)) } else { (&outputs[rank], start(rank + 5)) };
        let memory = bytemuck::cast_slice::<u64, u8>(memory);
        let result = &memory[at..at + bytes];
        if let Some(wrong) = (0..bytes).find(|&byte| result[byte] != expected[byte]) {
            let element = wrong / size * size..wrong / size * size + size;
            panic!(
                "{case:?}: element {} of rank {rank} is {:x?} instead of {:x?}",
                wrong / size,
                &result[element.clone()],
                &expected[element]
            );
        }
        assert!(memory[..at].iter().chain(&memory[at + bytes..]).all(|&byte| byte == GUARD), "{case:?}");
        if !in_place {
            let input = &bytemuck::cast_slice::<u64, u8>(&inputs[rank])[place(rank)];
            assert_eq!(input, &bytemuck::cast_slice::<u64, u8>(&vectors[rank])[..bytes], "{case:?}");
        }
    }
}

#[test]
fn every_type_operator_order_and_number_of_sources() {
    for element in ElementType::ALL {
        for operator in Operator::ALL {
            for tree in [Tree::Canonical, Tree::RankOrder] {
                for n in 1..=17 {
                    for (in_place, store) in [(true, Store::Ordinary), (false, Store::Streaming)] {
                        let seed = n as u64;
                        check(Case {
                            element,
                            operator,
                            tree,
                            n,
                            len: 1037,
                            offset: 1,
                            in_place,
                            store,
                            seed,
                        });
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_length_and_start(
        (element, operator) in (prop::sample::select(&ElementType::ALL[..]), prop::sample::select(&Operator::ALL[..])),
        tree in prop::sample::select(&[Tree::Canonical, Tree::RankOrder][..]),
        (n, len, offset) in (1usize..=17, prop_oneof![0usize..70, 500usize..5000], 0usize..40),
        in_place: bool,
        store in prop::sample::select(&[Store::Ordinary, Store::Streaming][..]),
        seed: u64,
    ) {
        check(Case { element, operator, tree, n, len, offset, in_place, store, seed });
    }
}

#[test]
fn more_sources_than_blocks_have_lines() {
    for n in [64, 100, 255, 300] {
        for element in [ElementType::F32, ElementType::BF16] {
            check(Case {
                element,
                operator: Operator::Average,
                tree: Tree::Canonical,
                n,
                len: 2000,
                offset: 3,
                in_place: true,
                store: Store::Ordinary,
                seed: 9,
            });
        }
    }
}

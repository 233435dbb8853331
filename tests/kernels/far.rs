//! Index arithmetic of the kernels far beyond 2³¹ elements: twins (`twin.rs`) on memory that is reserved and not there,
//! of whose grids only the blocks around 2³¹, 2³², the beginning and the end are run.

use crate::twin;
use crate::twin::{Twin, compiler};
use esync::reduce::cuda::{
    AnchorStep, DequantiseReduce, Geometry, Launch, OuterUpdate, ParameterStep, THREADS,
};
use esync::reduce::{ElementType, Operator, Target, Tree, WireFormat, reduce_into};
use std::ops::Range;

/// More elements than 32 bits count groups of eight: 2³⁵, and a ragged end.
const COUNT: usize = (1 << 35) + 3;

/// So many that every group of elements has a thread.
const ENOUGH: u32 = 1 << 28;

/// Address space of which only what is touched takes memory.
struct Sparse {
    start: *mut u8,
    bytes: usize,
    element: usize,
    residue: usize,
}

impl Sparse {
    /// `count` elements of so many bytes, the first of them `residue` bytes after a multiple of 16. `None` where the system does
    /// not give so much address space.
    fn new(count: usize, element: usize, residue: usize) -> Option<Sparse> {
        let bytes = count * element + 4096;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new memory, which overlaps nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            eprintln!("skipped: this system does not reserve {bytes} bytes of address space");
            return None;
        }
        Some(Sparse { start: start.cast(), bytes, element, residue })
    }

    fn address(&self) -> u64 {
        self.start as u64 + self.residue as u64
    }

    fn part(&self, elements: &Range<usize>) -> (*mut u8, usize) {
        assert!(elements.end * self.element + self.residue <= self.bytes);
        // SAFETY: the part lies inside, as just asked.
        let start = unsafe { self.start.add(self.residue + elements.start * self.element) };
        (start, elements.len() * self.element)
    }

    fn write(&self, elements: &Range<usize>, bytes: &[u8]) {
        let (start, len) = self.part(elements);
        assert_eq!(len, bytes.len());
        // SAFETY: the part lies inside, and nobody else uses it now.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), len) };
    }

    fn read(&self, elements: &Range<usize>) -> Vec<u8> {
        let (start, len) = self.part(elements);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Small numbers that differ from element to element, also from those 2³¹ or 2³² further on.
fn numbers(elements: &Range<usize>, salt: usize) -> Vec<f32> {
    elements.clone().map(|index| ((index ^ (index >> 31) ^ (salt * 7)) % 4093) as f32 - 2000.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Which blocks of a grid are run, and which elements they treat, each `width` times the threads of a block.
struct Windows {
    blocks: Vec<Range<u64>>,
    elements: Vec<Range<usize>>,
}

/// `head` elements come before the first group.
fn windows(width: usize, head: usize, grid: Geometry, turns: u64) -> Windows {
    let per_block = width * THREADS as usize;
    let all = u64::from(grid.blocks);
    let around = |element: usize| (element / per_block) as u64;
    let mut blocks: Vec<Range<u64>> = vec![0..2, all - 2..all];
    for element in [1 << 31, 1 << 32, 1 << 33] {
        let block = around(element) % all;
        blocks.push(block - 1..block + 2);
    }
    blocks.sort_by_key(|blocks| blocks.start);
    blocks.dedup();
    let mut elements = Vec::new();
    for blocks in &blocks {
        for turn in 0..turns {
            let at = |block: u64| (head + (turn * all + block) as usize * per_block).min(COUNT);
            let start = if turn == 0 && blocks.start == 0 { 0 } else { at(blocks.start) };
            elements.push(start..at(blocks.end));
        }
    }
    // The ragged end is the first block's, whatever the grid.
    elements.push(COUNT - 8..COUNT);
    elements.retain(|elements| !elements.is_empty());
    Windows { blocks, elements }
}

/// Fills the windows of `inputs`, runs `start`, and compares the windows of `output`, and that nothing beside them was written.
fn compare(
    twin: &Twin,
    windows: &Windows,
    inputs: &[&Sparse],
    output: &Sparse,
    start: impl FnOnce(),
    expected: impl Fn(&[Vec<f32>]) -> Vec<u8>,
) {
    let fill = |elements: &Range<usize>| -> Vec<Vec<f32>> {
        (0..inputs.len()).map(|input| numbers(elements, input)).collect()
    };
    for elements in &windows.elements {
        for (input, values) in inputs.iter().zip(fill(elements)) {
            input.write(elements, &bytes(&values));
        }
    }
    twin.only(&windows.blocks);
    start();
    for elements in &windows.elements {
        let found = output.read(elements);
        let expected = expected(&fill(elements));
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        let wrong = wrong.map(|byte| elements.start + byte / output.element);
        assert_eq!(wrong, None, "the element that is wrong, of {elements:?}");
        let inside = |index: usize| windows.elements.iter().any(|elements| elements.contains(&index));
        for index in (elements.start.saturating_sub(16)..elements.end + 16).filter(|index| *index < COUNT) {
            if !inside(index) && !inputs.iter().any(|input| std::ptr::eq(*input, output)) {
                let nothing = output.read(&(index..index + 1)).iter().all(|byte| *byte == 0);
                assert!(nothing, "element {index} was written");
            }
        }
    }
}

fn sum(operands: &[Vec<f32>]) -> Vec<u8> {
    let mut sum = operands[0].clone();
    for operand in &operands[1..] {
        let target =
            Target::Left { left: bytemuck::cast_slice_mut(&mut sum), right: bytemuck::cast_slice(operand) };
        reduce_into(ElementType::F32, Operator::Sum, target);
    }
    bytes(&sum)
}

fn grid(width: u32, multiprocessors: u32) -> Geometry {
    Geometry::of_elements(COUNT as u64, width, multiprocessors)
}

/// Each thread one group, and each thread two: with half the grid, the second turn begins in the middle.
const GRIDS: [(u32, u64); 2] = [(ENOUGH, 1), ((1 << 24) / 8, 2)];

#[test]
fn reduce_goes_beyond_32_bits() {
    for (multiprocessors, turns) in GRIDS {
        let Some(twin) = twin::start(multiprocessors) else { return };
        // The result begins 3 elements before a multiple of 16 bytes, one operand there, one elsewhere.
        let Some([left, right, into]) = vectors([4, 8, 4]) else { return };
        let windows = windows(4, 3, grid(4, multiprocessors), turns);
        let start = || {
            let (l, r, to) = (left.address(), right.address(), into.address());
            // SAFETY: all three have so many elements.
            unsafe { twin.reduce(&(), ElementType::F32, Operator::Sum, to, l, r, COUNT) }.unwrap();
        };
        compare(&twin, &windows, &[&left, &right], &into, start, sum);
    }
}

fn vectors<const N: usize>(residues: [usize; N]) -> Option<[Sparse; N]> {
    let all: Option<Vec<Sparse>> = residues.iter().map(|residue| Sparse::new(COUNT, 4, *residue)).collect();
    all?.try_into().ok()
}

#[test]
fn reduce_many_and_average_go_beyond_32_bits() {
    let Some(twin) = twin::start(ENOUGH) else { return };
    let Some([a, b, c, into]) = vectors([0, 4, 8, 12]) else { return };
    let windows = windows(4, 1, grid(4, ENOUGH), 1);
    let (sources, to) = ([a.address(), b.address(), c.address()], into.address());
    let start = || {
        let (operator, tree) = (Operator::Sum, Tree::RankOrder);
        // SAFETY: all have so many elements.
        unsafe { twin.reduce_many(&(), ElementType::F32, operator, tree, &sources, to, COUNT) }.unwrap();
    };
    compare(&twin, &windows, &[&a, &b, &c], &into, start, sum);
    let start = || {
        // SAFETY: as above.
        unsafe { twin.scale_for_average(&(), ElementType::F32, a.address(), COUNT, 4) }.unwrap();
    };
    let quarter =
        |operands: &[Vec<f32>]| bytes(&operands[0].iter().map(|value| value / 4.0).collect::<Vec<_>>());
    let windows = self::windows(4, 0, grid(4, ENOUGH), 1);
    compare(&twin, &windows, &[&a], &a, start, quarter);
}

#[test]
fn outer_update_and_delta_go_beyond_32_bits() {
    let Some(twin) = twin::start(ENOUGH) else { return };
    let Some([anchor, sum, params, into]) = vectors([0, 0, 4, 0]) else { return };
    let windows = windows(4, 0, grid(4, ENOUGH), 1);
    let update = OuterUpdate {
        anchor: anchor.address(),
        sum: sum.address(),
        ranks: 1,
        params: params.address(),
        count: COUNT,
        anchor_step: AnchorStep::Sgd { learning_rate: 0.5 },
        parameter_step: ParameterStep::Rebase,
    };
    let stepped = |operands: &[Vec<f32>]| {
        let moved = operands[0].iter().zip(&operands[1]).map(|(anchor, mean)| anchor + 0.5 * mean);
        bytes(&moved.collect::<Vec<_>>())
    };
    let start = || {
        // SAFETY: all have so many elements.
        unsafe { twin.outer_update(&(), ElementType::F32, &update) }.unwrap();
    };
    compare(&twin, &windows, &[&anchor, &sum], &params, start, stepped);
    for elements in &windows.elements {
        assert!(anchor.read(elements) == params.read(elements), "the anchor of {elements:?}");
    }
    let delta = |operands: &[Vec<f32>]| {
        let halves = operands[0].iter().zip(&operands[1]).map(|(param, anchor)| 0.5 * (param - anchor));
        bytes(&halves.collect::<Vec<_>>())
    };
    let start = || {
        let (into, params, anchor) = (into.address(), params.address(), Some(anchor.address()));
        // SAFETY: as above.
        unsafe { twin.delta(&(), ElementType::F32, into, params, anchor, 0.5, COUNT) }.unwrap();
    };
    compare(&twin, &windows, &[&params, &anchor], &into, start, delta);
}

#[test]
fn casts_go_beyond_32_bits() {
    let Some(twin) = twin::start(ENOUGH) else { return };
    let Some([wide]) = vectors([4]) else { return };
    let Some(narrow) = Sparse::new(COUNT, 2, 2) else { return };
    // Groups of eight; the narrow vector begins 7 elements before a multiple of 16 bytes.
    let windows = windows(8, 7, grid(8, ENOUGH), 1);
    let start = || {
        let (from, into) = (wide.address(), narrow.address());
        // SAFETY: both have so many elements.
        unsafe { twin.quantise(&(), WireFormat::F16, from, None, into, COUNT) }.unwrap();
    };
    let halves = |operands: &[Vec<f32>]| encoded(WireFormat::F16, &operands[0]);
    compare(&twin, &windows, &[&wide], &narrow, start, halves);
    let Some(again) = Sparse::new(COUNT, 4, 4) else { return };
    let start = || {
        let (from, into) = (narrow.address(), again.address());
        // SAFETY: as above.
        unsafe { twin.dequantise(&(), WireFormat::F16, from, into, COUNT) }.unwrap();
    };
    let inner = self::windows(8, 3, grid(8, ENOUGH), 1);
    // What was narrowed above is integers below 2048 and a few above, which lose their last bit.
    twin.only(&inner.blocks);
    start();
    for elements in &windows.elements {
        let inside = elements.start..elements.end.min(COUNT).max(elements.start + 16) - 8;
        let mut expected = vec![0f32; inside.len()];
        WireFormat::F16.decode(&narrow.read(&inside), &mut expected);
        assert!(again.read(&inside) == bytes(&expected), "{inside:?}");
    }
}

fn encoded(format: WireFormat, values: &[f32]) -> Vec<u8> {
    let mut encoded = vec![0; format.encoded_bytes(values.len())];
    format.encode(values, &mut encoded);
    encoded
}

#[test]
fn int8_goes_beyond_32_bits() {
    const FORMAT: WireFormat = WireFormat::Int8;
    let Some(twin) = twin::start(ENOUGH) else { return };
    let Some([wide, again]) = vectors([4, 0]) else { return };
    // In units of what a block of threads writes: four blocks of the format.
    let (turn_elements, turn_bytes) = (1024, FORMAT.encoded_bytes(1024));
    let Some(narrow) = Sparse::new(COUNT / turn_elements + 2, turn_bytes, 1) else { return };
    let Some(result) = Sparse::new(COUNT / turn_elements + 2, turn_bytes, 3) else { return };
    let all = Geometry::of_int8_blocks(COUNT as u64, ENOUGH);
    assert_eq!(u64::from(all.blocks), (COUNT / turn_elements) as u64 + 1);
    let turns: Vec<Range<u64>> = [0, (1 << 31) / 1024 - 1, (1 << 32) / 1024 - 1, u64::from(all.blocks) - 3]
        .map(|at| at..at + 3)
        .to_vec();
    twin.only(&turns);
    let elements = |turn: u64| {
        let start = turn as usize * turn_elements;
        start..COUNT.min(start + turn_elements)
    };
    for turn in turns.iter().cloned().flatten() {
        wide.write(&elements(turn), &bytes(&numbers(&elements(turn), 0)));
    }
    // SAFETY: all vectors have so many elements, as for the calls below.
    unsafe { twin.quantise(&(), FORMAT, wide.address(), None, narrow.address(), COUNT) }.unwrap();
    // SAFETY: as above.
    unsafe { twin.dequantise(&(), FORMAT, narrow.address(), again.address(), COUNT) }.unwrap();
    let check = |narrow: &Sparse| {
        for turn in turns.iter().cloned().flatten() {
            let expected = encoded(FORMAT, &numbers(&elements(turn), 0));
            let place = turn as usize..turn as usize + 1;
            assert!(narrow.read(&place)[..expected.len()] == expected, "{:?}", elements(turn));
            let mut values = vec![0f32; elements(turn).len()];
            FORMAT.decode(&expected, &mut values);
            assert!(again.read(&elements(turn)) == bytes(&values), "{:?}", elements(turn));
        }
    };
    check(&narrow);
    // One rank's contribution to itself.
    let reduction = DequantiseReduce {
        format: FORMAT,
        tree: Tree::Canonical,
        contributions: narrow.address(),
        stride: FORMAT.encoded_bytes(COUNT),
        ranks: 1,
        factor: None,
        left: None,
        result: result.address(),
        values: again.address(),
        count: COUNT,
    };
    // SAFETY: as above.
    unsafe { twin.dequantise_reduce(&(), &reduction) }.unwrap();
    check(&result);
}

/// The same with an index that is cut to 32 bits.
#[test]
fn a_planted_fault_beyond_32_bits_is_found() {
    let Some(compiler) = compiler() else { return };
    let faults: [fn(String) -> String; 2] = [
        |source| source.replace("head + group * WIDTH)", "head + (u32)(group * WIDTH))"),
        |source| {
            source.replace(
                "(Count)blockIdx.x * blockDim.x + threadIdx.x",
                "blockIdx.x * blockDim.x + threadIdx.x",
            )
        },
    ];
    for fault in faults {
        let twin = Twin::with_change(compiler.clone(), ENOUGH, fault);
        let Some([left, right, into]) = vectors([0, 0, 0]) else { return };
        let windows = windows(4, 0, grid(4, ENOUGH), 1);
        let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let start = || {
                let (l, r, to) = (left.address(), right.address(), into.address());
                // SAFETY: all three have so many elements.
                unsafe { twin.reduce(&(), ElementType::F32, Operator::Sum, to, l, r, COUNT) }.unwrap();
            };
            compare(&twin, &windows, &[&left, &right], &into, start, sum);
        }));
        assert!(wrong.is_err());
    }
}

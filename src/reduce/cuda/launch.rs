//! The kernels as functions: which one, in which grid, with which arguments.

use super::{Geometry, Module};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, Tree, WireFormat};
use cudarc::driver::sys::CUdeviceptr;
use std::ffi::c_void;
use std::ptr;

/// The most vectors that [`reduce_many`](Launch::reduce_many) takes.
pub const MOST_SOURCES: usize = 64;

/// The most ranks whose contributions [`dequantise_reduce`](Launch::dequantise_reduce) adds.
pub const MOST_CONTRIBUTIONS: usize = 1023;

/// One start of a kernel.
#[derive(Debug)]
pub struct Call<'a> {
    /// Where it is.
    pub module: Module,
    /// Which of the [kernels](Module::kernels) in there.
    pub kernel: &'static str,
    /// How many blocks and threads.
    pub geometry: Geometry,
    /// Where its arguments are, in their order.
    pub arguments: &'a mut [*mut c_void],
}

/// How an anchor moves, with what `sum` holds after the exchange. The formulas are those of
/// [`OuterOptimiser`](crate::policy::OuterOptimiser).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnchorStep {
    /// `w + η·mean`.
    Sgd {
        /// η.
        learning_rate: f64,
    },
    /// `v = β·v + mean`, `w + η·(mean + β·v)`.
    Nesterov {
        /// η.
        learning_rate: f64,
        /// β.
        momentum: f64,
        /// The address of v.
        velocity: CUdeviceptr,
    },
    /// `mean`: for statistics, which are averaged by value.
    Replace,
}

/// What the parameters become when the anchor has moved. The rules are those of [`Install`](crate::policy::Install).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParameterStep {
    /// The anchor.
    Rebase,
    /// The anchor, and the steps since the parameters were submitted.
    Merge {
        /// The address of what was submitted.
        submitted: CUdeviceptr,
    },
    /// `(1 − α)·anchor + α·parameters`.
    Mix {
        /// α.
        alpha: f64,
    },
}

/// The end of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct OuterUpdate {
    /// The address of the anchor, which is changed.
    pub anchor: CUdeviceptr,
    /// The address of the result of the exchange.
    pub sum: CUdeviceptr,
    /// By how many ranks it is to be divided; 1 if it is a mean already.
    pub ranks: usize,
    /// The address of the parameters, which are changed.
    pub params: CUdeviceptr,
    /// Elements of each vector.
    pub count: usize,
    /// How the anchor moves.
    pub anchor_step: AnchorStep,
    /// How the parameters follow.
    pub parameter_step: ParameterStep,
}

/// What the owner of a part does with all ranks' contributions to it, in a wire format that narrows.
#[derive(Debug, Clone, Copy)]
pub struct DequantiseReduce {
    /// The format.
    pub format: WireFormat,
    /// The order of additions.
    pub tree: Tree,
    /// The address of rank 0's contribution.
    pub contributions: CUdeviceptr,
    /// Bytes from one rank's to the next's: for the 16-bit formats an even number.
    pub stride: usize,
    /// How many there are.
    pub ranks: usize,
    /// What the sum is multiplied by, for an average.
    pub factor: Option<f32>,
    /// The address of what rounding took the last time, `count` times f32: added before the sum is rounded, and replaced.
    pub left: Option<CUdeviceptr>,
    /// Where the encoded result goes.
    pub result: CUdeviceptr,
    /// Where the result goes as everybody reads it, `count` times f32.
    pub values: CUdeviceptr,
    /// Elements.
    pub count: usize,
}

/// Whoever can start a kernel; all of them as functions.
///
/// All addresses are of memory that the kernels can use. An address is a multiple of its element's size, and of nothing more:
/// accesses are of 16 bytes where addresses and lengths allow. Encodings in `int8` may begin anywhere. Vectors are disjoint,
/// if nothing else is said, and may be of any length; for none, nothing is started. Nothing is allocated, and nobody waits:
/// when a function returns, the kernel is in the stream.
///
/// Results have the bits of the host's functions, with these exceptions, in which only the bits of a NaN differ: those of
/// [`outer_update`](Self::outer_update) and [`delta`](Self::delta) are canonical here and those of the machine there, and in
/// a decoded block of `int8` it is canonical whatever the block's scale is.
///
/// # Safety
/// Of every function: each address is valid for as many elements as are said, for reads and, if the vector is changed, for
/// writes, until the stream is done; and in the order of the stream nobody else changes it, or reads what is changed.
pub trait Launch {
    /// Where kernels run one after the other.
    type Stream: ?Sized;

    /// Multiprocessors of the device.
    fn multiprocessors(&self) -> u32;

    /// Puts the kernel into the stream.
    ///
    /// # Errors
    /// `Environment` if it cannot be compiled, loaded or started.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point to is as [`Launch`] says.
    unsafe fn launch(&self, stream: &Self::Stream, call: Call<'_>) -> Result<()>;

    /// `into = left ∘ right`, element by element. `into` may be the very address of an operand. `Average` adds, as on the host.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Safety
    /// As [`Launch`] says.
    #[allow(clippy::too_many_arguments)]
    unsafe fn reduce(
        &self,
        stream: &Self::Stream,
        element: ElementType,
        operator: Operator,
        into: CUdeviceptr,
        left: CUdeviceptr,
        right: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        let kernel = match operator {
            Operator::Sum | Operator::Average => "reduce_sum",
            Operator::Min => "reduce_min",
            Operator::Max => "reduce_max",
            Operator::Product => "reduce_product",
        };
        let count = count as u64;
        let arguments = &mut [of(&into), of(&left), of(&right), of(&count)];
        // SAFETY: the caller's promise; the arguments are those of `kernels/reduce.cu`.
        unsafe { start(self, stream, Module::Reduce(element), kernel, width(element), count, arguments) }
    }

    /// The last step of an average: as [`scale_for_average`](crate::reduce::scale_for_average).
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` for 2³¹ ranks and more.
    ///
    /// # Safety
    /// As [`Launch`] says.
    unsafe fn scale_for_average(
        &self,
        stream: &Self::Stream,
        element: ElementType,
        values: CUdeviceptr,
        count: usize,
        ranks: usize,
    ) -> Result<()> {
        if ranks == 1 {
            return Ok(());
        }
        let (count, ranks) = (count as u64, number_of_ranks(ranks, i32::MAX as usize, "an average over")?);
        let arguments = &mut [of(&values), of(&count), of(&ranks)];
        let (module, kernel) = (Module::Reduce(element), "scale_for_average");
        // SAFETY: the caller's promise; the arguments are those of `kernels/reduce.cu`.
        unsafe { start(self, stream, module, kernel, width(element), count, arguments) }
    }

    /// Reduces all sources, of which the first is rank 0's, into one vector, which may be the very address of a source; as
    /// [`reduce_many`](crate::reduce::reduce_many). An average is finished, by the number of sources.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` if there is no source, or more than [`MOST_SOURCES`].
    ///
    /// # Safety
    /// As [`Launch`] says.
    #[allow(clippy::too_many_arguments)]
    unsafe fn reduce_many(
        &self,
        stream: &Self::Stream,
        element: ElementType,
        operator: Operator,
        tree: Tree,
        sources: &[CUdeviceptr],
        into: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        let ranks = number_of_ranks(sources.len(), MOST_SOURCES, "one reduction on a GPU of")?;
        let mut addresses: [CUdeviceptr; MOST_SOURCES] = [0; MOST_SOURCES];
        addresses[..sources.len()].copy_from_slice(sources);
        let in_rank_order = u32::from(tree == Tree::RankOrder);
        let average = u32::from(operator == Operator::Average);
        let count = count as u64;
        let arguments =
            &mut [of(&addresses), of(&ranks), of(&in_rank_order), of(&average), of(&into), of(&count)];
        let module = Module::reduce_many(element, operator);
        // SAFETY: the caller's promise; the arguments are those of `kernels/reduce_many.cu`.
        unsafe { start(self, stream, module, "reduce_many", width(element), count, arguments) }
    }

    /// Ends an exchange: the mean, the outer optimiser's step, the new anchor and the parameters in one pass; as
    /// [`Replica::finish`](crate::policy::Replica::finish).
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` for integers.
    ///
    /// # Safety
    /// As [`Launch`] says.
    unsafe fn outer_update(
        &self,
        stream: &Self::Stream,
        element: ElementType,
        update: &OuterUpdate,
    ) -> Result<()> {
        let OuterUpdate { anchor, sum, params, .. } = *update;
        let (rule, learning_rate, momentum, velocity): (u32, f64, f64, CUdeviceptr) = match update.anchor_step
        {
            AnchorStep::Sgd { learning_rate } => (0, learning_rate, 0.0, 0),
            AnchorStep::Nesterov { learning_rate, momentum, velocity } => {
                (1, learning_rate, momentum, velocity)
            }
            AnchorStep::Replace => (2, 0.0, 0.0, 0),
        };
        // Statistics have no steps that could be merged.
        let parameter_step = match (update.anchor_step, update.parameter_step) {
            (AnchorStep::Replace, ParameterStep::Merge { .. }) => ParameterStep::Rebase,
            (_, step) => step,
        };
        let (submitted, alpha): (CUdeviceptr, f64) = match parameter_step {
            ParameterStep::Rebase => (0, 0.0),
            ParameterStep::Merge { submitted } => (submitted, 0.0),
            ParameterStep::Mix { alpha } => (0, alpha),
        };
        let ranks = number_of_ranks(update.ranks, i32::MAX as usize, "an average over")?;
        let count = update.count as u64;
        let vectors = [of(&anchor), of(&velocity), of(&sum), of(&params)];
        let rest = [of(&count), of(&ranks), of(&rule), of(&learning_rate), of(&momentum)];
        let mut arguments = [ptr::null_mut(); 10];
        arguments[..4].copy_from_slice(&vectors);
        let (kernel, more) = match parameter_step {
            ParameterStep::Rebase => ("outer_update_rebase", None),
            ParameterStep::Merge { .. } => ("outer_update_merge", Some(of(&submitted))),
            ParameterStep::Mix { .. } => ("outer_update_mix", Some(of(&alpha))),
        };
        let from = if let Some(more) = more {
            arguments[4] = more;
            5
        } else {
            4
        };
        arguments[from..from + rest.len()].copy_from_slice(&rest);
        let arguments = &mut arguments[..from + rest.len()];
        // SAFETY: the caller's promise; the arguments are those of `kernels/outer_update.cu`.
        unsafe { start(self, stream, Module::OuterUpdate(element), kernel, width(element), count, arguments) }
    }

    /// `into = weight · (params − anchor)`, which begins an exchange; without an anchor `weight · params`, for statistics. As
    /// [`Replica::delta`](crate::policy::Replica::delta).
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` for integers.
    ///
    /// # Safety
    /// As [`Launch`] says.
    #[allow(clippy::too_many_arguments)]
    unsafe fn delta(
        &self,
        stream: &Self::Stream,
        element: ElementType,
        into: CUdeviceptr,
        params: CUdeviceptr,
        anchor: Option<CUdeviceptr>,
        weight: f64,
        count: usize,
    ) -> Result<()> {
        let (anchor, count) = (anchor.unwrap_or_default(), count as u64);
        let arguments = &mut [of(&into), of(&params), of(&anchor), of(&count), of(&weight)];
        let module = Module::OuterUpdate(element);
        // SAFETY: the caller's promise; the arguments are those of `kernels/outer_update.cu`.
        unsafe { start(self, stream, module, "delta", width(element), count, arguments) }
    }

    /// Converts between f32 and a 16-bit type: to nearest, ties to even, a NaN becoming the canonical one; or exactly.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` for other pairs of types.
    ///
    /// # Safety
    /// As [`Launch`] says.
    unsafe fn cast(
        &self,
        stream: &Self::Stream,
        from: (ElementType, CUdeviceptr),
        into: (ElementType, CUdeviceptr),
        count: usize,
    ) -> Result<()> {
        let wire = |element| match element {
            ElementType::F16 => Some(WireFormat::F16),
            ElementType::BF16 => Some(WireFormat::Bf16),
            _ => None,
        };
        // SAFETY: the caller's promise: vectors of these types are encodings in these formats.
        unsafe {
            match (wire(from.0), wire(into.0)) {
                (None, Some(format)) if from.0 == ElementType::F32 => {
                    self.quantise(stream, format, from.1, None, into.1, count)
                }
                (Some(format), None) if into.0 == ElementType::F32 => {
                    self.dequantise(stream, format, from.1, into.1, count)
                }
                _ => Err(Error::Usage(format!("there is no kernel that converts {} to {}", from.0, into.0))),
            }
        }
    }

    /// Writes `values` (f32) in a wire format; as [`WireFormat::encode`]. `left` is what rounding took the last time, as many
    /// f32: it is added first, and replaced.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); `Usage` for the format `f32`, which narrows nothing.
    ///
    /// # Safety
    /// As [`Launch`] says. `into` takes [`WireFormat::encoded_bytes`].
    unsafe fn quantise(
        &self,
        stream: &Self::Stream,
        format: WireFormat,
        values: CUdeviceptr,
        left: Option<CUdeviceptr>,
        into: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        let (left, count) = (left.unwrap_or_default(), count as u64);
        let arguments = &mut [of(&values), of(&left), of(&into), of(&count)];
        // SAFETY: the caller's promise; the arguments are those of `kernels/wire_16.cu` and `kernels/wire_int8.cu`.
        unsafe { start(self, stream, Module::Wire(format), "encode", 8, count, arguments) }
    }

    /// Reads an encoding into f32; as [`WireFormat::decode`].
    ///
    /// # Errors
    /// As [`quantise`](Self::quantise).
    ///
    /// # Safety
    /// As [`quantise`](Self::quantise), for `from`.
    unsafe fn dequantise(
        &self,
        stream: &Self::Stream,
        format: WireFormat,
        from: CUdeviceptr,
        into: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        let count = count as u64;
        let arguments = &mut [of(&from), of(&into), of(&count)];
        // SAFETY: the caller's promise; the arguments are those of `kernels/wire_16.cu` and `kernels/wire_int8.cu`.
        unsafe { start(self, stream, Module::Wire(format), "decode", 8, count, arguments) }
    }

    /// Adds all ranks' contributions in f32, writes the sum in the format, and reads it back.
    ///
    /// # Errors
    /// As [`quantise`](Self::quantise); `Usage` if there is no rank, or more than [`MOST_CONTRIBUTIONS`].
    ///
    /// # Safety
    /// As [`Launch`] says. `result` takes [`WireFormat::encoded_bytes`], and each contribution has as many.
    unsafe fn dequantise_reduce(&self, stream: &Self::Stream, reduction: &DequantiseReduce) -> Result<()> {
        let DequantiseReduce { contributions, result, values, .. } = *reduction;
        let (stride, count) = (reduction.stride as u64, reduction.count as u64);
        let ranks = number_of_ranks(reduction.ranks, MOST_CONTRIBUTIONS, "one reduction on a GPU of")?;
        let in_rank_order = u32::from(reduction.tree == Tree::RankOrder);
        let (scaled, factor) = (u32::from(reduction.factor.is_some()), reduction.factor.unwrap_or(1.0));
        let left: CUdeviceptr = reduction.left.unwrap_or_default();
        let arguments = &mut [
            of(&contributions),
            of(&stride),
            of(&ranks),
            of(&in_rank_order),
            of(&scaled),
            of(&factor),
            of(&left),
            of(&result),
            of(&values),
            of(&count),
        ];
        // SAFETY: the caller's promise; the arguments are those of `kernels/wire_16.cu` and `kernels/wire_int8.cu`.
        unsafe { start(self, stream, Module::Wire(reduction.format), "combine", 4, count, arguments) }
    }
}

/// Starts a kernel for `count` elements, of which a thread treats `width` at a time.
///
/// # Safety
/// As [`Launch::launch`].
unsafe fn start<L: Launch + ?Sized>(
    launcher: &L,
    stream: &L::Stream,
    module: Module,
    kernel: &'static str,
    width: u32,
    count: u64,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    if module.index().is_none() {
        return Err(Error::Usage(format!("there is no kernel `{kernel}` of `{module}`")));
    }
    if count == 0 {
        return Ok(());
    }
    let multiprocessors = launcher.multiprocessors();
    let geometry = match module {
        Module::Wire(WireFormat::Int8) => Geometry::of_int8_blocks(count, multiprocessors),
        _ => Geometry::of_elements(count, width, multiprocessors),
    };
    // SAFETY: the caller's promise is passed on.
    unsafe { launcher.launch(stream, Call { module, kernel, geometry, arguments }) }
}

/// Where an argument is.
fn of<T>(argument: &T) -> *mut c_void {
    ptr::from_ref(argument).cast_mut().cast()
}

/// Elements of 16 bytes.
fn width(element: ElementType) -> u32 {
    16 / element.size() as u32
}

fn number_of_ranks(ranks: usize, most: usize, what: &str) -> Result<u32> {
    match u32::try_from(ranks) {
        Ok(number) if (1..=most).contains(&ranks) => Ok(number),
        _ => Err(Error::Usage(format!("{what} {ranks} vectors; it takes 1 to {most}"))),
    }
}

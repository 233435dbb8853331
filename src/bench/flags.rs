//! The flags of `esync-bench`: nccl-tests' letters where it has them.

use super::choices::{element, kind, operator, order, seconds, timeout, zero_or_one};
use super::{Buffers, ByteSize, Format, Placement, Refresh, Step, Switch, Timing};
use crate::collective::{Kind, Order};
use crate::device::DeviceChoices;
use crate::reduce::{ElementType, Operator, WireFormat};
use crate::train::TransportChoice;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_LARGEST: ByteSize = ByteSize(16 << 20);
const DEFAULT_FACTOR: usize = 4;

/// Every flag, with its default.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// What to measure: all-reduce, reduce-scatter, all-gather, broadcast, reduce
    #[arg(long, value_parser = kind, default_value = "all-reduce", help_heading = "What")]
    pub op: Kind,
    /// The algorithms: `all`, or names separated by commas. `all` leaves out, with a note, what refuses the operation
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all", help_heading = "What")]
    pub collective: Vec<String>,
    /// The order of summation: auto, canonical, rank, fastest
    #[arg(long, value_parser = order, default_value = "auto", help_heading = "What")]
    pub order: Order,
    /// What an all-reduce's vectors of f32 travel as: f32, f16, bf16, int8. All but f32 round them, and take the two-shot form
    #[arg(long, value_name = "FORMAT", default_value_t, help_heading = "What")]
    pub wire: WireFormat,
    /// Type of the elements: f32, f64, i32, i64, f16, bf16
    #[arg(short = 'd', long = "type", visible_alias = "datatype", value_name = "TYPE", value_parser = element, default_value = "f32", help_heading = "What")]
    pub element: ElementType,
    /// Operator of a reduction: sum, average, min, max, product
    #[arg(short = 'o', long, visible_alias = "redop", value_parser = operator, default_value = "sum", help_heading = "What")]
    pub operator: Operator,
    /// Where the result goes: `in` place of the input, `out` of place (all-reduce only), or both
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, help_heading = "What")]
    pub placement: Placement,
    /// Whose memory the vectors lie in: `registered` with the transport, `private`, or both
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, help_heading = "What")]
    pub buffers: Buffers,

    /// Smallest vector, in bytes of one rank; K, M, G are powers of 1,024
    #[arg(
        short = 'b',
        long,
        visible_alias = "minbytes",
        value_name = "SIZE",
        default_value = "1K",
        help_heading = "Sizes"
    )]
    pub min_bytes: ByteSize,
    /// Largest vector [default: 16M, or -b if that is more]
    #[arg(short = 'e', long, visible_alias = "maxbytes", value_name = "SIZE", help_heading = "Sizes")]
    pub max_bytes: Option<ByteSize>,
    /// Each size is this many times the one before [default: 4]
    #[arg(
        short = 'f',
        long,
        visible_alias = "stepfactor",
        value_name = "FACTOR",
        conflicts_with = "step_bytes",
        help_heading = "Sizes"
    )]
    pub step_factor: Option<usize>,
    /// Each size is this many bytes more than the one before
    #[arg(short = 'i', long, visible_alias = "stepbytes", value_name = "SIZE", help_heading = "Sizes")]
    pub step_bytes: Option<ByteSize>,

    /// Timed iterations of each row, at most [default: as many as there is time for]
    #[arg(short = 'n', long, visible_alias = "iters", value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Timing")]
    pub iterations: Option<u32>,
    /// Untimed iterations before
    #[arg(
        short = 'w',
        long,
        visible_alias = "warmup_iters",
        value_name = "COUNT",
        default_value_t = 3,
        help_heading = "Timing"
    )]
    pub warm_up: u32,
    /// Seconds for each row of a size, though never fewer than 5 iterations
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0.25", help_heading = "Timing")]
    pub seconds_per_size: Duration,
    /// How iterations follow each other: `barrier` between them, or `back-to-back` in batches
    ///
    /// With more ranks than cores the two measure different things: after a barrier a rank's time holds the wait until all
    /// ranks have had a core again; back to back, a rank that is ahead goes on with the next iteration.
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, help_heading = "Timing")]
    pub timing: Timing,
    /// What happens before each iteration, outside the timed part: `none`, `rotate`, `rewrite`
    ///
    /// `rewrite`: each rank writes its vector anew, as a training step does. `rotate`: the next one of several vectors is
    /// used. `none`: the same vector again, which flatters sizes that fit the caches of whoever reduced them last. Back to
    /// back, vectors are rewritten between batches only.
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, help_heading = "Timing")]
    pub refresh: Refresh,
    /// Measure the host's own ceiling beside each size: on, off
    ///
    /// The ceiling of an operation of n ranks on c cores: (n/c - 1) context switches (n/c rounded up), one cache line from
    /// core to core, and the bytes that have to be read and written at the rate at which all cores together do just that.
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, help_heading = "Timing")]
    pub ceiling: Switch,
    /// Measure a size again, so many times at most, when other programs took more than 10% of the cores meanwhile
    #[arg(long, value_name = "TIMES", default_value_t = 3, help_heading = "Timing", hide_short_help = true)]
    pub repeat_contaminated: u32,

    /// Where the bytes travel
    #[arg(long, value_enum, default_value_t, help_heading = "Run")]
    pub transport: TransportChoice,
    /// Where the vectors lie: cpu, cuda, cuda:N, auto; or one for each rank, separated by commas. On GPUs, in place only
    #[arg(long, default_value = "cpu", help_heading = "Run")]
    pub device: DeviceChoices,
    /// Run as this many threads of one process, without MPI
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Run")]
    pub ranks: Option<u16>,
    /// 1: check every element of the results, and end with exit code 1 if one is wrong; 0: do not
    #[arg(short = 'c', long, value_name = "0|1", value_parser = zero_or_one, action = clap::ArgAction::Set, default_value = "1", help_heading = "Run")]
    pub check: bool,
    /// Longest single wait for another rank
    #[arg(long, value_name = "TIME", value_parser = timeout, default_value = "60s", help_heading = "Run")]
    pub timeout: Duration,

    /// How results are written
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub format: Format,
    /// Write the results to this file, at the end and whole, instead of to standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Measure nothing: print what the algorithms would do at the smallest size
    #[arg(long, help_heading = "Instead of measuring")]
    pub explain: bool,
    /// Measure nothing: draw the rounds of one --collective at the smallest size, up to 16 ranks
    #[arg(long, value_name = "FILE.svg", help_heading = "Instead of measuring")]
    pub draw: Option<PathBuf>,
    /// For --explain and --draw: as if each host held so many ranks [default: all on one host]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Instead of measuring", hide_short_help = true)]
    pub ranks_per_host: Option<u16>,
}

impl Flags {
    /// The element counts of the sweep.
    ///
    /// # Errors
    /// `Usage` if the sweep would be empty or endless.
    pub fn counts(&self) -> crate::Result<Vec<usize>> {
        let largest = self.max_bytes.unwrap_or(DEFAULT_LARGEST.max(self.min_bytes));
        let step = match self.step_bytes {
            Some(ByteSize(bytes)) => Step::Bytes(bytes),
            None => Step::Factor(self.step_factor.unwrap_or(DEFAULT_FACTOR)),
        };
        super::sweep_of(self.min_bytes, largest, step, self.element.size())
    }
}

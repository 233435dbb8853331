//! What a program calls: collectives on slices.

#[cfg(feature = "cuda")]
mod device;
mod run;

use super::choose::{Chooser, Chosen};
use super::direct;
use super::entry::{EntryRoom, Said};
use super::executor::Workspace;
use super::narrow::{Feedback, NarrowRoom};
use super::plan::Plan;
use super::{Collective, Entry, Kind, Member, Native, Order, SharedBuffer, Topology, part};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::reduce::{Element, ElementType, Operator, WireFormat};
use crate::transport::{Rank, Transport};
use run::PlanKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Two of them fill a second-level cache of 1 MiB. Over MPI each costs a handshake, and half as long ones cost more on one
/// host than the cache saves.
pub(crate) const SEGMENT_BYTES: usize = 512 * 1024;

/// How a communicator does its work.
#[derive(Clone)]
pub struct CommunicatorOptions {
    /// The algorithm of all-reduce. The other kinds use it where it has them, else `parameter-server`, which has all.
    pub collective: Arc<dyn Collective>,
    /// The order of summation.
    pub order: Order,
    /// How long any single wait may last.
    pub timeout: Duration,
    /// Longer messages are cut into pieces of this many bytes, so that reducing one overlaps receiving the next.
    pub segment_bytes: usize,
    /// How the vectors of an all-reduce are written for the way between ranks. All but `f32` take the two-shot form,
    /// whatever `collective` is, and refuse what they cannot narrow (see [`wire`](crate::reduce::wire)): other types than
    /// f32, other operators than sum and average, reduce-scatter and reduce. All-gather and broadcast move vectors as they
    /// are.
    pub wire: WireFormat,
}

impl Default for CommunicatorOptions {
    fn default() -> Self {
        CommunicatorOptions {
            collective: Arc::new(super::Auto::default()),
            order: Order::Auto,
            timeout: Duration::from_secs(300),
            segment_bytes: SEGMENT_BYTES,
            wire: WireFormat::F32,
        }
    }
}

/// A group of ranks that call the same collectives in the same order.
///
/// Every call begins with an entry rendezvous, which compares what the ranks called, and ends with identical bits on all
/// ranks. A call that failed leaves the communicator failed.
///
/// ```
/// use esync::collective::{Communicator, CommunicatorOptions};
/// use esync::reduce::Operator;
/// use esync::transport::threads;
///
/// let sums = threads::run(3, |transport| {
///     let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
///     let mut vector = [communicator.rank() as f32, 1.0];
///     communicator.all_reduce(&mut vector, Operator::Sum)?;
///     Ok(vector)
/// });
/// # use std::sync::Arc;
/// for sum in sums {
///     assert_eq!(sum?, [3.0, 3.0]);
/// }
/// # Ok::<(), esync::Error>(())
/// ```
pub struct Communicator {
    pub(super) transport: Arc<dyn Transport>,
    topology: Topology,
    pub(super) options: CommunicatorOptions,
    /// What picks the algorithm, if `auto` was asked for.
    pub(super) chooser: Option<Chooser>,
    /// The algorithm of the current operation.
    pub(super) chosen: Chosen,
    plans: HashMap<PlanKey, Arc<Plan>>,
    workspace: Workspace,
    narrow_room: NarrowRoom,
    entry: EntryRoom,
    room: direct::Room,
    said: Said,
    sequence: u64,
    /// Some rank's vectors are on a GPU, so that memory which the hosts' ranks share does not hold all of them.
    pub(super) has_gpus: bool,
    #[cfg(feature = "cuda")]
    /// The operation that is entered is on vectors in GPU memory.
    enter_on_gpu: bool,
    #[cfg(feature = "cuda")]
    on_gpu: Option<device::OnGpu>,
    pub(super) failed: Option<Error>,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

impl Communicator {
    /// A communicator over all ranks of `transport`.
    ///
    /// # Errors
    /// `Usage` if the segment length is not a positive multiple of 8; `Refused` if the algorithm cannot all-reduce in the
    /// order asked for on this many ranks.
    pub fn new(transport: Arc<dyn Transport>, options: CommunicatorOptions) -> Result<Self> {
        if options.segment_bytes == 0 || !options.segment_bytes.is_multiple_of(8) {
            return Err(Error::Usage(format!(
                "segment_bytes is {}; it must be a positive multiple of 8",
                options.segment_bytes
            )));
        }
        let size = transport.size();
        let hosts: Vec<&str> = (0..size).map(|rank| transport.peer(rank).host.as_str()).collect();
        let number = |rank| {
            let host = &transport.peer(rank).host;
            hosts.iter().position(|other| other == host).unwrap_or_default() as u32
        };
        let topology = Topology::with_hosts((0..size).map(number).collect());
        let auto = options.collective.as_auto();
        let communicator = Communicator {
            topology,
            chooser: auto.map(|auto| Chooser::new(auto.clone())),
            chosen: match auto {
                Some(_) => Chosen::before_agreement(),
                None => Chosen::fixed(options.collective.clone()),
            },
            options,
            plans: HashMap::new(),
            workspace: Workspace::default(),
            narrow_room: NarrowRoom::default(),
            entry: EntryRoom::new(size),
            room: direct::Room::new(size),
            said: Said::default(),
            sequence: 0,
            has_gpus: false,
            #[cfg(feature = "cuda")]
            enter_on_gpu: false,
            #[cfg(feature = "cuda")]
            on_gpu: None,
            failed: None,
            bytes_sent: 0,
            bytes_received: 0,
            transport,
        };
        let all_reduce = communicator.operation(Kind::AllReduce, 0);
        if communicator.is_native() {
            Native.check(&all_reduce, &*communicator.transport)?;
        } else if communicator.chooser.is_none() {
            let rank = communicator.rank();
            communicator.options.collective.schedule(&all_reduce, &communicator.topology, rank, size)?;
        }
        Ok(communicator)
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.transport.rank()
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// The transport below.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Which ranks share a host.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Whether its ranks are processes that share memory, so that [`alloc`](Self::alloc) gives other memory than the
    /// process's own.
    pub fn is_of_processes(&self) -> bool {
        self.transport.shared().is_some_and(|domain| !domain.is_of_threads())
    }

    /// The options that it was made with.
    pub fn options(&self) -> &CommunicatorOptions {
        &self.options
    }

    /// Bytes that this rank has sent in collectives, entry records excluded. `native` (so everything that goes through
    /// shared memory) is counted as a ring would send.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Bytes that this rank has received in collectives, entry records excluded.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Tells all ranks where this rank's vectors lie, and learns it of them: the number of each rank's GPU, or `None` for the
    /// CPU. To be called by all ranks before their first operation on vectors in GPU memory. From then on vectors travel as
    /// messages, which CPUs and GPUs have in common, and not through memory that the ranks share.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `Usage` if the transport is `nccl` and a rank has no GPU; `Environment` if this
    /// rank's GPU cannot be used.
    pub fn agree_devices(&mut self, device: &Device) -> Result<Vec<Option<usize>>> {
        #[cfg(feature = "cuda")]
        let on_gpu = device.gpu().map(|gpu| device::OnGpu::new(gpu, &*self.transport)).transpose()?;
        let flags = device.ordinal().map_or(0, |ordinal| ordinal as u64 + 1);
        let members = self.gather(Member { flags, ..Member::default() })?.members;
        let devices: Vec<Option<usize>> =
            members.iter().map(|member| (member.flags as usize).checked_sub(1)).collect();
        let without = devices.iter().position(Option::is_none);
        if let Some(rank) = without.filter(|_| self.transport.name() == "nccl") {
            return Err(Error::Usage(format!(
                "transport nccl needs a GPU on every rank, and rank {rank} has none; use --transport mpi or threads"
            )));
        }
        self.has_gpus = devices.iter().any(Option::is_some);
        if let Some(chooser) = &mut self.chooser {
            chooser.forget();
        }
        #[cfg(feature = "cuda")]
        {
            self.on_gpu = on_gpu;
        }
        Ok(devices)
    }

    /// Every rank ends with the reduction of all ranks' vectors.
    ///
    /// # Errors
    /// `Mismatch` if ranks differ in count, type, operator or sequence; `Stalled`, `PeerLost`; `Refused` by `native` for
    /// types that the back end lacks.
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut [T], operator: Operator) -> Result<()> {
        self.call(Kind::AllReduce, 0, buffer, operator)
    }

    /// The same out of place: every rank's `output` ends with the reduction of all ranks' `input`s, which stay as they are.
    /// Ranks may differ in whether they work in place.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `Usage` if the two have different lengths.
    ///
    /// ```
    /// # use esync::{collective::{Communicator, CommunicatorOptions}, reduce::Operator, transport::threads};
    /// # let sums = threads::run(2, |transport| {
    /// # let mut communicator = Communicator::new(std::sync::Arc::new(transport), CommunicatorOptions::default())?;
    /// let (input, mut output) = ([1, 2], [0; 2]);
    /// communicator.all_reduce_from(&input, &mut output, Operator::Sum)?;
    /// assert_eq!(output, [2, 4]);
    /// # Ok(()) });
    /// # sums.into_iter().collect::<esync::Result<()>>()?;
    /// # Ok::<(), esync::Error>(())
    /// ```
    pub fn all_reduce_from<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        operator: Operator,
    ) -> Result<()> {
        if input.len() != output.len() {
            return Err(Error::Usage(format!(
                "all_reduce_from: the input has {} elements and the output {}; they must have the same",
                input.len(),
                output.len()
            )));
        }
        let operation = self.choose(self.operation(Kind::AllReduce, 0), input.len(), T::TYPE)?;
        if self.is_direct(&operation, T::TYPE) {
            let (input, output, count) = (input.as_ptr(), output.as_mut_ptr(), output.len());
            // SAFETY: two slices of one length; the one to be written does not overlap the other.
            return unsafe { self.run_direct(operation, input, output, count, operator, true) };
        }
        output.copy_from_slice(input);
        self.all_reduce(output, operator)
    }

    /// Memory for `len` elements, all zero, which the other ranks of this host can address if the transport allows it.
    /// Collectives on such buffers (or on parts of them) move every byte once. Any rank may allocate at any time, alone.
    ///
    /// # Errors
    /// `Environment` if the system has no memory left.
    ///
    /// ```
    /// # use esync::{collective::{Communicator, CommunicatorOptions}, reduce::Operator, transport::threads};
    /// # let sums = threads::run(2, |transport| {
    /// # let mut communicator = Communicator::new(std::sync::Arc::new(transport), CommunicatorOptions::default())?;
    /// let mut gradient = communicator.alloc::<f32>(1000)?;
    /// gradient.fill(0.5);
    /// communicator.all_reduce(&mut gradient, Operator::Sum)?;
    /// assert_eq!(gradient[999], 1.0);
    /// # Ok(()) });
    /// # sums.into_iter().collect::<esync::Result<()>>()?;
    /// # Ok::<(), esync::Error>(())
    /// ```
    pub fn alloc<T: Element>(&self, len: usize) -> Result<SharedBuffer<T>> {
        SharedBuffer::new(self.transport.shared(), len)
    }

    /// Every rank ends with its [`part`] of the reduction, which is returned; the rest of `buffer` is left undefined.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn reduce_scatter<'b, T: Element>(
        &mut self,
        buffer: &'b mut [T],
        operator: Operator,
    ) -> Result<&'b mut [T]> {
        self.call(Kind::ReduceScatter, 0, buffer, operator)?;
        let own = part(buffer.len(), self.size(), self.rank());
        Ok(&mut buffer[own])
    }

    /// Every rank begins with its [`part`] of `buffer` and ends with all parts.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_gather<T: Element>(&mut self, buffer: &mut [T]) -> Result<()> {
        self.call(Kind::AllGather, 0, buffer, Operator::Sum)
    }

    /// Every rank ends with the root's vector.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `Usage` if there is no such root.
    pub fn broadcast<T: Element>(&mut self, buffer: &mut [T], root: Rank) -> Result<()> {
        self.call(Kind::Broadcast, root, buffer, Operator::Sum)
    }

    /// The root ends with the reduction; the other ranks' vectors are left undefined.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn reduce<T: Element>(&mut self, buffer: &mut [T], operator: Operator, root: Rank) -> Result<()> {
        self.call(Kind::Reduce, root, buffer, operator)
    }

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn barrier(&mut self) -> Result<()> {
        self.gather(Member::default()).map(drop)
    }

    /// A barrier that tells every rank what each rank says.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn gather(&mut self, member: Member) -> Result<Entry<'_>> {
        self.settle()?;
        self.enter_as(None, ElementType::F32, Operator::Sum, 0, member)
    }

    /// The entry rendezvous of an exchange of `count` elements in all: to be followed by
    /// [`all_reduce_entered`](Self::all_reduce_entered), once for each buffer.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn enter(&mut self, count: usize, operator: Operator, member: Member) -> Result<Entry<'_>> {
        let operation = self.choose(self.operation(Kind::AllReduce, 0), count, ElementType::F32)?;
        self.enter_as(Some(operation), ElementType::F32, operator, count, member)
    }

    /// The all-reduce of a buffer whose entry was made by [`enter`](Self::enter). All ranks must pass buffers of the same
    /// types and lengths in the same order.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_reduce_entered<T: Element>(&mut self, buffer: &mut [T], operator: Operator) -> Result<()> {
        let operation = self.choose(self.operation(Kind::AllReduce, 0), buffer.len(), T::TYPE)?;
        if self.is_direct(&operation, T::TYPE) {
            let (output, count) = (buffer.as_mut_ptr(), buffer.len());
            // SAFETY: the slice is ours for the call.
            return unsafe { self.run_direct(operation, output, output, count, operator, false) };
        }
        let result = self.run(operation, T::TYPE, operator, bytemuck::cast_slice_mut(buffer));
        self.remember(result)
    }

    /// [`all_reduce_entered`](Self::all_reduce_entered) of a vector that must not be rounded: in its own type, whatever the
    /// wire is.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_reduce_entered_exact<T: Element>(
        &mut self,
        buffer: &mut [T],
        operator: Operator,
    ) -> Result<()> {
        let wire = std::mem::take(&mut self.options.wire);
        let result = self.all_reduce_entered(buffer, operator);
        self.options.wire = wire;
        result
    }

    /// [`all_reduce_entered`](Self::all_reduce_entered) of a vector that is exchanged again and again: what a narrow wire rounds
    /// off is kept in `feedback` and added the next time. Where nothing is narrowed, the same as without.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_reduce_entered_with_feedback(
        &mut self,
        buffer: &mut [f32],
        operator: Operator,
        feedback: &mut Feedback,
    ) -> Result<()> {
        let operation = self.operation(Kind::AllReduce, 0);
        if !self.is_narrow(&operation, ElementType::F32) || self.size() == 1 {
            return self.all_reduce_entered(buffer, operator);
        }
        let operation = self.choose(operation, buffer.len(), ElementType::F32)?;
        let result = self.run_with_feedback(operation, buffer, operator, feedback);
        self.remember(result)
    }

    /// Sends every rank's bytes to every rank, in rank order. For small things such as configurations.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn gather_bytes(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let member = Member { samples: own.len() as u64, ..Member::default() };
        let lengths: Vec<usize> = self.gather(member)?.members.iter().map(|m| m.samples as usize).collect();
        // Equal blocks of words, so that each block is one rank's part, whatever the algorithm.
        let block = lengths.iter().max().map_or(0, |longest| longest.div_ceil(4));
        let mut words = vec![0i32; block * lengths.len()];
        let mine = &mut words[block * self.rank()..][..block];
        bytemuck::cast_slice_mut(mine)[..own.len()].copy_from_slice(own);
        self.all_gather(&mut words)?;
        let of = |(rank, len): (usize, &usize)| {
            bytemuck::cast_slice(&words[block * rank..][..block])[..*len].to_vec()
        };
        Ok(lengths.iter().enumerate().map(of).collect())
    }
}

//! All-reduce over a wire that is narrower than the vector: the two-shot form.
//!
//! Every rank owns a part of the vector. Each rank writes its contribution to each part in the wire's format and sends it
//! to the owner; the owner reads all contributions (its own went through the format too), adds them in `f32`, and writes
//! the result once; everybody, the owner too, reads that. So each number is rounded twice, whatever the number of ranks:
//! once as a contribution and once in the result, and all ranks end with the same bits.
//!
//! | rounds | bytes sent by the busiest rank |
//! |---|---|
//! | 2 | 2(n−1)/n · the encoded vector; for short vectors whole blocks of [`wire::BLOCK`] elements have one owner |
//!
//! Parts are cut at multiples of a block, and blocks are counted from the beginning of the vector. So the bits of a result
//! depend neither on the transport, nor on where parts or segments end; in `int8` they depend on which elements
//! share a block.
//!
//! On one rank nothing travels, so nothing is narrowed.

use super::{Operation, Order, part};
use crate::collective::Kind;
use crate::error::{Error, Result};
use crate::reduce::wire::{self, Arithmetic, Operands, Sums, WireFormat, combine};
use crate::reduce::{ElementType, Operator};
use crate::transport::{Rank, Tag, Ticket, Transport, Wait};
use std::ops::Range;

/// The algorithm's name in messages and results. It has no schedule: what it sends is not a range of the vector.
pub const TWO_SHOT: &str = "two-shot";

/// Refuses what cannot be narrowed.
pub(super) fn check(
    format: WireFormat,
    operation: &Operation,
    element: ElementType,
    operator: Operator,
) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Refused { collective: TWO_SHOT, operation: operation.to_string(), reason })
    };
    if operation.kind != Kind::AllReduce {
        return refuse(format!(
            "wire `{format}` narrows all-reduce only; use wire `f32`, in which every operation sends vectors as they are"
        ));
    }
    if element != ElementType::F32 {
        return refuse(format!(
            "wire `{format}` narrows vectors of f32, and these are {element}; use wire `f32`, which sends them as they are"
        ));
    }
    if !matches!(operator, Operator::Sum | Operator::Average) {
        return refuse(format!(
            "wire `{format}` rounds what it carries, which is meant for sum and average, not for {operator}; use wire `f32`"
        ));
    }
    Ok(())
}

/// Memory that lives as long as the communicator, so that the steady state allocates nothing: three times the encoded
/// vector.
#[derive(Default)]
pub(super) struct NarrowRoom {
    scratch: Vec<u64>,
    sums: Sums,
    tickets: Vec<Option<Ticket>>,
    /// Messages from one rank that the transport has made room for.
    reserved: usize,
}

/// Bytes that this rank sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Traffic {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What rounding took from a vector that is exchanged again and again, kept by the rank that rounded it, to be added the next
/// time (error feedback: Karimireddy et al., *Error Feedback Fixes SignSGD*, ICML 2019; in both directions: Tang et al.,
/// *DoubleSqueeze*, ICML 2019). So numbers that are too small beside their block's largest are not lost: they are sent when they
/// have become large enough.
///
/// To be passed to [`Communicator::all_reduce_entered_with_feedback`](super::Communicator::all_reduce_entered_with_feedback)
/// with vectors of always the same meaning.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Feedback {
    /// Of this rank's contribution.
    contribution: Vec<f32>,
    /// Of the result's part that this rank owns.
    result: Vec<f32>,
}

impl Feedback {
    /// Adds what is left from the last time.
    fn begin(&mut self, values: &mut [f32], own: usize) {
        // A vector of another length is another vector.
        if (self.contribution.len(), self.result.len()) != (values.len(), own) {
            (self.contribution, self.result) = (vec![0.0; values.len()], vec![0.0; own]);
        }
        values.iter_mut().zip(&self.contribution).for_each(|(value, left)| *value += left);
    }

    /// Remembers what was rounded off `values`, whose encoding is `encoded`. What is not finite is not made up for: it has
    /// done its damage.
    fn remember(&mut self, format: WireFormat, values: &[f32], encoded: &[u8], range: Range<usize>) {
        let left = &mut self.contribution[range];
        format.decode(encoded, left);
        for (left, value) in left.iter_mut().zip(values) {
            let error = value - *left;
            *left = if error.is_finite() { error } else { 0.0 };
        }
    }
}

/// What is to be done to the vector.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    pub(super) format: WireFormat,
    pub(super) order: Order,
    pub(super) operator: Operator,
    /// Messages are at most so long, or one block.
    pub(super) segment_bytes: usize,
}

impl Narrow {
    /// Replaces `values` by the sum or average over all ranks.
    ///
    /// # Errors
    /// Those of the transport. If the transport cannot give the buffers back, this does not return: the job is ended with
    /// [`Transport::abort`].
    pub(super) fn all_reduce(
        &self,
        transport: &dyn Transport,
        room: &mut NarrowRoom,
        values: &mut [f32],
        mut feedback: Option<&mut Feedback>,
        wait: &Wait<'_>,
    ) -> Result<Traffic> {
        if transport.size() == 1 {
            return Ok(Traffic::default());
        }
        let cut = Cut {
            format: self.format,
            n: transport.size(),
            rank: transport.rank(),
            len: values.len(),
            blocks_per_segment: (self.segment_bytes / self.format.encoded_bytes(wire::BLOCK)).max(1),
        };
        if let Some(feedback) = &mut feedback {
            feedback.begin(values, cut.elements(&cut.part(cut.rank)).len());
        }
        let mut running = room.begin(self, cut, transport, wait, feedback);
        let done = running.run(values);
        let traffic = running.traffic;
        if let Err(error) = done {
            if !transport.abandon(&mut room.tickets) {
                transport.abort(&error);
            }
            return Err(error);
        }
        Ok(traffic)
    }
}

/// How the vector is cut into parts and segments, in blocks.
#[derive(Debug, Clone, Copy)]
struct Cut {
    format: WireFormat,
    n: usize,
    rank: Rank,
    len: usize,
    blocks_per_segment: usize,
}

impl Cut {
    fn part(&self, owner: Rank) -> Range<usize> {
        part(self.len.div_ceil(wire::BLOCK), self.n, owner)
    }

    fn segments(&self, owner: Rank) -> usize {
        self.part(owner).len().div_ceil(self.blocks_per_segment)
    }

    /// Of any part: the first is never shorter than another.
    fn most_segments(&self) -> usize {
        self.segments(0)
    }

    /// The blocks of a segment of a part, if the part has so many.
    fn segment(&self, owner: Rank, index: usize) -> Option<Range<usize>> {
        let part = self.part(owner);
        let start = part.start + index * self.blocks_per_segment;
        (start < part.end).then(|| start..part.end.min(start + self.blocks_per_segment))
    }

    fn elements(&self, blocks: &Range<usize>) -> Range<usize> {
        (blocks.start * wire::BLOCK).min(self.len)..(blocks.end * wire::BLOCK).min(self.len)
    }

    fn bytes(&self, blocks: &Range<usize>) -> usize {
        self.format.encoded_bytes(self.elements(blocks).len())
    }

    /// Where a block begins in the encoded vector: only the last one may be shorter than the others.
    fn offset(&self, block: usize) -> usize {
        block * self.format.encoded_bytes(wire::BLOCK)
    }

    /// The other ranks, in the order in which this one sends to them: not everybody begins with the same.
    fn following(&self) -> impl Iterator<Item = Rank> + use<> {
        let Cut { n, rank, .. } = *self;
        (1..n).map(move |step| (rank + step) % n)
    }

    /// The other ranks, in the order in which they send to this one.
    fn preceding(&self) -> impl Iterator<Item = Rank> + use<> {
        let Cut { n, rank, .. } = *self;
        (1..n).map(move |step| (rank + n - step) % n)
    }
}

/// Pieces of scratch space begin at cache lines.
const ALIGNMENT: usize = 64;

impl NarrowRoom {
    fn begin<'a>(
        &'a mut self,
        narrow: &Narrow,
        cut: Cut,
        transport: &'a dyn Transport,
        wait: &'a Wait<'a>,
        feedback: Option<&'a mut Feedback>,
    ) -> Running<'a> {
        let whole = cut.format.encoded_bytes(cut.len).next_multiple_of(ALIGNMENT);
        let stride = cut.bytes(&cut.part(cut.rank)).next_multiple_of(ALIGNMENT);
        let words = (2 * whole + cut.n * stride).div_ceil(size_of::<u64>());
        if self.scratch.len() < words {
            self.scratch.resize(words, 0);
        }
        self.sums.reserve(cut.n);
        let from_one = cut.segments(cut.rank) + cut.most_segments();
        if self.reserved < from_one {
            transport.reserve(from_one);
            self.reserved = from_one;
        }
        self.tickets.clear();
        self.tickets.reserve(2 * (cut.n - 1) * from_one);
        let outgoing: *mut u8 = self.scratch.as_mut_ptr().cast();
        let factor = (narrow.operator == Operator::Average).then(|| 1.0 / cut.n as f32);
        Running {
            cut,
            arithmetic: Arithmetic { format: cut.format, in_rank_order: narrow.order == Order::Rank, factor },
            transport,
            wait,
            feedback,
            outgoing,
            result: outgoing.wrapping_add(whole),
            contributions: outgoing.wrapping_add(2 * whole),
            stride,
            sums: &mut self.sums,
            tickets: &mut self.tickets,
            traffic: Traffic::default(),
        }
    }
}

/// One all-reduce on its way.
struct Running<'a> {
    cut: Cut,
    arithmetic: Arithmetic,
    transport: &'a dyn Transport,
    wait: &'a Wait<'a>,
    feedback: Option<&'a mut Feedback>,
    /// This rank's contribution to the whole vector, encoded, but for its own part.
    outgoing: *mut u8,
    /// The whole result, encoded.
    result: *mut u8,
    /// Every rank's contribution to this rank's part, encoded, `stride` bytes apart.
    contributions: *mut u8,
    stride: usize,
    sums: &'a mut Sums,
    /// First the receives, in the order of [`Running::post_receives`], then the sends.
    tickets: &'a mut Vec<Option<Ticket>>,
    traffic: Traffic,
}

impl Running<'_> {
    fn run(&mut self, values: &mut [f32]) -> Result<()> {
        self.post_receives()?;
        self.push(values)?;
        self.sum_own_part(values)?;
        self.pull(values)?;
        self.transport.wait(self.tickets, self.wait)
    }

    /// All of them at once: nothing that arrives has to wait for this rank. From each rank come first its contributions to
    /// this rank's part, then the results of its own part, each in the order of their segments.
    fn post_receives(&mut self) -> Result<()> {
        let cut = self.cut;
        for index in 0..cut.segments(cut.rank) {
            for from in cut.preceding() {
                if let Some(blocks) = cut.segment(cut.rank, index) {
                    let into = self.contribution(from, blocks.start);
                    self.receive(from, into, cut.bytes(&blocks))?;
                }
            }
        }
        for index in 0..cut.most_segments() {
            for from in cut.preceding() {
                if let Some(blocks) = cut.segment(from, index) {
                    self.receive(
                        from,
                        self.result.wrapping_add(cut.offset(blocks.start)),
                        cut.bytes(&blocks),
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Encodes and sends the contributions. The first segment of every part goes first, so that all owners can begin.
    fn push(&mut self, values: &[f32]) -> Result<()> {
        let cut = self.cut;
        for index in 0..cut.most_segments() {
            for to in cut.following() {
                let Some(blocks) = cut.segment(to, index) else { continue };
                let from = self.outgoing.wrapping_add(cut.offset(blocks.start));
                // SAFETY: the range lies in the scratch space, and no transfer uses it before the next line.
                let encoded = unsafe { std::slice::from_raw_parts_mut(from, cut.bytes(&blocks)) };
                let range = cut.elements(&blocks);
                cut.format.encode(&values[range.clone()], encoded);
                if let Some(feedback) = &mut self.feedback {
                    feedback.remember(cut.format, &values[range.clone()], encoded, range);
                }
                self.send(to, from, cut.bytes(&blocks))?;
            }
        }
        let own = cut.part(cut.rank);
        // SAFETY: the range lies in the scratch space, and no transfer uses this rank's own place.
        let encoded = unsafe {
            std::slice::from_raw_parts_mut(self.contribution(cut.rank, own.start), cut.bytes(&own))
        };
        let range = cut.elements(&own);
        cut.format.encode(&values[range.clone()], encoded);
        if let Some(feedback) = &mut self.feedback {
            feedback.remember(cut.format, &values[range.clone()], encoded, range);
        }
        Ok(())
    }

    /// Sums each segment of this rank's part as soon as all contributions to it are there, and sends it on.
    fn sum_own_part(&mut self, values: &mut [f32]) -> Result<()> {
        let cut = self.cut;
        let mut arrived = 0;
        let begin = cut.elements(&cut.part(cut.rank)).start;
        for index in 0..cut.segments(cut.rank) {
            let Some(blocks) = cut.segment(cut.rank, index) else { continue };
            self.transport.wait(&mut self.tickets[arrived..arrived + cut.n - 1], self.wait)?;
            arrived += cut.n - 1;
            let operands = Operands {
                first: self.contribution(0, blocks.start).cast_const(),
                stride: self.stride,
                count: cut.n,
            };
            let result = self.result.wrapping_add(cut.offset(blocks.start));
            let bytes = cut.bytes(&blocks);
            // SAFETY: the ranges lie in the scratch space, in places of their own. The contributions have arrived, and no
            // transfer uses the result before it is sent below.
            unsafe {
                let result = std::slice::from_raw_parts_mut(result, bytes);
                let range = cut.elements(&blocks);
                let left = self
                    .feedback
                    .as_mut()
                    .map(|feedback| &mut feedback.result[range.start - begin..range.end - begin]);
                combine(self.arithmetic, operands, self.sums, left, result, &mut values[range]);
            }
            for to in cut.following() {
                self.send(to, result, bytes)?;
            }
        }
        Ok(())
    }

    /// Reads the other parts' results as they come.
    fn pull(&mut self, values: &mut [f32]) -> Result<()> {
        let cut = self.cut;
        let mut ticket = cut.segments(cut.rank) * (cut.n - 1);
        for index in 0..cut.most_segments() {
            for from in cut.preceding() {
                let Some(blocks) = cut.segment(from, index) else { continue };
                self.transport.wait(&mut self.tickets[ticket..=ticket], self.wait)?;
                ticket += 1;
                let start = self.result.wrapping_add(cut.offset(blocks.start));
                // SAFETY: the range lies in the scratch space, and what it was to receive has arrived.
                let encoded = unsafe { std::slice::from_raw_parts(start, cut.bytes(&blocks)) };
                cut.format.decode(encoded, &mut values[cut.elements(&blocks)]);
            }
        }
        Ok(())
    }

    /// Where a rank's contribution to a block of this rank's part lies.
    fn contribution(&self, of: Rank, block: usize) -> *mut u8 {
        let before = self.cut.offset(block) - self.cut.offset(self.cut.part(self.cut.rank).start);
        self.contributions.wrapping_add(of * self.stride + before)
    }

    fn send(&mut self, to: Rank, bytes: *const u8, len: usize) -> Result<()> {
        // SAFETY: the bytes lie in the scratch space, which outlives the operation: it ends only when all tickets are
        // complete or abandoned. Nobody writes them again before.
        self.tickets.push(Some(unsafe { self.transport.post_send(to, Tag::DATA, bytes, len)? }));
        self.traffic.sent += len as u64;
        Ok(())
    }

    fn receive(&mut self, from: Rank, into: *mut u8, len: usize) -> Result<()> {
        // SAFETY: as above; nobody touches the bytes before the ticket was waited for.
        self.tickets.push(Some(unsafe { self.transport.post_recv(from, Tag::DATA, into, len)? }));
        self.traffic.received += len as u64;
        Ok(())
    }
}

//! The entry rendezvous: every collective begins with it.
//!
//! Each rank sends one small record to each other rank and waits for theirs. It shows who has not arrived (by name, not by
//! hearsay), compares the headers so that a mismatch is an error on every rank, and carries each rank's figures of the
//! round. One rendezvous and n − 1 short messages per rank: on crowded cores it is the number of rendezvous that costs.
//! Ranks that share memory need no messages for it.

use super::{Kind, Operation, Order};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, WireFormat};
use crate::transport::{Domain, Place, Publication, Rank, Round, Session, Tag, Ticket, Transport, Wait};
use bytemuck::{Pod, Zeroable};

/// What each rank says when it enters: figures of the round, and requests.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Member {
    /// Steps since the last exchange.
    pub local_steps: u64,
    /// Samples in those steps.
    pub samples: u64,
    /// Smoothed seconds of a step.
    pub step_seconds: f64,
    /// Seconds of the last exchange, waiting excluded.
    pub transfer_seconds: f64,
    /// Mean training loss of the round; NaN says that this rank diverged.
    pub loss: f64,
    /// Free for the caller (requests such as "stop").
    pub flags: u64,
    /// Two more numbers, free for the caller.
    pub extra: [f64; 2],
}

/// One rank's record on the wire.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Record {
    agreed: Agreed,
    member: Member,
}

/// What must be the same in all records.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Agreed {
    magic: u32,
    kind: u8,
    element: u8,
    operator: u8,
    order: u8,
    root: u64,
    count: u64,
    sequence: u64,
    segment_bytes: u64,
    wire: u8,
    /// The beginning of the algorithm's name, zeros behind it.
    collective: [u8; 31],
}

const MAGIC: u32 = 0x6573_7901; // "esy", version 1
const BARRIER: u8 = 255;

/// What all ranks must agree on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Header<'a> {
    /// `None` for a barrier.
    pub(super) operation: Option<Operation>,
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    pub(super) count: usize,
    pub(super) sequence: u64,
    pub(super) collective: &'a str,
    /// What vectors travel as.
    pub(super) wire: WireFormat,
    /// Both ends of a message must cut alike.
    pub(super) segment_bytes: usize,
}

/// The result of an entry: everybody's figures, in rank order, and how long it took.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// One for each rank.
    pub members: &'a [Member],
    /// Seconds that this rank waited for the others.
    pub wait_seconds: f64,
}

/// Memory for the records, kept by the communicator.
pub(super) struct EntryRoom {
    own: Box<[Record]>,
    records: Box<[Record]>,
    members: Vec<Member>,
    tickets: Vec<Option<Ticket>>,
}

impl EntryRoom {
    pub(super) fn new(size: usize) -> Self {
        EntryRoom {
            own: vec![Record::zeroed()].into(),
            records: vec![Record::zeroed(); size].into(),
            members: vec![Member::default(); size],
            tickets: Vec::with_capacity(2 * size),
        }
    }

    /// Sends and receives the records, and compares them.
    pub(super) fn enter(
        &mut self,
        transport: &dyn Transport,
        header: Header<'_>,
        member: Member,
        wait: &Wait<'_>,
    ) -> Result<&[Member]> {
        let rank = transport.rank();
        self.own[0] = Record { agreed: Agreed::new(header), member };
        if let Some(domain) = transport.shared() {
            return self.enter_domain(domain, wait);
        }
        self.records[rank] = self.own[0];
        self.tickets.clear();
        let result = self.exchange(transport, wait);
        if let Err(error) = result {
            if !transport.abandon(&mut self.tickets) {
                // The records may still be written: they stay where they are until the process ends.
                std::mem::forget(std::mem::replace(self, EntryRoom::new(0)));
            }
            return Err(error);
        }
        for (other, record) in self.records.iter().enumerate() {
            if let Some(what) = self.records[0].agreed.difference(&record.agreed, other) {
                return Err(Error::Mismatch { operation: wait.operation.to_string(), what });
            }
        }
        for (member, record) in self.members.iter_mut().zip(&self.records) {
            *member = record.member;
        }
        Ok(&self.members)
    }

    /// The same through shared memory.
    fn enter_domain(&mut self, domain: &Domain, wait: &Wait<'_>) -> Result<&[Member]> {
        let Record { agreed, member } = &self.own[0];
        let said = Publication {
            hash: agreed.hash(),
            header: agreed.bytes(),
            figures: bytemuck::bytes_of(member),
            source: Place::NOWHERE,
            target: Place::NOWHERE,
            is_private: false,
            most_chunks: 0,
        };
        let mut session = domain.session()?;
        let round = session.arrive(&said, wait)?;
        if !session.all_agree(&round) {
            return Err(mismatch(&session, &round, domain.size(), wait));
        }
        for (rank, member) in self.members.iter_mut().enumerate() {
            *member = bytemuck::cast(session.figures::<{ size_of::<Member>() }>(&round, rank));
        }
        Ok(&self.members)
    }

    fn exchange(&mut self, transport: &dyn Transport, wait: &Wait<'_>) -> Result<()> {
        let (rank, size) = (transport.rank(), transport.size());
        let len = std::mem::size_of::<Record>();
        for distance in 1..size {
            let from = (rank + size - distance) % size;
            let into: *mut Record = &mut self.records[from];
            // SAFETY: the records live in this room, which is leaked if a transfer cannot be taken back.
            self.tickets.push(Some(unsafe { transport.post_recv(from, Tag::ENTRY, into.cast(), len)? }));
        }
        for distance in 1..size {
            let to = (rank + distance) % size;
            let own: *const Record = &self.own[0];
            // SAFETY: as above; several sends may read the same record.
            self.tickets.push(Some(unsafe { transport.post_send(to, Tag::ENTRY, own.cast(), len)? }));
        }
        transport.wait(&mut self.tickets, wait)
    }
}

impl Agreed {
    pub(super) fn new(header: Header<'_>) -> Self {
        let mut collective = [0; 31];
        collective.iter_mut().zip(header.collective.bytes()).for_each(|(to, byte)| *to = byte);
        let place = |found: Option<usize>| found.map_or(BARRIER, |index| index as u8);
        let operation = header.operation.unwrap_or(Operation::new(Kind::AllReduce));
        let kind = header.operation.and_then(|o| Kind::ALL.iter().position(|&kind| kind == o.kind));
        Agreed {
            magic: MAGIC,
            kind: place(kind),
            element: place(ElementType::ALL.iter().position(|&e| e == header.element)),
            operator: place(Operator::ALL.iter().position(|&o| o == header.operator)),
            order: place(ORDERS.iter().position(|&o| o == operation.order)),
            root: operation.root as u64,
            count: header.count as u64,
            sequence: header.sequence,
            segment_bytes: header.segment_bytes as u64,
            wire: place(WireFormat::ALL.iter().position(|&w| w == header.wire)),
            collective,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }

    /// Differs for records that differ: the words are folded by multiplications that can be undone.
    fn hash(&self) -> u64 {
        mix(self.hash_but_sequence(), self.sequence)
    }

    fn hash_but_sequence(&self) -> u64 {
        let without = Agreed { sequence: 0, ..*self };
        let words: &[u64; size_of::<Agreed>() / 8] = bytemuck::cast_ref(&without);
        words.iter().fold(0x9E37_79B9_7F4A_7C15, |hash, &word| mix(hash, word))
    }

    /// How `other` differs from rank 0's, in words.
    fn difference(&self, other: &Agreed, rank: Rank) -> Option<String> {
        if other == self {
            return None;
        }
        if other.magic != self.magic {
            return Some(format!("rank {rank} runs another version of esync, or sent garbage"));
        }
        let kind = |r: &Agreed| Kind::ALL.get(r.kind as usize).map_or("barrier".into(), Kind::to_string);
        let element =
            |r: &Agreed| ElementType::ALL.get(r.element as usize).map_or("?", |e| e.name()).to_string();
        let operator =
            |r: &Agreed| Operator::ALL.get(r.operator as usize).map_or("?", |o| o.name()).to_string();
        let order = |r: &Agreed| ORDERS.get(r.order as usize).map_or("?".into(), Order::to_string);
        let wire = |r: &Agreed| WireFormat::ALL.get(r.wire as usize).map_or("?", |w| w.name()).to_string();
        let name = |r: &Agreed| {
            let end = r.collective.iter().position(|&byte| byte == 0).unwrap_or(r.collective.len());
            String::from_utf8_lossy(&r.collective[..end]).into_owned()
        };
        type Show<'a> = &'a dyn Fn(&Agreed) -> String;
        let fields: [(&str, Show<'_>); 10] = [
            ("operation number", &|r| r.sequence.to_string()),
            ("operation", &kind),
            ("element count", &|r| r.count.to_string()),
            ("element type", &element),
            ("operator", &operator),
            ("order", &order),
            ("root", &|r| r.root.to_string()),
            ("collective", &name),
            ("wire format", &wire),
            ("segment bytes", &|r| r.segment_bytes.to_string()),
        ];
        fields
            .iter()
            .find(|(_, show)| show(self) != show(other))
            .map(|(name, show)| format!("{name}: rank 0 has {}, rank {rank} has {}", show(self), show(other)))
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ mixed >> 32
}

/// What a rank said last. Calls are mostly like the one before, and short ones are over sooner than a record is made anew.
#[derive(Default)]
pub(super) struct Said {
    last: Option<(Header<'static>, Agreed, u64)>,
}

impl Said {
    /// The record of a header, and its hash.
    pub(super) fn agreed(&mut self, header: Header<'static>) -> (&Agreed, u64) {
        let is_known = self
            .last
            .as_ref()
            .is_some_and(|(last, ..)| Header { sequence: header.sequence, ..*last } == header);
        if !is_known {
            self.last = None;
        }
        let (_, agreed, hash) = self.last.get_or_insert_with(|| {
            let agreed = Agreed::new(header);
            (header, agreed, agreed.hash_but_sequence())
        });
        agreed.sequence = header.sequence;
        (agreed, mix(*hash, header.sequence))
    }
}

/// The error of ranks that share memory and said different things: names the first that differs from rank 0.
pub(super) fn mismatch(session: &Session<'_>, round: &Round, ranks: usize, wait: &Wait<'_>) -> Error {
    let agreed =
        |rank: Rank| -> Agreed { bytemuck::cast(session.header::<{ size_of::<Agreed>() }>(round, rank)) };
    let first = agreed(0);
    let what = (1..ranks).find_map(|rank| first.difference(&agreed(rank), rank));
    let what = what.unwrap_or_else(|| "they called it with different arguments".into());
    Error::Mismatch { operation: wait.operation.to_string(), what }
}

const ORDERS: [Order; 4] = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];

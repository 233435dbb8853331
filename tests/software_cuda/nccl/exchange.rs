//! Messages of one group: all progress together; between two ranks they match in their order.
//!
//! A message is a header, which says how long it is and of which kind, then its bytes, and then one byte back when the
//! receiver has it all. So a send ends with its receive, never before.

use super::communicator::{Communicator, Stop};
use super::group::{Task, Work};
use crate::memory;
use cudarc::nccl::sys::ncclResult_t;
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// A message between two ranks, and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) peer: usize,
    pub(super) sends: bool,
    /// What a device's thread may read and write.
    pub(super) storage: *mut u8,
    pub(super) bytes: usize,
    /// The same at both ends: the collective and its step.
    pub(super) kind: u64,
}

pub(super) const POINT_TO_POINT: u64 = 0;
const HEADER_BYTES: usize = 16;

/// The messages of one direction between two ranks.
struct Lane<'a> {
    socket: &'a UnixStream,
    messages: VecDeque<Message>,
    header: [u8; HEADER_BYTES],
    /// Bytes of the first message that are through: header, content, acknowledgement.
    moved: usize,
}

enum Progress {
    /// Nothing more can be done now.
    Blocked,
    Done,
}

impl Lane<'_> {
    /// Whether the next step is a write.
    fn writes(&self) -> bool {
        let Some(message) = self.messages.front() else { return false };
        message.sends == (self.moved < HEADER_BYTES + message.bytes)
    }

    fn progress(&mut self) -> Result<Progress, Stop> {
        while let Some(&message) = self.messages.front() {
            let content_end = HEADER_BYTES + message.bytes;
            if self.moved == 0 && message.sends {
                self.header[..8].copy_from_slice(&(message.bytes as u64).to_le_bytes());
                self.header[8..].copy_from_slice(&message.kind.to_le_bytes());
            }
            let mut acknowledgement = [1];
            let part = match self.moved {
                moved if moved < HEADER_BYTES => &mut self.header[moved..],
                // SAFETY: the storage has `bytes` bytes as long as the operation runs, and only this lane uses them.
                moved if moved < content_end => unsafe {
                    std::slice::from_raw_parts_mut(
                        message.storage.add(moved - HEADER_BYTES),
                        content_end - moved,
                    )
                },
                _ => &mut acknowledgement[..],
            };
            let mut socket = self.socket;
            let is_content = self.moved < content_end;
            let result = if message.sends == is_content { socket.write(part) } else { socket.read(part) };
            match result {
                Ok(0) => return Err(gone(&message, "its end of the connection is closed")),
                Ok(moved) => self.moved += moved,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(gone(&message, &error.to_string())),
            }
            if !message.sends && self.moved >= HEADER_BYTES {
                self.check_header(&message)?;
            }
            if self.moved > content_end {
                self.messages.pop_front();
                self.moved = 0;
            }
        }
        Ok(Progress::Done)
    }

    fn check_header(&self, message: &Message) -> Result<(), Stop> {
        let number = |at: usize| u64::from_le_bytes(self.header[at..at + 8].try_into().expect("eight bytes"));
        let (bytes, kind) = (number(0), number(8));
        if (bytes, kind) != (message.bytes as u64, message.kind) {
            let why = format!(
                "rank {} sends {bytes} bytes (kind {kind}), where {} bytes (kind {}) are expected",
                message.peer, message.bytes, message.kind
            );
            return Err(Stop::Failed(ncclResult_t::ncclInvalidUsage, why));
        }
        Ok(())
    }
}

fn gone(message: &Message, why: &str) -> Stop {
    Stop::Failed(ncclResult_t::ncclRemoteError, format!("rank {}: {why}", message.peer))
}

impl Communicator {
    /// The storage of a device pointer, unless it was freed meanwhile.
    pub(super) fn storage(&self, address: u64, bytes: usize) -> Result<*mut u8, Stop> {
        if bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
        memory::locate(address, bytes, true).map(memory::Place::storage).map_err(|code| {
            self.device.break_with(cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            Stop::Failed(ncclResult_t::ncclUnhandledCudaError, format!("a buffer is gone: {code:?}"))
        })
    }

    /// All of a group: its messages at once, then its collectives in their order.
    pub(super) fn exchange_tasks(&self, tasks: &[Task]) -> Result<(), Stop> {
        let mut messages = Vec::new();
        let (mut own_sent, mut own_received) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.work {
                Work::Send { peer, from, bytes } => {
                    let storage = self.storage(from, bytes)?;
                    match peer == self.rank {
                        true => own_sent.push((storage, bytes)),
                        false => {
                            messages.push(Message { peer, sends: true, storage, bytes, kind: POINT_TO_POINT })
                        }
                    }
                }
                Work::Receive { peer, to, bytes } => {
                    let storage = self.storage(to, bytes)?;
                    match peer == self.rank {
                        true => own_received.push(storage),
                        false => messages.push(Message {
                            peer,
                            sends: false,
                            storage,
                            bytes,
                            kind: POINT_TO_POINT,
                        }),
                    }
                }
                Work::Collective(_) => {}
            }
        }
        for ((from, bytes), to) in own_sent.into_iter().zip(own_received) {
            // SAFETY: both have as many bytes: the group was checked for it.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        self.exchange(&messages)?;
        tasks.iter().try_for_each(|task| match &task.work {
            Work::Collective(collective) => collective.run(self),
            _ => Ok(()),
        })
    }

    /// Moves all messages, or stops with the abort.
    pub(super) fn exchange(&self, messages: &[Message]) -> Result<(), Stop> {
        let mut lanes: BTreeMap<(usize, bool), Lane<'_>> = BTreeMap::new();
        for &message in messages {
            let links = self.links();
            let links = if message.sends { &links.outgoing } else { &links.incoming };
            let socket = links[message.peer].as_ref().expect("connected with all others");
            let lane = || Lane { socket, messages: VecDeque::new(), header: [0; HEADER_BYTES], moved: 0 };
            lanes.entry((message.peer, message.sends)).or_insert_with(lane).messages.push_back(message);
        }
        let mut lanes: Vec<_> = lanes.into_values().collect();
        loop {
            let mut waiting = Vec::new();
            for mut lane in lanes {
                if let Progress::Blocked = lane.progress()? {
                    waiting.push(lane);
                }
            }
            lanes = waiting;
            if lanes.is_empty() {
                return Ok(());
            }
            let abort = libc::pollfd { fd: self.abort_signal(), events: libc::POLLIN, revents: 0 };
            let mut waited = vec![abort];
            waited.extend(lanes.iter().map(|lane| libc::pollfd {
                fd: lane.socket.as_raw_fd(),
                events: if lane.writes() { libc::POLLOUT } else { libc::POLLIN },
                revents: 0,
            }));
            // SAFETY: as many entries as said.
            unsafe { libc::poll(waited.as_mut_ptr(), waited.len() as libc::nfds_t, -1) };
            if waited[0].revents != 0 {
                return Err(Stop::Aborted);
            }
        }
    }
}

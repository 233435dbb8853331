//! What travels between workers and shards: a small header in JSON, and numbers as they lie in memory.

use crate::policy::{Payload, PushRule, Reply, Report};
use crate::reduce::WireFormat;
use crate::runtime::socket::LONGEST_FRAME;
use crate::transport::Rank;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Error, Read, Write};
use std::ops::Range;

// Numbers are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// What a worker tells the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) report: Report,
    /// Samples since it told something last, pushed or not.
    pub(super) samples: u64,
    /// Above 0, it wishes all to stop.
    pub(super) wish: u64,
}

/// From a worker to a shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// Its part of a push follows. The report goes to the head alone.
    Push { number: u64, payload: Payload, told: Option<Told> },
    /// A report without numbers.
    Report(Told),
    /// The worker wishes to stop, while it is waiting for a reply.
    Wish { wish: u64 },
    /// The worker has failed in a way that makes the others' work useless.
    Failed { why: String },
    /// The worker has done its last step, and waits for the end.
    Goodbye,
}

/// From a shard to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// The head's reply. With `with_parameters` the head's part follows, and each other shard sends its own.
    Reply {
        reply: Reply,
        reason: String,
        held_seconds: f64,
        version: u64,
        staleness: Option<u64>,
        global_samples: u64,
        with_parameters: bool,
    },
    /// Another shard's part.
    Parameters { version: u64 },
    /// The end: what the overseer says, and the whole parameters.
    Finale { verdict: String },
    /// The server has failed.
    Failed { why: String },
}

/// From the head to the other shards: the log that all carry out in the same order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Command {
    /// Apply a push, all of whose parts have arrived.
    Apply { from: Rank, number: u64, rule: PushRule },
    /// Publish what is buffered.
    Publish,
    /// Send this moment's parameters to a worker.
    Send { to: Rank },
    /// Send this moment's parameters to the head.
    Snapshot,
    /// A worker is lost: drop what it pushed.
    Forget { from: Rank },
    /// The end.
    Finish,
}

/// From another shard to the head.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromShard {
    /// Its part of a push has arrived.
    Arrived { from: Rank, number: u64 },
    /// Its part of a snapshot follows.
    Part { version: u64 },
    /// Its connection to a worker broke.
    WorkerLost { rank: Rank, why: String },
    /// It has failed.
    Failed { why: String },
}

/// Bytes before a header: its length in 4 bytes, then that of the numbers in 8.
const PREFIX: usize = 12;

/// The prefix and the header of a frame with `body` bytes of numbers.
pub(super) fn header(header: &impl Serialize, body: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; PREFIX];
    serde_json::to_writer(&mut bytes, header)?;
    let len = (bytes.len() - PREFIX) as u32;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[4..PREFIX].copy_from_slice(&(body as u64).to_le_bytes());
    Ok(bytes)
}

/// Writes a frame.
pub(super) fn write(stream: &mut impl Write, header: &[u8], body: &[u8]) -> Result<(), Error> {
    stream.write_all(header)?;
    stream.write_all(body)
}

/// Reads a frame's header, and the numbers' bytes into `body`, of which there are none or `expected`.
pub(super) fn read<T: DeserializeOwned>(
    stream: &mut impl Read,
    body: &mut Vec<u8>,
    expected: usize,
) -> Result<T, Error> {
    read_one_of(stream, body, &[expected])
}

/// The same with one of several numbers of bytes.
pub(super) fn read_one_of<T: DeserializeOwned>(
    stream: &mut impl Read,
    body: &mut Vec<u8>,
    expected: &[usize],
) -> Result<T, Error> {
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix)?;
    let (header_bytes, body_bytes) = prefix.split_at(4);
    let header_len = header_bytes.iter().rev().fold(0, |len, &byte| len << 8 | usize::from(byte));
    let body_len = body_bytes.iter().rev().fold(0, |len, &byte| len << 8 | u64::from(byte));
    if header_len > LONGEST_FRAME
        || (body_len != 0 && !expected.iter().any(|&bytes| bytes as u64 == body_len))
    {
        return Err(Error::other(format!("a frame of {header_len} and {body_len} bytes")));
    }
    let mut header = vec![0; header_len];
    stream.read_exact(&mut header)?;
    body.resize(body_len as usize, 0);
    stream.read_exact(body)?;
    Ok(serde_json::from_slice(&header)?)
}

/// Which elements a shard holds: a part of the trained ones, and a part of the statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    trained: Range<usize>,
    statistics: Range<usize>,
}

impl Slice {
    /// That of shard `index` of `shards`, out of `len` elements of which the first `trainable` are trained.
    pub(super) fn new(len: usize, trainable: usize, shards: usize, index: usize) -> Self {
        let trained = crate::collective::part(trainable, shards, index);
        let statistics = crate::collective::part(len - trainable, shards, index);
        Slice { trained, statistics: trainable + statistics.start..trainable + statistics.end }
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        self.trained.len() + self.statistics.len()
    }

    /// How many of them are trained.
    pub(super) fn trainable(&self) -> usize {
        self.trained.len()
    }

    /// This slice of all elements.
    pub(super) fn of(&self, whole: &[f32]) -> Vec<f32> {
        [&whole[self.trained.clone()], &whole[self.statistics.clone()]].concat()
    }

    /// Puts this slice into all elements.
    pub(super) fn put(&self, part: &[f32], whole: &mut [f32]) {
        let (trained, statistics) = part.split_at(self.trained.len());
        whole[self.trained.clone()].copy_from_slice(trained);
        whole[self.statistics.clone()].copy_from_slice(statistics);
    }
}

/// How many bytes a slice takes on the wire. Statistics are not narrowed: they are few, and averages of large numbers.
pub(super) fn encoded_bytes(wire: WireFormat, len: usize, trainable: usize) -> usize {
    wire.encoded_bytes(trainable) + WireFormat::F32.encoded_bytes(len - trainable)
}

/// A slice as it travels.
pub(super) fn encode(wire: WireFormat, part: &[f32], trainable: usize) -> Vec<u8> {
    let mut bytes = vec![0; encoded_bytes(wire, part.len(), trainable)];
    let (trained, statistics) = bytes.split_at_mut(wire.encoded_bytes(trainable));
    wire.encode(&part[..trainable], trained);
    WireFormat::F32.encode(&part[trainable..], statistics);
    bytes
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(wire: WireFormat, bytes: &[u8], part: &mut [f32], trainable: usize) {
    let (trained, statistics) = bytes.split_at(wire.encoded_bytes(trainable));
    let (into_trained, into_statistics) = part.split_at_mut(trainable);
    wire.decode(trained, into_trained);
    WireFormat::F32.decode(statistics, into_statistics);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_everything_once() {
        for (len, trainable, shards) in [(10, 7, 3), (5, 5, 1), (3, 2, 4), (9, 0, 2)] {
            let whole: Vec<f32> = (0..len).map(|index| index as f32).collect();
            let mut again = vec![f32::NAN; len];
            for index in 0..shards {
                let slice = Slice::new(len, trainable, shards, index);
                let part = slice.of(&whole);
                assert_eq!(part.len(), slice.len());
                assert!(part[..slice.trainable()].iter().all(|&value| value < trainable as f32));
                slice.put(&part, &mut again);
            }
            assert_eq!(again, whole);
        }
    }

    #[test]
    fn narrow_wires_leave_statistics_alone() {
        let part = [1.0, 1.0 + f32::EPSILON, 1.0 + f32::EPSILON];
        for wire in [WireFormat::F32, WireFormat::F16, WireFormat::Bf16] {
            let bytes = encode(wire, &part, 2);
            assert_eq!(bytes.len(), encoded_bytes(wire, 3, 2));
            let mut again = [0.0; 3];
            decode(wire, &bytes, &mut again, 2);
            assert_eq!((again[0], again[2]), (part[0], part[2]), "{wire}");
            assert_eq!(again[1] == part[1], wire == WireFormat::F32, "{wire}");
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written_and_strangers_are_refused() {
        let sent =
            header(&Command::Apply { from: 3, number: 7, rule: PushRule::Add { scale: 1.0 / 3.0 } }, 8);
        let mut bytes = sent.unwrap();
        bytes.extend([1; 8]);
        let mut body = Vec::new();
        let command: Command = read(&mut &bytes[..], &mut body, 8).unwrap();
        assert!(
            matches!(command, Command::Apply { from: 3, number: 7, rule: PushRule::Add { scale } } if scale == 1.0 / 3.0)
        );
        assert_eq!(body, [1; 8]);
        assert!(read::<Command>(&mut &bytes[..], &mut body, 4).is_err(), "another length");
        assert!(read::<Command>(&mut &[255; 64][..], &mut body, 8).is_err(), "garbage");
    }
}

//! How ranks find each other: the id names a socket at which a thread of its maker tells every rank where the others listen.
//!
//! Sockets have names in Linux's abstract space, so that nothing is left in a folder.

use super::{Outcome, refuse};
use crate::settings::{settings, version};
use cudarc::nccl::sys::{ncclResult_t, ncclUniqueId};
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

const MAGIC: [u8; 16] = *b"software NCCL id";
type Name = [u8; 16];

/// A rank's place in the table that all get: the device it uses, and where it listens.
type Entry = ([u8; 16], Name);
const HELLO_BYTES: usize = 8 + 32;

/// Connections to and from each other rank, by its number; none to itself. Data goes one way, acknowledgements the other.
#[derive(Debug)]
pub(super) struct Links {
    pub(super) outgoing: Vec<Option<UnixStream>>,
    pub(super) incoming: Vec<Option<UnixStream>>,
}

fn failed<T>(error: &std::io::Error, what: &str) -> Outcome<T> {
    refuse(ncclResult_t::ncclSystemError, format_args!("{what}: {error}"))
}

fn listen() -> std::io::Result<(UnixListener, Name)> {
    let mut name = Name::default();
    rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())?;
    Ok((UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?, name))
}

fn connect(name: Name) -> std::io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
}

/// An id, and a thread that waits for its ranks.
pub(super) fn new_id() -> Outcome<ncclUniqueId> {
    let (listener, name) = match listen() {
        Ok(listening) => listening,
        Err(error) => return failed(&error, "no socket for an id"),
    };
    let thread = std::thread::Builder::new().name("NCCL id".into());
    if let Err(error) = thread.spawn(move || introduce(&listener)) {
        return failed(&error, "no thread for an id");
    }
    let mut internal = [0 as c_char; 128];
    for (to, byte) in internal.iter_mut().zip(MAGIC.into_iter().chain(name)) {
        *to = byte as c_char;
    }
    Ok(ncclUniqueId { internal })
}

/// Waits for all ranks of an id, and gives each the table.
fn introduce(listener: &UnixListener) {
    let mut ranks: BTreeMap<u32, (UnixStream, Entry)> = BTreeMap::new();
    let mut expected = None;
    for mut connection in listener.incoming().flatten() {
        let mut hello = [0; HELLO_BYTES];
        if connection.read_exact(&mut hello).is_err() {
            continue;
        }
        let number = |at: usize| u32::from_le_bytes(hello[at..at + 4].try_into().expect("four bytes"));
        let part = |at: usize| -> [u8; 16] { hello[at..at + 16].try_into().expect("sixteen bytes") };
        let (count, rank) = (number(0), number(4));
        if *expected.get_or_insert(count) != count || ranks.contains_key(&rank) {
            // The rank sees the end of the connection.
            continue;
        }
        ranks.insert(rank, (connection, (part(8), part(24))));
        if ranks.len() == count as usize {
            break;
        }
    }
    let table: Vec<u8> = ranks.values().flat_map(|(_, (device, name))| [*device, *name]).flatten().collect();
    for (connection, _) in ranks.values_mut() {
        // A rank that is gone needs no table; the others will notice.
        let _ = connection.write_all(&table);
    }
}

/// Waits until there is something to read; false if the communicator is aborted before.
pub(super) fn wait_readable(socket: RawFd, aborted: RawFd) -> bool {
    let mut waited = [socket, aborted].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: two entries, as said.
        let ready = unsafe { libc::poll(waited.as_mut_ptr(), 2, -1) };
        if ready > 0 {
            return waited[1].revents == 0;
        }
    }
}

/// Connects a rank with all others. `aborted` becomes readable when the wait shall end.
pub(super) fn join(
    id: &ncclUniqueId,
    rank: usize,
    ranks: usize,
    device: [u8; 16],
    aborted: RawFd,
) -> Outcome<Links> {
    let bytes = id.internal.map(|byte| byte as u8);
    if bytes[..16] != MAGIC {
        return refuse(
            ncclResult_t::ncclInvalidArgument,
            format_args!("an id that ncclGetUniqueId did not give"),
        );
    }
    let root: Name = bytes[16..32].try_into().expect("sixteen bytes");
    let table = match introduce_to(root, rank, ranks, device, aborted) {
        Ok(joined) => joined,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return refuse(
                ncclResult_t::ncclInvalidUsage,
                format_args!(
                    "rank {rank} of {ranks}: another rank has this number, or another number of ranks"
                ),
            );
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => return Err(ncclResult_t::ncclInternalError),
        Err(error) => return failed(&error, "the maker of the id does not answer"),
    };
    let (listener, table) = table;
    for (other, (theirs, _)) in table.iter().enumerate().filter(|(other, _)| *other != rank) {
        let may_share = settings().share_device && settings().nccl >= version(2, 30, 0);
        if *theirs == device && !may_share {
            return refuse(
                ncclResult_t::ncclInvalidUsage,
                format_args!(
                    "Duplicate GPU detected : rank {rank} and rank {other} both on CUDA device {}",
                    device[15]
                ),
            );
        }
    }
    connect_all(&listener, &table, rank, aborted)
        .or_else(|error| failed(&error, "another rank cannot be reached"))
}

fn introduce_to(
    root: Name,
    rank: usize,
    ranks: usize,
    device: [u8; 16],
    aborted: RawFd,
) -> std::io::Result<(UnixListener, Vec<Entry>)> {
    let (listener, name) = listen()?;
    let mut connection = connect(root)?;
    let mut hello = Vec::with_capacity(HELLO_BYTES);
    hello.extend((ranks as u32).to_le_bytes());
    hello.extend((rank as u32).to_le_bytes());
    hello.extend(device.iter().chain(&name));
    connection.write_all(&hello)?;
    let mut table = vec![0; ranks * 32];
    if !wait_readable(connection.as_raw_fd(), aborted) {
        return Err(ErrorKind::Interrupted.into());
    }
    connection.read_exact(&mut table)?;
    let part = |bytes: &[u8]| -> [u8; 16] { bytes.try_into().expect("sixteen bytes") };
    Ok((listener, table.chunks_exact(32).map(|entry| (part(&entry[..16]), part(&entry[16..]))).collect()))
}

fn connect_all(
    listener: &UnixListener,
    table: &[Entry],
    rank: usize,
    aborted: RawFd,
) -> std::io::Result<Links> {
    let mut outgoing: Vec<Option<UnixStream>> = Vec::new();
    for (other, (_, name)) in table.iter().enumerate() {
        outgoing.push(if other == rank {
            None
        } else {
            let mut connection = connect(*name)?;
            connection.write_all(&(rank as u32).to_le_bytes())?;
            connection.set_nonblocking(true)?;
            Some(connection)
        });
    }
    let mut incoming: Vec<Option<UnixStream>> = table.iter().map(|_| None).collect();
    for _ in 1..table.len() {
        if !wait_readable(listener.as_raw_fd(), aborted) {
            return Err(ErrorKind::Interrupted.into());
        }
        let (mut connection, _) = listener.accept()?;
        let mut other = [0; 4];
        connection.read_exact(&mut other)?;
        connection.set_nonblocking(true)?;
        incoming[u32::from_le_bytes(other) as usize] = Some(connection);
    }
    Ok(Links { outgoing, incoming })
}

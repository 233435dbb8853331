//! How a service of one rank is reached by the others: an invitation, a word that lets a rank in, small frames of JSON.
//!
//! Sockets, because a blocking read costs no core, and because they work the same between threads, processes and hosts. (An
//! MPI service would have to poll.)

use crate::error::{Error, Result};
use crate::transport::{Deadline, Peer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where a service listens, and the word that lets a guest in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Invitation {
    pub(super) addresses: Vec<String>,
    pub(super) token: [u8; 16],
}

/// The first frame on a connection.
#[derive(Serialize, Deserialize)]
struct Hello {
    token: [u8; 16],
    number: usize,
}

/// Longer frames of JSON are not from us.
pub(super) const LONGEST_FRAME: usize = 64 * 1024;
const TO_CONNECT: Duration = Duration::from_secs(5);
/// How long a service waits for its guests; they come as soon as they have the invitation.
const TO_GATHER: Duration = Duration::from_secs(60);

/// Opens a port on all of this host's addresses.
pub(super) fn listen(own: &Peer) -> std::io::Result<(TcpListener, Invitation)> {
    let listener = TcpListener::bind(("0.0.0.0", 0))?;
    let port = listener.local_addr()?.port();
    let mut token = [0; 16];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
    let addresses =
        own_addresses(own).into_iter().map(|address| SocketAddr::new(address, port).to_string()).collect();
    Ok((listener, Invitation { addresses, token }))
}

/// Addresses under which other hosts may find this one, the likeliest first.
fn own_addresses(own: &Peer) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    if let Ok(chosen) = std::env::var("ESYNC_ADDRESS").unwrap_or_default().parse() {
        addresses.push(chosen);
    }
    // Connecting a datagram socket sends nothing; it only asks the routing table for our address towards the outside.
    let outside = UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    });
    addresses.extend(outside.map(|address| address.ip()));
    addresses.extend(
        (own.host.as_str(), 0)
            .to_socket_addrs()
            .into_iter()
            .flatten()
            .map(|a| a.ip())
            .filter(|ip| ip.is_ipv4()),
    );
    addresses.push([127, 0, 0, 1].into());
    addresses.dedup();
    addresses
}

/// Connects to a service as guest `number`. `invitation` is an [`Invitation`] in JSON; anything else means that the host
/// could not open a port.
///
/// # Errors
/// `Environment` with every address that was tried.
pub(super) fn connect(invitation: &[u8], number: usize) -> Result<TcpStream> {
    let failed = |what: String| Error::Environment(what);
    let invitation: Invitation =
        serde_json::from_slice(invitation).map_err(|_| failed("its host could not open a socket".into()))?;
    let mut tried = Vec::new();
    for address in &invitation.addresses {
        let attempt = || -> std::io::Result<TcpStream> {
            let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect_timeout(&address, TO_CONNECT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TO_CONNECT))?;
            write_frame(&mut stream, &mut Vec::new(), &Hello { token: invitation.token, number })?;
            // The answer shows that it is our service, and not some other program at the same address.
            let welcome: [u8; 16] = read_frame(&mut stream, &mut Vec::new())?;
            if welcome != invitation.token {
                return Err(std::io::Error::other("another program answered"));
            }
            stream.set_read_timeout(None)?;
            Ok(stream)
        };
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    Err(failed(format!("tried {}; ESYNC_ADDRESS on that rank names another address", tried.join(", "))))
}

/// Lets in the guests with the numbers `expected`, each once, and calls `on_guest` for each on a thread of its own. Returns
/// when all are in; after a minute it returns those who did not come.
pub(super) fn gather(
    listener: &TcpListener,
    token: [u8; 16],
    expected: BTreeSet<usize>,
    on_guest: impl Fn(TcpStream, usize) + Send + Sync + 'static,
) -> BTreeSet<usize> {
    let deadline = Deadline::after(TO_GATHER);
    let missing = Arc::new(Mutex::new(expected));
    let on_guest = Arc::new(on_guest);
    let lock =
        |missing: &Mutex<BTreeSet<usize>>| missing.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Not blocking, so that a guest that never comes does not keep this thread for ever.
    if listener.set_nonblocking(true).is_err() {
        return lock(&missing);
    }
    while !lock(&missing).is_empty() && !deadline.has_passed() {
        match listener.accept() {
            Ok((stream, _)) => {
                let (missing, on_guest) = (missing.clone(), on_guest.clone());
                // On a thread of its own from the first word: a stranger that says nothing holds up nobody.
                let receive = move || {
                    let welcomed = welcome(stream, token, |number| {
                        missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
                    });
                    if let Ok((stream, number)) = welcomed {
                        on_guest(stream, number);
                    }
                };
                let _ = std::thread::Builder::new().name("guest".into()).spawn(receive);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    lock(&missing)
}

fn welcome(
    mut stream: TcpStream,
    token: [u8; 16],
    is_expected: impl FnOnce(usize) -> bool,
) -> std::io::Result<(TcpStream, usize)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TO_CONNECT))?;
    let hello: Hello = read_frame(&mut stream, &mut Vec::new())?;
    if hello.token != token || !is_expected(hello.number) {
        return Err(std::io::Error::other("a stranger"));
    }
    write_frame(&mut stream, &mut Vec::new(), &token)?;
    // A guest may be silent for as long as it likes: its own step may be long.
    stream.set_read_timeout(None)?;
    Ok((stream, hello.number))
}

/// Writes a value behind its length; `frame` is room that is used again.
pub(super) fn write_frame(
    stream: &mut TcpStream,
    frame: &mut Vec<u8>,
    value: &impl Serialize,
) -> std::io::Result<()> {
    frame.clear();
    frame.extend([0; 4]);
    serde_json::to_writer(&mut *frame, value)?;
    let len = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    stream.write_all(frame)
}

/// Reads what [`write_frame`] wrote.
pub(super) fn read_frame<T: DeserializeOwned>(
    stream: &mut TcpStream,
    frame: &mut Vec<u8>,
) -> std::io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > LONGEST_FRAME {
        return Err(std::io::Error::other(format!("a frame of {len} bytes")));
    }
    frame.resize(len, 0);
    stream.read_exact(frame)?;
    Ok(serde_json::from_slice(frame)?)
}

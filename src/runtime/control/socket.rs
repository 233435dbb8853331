//! The state server across hosts: a thread in rank 0's process, reached by a socket. A blocking read costs no core, which is
//! why this is not an MPI service.

use super::{StateServer, all_or_none};
use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::policy::esync::{EsyncCoordinator, Settings};
use crate::policy::{Coordinator, Directive, Reason, Reply, Report};
use crate::transport::{Deadline, Peer, Rank};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct Client {
    stream: TcpStream,
    server: Peer,
    frame: Vec<u8>,
}

/// Where the server listens, and the word that lets a worker in.
#[derive(Serialize, Deserialize)]
struct Invitation {
    addresses: Vec<String>,
    token: [u8; 16],
}

/// The first frame on a connection.
#[derive(Serialize, Deserialize)]
struct Hello {
    token: [u8; 16],
    rank: Rank,
}

/// Longer frames are not from us.
const LONGEST_FRAME: usize = 64 * 1024;
const TO_CONNECT: Duration = Duration::from_secs(5);

impl Client {
    pub(super) fn establish(
        communicator: &mut Communicator,
        settings: &Settings,
        step_seconds: &[f64],
    ) -> Result<Client> {
        let rank = communicator.rank();
        let invitation = match rank {
            0 => serve(communicator, settings, step_seconds)
                .map(|invitation| serde_json::to_vec(&invitation).unwrap_or_default())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let invitation = communicator.gather_bytes(&invitation)?.swap_remove(0);
        let timeout = communicator.options().timeout;
        let server = communicator.transport().peer(0).clone();
        let connected =
            connect(&invitation, rank, timeout).map(|stream| Client { stream, server, frame: Vec::new() });
        all_or_none(communicator, connected, "cannot reach the state server on rank 0")
    }
}

impl StateServer for Client {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn ask(&mut self, report: &Report) -> Result<(Reply, Reason)> {
        let lost = |error: std::io::Error| Error::PeerLost {
            peer: self.server.clone(),
            operation: "a query of the state server".into(),
            what: error.to_string(),
        };
        write_frame(&mut self.stream, &mut self.frame, report).map_err(lost)?;
        let (reply, reason): (Reply, String) = read_frame(&mut self.stream, &mut self.frame).map_err(lost)?;
        Ok((reply, Reason::Custom(reason)))
    }
}

/// Starts the server's threads; they end when the workers hang up.
fn serve(
    communicator: &Communicator,
    settings: &Settings,
    step_seconds: &[f64],
) -> std::io::Result<Invitation> {
    let listener = TcpListener::bind(("0.0.0.0", 0))?;
    let port = listener.local_addr()?.port();
    let mut token = [0; 16];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
    let addresses = own_addresses(communicator.transport().peer(0))
        .into_iter()
        .map(|address| SocketAddr::new(address, port).to_string())
        .collect();
    let coordinator =
        EsyncCoordinator::new(communicator.size(), settings.clone()).with_step_seconds(step_seconds);
    let server = Arc::new(Server { coordinator: Mutex::new(coordinator), started: Instant::now(), token });
    let size = communicator.size();
    std::thread::Builder::new()
        .name("state server".into())
        .spawn(move || accept(&listener, &server, size))?;
    Ok(Invitation { addresses, token })
}

/// Addresses under which other hosts may find this one, the likeliest first.
fn own_addresses(own: &Peer) -> Vec<std::net::IpAddr> {
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

fn connect(invitation: &[u8], rank: Rank, timeout: Duration) -> Result<TcpStream> {
    let failed = |what: String| Error::Environment(what);
    let invitation: Invitation =
        serde_json::from_slice(invitation).map_err(|_| failed("rank 0 could not open a socket".into()))?;
    let mut tried = Vec::new();
    for address in &invitation.addresses {
        let attempt = || -> std::io::Result<TcpStream> {
            let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect_timeout(&address, TO_CONNECT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TO_CONNECT))?;
            write_frame(&mut stream, &mut Vec::new(), &Hello { token: invitation.token, rank })?;
            // The answer shows that it is our server, and not some other program at the same address.
            let welcome: [u8; 16] = read_frame(&mut stream, &mut Vec::new())?;
            if welcome != invitation.token {
                return Err(std::io::Error::other("another program answered"));
            }
            stream.set_read_timeout(Some(timeout))?;
            Ok(stream)
        };
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    Err(failed(format!("tried {}; ESYNC_ADDRESS on rank 0 names another address", tried.join(", "))))
}

struct Server {
    coordinator: Mutex<EsyncCoordinator>,
    started: Instant,
    token: [u8; 16],
}

fn accept(listener: &TcpListener, server: &Arc<Server>, size: usize) {
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut welcomed = 0;
    // Not blocking, so that a worker that never comes does not keep this thread for ever.
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while welcomed < size && !deadline.has_passed() {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok((stream, rank)) = welcome(stream, server, size) {
                    welcomed += 1;
                    let server = server.clone();
                    let name = format!("state server {rank}");
                    let _ =
                        std::thread::Builder::new().name(name).spawn(move || answer(stream, &server, rank));
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn welcome(mut stream: TcpStream, server: &Server, size: usize) -> std::io::Result<(TcpStream, Rank)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TO_CONNECT))?;
    let hello: Hello = read_frame(&mut stream, &mut Vec::new())?;
    if hello.token != server.token || hello.rank >= size {
        return Err(std::io::Error::other("a stranger"));
    }
    write_frame(&mut stream, &mut Vec::new(), &server.token)?;
    // A worker may be silent for as long as it likes: its own step may be long.
    stream.set_read_timeout(None)?;
    Ok((stream, hello.rank))
}

/// Answers one worker until it hangs up.
fn answer(mut stream: TcpStream, server: &Server, rank: Rank) {
    let mut frame = Vec::new();
    let coordinator = || server.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(report) = read_frame::<Report>(&mut stream, &mut frame) {
        let directives = coordinator().on(server.started.elapsed(), rank, report);
        for directive in directives {
            if let Directive::Reply { to, reply, reason } = directive
                && to == rank
                && write_frame(&mut stream, &mut frame, &(reply, reason.to_string())).is_err()
            {
                break;
            }
        }
    }
    coordinator().lost(server.started.elapsed(), rank);
}

fn write_frame(stream: &mut TcpStream, frame: &mut Vec<u8>, value: &impl Serialize) -> std::io::Result<()> {
    frame.clear();
    frame.extend([0; 4]);
    serde_json::to_writer(&mut *frame, value)?;
    let len = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    stream.write_all(frame)
}

fn read_frame<T: DeserializeOwned>(stream: &mut TcpStream, frame: &mut Vec<u8>) -> std::io::Result<T> {
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

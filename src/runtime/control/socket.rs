//! The state server across hosts: a thread in rank 0's process, reached by a socket.

use super::{StateServer, all_or_none};
use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::policy::esync::{EsyncCoordinator, Settings};
use crate::policy::{Coordinator, Directive, Reason, Reply, Report};
pub(super) use crate::runtime::socket::{Invitation, connect};
use crate::runtime::socket::{gather, listen, read_frame, write_frame};
use crate::transport::{Peer, Rank};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub(super) struct Client {
    stream: TcpStream,
    server: Peer,
    frame: Vec<u8>,
}

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
        let connected = connect(&invitation, rank).and_then(|stream| {
            stream
                .set_read_timeout(Some(timeout))
                .map_err(|e| Error::Environment(format!("a socket takes no deadline: {e}")))?;
            Ok(Client { stream, server, frame: Vec::new() })
        });
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
pub(super) fn serve(
    communicator: &Communicator,
    settings: &Settings,
    step_seconds: &[f64],
) -> std::io::Result<Invitation> {
    let (listener, invitation) = listen(communicator.transport().peer(0))?;
    let coordinator =
        EsyncCoordinator::new(communicator.size(), settings.clone()).with_step_seconds(step_seconds);
    let server = Arc::new(Server { coordinator: Mutex::new(coordinator), started: Instant::now() });
    let (size, token) = (communicator.size(), invitation.token);
    let serve = move || {
        gather(&listener, token, (0..size).collect(), move |stream, rank| answer(stream, &server, rank))
    };
    std::thread::Builder::new().name("state server".into()).spawn(serve)?;
    Ok(invitation)
}

struct Server {
    coordinator: Mutex<EsyncCoordinator>,
    started: Instant,
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

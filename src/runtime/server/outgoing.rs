//! The sending end of a connection: a thread of its own writes, so that a slow reader holds up nobody else.

use super::frame;
use crate::error::{Error, Result};
use serde::Serialize;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Numbers on their way; several receivers may share them.
pub(super) type Body = Arc<Vec<u8>>;

/// One connection's queue. Dropping it sends what is queued, then closes.
pub(super) struct Outgoing {
    queue: Sender<(Vec<u8>, Body)>,
    stream: TcpStream,
    thread: JoinHandle<()>,
}

impl Outgoing {
    /// Starts the thread. A frame that the other side does not take within `timeout` ends the connection. What is closed in
    /// the end is `ending`.
    ///
    /// # Errors
    /// `Environment` if there is no thread or file descriptor left.
    pub(super) fn new(stream: &TcpStream, name: String, timeout: Duration, ending: Shutdown) -> Result<Self> {
        let failed = |e: std::io::Error| Error::Environment(format!("cannot start the thread `{name}`: {e}"));
        let (queue, frames) = channel::<(Vec<u8>, Body)>();
        let mut writer = stream.try_clone().map_err(failed)?;
        writer.set_write_timeout(Some(timeout)).map_err(failed)?;
        let write = move || {
            let mut frames = frames.into_iter();
            let is_written = frames.all(|(header, body)| frame::write(&mut writer, &header, &body).is_ok());
            // The reader of a connection that broke notices, and says why.
            let _ = writer.shutdown(if is_written { ending } else { Shutdown::Both });
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(write).map_err(failed)?;
        Ok(Outgoing { queue, stream: stream.try_clone().map_err(failed)?, thread })
    }

    /// Closes, and returns when all that was queued is sent.
    pub(super) fn close(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }

    /// Puts a frame into the queue. A connection that is gone is noticed by its reader.
    ///
    /// # Errors
    /// `Internal` if the header cannot be written as JSON.
    pub(super) fn send(&self, header: &impl Serialize, body: Body) -> Result<()> {
        let header = frame::header(header, body.len())
            .map_err(|e| Error::Internal(format!("a message to or from the parameter server: {e}")))?;
        let _ = self.queue.send((header, body));
        Ok(())
    }

    /// The same without numbers.
    pub(super) fn tell(&self, header: &impl Serialize) -> Result<()> {
        self.send(header, Body::default())
    }

    /// Ends the connection at once; both sides' readers notice.
    pub(super) fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

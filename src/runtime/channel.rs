//! The communicator, and the thread that has it while an exchange runs beside local steps.
//!
//! The communicator *moves* to that thread with what travels, and comes back with the result: so at most one thread of a rank is
//! inside the transport at a time, which is what transports ask for (over MPI: the level `serialized`, without which the
//! transport does not start). The thread blocks on a channel while it has nothing to do.

use super::exchange::Load;
use crate::collective::{Communicator, Member};
use crate::error::{Error, Result};
use crate::reduce::Operator;
use crate::transport::Rank;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// This rank's factor, from all ranks' figures.
pub(super) type Weigh = Box<dyn FnOnce(&[Member]) -> f64 + Send>;

/// An exchange that runs beside steps.
pub(super) struct Flight {
    pub(super) loads: Vec<Load>,
    /// Elements in all loads.
    pub(super) count: usize,
    pub(super) own: Member,
    pub(super) weigh: Weigh,
}

/// An exchange that has ended.
pub(super) struct Arrival {
    pub(super) loads: Vec<Load>,
    /// Seconds from everybody's arrival to the result, or why there is none.
    pub(super) transfer_seconds: Result<f64>,
}

enum News {
    /// All ranks have arrived.
    Entered(Vec<Member>),
    Arrived(Box<Communicator>, Arrival),
}

/// The communicator, here or on its way.
pub(super) struct Channel {
    rank: Rank,
    size: usize,
    communicator: Option<Communicator>,
    carrier: Option<Carrier>,
    entered: Option<Vec<Member>>,
    arrival: Option<Arrival>,
}

struct Carrier {
    flights: Sender<(Communicator, Flight)>,
    news: Receiver<News>,
    thread: JoinHandle<()>,
}

impl Channel {
    pub(super) fn new(communicator: Communicator) -> Channel {
        Channel {
            rank: communicator.rank(),
            size: communicator.size(),
            communicator: Some(communicator),
            carrier: None,
            entered: None,
            arrival: None,
        }
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether the communicator is on its way.
    pub(super) fn is_away(&self) -> bool {
        self.communicator.is_none()
    }

    /// The communicator; if it is on its way, this waits for it.
    pub(super) fn communicator(&mut self) -> &mut Communicator {
        while self.is_away() {
            self.hear();
        }
        self.communicator.as_mut().expect("it was away and has come back")
    }

    /// The communicator alone.
    pub(super) fn into_communicator(mut self) -> Communicator {
        self.communicator();
        self.communicator.take().expect("it was away and has come back")
    }

    /// Sends the communicator off with an exchange.
    ///
    /// # Errors
    /// `Environment` if no thread can be started.
    pub(super) fn depart(&mut self, flight: Flight) -> Result<()> {
        if self.carrier.is_none() {
            self.carrier = Some(Carrier::start(self.rank)?);
        }
        (self.entered, self.arrival) = (None, None);
        let communicator = self.communicator.take();
        if let (Some(carrier), Some(communicator)) = (&self.carrier, communicator)
            && carrier.flights.send((communicator, flight)).is_err()
        {
            self.propagate_panic();
        }
        Ok(())
    }

    /// All ranks' figures, when all have arrived; `None` if the exchange failed before.
    pub(super) fn wait_entered(&mut self) -> Option<Vec<Member>> {
        while self.entered.is_none() && self.is_away() {
            self.hear();
        }
        self.entered.take()
    }

    /// The exchange's end.
    ///
    /// # Errors
    /// `Internal` if none was sent off.
    pub(super) fn wait_arrival(&mut self) -> Result<Arrival> {
        self.communicator();
        self.arrival.take().ok_or_else(|| Error::Internal("no exchange is on its way".into()))
    }

    /// Waits for the thread's next word.
    fn hear(&mut self) {
        match self.carrier.as_ref().and_then(|carrier| carrier.news.recv().ok()) {
            Some(News::Entered(members)) => self.entered = Some(members),
            Some(News::Arrived(communicator, arrival)) => {
                self.communicator = Some(*communicator);
                self.arrival = Some(arrival);
            }
            None => self.propagate_panic(),
        }
    }

    /// The thread lives as long as this does, unless it panics.
    fn propagate_panic(&mut self) -> ! {
        match self.carrier.take().map(|carrier| carrier.thread.join()) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => unreachable!("the exchange thread ends with its channel"),
        }
    }
}

impl Carrier {
    fn start(rank: Rank) -> Result<Carrier> {
        let (flights, departures) = channel::<(Communicator, Flight)>();
        let (sender, news) = channel();
        let carry_all = move || {
            for (communicator, flight) in departures {
                // Nobody listens any more if the worker was dropped: then this is the end.
                if carry(communicator, flight, &sender).is_none() {
                    return;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name(format!("exchange {rank}")).spawn(carry_all).map_err(|e| {
                Error::Environment(format!("cannot start the thread that exchanges beside local steps: {e}"))
            })?;
        Ok(Carrier { flights, news, thread })
    }
}

/// Carries out one exchange on the exchange thread.
fn carry(mut communicator: Communicator, flight: Flight, news: &Sender<News>) -> Option<()> {
    let Flight { mut loads, count, own, weigh } = flight;
    let exchange = || {
        let members = communicator.enter(count, Operator::Sum, own)?.members.to_vec();
        let arrived = Instant::now();
        let weight = weigh(&members);
        // If nobody listens, the next word finds out.
        let _ = news.send(News::Entered(members));
        for load in &mut loads {
            load.weigh(weight)?;
            load.sum(&mut communicator)?;
        }
        Ok(arrived.elapsed().as_secs_f64())
    };
    let transfer_seconds = exchange();
    news.send(News::Arrived(Box::new(communicator), Arrival { loads, transfer_seconds })).ok()
}

//! Why a decision was taken: a value that prints as a sentence.

use super::adsp::AdspReason;
use super::async_diloco::AsyncDilocoReason;
use super::hermes::HermesReason;
use super::wbsp::WbspReason;
use super::{ServerReason, Versions, WorkerEvent};
use crate::transport::Rank;
use std::fmt;

/// The reason of a decision.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Training begins.
    Started,
    /// A round's first step is always done.
    FirstStep,
    /// This policy exchanges after every step.
    EveryStep,
    /// Nobody else to exchange with.
    Alone,
    /// The exchange has begun, its result is next.
    ExchangeBegun,
    /// The exchange is done, the next round begins.
    RoundBegins {
        /// Its number.
        round: u64,
    },
    /// The coordinator is asked.
    AskCoordinator,
    /// The coordinator has answered; its reason stands with its decision.
    CoordinatorDecided,
    /// This worker is the straggler: the others wait for it.
    IsStraggler {
        /// Its seconds for a step and a transfer.
        delay_seconds: f64,
    },
    /// Somebody whose speed nobody has measured yet still computes.
    NotMeasured {
        /// Who.
        rank: Rank,
    },
    /// The straggler, and with it everybody, has done its step.
    StragglerReady {
        /// Who.
        straggler: Rank,
    },
    /// Even whole rounds leave this worker no time for a second step.
    TooFewSteps {
        /// Who is waited for.
        straggler: Rank,
        /// How many of this worker's steps fit into one of the straggler's.
        steps: f64,
    },
    /// Another step would end after the straggler submits.
    WouldBeLate {
        /// Who.
        straggler: Rank,
        /// Seconds until the straggler submits.
        seconds_left: f64,
        /// Seconds that this worker needs for a step and a transfer.
        seconds_needed: f64,
    },
    /// Another step fits before the straggler submits.
    StepFits {
        /// Who.
        straggler: Rank,
        /// Seconds until the straggler submits.
        seconds_left: f64,
        /// Seconds that this worker needs for a step and a transfer.
        seconds_needed: f64,
    },
    /// The straggler is overdue: its predicted time and the grace have passed.
    StragglerOverdue {
        /// Who.
        straggler: Rank,
        /// Seconds beyond the prediction.
        seconds_late: f64,
    },
    /// The planned number of local steps is done.
    PlannedStepsDone {
        /// How many.
        local_steps: u64,
    },
    /// Fewer local steps are done than planned.
    PlannedStepsLeft {
        /// Done.
        local_steps: u64,
        /// Planned.
        planned_steps: u64,
    },
    /// The upper bound of local steps is reached.
    MostLocalSteps {
        /// The bound.
        local_steps: u64,
    },
    /// Rounds have more than one local step from now on (post-local SGD).
    RoundsGrow {
        /// Samples of all workers so far.
        samples: u64,
        /// Local steps of a round from now on.
        local_steps: u64,
    },
    /// The parameter server has decided; its reason stands with its decision.
    ServerDecided,
    /// The server's parameters are in place, and training goes on from them.
    ServerParameters {
        /// Their version.
        version: Versions,
    },
    /// A worker's loss is not a number: what it pushed would spoil the parameters.
    NotANumber {
        /// The loss.
        loss: f64,
    },
    /// The mini-batch has its new size.
    BatchSet,
    /// The server's rule has nothing to decide about this report.
    NothingToDecide,
    /// WBSP.
    Wbsp(WbspReason),
    /// Asynchronous DiLoCo.
    AsyncDiloco(AsyncDilocoReason),
    /// Hermes.
    Hermes(HermesReason),
    /// ADSP.
    Adsp(AdspReason),
    /// A parameter server's rule.
    Server(ServerReason),
    /// The length of a round was chosen again (AdaComm).
    RoundsAdapted {
        /// The mean loss since the last choice.
        loss: f64,
        /// That of the first round.
        first_loss: f64,
        /// Whether the loss asked for it; else rounds are halved.
        follows_loss: bool,
        /// Local steps of a round before.
        from: u64,
        /// And from now on.
        to: u64,
    },
    /// The losses are no measure of progress: the length of a round stays (AdaComm).
    LossSaysNothing {
        /// The mean loss since the last choice.
        loss: f64,
        /// That of the first round.
        first_loss: f64,
        /// Local steps of a round.
        local_steps: u64,
    },
    /// It is this fragment's turn to be exchanged.
    FragmentDue {
        /// Which.
        index: u16,
        /// Steps done so far.
        steps: u64,
    },
    /// An exchange runs, and steps go on beside it.
    RunsBesideSteps {
        /// Steps until its result is needed.
        steps_left: u64,
    },
    /// The steps beside an exchange are done, its result is due.
    OverlapEnds {
        /// Steps done so far.
        steps: u64,
    },
    /// The last round's exchange ran beside this round's steps, and its result is due.
    LastRoundsExchangeDue,
    /// The last round is applied, and this round's exchange begins.
    LastRoundApplied,
    /// All ranks agreed to stop: an exchange takes in what is not sent yet.
    LastExchange,
    /// All ranks agreed to stop.
    Agreed,
    /// A budget is spent, or somebody asked to stop.
    StopRequested,
    /// The driver broke the contract of `WorkerPolicy`: this event does not answer the last action.
    Unexpected {
        /// What was told.
        event: String,
    },
    /// A policy's own words, for policies outside this crate.
    Custom(String),
}

impl Reason {
    pub(crate) fn unexpected(event: &WorkerEvent) -> Self {
        Reason::Unexpected { event: format!("{event:?}") }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Started => write!(f, "training begins"),
            Reason::FirstStep => write!(f, "the first step of a round is always done"),
            Reason::EveryStep => write!(f, "this policy exchanges after every step"),
            Reason::Alone => write!(f, "this worker trains alone"),
            Reason::ExchangeBegun => write!(f, "the exchange has begun and its result is needed next"),
            Reason::RoundBegins { round } => write!(f, "round {round} begins"),
            Reason::AskCoordinator => write!(f, "the state server decides"),
            Reason::CoordinatorDecided => write!(f, "the state server has decided"),
            Reason::IsStraggler { delay_seconds } => {
                write!(f, "this worker is the straggler ({delay_seconds:.4} s for a step and a transfer)")
            }
            Reason::NotMeasured { rank } => {
                write!(f, "rank {rank} still computes, and its speed is not known yet")
            }
            Reason::TooFewSteps { straggler, steps } => {
                write!(f, "only {steps:.2} of this worker's steps fit into one of rank {straggler}")
            }
            Reason::StragglerReady { straggler } => {
                write!(f, "nobody computes a first step any more: the straggler, rank {straggler}, is ready")
            }
            Reason::WouldBeLate { straggler, seconds_left, seconds_needed } => write!(
                f,
                "another step needs {seconds_needed:.4} s and rank {straggler} submits in {seconds_left:.4} s"
            ),
            Reason::StepFits { straggler, seconds_left, seconds_needed } => write!(
                f,
                "a step of {seconds_needed:.4} s fits before rank {straggler} submits in {seconds_left:.4} s"
            ),
            Reason::StragglerOverdue { straggler, seconds_late } => {
                write!(f, "the straggler, rank {straggler}, is {seconds_late:.3} s overdue")
            }
            Reason::PlannedStepsDone { local_steps } => {
                write!(f, "the {local_steps} planned local steps are done")
            }
            Reason::PlannedStepsLeft { local_steps, planned_steps } => {
                write!(f, "{local_steps} of {planned_steps} planned local steps are done")
            }
            Reason::MostLocalSteps { local_steps } => {
                write!(f, "the upper bound of {local_steps} local steps is reached")
            }
            Reason::RoundsGrow { samples, local_steps } => {
                write!(f, "{samples} samples are done: rounds have {local_steps} local steps from now on")
            }
            Reason::ServerDecided => write!(f, "the parameter server has decided"),
            Reason::ServerParameters { version } => {
                write!(f, "the server's parameters, version {version}, are in place")
            }
            Reason::NotANumber { loss } => {
                write!(
                    f,
                    "its loss is {loss}: its push is thrown away, and it begins again from the server's parameters"
                )
            }
            Reason::BatchSet => write!(f, "the mini-batch has its new size, and the parameters are next"),
            Reason::NothingToDecide => write!(f, "the server has nothing to decide about this"),
            Reason::Wbsp(reason) => reason.fmt(f),
            Reason::AsyncDiloco(reason) => reason.fmt(f),
            Reason::Hermes(reason) => reason.fmt(f),
            Reason::Adsp(reason) => reason.fmt(f),
            Reason::Server(reason) => reason.fmt(f),
            Reason::RoundsAdapted { loss, first_loss, follows_loss: true, from, to } => write!(
                f,
                "the loss is {loss:.4} and was {first_loss:.4} at first: rounds of {from} local steps become rounds of {to}"
            ),
            Reason::RoundsAdapted { loss, first_loss, follows_loss: false, from, to } => write!(
                f,
                "the loss is {loss:.4} and was {first_loss:.4} at first: it asks for no shorter rounds, which are halved from \
                 {from} to {to} local steps"
            ),
            Reason::LossSaysNothing { loss, first_loss, local_steps } => write!(
                f,
                "losses of {loss:.4} and, at first, {first_loss:.4} have no ratio to go by: rounds keep their {local_steps} \
                 local steps"
            ),
            Reason::FragmentDue { index, steps } => write!(f, "fragment {index} is due after {steps} steps"),
            Reason::RunsBesideSteps { steps_left } => {
                write!(f, "an exchange runs, and {steps_left} more steps fit beside it")
            }
            Reason::OverlapEnds { steps } => {
                write!(f, "the result of the exchange is due after {steps} steps")
            }
            Reason::LastRoundsExchangeDue => {
                write!(f, "the last round's exchange ran beside this round's steps, and its result is due")
            }
            Reason::LastRoundApplied => {
                write!(
                    f,
                    "the last round is applied: this round's exchange runs beside the next round's steps"
                )
            }
            Reason::LastExchange => {
                write!(f, "all ranks agreed to stop: one more exchange takes in what was not sent yet")
            }
            Reason::Agreed => write!(f, "all ranks agreed to stop"),
            Reason::StopRequested => write!(f, "a budget is spent or somebody asked to stop"),
            Reason::Unexpected { event } => write!(f, "internal error, please report it: unexpected {event}"),
            Reason::Custom(words) => f.write_str(words),
        }
    }
}

//! Looking on while a simulation runs.

use super::record::EvaluationRecord;
use crate::error::Result;
use crate::policy::{Action, Directive, MemberReport, Reason};
use crate::transport::Rank;
use std::sync::Arc;

/// A step that has just been done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimStep {
    /// Its number on this worker, from 1.
    pub local_step: u64,
    /// Virtual seconds, pauses included.
    pub seconds: f64,
    /// Samples in it.
    pub samples: usize,
    /// Its training loss.
    pub loss: f64,
}

/// An exchange whose result a worker has just put in place.
#[derive(Debug, Clone)]
pub struct SimExchange {
    /// Its number, from 1.
    pub exchange: u64,
    /// All members' figures.
    pub members: Arc<[MemberReport]>,
    /// Samples of all workers up to this exchange.
    pub global_samples: u64,
    /// How long this worker waited for others.
    pub wait_seconds: f64,
    /// How long the exchange took it after that.
    pub exchange_seconds: f64,
    /// Bytes that this worker has sent so far.
    pub bytes_sent: u64,
}

/// A push whose answer has just arrived.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SimPush {
    /// Its number on this worker, from 1.
    pub push: u64,
    /// Steps that it sums up.
    pub local_steps: u64,
    /// Samples in them.
    pub samples: u64,
    /// Their mean training loss.
    pub loss: f64,
    /// The version that the worker's anchor came from.
    pub base: u64,
    /// Updates since then when it was applied, if it has been.
    pub staleness: Option<u64>,
    /// Bytes that travelled.
    pub bytes: u64,
    /// For how long the server held its answer.
    pub wait_seconds: f64,
    /// For how long the push and its answer travelled.
    pub exchange_seconds: f64,
}

/// A server's parameters that a worker has just put in place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimPull {
    /// Their version.
    pub version: u64,
    /// Bytes that travelled.
    pub bytes: u64,
    /// For how long they were asked for and travelled, if they did not come with a push's answer.
    pub exchange_seconds: f64,
}

/// Is told everything, with the virtual time in seconds. Does nothing by default.
pub trait Watch {
    /// A policy or a coordinator decided.
    ///
    /// # Errors
    /// Whatever ends the simulation; so for all of these.
    fn decided(&mut self, seconds: f64, rank: Rank, action: &Action, reason: &Reason) -> Result<()> {
        let _ = (seconds, rank, action, reason);
        Ok(())
    }

    /// A step was done.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn stepped(&mut self, seconds: f64, rank: Rank, step: &SimStep) -> Result<()> {
        let _ = (seconds, rank, step);
        Ok(())
    }

    /// A worker has the result of an exchange.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn exchanged(&mut self, seconds: f64, rank: Rank, exchange: &SimExchange) -> Result<()> {
        let _ = (seconds, rank, exchange);
        Ok(())
    }

    /// The parameter server's rule wants something done; `version` is the server's before it.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn served(&mut self, seconds: f64, directive: &Directive, version: u64) -> Result<()> {
        let _ = (seconds, directive, version);
        Ok(())
    }

    /// A push was answered.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn pushed(&mut self, seconds: f64, rank: Rank, push: &SimPush) -> Result<()> {
        let _ = (seconds, rank, push);
        Ok(())
    }

    /// A worker put the server's parameters in place.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn pulled(&mut self, seconds: f64, rank: Rank, pull: &SimPull) -> Result<()> {
        let _ = (seconds, rank, pull);
        Ok(())
    }

    /// The global parameters were measured.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn evaluated(&mut self, evaluation: &EvaluationRecord) -> Result<()> {
        let _ = evaluation;
        Ok(())
    }

    /// A worker died.
    ///
    /// # Errors
    /// Whatever ends the simulation.
    fn died(&mut self, seconds: f64, rank: Rank) -> Result<()> {
        let _ = (seconds, rank);
        Ok(())
    }
}

/// Looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;
impl Watch for Unwatched {}

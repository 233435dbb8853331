//! `--mode streaming-diloco`: DiLoCo in fragments, whose exchanges overlap with local steps (Douillard et al., *Streaming DiLoCo
//! with overlapping communication*, 2025).
//!
//! The parameters are cut into F fragments. Each is exchanged every H steps at an offset of its own, so that never more than
//! one F-th of the model travels at once. An exchange begins τ steps before its result is used; meanwhile steps go on. The
//! result meets the local parameters as `(1 − α) · new + α · local`. The outer momentum is a fragment's own.
//!
//! At the end every fragment is exchanged once more, so that all ranks end with the same parameters.

use super::{
    Action, ExchangeId, Fragment, Install, Payload, PolicyOptions, Preset, Reason, Update, WorkerEvent,
    WorkerPolicy, diloco,
};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Which parameters make up a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FragmentMap {
    /// Layer `l` belongs to fragment `l mod F`: every fragment has shallow and deep layers.
    #[default]
    Strided,
    /// Equal parts one after the other, wherever layers end.
    Contiguous,
}

impl FragmentMap {
    /// Every map.
    pub const ALL: [FragmentMap; 2] = [Self::Strided, Self::Contiguous];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strided => "strided",
            Self::Contiguous => "contiguous",
        }
    }
}

impl fmt::Display for FragmentMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FragmentMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        super::by_name("fragment map", text, &Self::ALL, Self::name)
    }
}

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// F.
    pub fragments: u16,
    /// H: steps between two exchanges of a fragment; a multiple of F.
    pub local_steps: u64,
    /// τ: steps during an exchange, less than H/F.
    pub overlap_steps: u64,
    /// α: the share that the local parameters keep.
    pub mix: f64,
}

/// H of a job of about sixty steps.
const LOCAL_STEPS: u64 = 8;

/// Fragments if nothing is said: every built-in network with more than one layer has so many.
pub const FRAGMENTS: u16 = 2;

impl Settings {
    /// The settings of these options.
    ///
    /// # Errors
    /// `Usage` if they do not fit together.
    pub fn from_options(options: &PolicyOptions) -> Result<Settings> {
        let (local_steps, overlap_steps) = match options.preset() {
            Preset::Scaled => (LOCAL_STEPS, 1),
            Preset::Paper => (diloco::PAPER_LOCAL_STEPS, 5),
        };
        let settings = Settings {
            fragments: options.fragments.unwrap_or(FRAGMENTS),
            local_steps: options.local_steps.unwrap_or(local_steps),
            overlap_steps: options.overlap_steps.unwrap_or(overlap_steps),
            mix: options.mix.unwrap_or(0.5),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        let Settings { fragments, local_steps, overlap_steps, mix } = *self;
        let refuse = |words: String| Err(Error::Usage(words));
        if fragments == 0 || local_steps == 0 || !local_steps.is_multiple_of(fragments.into()) {
            return refuse(format!(
                "--local-steps is {local_steps} and --fragments {fragments}: the steps must be a multiple of the fragments, \
                 which take turns"
            ));
        }
        let spacing = local_steps / u64::from(fragments);
        if overlap_steps >= spacing {
            return refuse(format!(
                "--overlap-steps is {overlap_steps}; with --local-steps {local_steps} and --fragments {fragments} an exchange \
                 begins every {spacing} steps, and the last one must have ended: at most {} fit",
                spacing - 1
            ));
        }
        if !(0.0..=1.0).contains(&mix) {
            return refuse(format!("--mix is {mix}; it must be from 0 to 1"));
        }
        Ok(())
    }
}

/// The workers' rule.
///
/// ```
/// use esync::policy::streaming_diloco::{Settings, StreamingDiloco};
/// use esync::policy::{Action, WorkerEvent, WorkerPolicy};
///
/// let settings = Settings { fragments: 2, local_steps: 4, overlap_steps: 1, mix: 0.5 };
/// let mut policy = StreamingDiloco::new(settings)?;
/// let stepped = || WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 };
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() });
/// policy.next(stepped());
/// let (action, reason) = policy.next(stepped());
/// assert!(matches!(action, Action::Begin { .. }));
/// assert_eq!(reason.to_string(), "fragment 1 is due after 2 steps");
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StreamingDiloco {
    settings: Settings,
    steps: u64,
    exchanges: u64,
    in_flight: Option<InFlight>,
    /// All ranks agreed to stop: the next fragment to be exchanged for the last time.
    last: Option<u16>,
}

/// An exchange that has begun.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    exchange: ExchangeId,
    fragment: Fragment,
    /// It ends after this many steps of training.
    due: u64,
}

const STEP: Action = Action::Step { update: Update::Local };

impl StreamingDiloco {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// `Usage` if the settings do not fit together.
    pub fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        Ok(StreamingDiloco { settings, steps: 0, exchanges: 0, in_flight: None, last: None })
    }

    fn stepped(&mut self) -> (Action, Reason) {
        self.steps += 1;
        let spacing = self.settings.local_steps / u64::from(self.settings.fragments);
        match self.in_flight {
            Some(flight) if flight.due <= self.steps => self.finish(flight),
            Some(flight) => (STEP, Reason::RunsBesideSteps { steps_left: flight.due - self.steps }),
            None if self.steps.is_multiple_of(spacing) => {
                let index = (self.steps / spacing % u64::from(self.settings.fragments)) as u16;
                self.begin(index, Reason::FragmentDue { index, steps: self.steps })
            }
            None => {
                let (local_steps, planned_steps) = (self.steps % spacing, spacing);
                (STEP, Reason::PlannedStepsLeft { local_steps, planned_steps })
            }
        }
    }

    fn begin(&mut self, index: u16, reason: Reason) -> (Action, Reason) {
        let exchange = ExchangeId(self.exchanges);
        let fragment = Fragment::Part { index, count: self.settings.fragments };
        let due = self.steps + self.settings.overlap_steps;
        self.exchanges += 1;
        self.in_flight = Some(InFlight { exchange, fragment, due });
        (Action::Begin { exchange, fragment, payload: Payload::Delta }, reason)
    }

    fn finish(&self, flight: InFlight) -> (Action, Reason) {
        let InFlight { exchange, fragment, due } = flight;
        match self.last {
            Some(_) => {
                (Action::Finish { exchange, fragment, install: Install::Rebase }, Reason::ExchangeBegun)
            }
            None => {
                let install = Install::Mix { alpha: self.settings.mix };
                let reason = match self.settings.overlap_steps {
                    0 => Reason::ExchangeBegun,
                    _ => Reason::OverlapEnds { steps: due },
                };
                (Action::Finish { exchange, fragment, install }, reason)
            }
        }
    }

    fn finished(&mut self, stop: bool) -> (Action, Reason) {
        self.in_flight = None;
        let index = match self.last {
            Some(index) => index + 1,
            None if stop => 0,
            None => return (STEP, Reason::RoundBegins { round: self.exchanges }),
        };
        if index == self.settings.fragments {
            return (Action::Stop, Reason::Agreed);
        }
        self.last = Some(index);
        self.begin(index, Reason::LastExchange)
    }
}

impl WorkerPolicy for StreamingDiloco {
    fn name(&self) -> &'static str {
        "streaming-diloco"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match (event, self.in_flight) {
            (WorkerEvent::Started { .. }, None) => (STEP, Reason::Started),
            (WorkerEvent::Stepped { .. }, _) if self.last.is_none() => self.stepped(),
            (WorkerEvent::Begun { exchange }, Some(flight)) if exchange == flight.exchange => {
                match self.last.is_some() || self.settings.overlap_steps == 0 {
                    true => self.finish(flight),
                    false => (STEP, Reason::RunsBesideSteps { steps_left: self.settings.overlap_steps }),
                }
            }
            (WorkerEvent::Finished { exchange, stop, .. }, Some(flight)) if exchange == flight.exchange => {
                self.finished(stop)
            }
            (WorkerEvent::StopRequested, _) => (Action::Stop, Reason::StopRequested),
            (other, _) => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy does until it stops, all agreeing to after exchange number `last`: `s`, `B0`, `F0` …
    fn trace(settings: Settings, last: u64) -> String {
        let mut policy = StreamingDiloco::new(settings).unwrap();
        let mut event = WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() };
        let mut words = Vec::new();
        loop {
            let (action, _) = policy.next(event);
            let name = |letter, fragment| match fragment {
                Fragment::Part { index, .. } => format!("{letter}{index}"),
                Fragment::Whole => panic!("the whole model"),
            };
            event = match action {
                Action::Step { update: Update::Local } => {
                    words.push("s".to_string());
                    WorkerEvent::Stepped { step_seconds: 0.1, samples: 8, loss: 1.0 }
                }
                Action::Begin { exchange, fragment, payload: Payload::Delta } => {
                    words.push(name('B', fragment));
                    WorkerEvent::Begun { exchange }
                }
                Action::Finish { exchange, fragment, install } => {
                    let is_last = exchange.0 > last;
                    assert_eq!(install == Install::Rebase, is_last, "{install:?}");
                    words.push(name(if is_last { 'R' } else { 'M' }, fragment));
                    let (members, stop) = ([].into(), exchange.0 >= last);
                    WorkerEvent::Finished {
                        exchange,
                        transfer_seconds: 0.0,
                        wait_seconds: 0.0,
                        members,
                        stop,
                    }
                }
                Action::Stop => return words.join(" "),
                other => panic!("{other:?}"),
            };
        }
    }

    #[test]
    fn fragments_take_turns_and_steps_go_on() {
        let settings = Settings { fragments: 3, local_steps: 6, overlap_steps: 1, mix: 0.5 };
        assert_eq!(trace(settings, 3), "s s B1 s M1 s B2 s M2 s B0 s M0 s B1 s M1 B0 R0 B1 R1 B2 R2");
        let at_once = Settings { fragments: 2, overlap_steps: 0, ..settings };
        assert_eq!(trace(at_once, 1), "s s s B1 M1 s s s B0 M0 B0 R0 B1 R1");
        let one = Settings { fragments: 1, local_steps: 2, overlap_steps: 1, mix: 0.0 };
        assert_eq!(trace(one, 1), "s s B0 s M0 s B0 s M0 B0 R0");
    }

    #[test]
    fn settings_must_fit_together() {
        let fits = PolicyOptions { local_steps: Some(12), fragments: Some(3), ..PolicyOptions::default() };
        assert!(Settings::from_options(&fits).is_ok());
        let refused = |options: PolicyOptions, words: &str| {
            let error = Settings::from_options(&options).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(PolicyOptions { fragments: Some(5), ..fits.clone() }, "must be a multiple");
        refused(PolicyOptions { fragments: Some(0), ..fits.clone() }, "must be a multiple");
        refused(PolicyOptions { overlap_steps: Some(4), ..fits.clone() }, "at most 3 fit");
        refused(PolicyOptions { mix: Some(1.5), ..fits.clone() }, "--mix is 1.5");
        assert_eq!(
            Settings::from_options(&PolicyOptions { preset: Some(Preset::Paper), ..Default::default() })
                .unwrap()
                .local_steps,
            500
        );
    }
}

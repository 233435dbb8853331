//! What the unit tests of servers' rules share.

use super::{Directive, LocalSteps, Payload, PushRule, Report, Versions};
use std::time::Duration;

pub(super) const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A push of one step's delta, of 32 samples, whose worker pulled version `base`.
pub(super) fn push(base: u64) -> Report {
    let (payload, local_steps, base) = (Payload::Delta, LocalSteps(1), Versions(base));
    Report::Pushed {
        payload,
        local_steps,
        samples: 32,
        loss: 1.0,
        seconds_since_push: 1.0,
        compute_seconds: 1.0,
        base,
        norm: 1.0,
    }
}

/// The same with a loss that is no number.
pub(super) fn push_without_number() -> Report {
    let mut report = push(0);
    if let Report::Pushed { loss, .. } = &mut report {
        *loss = f64::NAN;
    }
    report
}

/// Directives in a few letters.
pub(super) fn words(directives: &[Directive]) -> String {
    let word = |directive: &Directive| match directive {
        Directive::Apply { from, rule: PushRule::Add { scale }, .. } => format!("add {from} × {scale}"),
        Directive::Apply { from, rule: PushRule::Elastic { .. }, .. } => format!("elastic {from}"),
        Directive::Apply { from, rule: PushRule::Discard, .. } => format!("discard {from}"),
        Directive::Apply { from, rule, .. } => format!("{rule:?} {from}"),
        Directive::Publish { .. } => "publish".into(),
        Directive::Reply { to, reply, .. } => format!("{to}: {reply:?}"),
        Directive::Evaluate => "evaluate".into(),
    };
    directives.iter().map(word).collect::<Vec<_>>().join(", ")
}

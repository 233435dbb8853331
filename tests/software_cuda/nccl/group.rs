//! Groups: what a thread gives between `ncclGroupStart` and `ncclGroupEnd` runs together.

use super::collective::Collective;
use super::communicator::Communicator;
use super::{Outcome, refuse};
use crate::stream::Stream;
use cudarc::nccl::sys::ncclResult_t;
use std::cell::RefCell;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Task {
    pub(super) communicator: Arc<Communicator>,
    pub(super) stream: Arc<Stream>,
    pub(super) work: Work,
}

/// Addresses are device pointers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Send { peer: usize, from: u64, bytes: usize },
    Receive { peer: usize, to: u64, bytes: usize },
    Collective(Collective),
}

#[derive(Debug, Default)]
struct Group {
    depth: usize,
    tasks: Vec<Task>,
    /// Communicators whose start the group's end waits for.
    starting: Vec<Arc<Communicator>>,
    failure: Option<ncclResult_t>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub(super) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

pub(super) fn is_open() -> bool {
    GROUP.with_borrow(|group| group.depth > 0)
}

/// A call that failed within the group makes its end fail.
pub(super) fn note(result: Outcome) {
    GROUP.with_borrow_mut(|group| {
        if let Err(code) = result
            && group.depth > 0
        {
            group.failure.get_or_insert(code);
        }
    });
}

pub(super) fn await_start(communicator: Arc<Communicator>) {
    GROUP.with_borrow_mut(|group| group.starting.push(communicator));
}

/// A task outside of any group is a group of its own.
pub(super) fn add(task: Task) -> Outcome {
    start();
    GROUP.with_borrow_mut(|group| group.tasks.push(task));
    end()
}

pub(super) fn end() -> Outcome {
    let group = GROUP.with_borrow_mut(|group| {
        group.depth = group.depth.checked_sub(1)?;
        Some(if group.depth > 0 { Group::default() } else { std::mem::take(group) })
    });
    let Some(group) = group else {
        return refuse(ncclResult_t::ncclInvalidUsage, format_args!("ncclGroupEnd without ncclGroupStart"));
    };
    if let Some(code) = group.failure {
        return Err(code);
    }
    for communicator in group.starting {
        match communicator.settled_state() {
            ncclResult_t::ncclSuccess => {}
            code => return Err(code),
        }
    }
    let mut result = Ok(());
    let mut tasks = group.tasks;
    while let Some(first) = tasks.first() {
        let communicator = Arc::clone(&first.communicator);
        let (own, others) =
            tasks.into_iter().partition(|task| Arc::ptr_eq(&task.communicator, &communicator));
        tasks = others;
        check_own_messages(&own)?;
        result = result.and(communicator.launch(own));
    }
    result
}

/// A rank's messages to itself must be all in one group.
fn check_own_messages(tasks: &[Task]) -> Outcome {
    let own = |pick: fn(&Work) -> Option<(usize, usize)>| -> Vec<usize> {
        let rank = |task: &Task| task.communicator.rank;
        tasks
            .iter()
            .filter_map(|task| pick(&task.work).filter(|(peer, _)| *peer == rank(task)))
            .map(|it| it.1)
            .collect()
    };
    let sent = own(|work| match *work {
        Work::Send { peer, bytes, .. } => Some((peer, bytes)),
        _ => None,
    });
    let received = own(|work| match *work {
        Work::Receive { peer, bytes, .. } => Some((peer, bytes)),
        _ => None,
    });
    if sent != received {
        return refuse(
            ncclResult_t::ncclInvalidUsage,
            format_args!(
                "messages of a rank to itself do not match: {sent:?} bytes sent, {received:?} received"
            ),
        );
    }
    Ok(())
}

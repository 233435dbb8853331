//! What a schedule does, round by round: which messages travel together, and what every rank holds in between.

use crate::collective::{Kind, Operation, Place, Schedule, Slice, Step, part};
use crate::transport::Rank;
use std::collections::HashMap;
use std::ops::Range;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) round: usize,
    pub(super) from: Rank,
    pub(super) to: Rank,
    /// Elements of the sender's vector (or scratch space).
    pub(super) sent: Slice,
    /// Where the receiver's vector takes them in, if it does in the same stage.
    pub(super) lands: Option<Range<usize>>,
    /// Whether they are combined with what is there, rather than stored.
    pub(super) reduced: bool,
}

/// Which ranks' contributions an element holds, one bit for each rank.
pub(super) type Contributors = u64;

/// A schedule's rounds. A message's round is the number of messages that had to arrive, one after the other, before it
/// could travel.
pub(super) struct Rounds {
    pub(super) transfers: Vec<Transfer>,
    /// `held[round][rank][element]`, before the round and after the last one.
    pub(super) held: Vec<Vec<Vec<Contributors>>>,
}

/// What the receiver does, in the same stage, with what it received: where it lands in its vector, and whether it is
/// combined.
pub(super) fn use_of(received: &Slice, steps: &[Step]) -> (Option<Range<usize>>, bool) {
    for step in steps {
        match step {
            Step::Reduce { into, left, right } if left.overlaps(received) || right.overlaps(received) => {
                return (in_vector(into), true);
            }
            Step::Copy { into, from } if from.overlaps(received) => return (in_vector(into), false),
            _ => {}
        }
    }
    (in_vector(received), false)
}

fn in_vector(slice: &Slice) -> Option<Range<usize>> {
    (slice.place == Place::Buffer).then(|| slice.range.clone())
}

/// One end of a message: the rank's stage, and the step in it.
type End = (Rank, usize, usize);

/// The receive of each send: between two ranks, messages are matched in order.
fn matched(schedules: &[Schedule]) -> HashMap<End, End> {
    let mut sends: HashMap<(Rank, Rank), Vec<End>> = HashMap::new();
    let mut receives = sends.clone();
    for (rank, schedule) in schedules.iter().enumerate() {
        for (number, stage) in schedule.stages.iter().enumerate() {
            for (index, step) in stage.steps.iter().enumerate() {
                match step {
                    Step::Send { to, .. } => {
                        sends.entry((rank, *to)).or_default().push((rank, number, index))
                    }
                    Step::Recv { from, .. } => {
                        receives.entry((*from, rank)).or_default().push((rank, number, index))
                    }
                    Step::Copy { .. } | Step::Reduce { .. } => {}
                }
            }
        }
    }
    let pairs = sends.into_iter().map(|(pair, sends)| (sends, receives.remove(&pair).unwrap_or_default()));
    pairs.flat_map(|(sends, receives)| sends.into_iter().zip(receives)).collect()
}

/// When each rank begins each stage, and when it has finished its last.
fn starts(schedules: &[Schedule], peers: &HashMap<End, End>) -> Vec<Vec<usize>> {
    let mut starts: Vec<Vec<usize>> = vec![vec![0]; schedules.len()];
    let mut ends_of: HashMap<(Rank, usize), Vec<(Rank, usize)>> = HashMap::new();
    for (&(from, sent, _), &(to, received, _)) in peers {
        ends_of.entry((from, sent)).or_default().push((to, received));
        ends_of.entry((to, received)).or_default().push((from, sent));
    }
    let mut moved = true;
    while moved {
        moved = false;
        for rank in 0..schedules.len() {
            while starts[rank].len() <= schedules[rank].stages.len() {
                let stage = starts[rank].len() - 1;
                let own = starts[rank][stage];
                let others = ends_of.get(&(rank, stage)).map_or(&[][..], Vec::as_slice);
                let begun: Option<Vec<usize>> =
                    others.iter().map(|&(other, stage)| starts[other].get(stage).copied()).collect();
                // Not yet: another rank has to come as far first.
                let Some(begun) = begun else { break };
                starts[rank].push(begun.into_iter().map(|other| own.max(other) + 1).max().unwrap_or(own));
                moved = true;
            }
        }
    }
    starts
}

impl Rounds {
    /// The rounds of the schedules of all ranks, which the verifier has proved, on vectors of `len` elements.
    pub(super) fn of(schedules: &[Schedule], operation: &Operation, len: usize) -> Rounds {
        let peers = matched(schedules);
        let starts = starts(schedules, &peers);
        let mut transfers = Vec::new();
        for (&(from, sent_stage, sent_step), &(to, stage, step)) in &peers {
            let steps = &schedules[to].stages[stage].steps;
            let (Step::Send { from: sent, .. }, Step::Recv { into, .. }) =
                (&schedules[from].stages[sent_stage].steps[sent_step], &steps[step])
            else {
                continue;
            };
            let (lands, reduced) = use_of(into, steps);
            let round = starts[from][sent_stage].max(starts[to][stage]);
            transfers.push(Transfer { round, from, to, sent: sent.clone(), lands, reduced });
        }
        transfers
            .sort_by_key(|transfer| (transfer.round, transfer.from, transfer.to, transfer.sent.range.start));
        let mut ranks: Vec<Holder> = schedules
            .iter()
            .enumerate()
            .map(|(rank, schedule)| Holder::new(operation, rank, schedules.len(), schedule, len))
            .collect();
        let rounds = transfers.last().map_or(0, |transfer| transfer.round + 1);
        let mut messages: HashMap<End, Vec<Contributors>> = HashMap::new();
        let received_from: HashMap<End, End> =
            peers.iter().map(|(&send, &receive)| (receive, send)).collect();
        let mut held = Vec::new();
        let mut next = vec![0; schedules.len()];
        for round in 0..=rounds {
            // Stages that end now, in which nobody waits for anybody, until every rank is inside a stage or done. A stage's
            // messages are taken when it begins.
            let mut moved = true;
            while moved {
                moved = false;
                for rank in 0..schedules.len() {
                    let Some(stage) = schedules[rank].stages.get(next[rank]) else { continue };
                    let number = next[rank];
                    if starts[rank][number] == round || round == 0 {
                        for (index, step) in stage.steps.iter().enumerate() {
                            if let Step::Send { from, .. } = step {
                                messages
                                    .entry((rank, number, index))
                                    .or_insert_with(|| ranks[rank].read(from));
                            }
                        }
                    }
                    if starts[rank][number + 1] <= round {
                        ranks[rank].finish(rank, number, &stage.steps, |end| {
                            received_from
                                .get(&end)
                                .and_then(|send| messages.get(send))
                                .cloned()
                                .unwrap_or_default()
                        });
                        next[rank] += 1;
                        moved = true;
                    }
                }
            }
            held.push(ranks.iter().map(|holder| holder.places[0].clone()).collect());
        }
        Rounds { transfers, held }
    }
}

/// The contributors to every element of a rank's vector and scratch space.
struct Holder {
    /// The vector, then the scratch spaces.
    places: Vec<Vec<Contributors>>,
}

impl Holder {
    fn new(operation: &Operation, rank: Rank, size: usize, schedule: &Schedule, len: usize) -> Self {
        let own = 1 << rank;
        let mut vector = vec![0; len];
        match operation.kind {
            Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce => vector.fill(own),
            Kind::AllGather => vector[part(len, size, rank)].fill(own),
            Kind::Broadcast if rank == operation.root => vector.fill(own),
            Kind::Broadcast => {}
        }
        let scratch = schedule.scratch.iter().map(|&len| vec![0; len]);
        Holder { places: std::iter::once(vector).chain(scratch).collect() }
    }

    fn index(place: Place) -> usize {
        match place {
            Place::Buffer => 0,
            Place::Scratch(number) => number + 1,
        }
    }

    fn read(&self, slice: &Slice) -> Vec<Contributors> {
        self.places[Self::index(slice.place)][slice.range.clone()].to_vec()
    }

    fn write(&mut self, slice: &Slice, values: &[Contributors]) {
        self.places[Self::index(slice.place)][slice.range.clone()].copy_from_slice(values);
    }

    fn finish(
        &mut self,
        rank: Rank,
        stage: usize,
        steps: &[Step],
        message: impl Fn(End) -> Vec<Contributors>,
    ) {
        for (index, step) in steps.iter().enumerate() {
            if let Step::Recv { into, .. } = step {
                self.write(into, &message((rank, stage, index)));
            }
        }
        for step in steps {
            match step {
                Step::Copy { into, from } => {
                    let values = self.read(from);
                    self.write(into, &values);
                }
                Step::Reduce { into, left, right } => {
                    let (left, right) = (self.read(left), self.read(right));
                    let both: Vec<_> = left.iter().zip(right).map(|(left, right)| left | right).collect();
                    self.write(into, &both);
                }
                Step::Send { .. } | Step::Recv { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::verify::verify_schedules;
    use crate::collective::{COLLECTIVE_NAMES, Topology, collective_by_name};

    #[test]
    fn the_rounds_are_those_of_the_proof_and_end_with_everything() {
        for name in COLLECTIVE_NAMES {
            let collective = collective_by_name(name, None).expect("a name of the registry");
            for size in 1..=9 {
                let operation = Operation::new(Kind::AllReduce);
                let topology = Topology::flat(size);
                let schedules: crate::Result<Vec<Schedule>> =
                    (0..size).map(|rank| collective.schedule(&operation, &topology, rank, 50)).collect();
                let Ok(schedules) = schedules else { continue };
                let proof = verify_schedules(&schedules, &operation, 50).expect(name);
                let rounds = Rounds::of(&schedules, &operation, 50);
                assert_eq!(rounds.held.len(), proof.rounds() + 1, "{name}, {size} ranks");
                let sent: usize = rounds.transfers.iter().map(|transfer| transfer.sent.len()).sum();
                assert_eq!(sent, proof.ranks().iter().map(|rank| rank.sent).sum::<usize>());
                let all = (1 << size) - 1;
                let last = rounds.held.last().expect("at least one");
                assert!(last.iter().flatten().all(|&held| held == all), "{name}, {size} ranks");
            }
        }
    }
}

//! How a communicator comes to the algorithm of an operation: fixed, or chosen by `auto`.

use super::auto::{Auto, Decision, Knowledge, NativeReach, Question};
use super::registry::COLLECTIVE_NAMES;
use super::{Collective, Communicator, Member, Operation, ParameterServer};
use crate::error::Result;
use crate::reduce::ElementType;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// The algorithm of an operation, and its name in messages and in the entry's header.
#[derive(Clone)]
pub(super) struct Chosen {
    pub(super) collective: Arc<dyn Collective>,
    pub(super) label: &'static str,
}

impl Chosen {
    pub(super) fn fixed(collective: Arc<dyn Collective>) -> Self {
        let label = collective.name();
        Chosen { collective, label }
    }

    /// What `auto` uses until the ranks have agreed what it knows: it does every kind in every order.
    pub(super) fn before_agreement() -> Self {
        Chosen { collective: Arc::new(ParameterServer { servers: None }), label: "auto" }
    }

    /// The name of a choice whose vectors travel between GPUs by NCCL.
    #[cfg(feature = "cuda")]
    pub(super) fn label_over_nccl(&self) -> &'static str {
        LABELS_OVER_NCCL.get(self.label).map_or("over nccl", String::as_str)
    }

    fn by_auto(collective: Arc<dyn Collective>) -> Self {
        let label = LABELS.get(collective.name()).map_or("auto", String::as_str);
        Chosen { collective, label }
    }
}

/// Names of what `auto` has chosen, so that a disagreement about it is a mismatch that says what each rank chose.
static LABELS: LazyLock<HashMap<&'static str, String>> =
    LazyLock::new(|| COLLECTIVE_NAMES.iter().map(|&name| (name, format!("auto: {name}"))).collect());

/// The same for vectors in GPU memory, where a rank with its vector in host memory could not take part.
#[cfg(feature = "cuda")]
static LABELS_OVER_NCCL: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let labels = COLLECTIVE_NAMES.iter().copied().chain(LABELS.values().map(String::as_str));
    labels.map(|label| (label, format!("{label} over nccl"))).collect()
});

type Key = (Operation, usize, ElementType);

/// `auto` at work: what the ranks agreed on, and what was decided so far.
pub(super) struct Chooser {
    auto: Auto,
    /// For what is no operation.
    unchosen: Chosen,
    knowledge: Option<Knowledge>,
    decided: HashMap<Key, (Operation, Chosen)>,
    /// What the communicator's present choice is for: most calls are like the one before.
    last: Option<(Key, Operation)>,
}

impl Chooser {
    pub(super) fn new(auto: Auto) -> Self {
        let (unchosen, decided) = (Chosen::before_agreement(), HashMap::new());
        Chooser { auto, unchosen, knowledge: None, decided, last: None }
    }

    /// Forgets what was decided, because something else is possible now.
    pub(super) fn forget(&mut self) {
        self.decided.clear();
        self.last = None;
    }
}

impl Communicator {
    /// What `auto` would do for an operation and why; `None` if the algorithm is fixed. All ranks call it alike, because
    /// the first call may agree on what is known of the cluster.
    ///
    /// # Errors
    /// `Data` if the topology file that was named cannot be used, and as [`all_reduce`](Self::all_reduce).
    pub fn explain(
        &mut self,
        operation: Operation,
        count: usize,
        element: ElementType,
    ) -> Result<Option<Decision>> {
        self.settle()?;
        let question = Question::new(operation, count, element.size()).with_native(self.native_reach());
        let knowledge = self.chooser.as_ref().and_then(|chooser| chooser.knowledge.as_ref());
        knowledge.map(|knowledge| knowledge.decide(&question)).transpose()
    }

    /// Sets the algorithm of the operation that follows, and answers the operation with its order settled.
    pub(super) fn choose(
        &mut self,
        operation: Operation,
        count: usize,
        element: ElementType,
    ) -> Result<Operation> {
        let key = (operation, count, element);
        let last = self.chooser.as_ref().and_then(|chooser| chooser.last);
        if let Some((_, operation)) = last.filter(|(last, _)| *last == key) {
            return Ok(operation);
        }
        self.settle()?;
        let native = self.native_reach();
        let Some(chooser) = &mut self.chooser else { return Ok(operation) };
        if let Some((operation, chosen)) = chooser.decided.get(&key) {
            self.chosen.clone_from(chosen);
            chooser.last = Some((key, *operation));
            return Ok(*operation);
        }
        let Some(knowledge) = &chooser.knowledge else { return Ok(operation) };
        let question = Question::new(operation, count, element.size()).with_native(native);
        let decision = knowledge.decide(&question)?;
        let chosen = Chosen::by_auto(decision.collective);
        chooser.decided.insert(key, (decision.operation, chosen.clone()));
        chooser.last = Some((key, decision.operation));
        self.chosen = chosen;
        Ok(decision.operation)
    }

    /// Agrees with the other ranks on what `auto` knows, before the first operation; later, names what is no operation.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        let Some(mut chooser) = self.chooser.take() else { return Ok(()) };
        chooser.last = None;
        self.chosen.clone_from(&chooser.unchosen);
        if chooser.knowledge.is_none() {
            // Without a chooser, the operations of the agreement itself are not chosen.
            let agreed = self.agree(&chooser.auto).inspect_err(|error| self.failed = Some(error.clone()));
            chooser.knowledge = Some(agreed?);
        }
        self.chooser = Some(chooser);
        Ok(())
    }

    fn agree(&mut self, auto: &Auto) -> Result<Knowledge> {
        let transport = self.transport.clone();
        let hosts: Vec<&str> = (0..self.size()).map(|rank| transport.peer(rank).host.as_str()).collect();
        if self.native_reach() == NativeReach::Shared {
            // Nothing of what follows is looked at.
            return Ok(Knowledge::usual(transport.name(), &hosts, 1));
        }
        let told = match self.rank() {
            0 => Knowledge::find(auto, transport.name(), &hosts),
            _ => String::new(),
        };
        let counted = (self.bytes_sent, self.bytes_received);
        let said = Member { samples: told.len() as u64, ..Member::default() };
        let length = self.gather(said)?.members[0].samples as usize;
        let mut words = vec![0i32; length.div_ceil(4)];
        bytemuck::cast_slice_mut(&mut words)[..told.len()].copy_from_slice(told.as_bytes());
        self.broadcast(&mut words, 0)?;
        (self.bytes_sent, self.bytes_received) = counted;
        let text = String::from_utf8_lossy(&bytemuck::cast_slice(&words)[..length]).into_owned();
        let mut knowledge = Knowledge::understand(&text)?;
        knowledge.segment_bytes = self.options.segment_bytes;
        Ok(knowledge)
    }

    fn native_reach(&self) -> NativeReach {
        #[cfg(feature = "cuda")]
        if self.has_gpus && self.transport.nccl().is_some() {
            return NativeReach::Opaque;
        }
        let is_shared = self.transport.shared().is_some() && !self.has_gpus;
        match (is_shared, self.transport.native().is_some()) {
            (true, _) => NativeReach::Shared,
            (false, true) => NativeReach::Opaque,
            (false, false) => NativeReach::Absent,
        }
    }
}

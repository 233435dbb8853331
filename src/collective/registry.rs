//! Algorithms by name, and the refusals that all of them word alike.

use super::{
    Auto, BinaryBlocks, Butterfly, Circulant, Collective, DoubleTree, Hierarchical, Kind, Operation, Order,
    ParameterServer, RecursiveDoubling, Ring, Schedule, Topology,
};
use crate::error::{Error, Result};
use crate::transport::{Rank, Transport};
use std::sync::Arc;

/// What `--collective` takes: the choice among all algorithms, and each of them.
pub const COLLECTIVE_CHOICES: &[&str] = &[
    "auto",
    "ring",
    "butterfly",
    "binary-blocks",
    "parameter-server",
    "recursive-doubling",
    "circulant",
    "double-tree",
    "hierarchical",
    "native",
];

/// The names of all algorithms, as on the command line: the choices without `auto`.
pub const COLLECTIVE_NAMES: &[&str] = COLLECTIVE_CHOICES.split_at(1).1;

/// The algorithm of that name. `servers` is how many ranks hold shards in `parameter-server` (`None`: all); the other
/// algorithms have no servers.
///
/// # Errors
/// `Usage` with the valid names.
///
/// ```
/// let ring = esync::collective::collective_by_name("ring", None)?;
/// assert_eq!(ring.name(), "ring");
/// assert!(esync::collective::collective_by_name("rong", None).is_err());
/// # Ok::<(), esync::Error>(())
/// ```
pub fn collective_by_name(name: &str, servers: Option<usize>) -> Result<Arc<dyn Collective>> {
    Ok(match name {
        "auto" => Arc::new(Auto::default()),
        "ring" => Arc::new(Ring),
        "butterfly" => Arc::new(Butterfly),
        "binary-blocks" => Arc::new(BinaryBlocks),
        "parameter-server" => Arc::new(ParameterServer { servers }),
        "recursive-doubling" => Arc::new(RecursiveDoubling),
        "circulant" => Arc::new(Circulant),
        "double-tree" => Arc::new(DoubleTree),
        "hierarchical" => Arc::new(Hierarchical::default()),
        "native" => Arc::new(Native),
        _ => {
            let names = COLLECTIVE_CHOICES.join("`, `");
            return Err(Error::Usage(format!("there is no collective `{name}`; choose one of `{names}`")));
        }
    })
}

/// The transport's own way: shared memory over `threads` and `shm`, `MPI_Iallreduce` over `mpi`.
///
/// It is an algorithm in name only: it has no schedule. Where ranks share memory it does all kinds, types and operators, in
/// the canonical tree or in rank order, as `parameter-server` does. Another back end's cost and order of summation are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Native;

impl Native {
    /// Refuses what the transport has no own way for.
    ///
    /// # Errors
    /// `Refused` with the reason.
    pub fn check(&self, operation: &Operation, transport: &dyn Transport) -> Result<()> {
        #[cfg(feature = "cuda")]
        if transport.nccl().is_some() {
            check_root(self, operation, transport.size())?;
            let orders = [Order::Canonical, Order::Rank];
            return refuse_orders(self, operation, &orders, "NCCL sums in an order of its own");
        }
        if transport.native().is_none() {
            return check_root(self, operation, transport.size());
        }
        self.check_back_end(operation)
    }

    /// Refuses what no back end's own all-reduce does: another kind, or an order asked for by name.
    pub(super) fn check_back_end(&self, operation: &Operation) -> Result<()> {
        if operation.kind != Kind::AllReduce {
            return Err(self.refuse(
                operation,
                "only all-reduce is handed to the transport; use `parameter-server`, which does all five kinds",
            ));
        }
        refuse_orders(
            self,
            operation,
            &[Order::Canonical, Order::Rank],
            "the transport sums in an order of its own",
        )
    }
}

impl Collective for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn schedule(&self, operation: &Operation, _: &Topology, _: Rank, _: usize) -> Result<Schedule> {
        self.check_back_end(operation)?;
        Err(self.refuse(operation, "it has no schedule; it is run by the transport"))
    }
}

/// Refuses the listed orders, where an order means something, and says which algorithm has them.
pub(super) fn refuse_orders(
    collective: &impl Collective,
    operation: &Operation,
    orders: &[Order],
    why: &str,
) -> Result<()> {
    if !operation.kind.reduces() || !orders.contains(&operation.order) {
        return Ok(());
    }
    let instead = match operation.order {
        Order::Canonical => match operation.kind {
            Kind::AllReduce => "use `binary-blocks`, `butterfly`, `recursive-doubling` or `parameter-server`",
            Kind::Reduce => "use `recursive-doubling` or `parameter-server`",
            _ => "use `parameter-server`",
        },
        Order::Rank => "use `parameter-server`, whose servers hold all operands",
        Order::Auto | Order::Fastest => "ask for another order",
    };
    Err(collective.refuse(operation, format!("{why}; {instead}, or leave the order to `auto`")))
}

/// Refuses a root that does not exist.
pub(super) fn check_root(collective: &impl Collective, operation: &Operation, size: usize) -> Result<()> {
    let rooted = matches!(operation.kind, Kind::Broadcast | Kind::Reduce);
    if rooted && operation.root >= size {
        return Err(
            collective.refuse(operation, format!("there are {size} ranks; the root is one of 0 to n - 1"))
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_algorithm() {
        assert_eq!(COLLECTIVE_CHOICES[0], "auto");
        assert_eq!(&COLLECTIVE_CHOICES[1..], COLLECTIVE_NAMES);
        for name in COLLECTIVE_CHOICES {
            let found = collective_by_name(name, None).map(|collective| collective.name());
            assert_eq!(found.ok().as_ref(), Some(name));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_valid_ones() {
        let Err(error) = collective_by_name("tree", None) else { panic!("no such collective") };
        assert_eq!(error.exit_code(), 2);
        assert!(COLLECTIVE_NAMES.iter().all(|name| error.to_string().contains(name)), "{error}");
    }

    #[test]
    fn native_refuses_by_name() {
        let refusal = |operation: Operation| {
            Native.schedule(&operation, &Topology::flat(4), 0, 8).err().map(|error| error.to_string())
        };
        let all_reduce = Operation::new(Kind::AllReduce);
        assert_eq!(
            refusal(all_reduce).as_deref(),
            Some("collective `native` refuses all-reduce: it has no schedule; it is run by the transport")
        );
        for order in [Order::Canonical, Order::Rank] {
            let text = refusal(all_reduce.with_order(order)).unwrap_or_default();
            assert!(text.contains("order of its own") && text.contains("parameter-server"), "{text}");
        }
        assert!(
            refusal(Operation::new(Kind::Broadcast)).is_some_and(|text| text.contains("only all-reduce"))
        );
        assert!(Native.check_back_end(&all_reduce).is_ok());
    }
}

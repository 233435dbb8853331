//! A cluster as the text of a topology file: for people to read and change, so with comments and a row for each rank.

use super::file::VERSION;
use super::{Cluster, Link, Measured};
use crate::transport::Rank;
use std::fmt::Write;

impl Cluster {
    /// The text of a topology file.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# What the cost model, `--collective auto` and the simulator know of this cluster.")?;
        writeln!(out, "# `esync probe` measures it; it may be changed by hand.\n")?;
        writeln!(out, "version = {VERSION}")?;
        writeln!(out, "transport = {}", quoted(&self.transport))?;
        for (key, value) in [("measured_at", &self.measured_at), ("measured_with", &self.measured_with)] {
            if let Some(value) = value {
                writeln!(out, "{key} = {}", quoted(value))?;
            }
        }
        for number in 0..self.hosts.len() {
            self.write_host(number, out)?;
        }
        for card in &self.network_cards {
            writeln!(out, "\n[[network_cards]]")?;
            writeln!(out, "ranks = {:?}", card.ranks)?;
            writeln!(out, "seconds_per_byte = {}", number(card.seconds_per_byte))?;
        }
        if self.size() > 1 {
            writeln!(out, "\n# Row r, column s: from rank r to rank s.")?;
            writeln!(out, "[link_matrix]")?;
            self.write_matrix("latency_seconds", |link| link.latency_seconds, out)?;
            self.write_matrix("message_seconds", |link| link.message_seconds, out)?;
            self.write_matrix("seconds_per_byte", |link| link.seconds_per_byte, out)?;
        }
        if !self.measured.is_empty() {
            writeln!(
                out,
                "\n# Seconds of whole operations on the slowest rank, after all have entered; bytes are those of one rank's vector."
            )?;
        }
        self.measured.iter().try_for_each(|measured| write_measured(measured, out))
    }

    fn write_host(&self, host: usize, out: &mut String) -> std::fmt::Result {
        let ranks: Vec<Rank> = self.ranks_of(host).collect();
        let each = |value: &dyn Fn(Rank) -> f64| list(ranks.iter().map(|&rank| number(value(rank))));
        writeln!(out, "\n[[hosts]]")?;
        writeln!(out, "name = {}", quoted(&self.hosts[host].name))?;
        writeln!(out, "cores = {}", self.hosts[host].cores)?;
        writeln!(out, "switch_seconds = {}", number(self.hosts[host].switch_seconds))?;
        writeln!(out, "ranks = {ranks:?}")?;
        let reduce = each(&|rank| self.workers[rank].reduce_seconds_per_byte);
        let copy = each(&|rank| self.workers[rank].copy_seconds_per_byte);
        writeln!(out, "reduce_seconds_per_byte = {reduce}\ncopy_seconds_per_byte = {copy}")?;
        if ranks.iter().all(|&rank| self.workers[rank].step_seconds.is_some()) {
            let step = each(&|rank| self.workers[rank].step_seconds.unwrap_or_default());
            writeln!(out, "step_seconds = {step}")?;
        }
        Ok(())
    }

    fn write_matrix(&self, key: &str, value: impl Fn(Link) -> f64, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{key} = [")?;
        for from in 0..self.size() {
            let cell = |to| if from == to { "0.0".into() } else { number(value(self.link(from, to))) };
            writeln!(out, "  {},", list((0..self.size()).map(cell)))?;
        }
        writeln!(out, "]")
    }
}

fn write_measured(measured: &Measured, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[[measured]]")?;
    writeln!(out, "operation = {}", quoted(&measured.operation))?;
    writeln!(out, "order = {}", quoted(&measured.order))?;
    writeln!(out, "collective = {}", quoted(&measured.collective))?;
    writeln!(out, "bytes = {}", list(measured.times.iter().map(|(bytes, _)| bytes.to_string())))?;
    writeln!(out, "seconds = {}", list(measured.times.iter().map(|(_, seconds)| number(*seconds))))
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// Four digits are more than any measurement here has.
fn number(value: f64) -> String {
    format!("{value:.3e}")
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

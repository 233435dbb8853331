//! The pieces in which kernels are compiled: a file of `kernels/` for one type.

use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, WireFormat};
use std::fmt;

const COMMON: [&str; 3] = [
    include_str!("../../../kernels/numbers.cuh"),
    include_str!("../../../kernels/access.cuh"),
    include_str!("../../../kernels/tree.cuh"),
];

/// What is compiled and loaded at once. Small, so that a job waits only for what it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Module {
    /// Reductions of two vectors by each operator, and the last step of an average.
    Reduce(ElementType),
    /// Reductions of many vectors. `Average` is compiled as `Sum`, and finished by an argument.
    ReduceMany(ElementType, Operator),
    /// The end of an exchange, and the delta that begins it. There is none for integers.
    OuterUpdate(ElementType),
    /// Writing, reading and adding in a wire format that narrows.
    Wire(WireFormat),
}

/// Operators that have machine code of their own.
const OPERATORS: [Operator; 4] = [Operator::Sum, Operator::Min, Operator::Max, Operator::Product];

const FLOATS: [ElementType; 4] = [ElementType::F32, ElementType::F64, ElementType::F16, ElementType::BF16];

const WIRES: [WireFormat; 3] = [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8];

impl Module {
    /// How many there are.
    pub const COUNT: usize = 6 + 6 * OPERATORS.len() + FLOATS.len() + WIRES.len();

    /// Every module.
    pub fn all() -> Vec<Module> {
        let many = |element| OPERATORS.map(move |operator| Module::ReduceMany(element, operator));
        let reduce = ElementType::ALL.map(Module::Reduce).into_iter();
        let many = ElementType::ALL.into_iter().flat_map(many);
        reduce.chain(many).chain(FLOATS.map(Module::OuterUpdate)).chain(WIRES.map(Module::Wire)).collect()
    }

    /// The module that an operator needs.
    pub(super) fn reduce_many(element: ElementType, operator: Operator) -> Module {
        Module::ReduceMany(element, if operator == Operator::Average { Operator::Sum } else { operator })
    }

    /// Its place in [`all`](Self::all), if it is there.
    pub(super) fn index(self) -> Option<usize> {
        let place = |found: bool, at: usize| found.then_some(at);
        let of = |element: ElementType| ElementType::ALL.iter().position(|other| *other == element);
        let floats_from = ElementType::ALL.len() * (1 + OPERATORS.len());
        match self {
            Module::Reduce(element) => of(element),
            Module::ReduceMany(element, operator) => {
                let operator = OPERATORS.iter().position(|other| *other == operator)?;
                Some(ElementType::ALL.len() + of(element)? * OPERATORS.len() + operator)
            }
            Module::OuterUpdate(element) => {
                let at = FLOATS.iter().position(|float| *float == element)?;
                place(true, floats_from + at)
            }
            Module::Wire(format) => {
                let at = WIRES.iter().position(|wire| *wire == format)?;
                Some(floats_from + FLOATS.len() + at)
            }
        }
    }

    /// As it is called in messages and in the names of files.
    pub fn name(self) -> String {
        match self {
            Module::Reduce(element) => format!("reduce-{element}"),
            Module::ReduceMany(element, operator) => format!("reduce_many-{element}-{operator}"),
            Module::OuterUpdate(element) => format!("outer_update-{element}"),
            Module::Wire(format) => format!("wire-{format}"),
        }
    }

    /// The kernels in it.
    pub fn kernels(self) -> &'static [&'static str] {
        match self {
            Module::Reduce(_) => {
                &["reduce_sum", "reduce_min", "reduce_max", "reduce_product", "scale_for_average"]
            }
            Module::ReduceMany(..) => &["reduce_many"],
            Module::OuterUpdate(_) => {
                &["outer_update_rebase", "outer_update_merge", "outer_update_mix", "delta"]
            }
            Module::Wire(_) => &["encode", "decode", "combine"],
        }
    }

    /// Its whole source.
    ///
    /// # Errors
    /// `Usage` if there is no such module.
    pub fn source(self) -> Result<String> {
        if self.index().is_none() {
            return Err(Error::Usage(format!("there are no kernels `{self}`")));
        }
        let (types, file) = match self {
            Module::Reduce(element) => (
                format!("typedef {} Element;", type_name(element)),
                include_str!("../../../kernels/reduce.cu"),
            ),
            Module::ReduceMany(element, operator) => (
                format!(
                    "typedef {} Element;\ntypedef {} Operator;",
                    type_name(element),
                    operator_name(operator)
                ),
                include_str!("../../../kernels/reduce_many.cu"),
            ),
            Module::OuterUpdate(element) => (
                format!("typedef {} Element;", type_name(element)),
                include_str!("../../../kernels/outer_update.cu"),
            ),
            Module::Wire(WireFormat::Int8) => (String::new(), include_str!("../../../kernels/wire_int8.cu")),
            Module::Wire(format) => {
                let element = if format == WireFormat::F16 { ElementType::F16 } else { ElementType::BF16 };
                (format!("typedef {} Wire;", type_name(element)), include_str!("../../../kernels/wire_16.cu"))
            }
        };
        Ok([COMMON[0], COMMON[1], COMMON[2], &types, "\n", file].concat())
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

fn type_name(element: ElementType) -> &'static str {
    match element {
        ElementType::F32 => "F32",
        ElementType::F64 => "F64",
        ElementType::I32 => "I32",
        ElementType::I64 => "I64",
        ElementType::F16 => "F16",
        ElementType::BF16 => "Bf16",
    }
}

fn operator_name(operator: Operator) -> &'static str {
    match operator {
        Operator::Sum | Operator::Average => "Sum",
        Operator::Min => "Minimum",
        Operator::Max => "Maximum",
        Operator::Product => "Product",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_its_place_and_its_kernels() {
        let all = Module::all();
        assert_eq!(all.len(), Module::COUNT);
        for (index, module) in all.iter().enumerate() {
            assert_eq!(module.index(), Some(index), "{module}");
            let source = module.source().unwrap();
            for kernel in module.kernels() {
                let declared = format!("extern \"C\" __global__ void {kernel}(");
                assert_eq!(source.matches(&declared).count(), 1, "{kernel} of {module}");
            }
            assert_eq!(source.matches("__global__").count(), module.kernels().len(), "{module}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        for module in [Module::OuterUpdate(ElementType::I32), Module::Wire(WireFormat::F32)] {
            assert_eq!(module.index(), None);
            assert!(module.source().unwrap_err().to_string().contains("there are no kernels"), "{module}");
        }
        let average = Module::reduce_many(ElementType::F16, Operator::Average);
        assert_eq!(average, Module::ReduceMany(ElementType::F16, Operator::Sum));
    }
}

//! Moves the variables of any `tch` model into flat buffers.
//!
//! A [`FlatStore`] adopts a [`VarStore`]: for each element type it makes one buffer, copies the variables into it one after
//! the other, and turns them into views of it. The variables stay the same objects, so that modules and optimisers made
//! before or after go on using them, without knowing, and one slice is the whole model:
//!
//! ```
//! use esync::learner::FlatStore;
//! use tch::{Device, Kind, Tensor, nn, nn::Module};
//!
//! let mut variables = nn::VarStore::new(Device::Cpu);
//! let layer = nn::linear(variables.root(), 3, 2, Default::default());
//! let mut flat = FlatStore::adopt(&mut variables)?;
//! for mut group in flat.groups_mut() {
//!     assert_eq!(group.layout().len, 8);
//!     group.values_as::<f32>().unwrap().fill(1.0);
//! }
//! assert_eq!(layer.forward(&Tensor::ones([1, 3], (Kind::Float, Device::Cpu))).double_value(&[0, 0]), 4.0);
//! # Ok::<(), esync::Error>(())
//! ```
//!
//! # Whose memory
//!
//! The buffers are libtorch's own, counted by reference: a variable, or anything else made from one, keeps the whole buffer
//! alive, so that nothing dangles whichever of model and `FlatStore` is dropped first; or they lie in memory that the
//! processes of a host share ([`Memory::Shared`]), which is kept until the process ends. Dropping a `FlatStore` leaves the
//! model as it is.
//!
//! While a slice of a buffer is borrowed, do not use the model: libtorch does not know of the borrow. Borrow, exchange,
//! let go, and go on training.

use super::{FlatSlice, Layout, Memory, Model, TensorLayout};
use crate::error::{Error, Result};
use crate::reduce::{Element, ElementType};
use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use tch::nn::VarStore;
use tch::{Device, Kind, TchError, Tensor};

/// The flat buffers of one model, one for each element type among its variables.
#[derive(Debug)]
pub struct FlatStore {
    groups: Vec<Group>,
    left_alone: Vec<(String, Kind)>,
}

/// The variables of one element type.
#[derive(Debug)]
pub(super) struct Group {
    element_type: ElementType,
    pub(super) layout: Layout,
    /// One dimension, `layout.len` elements.
    pub(super) values: Tensor,
    /// One dimension, `layout.trainable` elements, once gradients are adopted.
    pub(super) gradients: Option<Tensor>,
    /// In the order of `layout.tensors`; the same libtorch objects as the store's.
    variables: Vec<Tensor>,
}

/// One flat buffer of a [`FlatStore`], borrowed.
#[derive(Debug)]
pub struct FlatGroupMut<'a> {
    group: &'a mut Group,
}

impl FlatStore {
    /// Moves the variables of `store` into flat buffers: by name, first those that require a gradient, then the others
    /// (statistics, frozen layers). The values do not change. Call it once all variables are made.
    ///
    /// Variables of other types than `f32`, `f64`, `f16` and `bf16`, such as counters, stay where they are:
    /// [`left_alone`](FlatStore::left_alone). A store whose element type is changed later (`half`, `set_kind`) must be
    /// adopted anew.
    ///
    /// # Errors
    ///
    /// [`Error::Environment`], and nothing is changed, if the store has nothing to adopt, is not in the CPU's memory, or
    /// has two variables that share memory.
    pub fn adopt(store: &mut VarStore) -> Result<FlatStore> {
        Self::adopt_in(store, Memory::Private)
    }

    /// As [`adopt`](FlatStore::adopt), into memory of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`adopt`](FlatStore::adopt), and [`Error::Environment`] if there is no such memory left.
    pub fn adopt_in(store: &mut VarStore, memory: Memory<'_>) -> Result<FlatStore> {
        let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
        check_variables(store.device(), &variables)?;
        let mut left_alone = Vec::new();
        let mut members: HashMap<ElementType, Vec<(String, Tensor)>> = HashMap::new();
        for (name, variable) in variables {
            match element_type(variable.kind()) {
                Some(element_type) => members.entry(element_type).or_default().push((name, variable)),
                None => left_alone.push((name, variable.kind())),
            }
        }
        let mut groups = Vec::new();
        for element_type in ElementType::ALL {
            if let Some(members) = members.remove(&element_type) {
                groups.push(Group::new(element_type, members, memory)?);
            }
        }
        if groups.iter().all(|group| group.layout.len == 0) {
            return Err(Error::Environment(
                "the VarStore has no parameters to exchange; make the model before it is handed over".into(),
            ));
        }
        // Only now, when all that can be refused has been looked at, is the model touched.
        groups.iter_mut().try_for_each(Group::move_in)?;
        Ok(FlatStore { groups, left_alone })
    }

    /// Moves the gradients too: afterwards backward passes *add* to the flat gradient buffers, which start at zero or at
    /// the present gradients. Somebody must zero them before each backward pass, by filling the slice.
    ///
    /// Not for loops with an optimiser of `tch`: its `zero_grad` throws gradients away instead of zeroing them, and the
    /// next backward pass makes new ones elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if libtorch refuses.
    pub fn adopt_gradients(&mut self) -> Result<()> {
        self.adopt_gradients_in(Memory::Private)
    }

    /// As [`adopt_gradients`](FlatStore::adopt_gradients), into memory of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`adopt_gradients`](FlatStore::adopt_gradients), and [`Error::Environment`] if there is no such memory left.
    pub fn adopt_gradients_in(&mut self, memory: Memory<'_>) -> Result<()> {
        self.groups.iter_mut().try_for_each(|group| group.move_gradients_in(memory))
    }

    /// The buffers, in the order of [`ElementType::ALL`]; the same order and layouts on every rank that has made the same
    /// model.
    pub fn groups_mut(&mut self) -> impl Iterator<Item = FlatGroupMut<'_>> {
        self.groups.iter_mut().map(|group| FlatGroupMut { group })
    }

    /// Element types and layouts of the buffers, in the order of [`groups_mut`](FlatStore::groups_mut).
    pub fn layouts(&self) -> impl Iterator<Item = (ElementType, &Layout)> {
        self.groups.iter().map(|group| (group.element_type, &group.layout))
    }

    /// Variables that are in no buffer, by name: each rank keeps its own.
    pub fn left_alone(&self) -> &[(String, Kind)] {
        &self.left_alone
    }

    /// Checks that the variables (and the gradients, if adopted) still lie in the buffers.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] with the first name that does not: something gave it other memory, such as `VarStore::half`.
    pub fn check(&self) -> Result<()> {
        self.groups.iter().try_for_each(Group::check)
    }

    /// The buffer of a model that has but one, of this type.
    pub(super) fn into_only_group(mut self, element_type: ElementType) -> Option<Group> {
        let group = self.groups.pop().filter(|group| group.element_type == element_type);
        group.filter(|_| self.groups.is_empty() && self.left_alone.is_empty())
    }
}

impl FlatGroupMut<'_> {
    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.group.element_type
    }

    /// Where each variable lies.
    pub fn layout(&self) -> &Layout {
        &self.group.layout
    }

    /// All values as bytes: `layout().len` elements, aligned to 64 bytes.
    pub fn values(&mut self) -> &mut [u8] {
        bytes_mut(&mut self.group.values)
    }

    /// All values, or `None` if `T` is not their type.
    pub fn values_as<T: Element>(&mut self) -> Option<&mut [T]> {
        (T::TYPE == self.group.element_type).then(|| elements_mut(&mut self.group.values))
    }

    /// The gradients of the first `layout().trainable` values, if adopted, or `None` if `T` is not their type.
    pub fn gradients_as<T: Element>(&mut self) -> Option<&mut [T]> {
        let gradients = self.group.gradients.as_mut().filter(|_| T::TYPE == self.group.element_type);
        gradients.map(elements_mut)
    }
}

impl Model for FlatStore {
    fn groups(&self) -> usize {
        self.groups.len()
    }

    fn trainable(&self, group: usize) -> usize {
        self.groups[group].layout.trainable
    }

    fn tensors(&self, group: usize) -> &[TensorLayout] {
        &self.groups[group].layout.tensors
    }

    fn parameters(&mut self, group: usize) -> FlatSlice<'_> {
        let group = &mut self.groups[group];
        slice(group.element_type, &mut group.values)
    }

    fn gradient(&mut self, group: usize) -> Option<FlatSlice<'_>> {
        let group = &mut self.groups[group];
        group.gradients.as_mut().map(|gradients| slice(group.element_type, gradients))
    }

    /// Does nothing: the store's owner calls its own optimiser.
    fn apply_gradient(&mut self) -> Result<()> {
        Ok(())
    }
}

fn slice(element_type: ElementType, values: &mut Tensor) -> FlatSlice<'_> {
    match element_type {
        ElementType::F64 => FlatSlice::F64(elements_mut(values)),
        ElementType::F16 => FlatSlice::F16(elements_mut(values)),
        ElementType::BF16 => FlatSlice::BF16(elements_mut(values)),
        // The other types never make a group: `element_type` below knows floats only.
        _ => FlatSlice::F32(elements_mut(values)),
    }
}

impl Group {
    /// Lays out `members`, which come sorted by name, and makes an empty buffer.
    fn new(element_type: ElementType, members: Vec<(String, Tensor)>, memory: Memory<'_>) -> Result<Group> {
        let (trainable, statistics): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|(_, variable)| variable.requires_grad());
        let describe = |(name, variable): &(String, Tensor)| {
            (name.clone(), variable.size().iter().map(|&size| size as usize).collect())
        };
        let layout = Layout::new(trainable.iter().map(describe), statistics.iter().map(describe));
        let values = memory.zeros(layout.len, element_type)?;
        let variables = trainable.into_iter().chain(statistics).map(|(_, variable)| variable).collect();
        Ok(Group { element_type, layout, values, gradients: None, variables })
    }

    /// Copies the variables into the buffer and turns them into views of it.
    fn move_in(&mut self) -> Result<()> {
        tch::no_grad(|| {
            for (place, variable) in self.layout.tensors.iter().zip(&mut self.variables) {
                let start = place.range.start as i64;
                let mut view =
                    self.values.f_narrow(0, start, place.range.len() as i64)?.f_view_as(variable)?;
                view.f_copy_(variable)?;
                variable.f_set_data(&view)?;
            }
            Ok(())
        })
        .map_err(failed)
    }

    fn move_gradients_in(&mut self, memory: Memory<'_>) -> Result<()> {
        let flat = memory.zeros(self.layout.trainable, self.element_type)?;
        let trained =
            self.layout.tensors.iter().take_while(|place| place.range.start < self.layout.trainable);
        for (place, variable) in trained.zip(&self.variables).filter(|(place, _)| !place.range.is_empty()) {
            let start = place.range.start as i64;
            let adopt = || {
                let mut view = flat.f_narrow(0, start, place.range.len() as i64)?.f_view_as(variable)?;
                let mut gradient = variable.f_grad()?;
                if gradient.defined() {
                    view.f_copy_(&gradient)?;
                } else {
                    // Only a backward pass makes a gradient. This one's values are dropped with its memory.
                    tch::with_grad(|| variable.f_sum(variable.kind())?.f_backward())?;
                    gradient = variable.f_grad()?;
                }
                gradient.f_set_data(&view)
            };
            adopt().map_err(failed)?;
        }
        self.gradients = Some(flat);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let size = self.element_type.size();
        for (place, variable) in self.layout.tensors.iter().zip(&self.variables) {
            if place.range.is_empty() {
                continue;
            }
            let lies_at = |tensor: &Tensor, flat: &Tensor| {
                tensor.defined()
                    && tensor.data_ptr() == flat.data_ptr().wrapping_byte_add(place.range.start * size)
            };
            let gradient_moved = || match &self.gradients {
                Some(flat) if place.range.start < self.layout.trainable => !lies_at(&variable.grad(), flat),
                _ => false,
            };
            let what = if !lies_at(variable, &self.values)
                || element_type(variable.kind()) != Some(self.element_type)
            {
                "variable"
            } else if gradient_moved() {
                "gradient of variable"
            } else {
                continue;
            };
            return Err(Error::Training(format!(
                "the {what} `{}` no longer lies in the flat buffer: something gave it other memory (VarStore::half, \
                 an optimiser's zero_grad); do that before the model is handed over",
                place.name
            )));
        }
        Ok(())
    }
}

/// What cannot be adopted.
fn check_variables(device: Device, variables: &BTreeMap<String, Tensor>) -> Result<()> {
    if device != Device::Cpu {
        return Err(not_on_cpu("the VarStore", device));
    }
    let mut seen = HashMap::new();
    for (name, variable) in variables {
        if variable.device() != Device::Cpu {
            return Err(not_on_cpu(&format!("variable `{name}`"), variable.device()));
        }
        if variable.is_sparse() {
            return Err(Error::Environment(format!(
                "variable `{name}` is sparse; only dense ones can be exchanged"
            )));
        }
        if variable.requires_grad() && element_type(variable.kind()).is_none() {
            let kind = variable.kind();
            return Err(Error::Environment(format!(
                "variable `{name}` is trained as {kind:?}; only f32, f64, f16 and bf16 can be exchanged"
            )));
        }
        if variable.numel() == 0 {
            continue;
        }
        match seen.entry(variable.data_ptr()) {
            Entry::Vacant(entry) => {
                entry.insert(name);
            }
            Entry::Occupied(other) => {
                return Err(Error::Environment(format!(
                    "variables `{}` and `{name}` share memory; keep one of them, and use it twice in the model",
                    other.get()
                )));
            }
        }
    }
    Ok(())
}

fn not_on_cpu(what: &str, device: Device) -> Error {
    Error::Environment(format!(
        "{what} is on {device:?}; only models in the CPU's memory can be exchanged so far: make the VarStore with \
         Device::Cpu"
    ))
}

fn element_type(kind: Kind) -> Option<ElementType> {
    match kind {
        Kind::Float => Some(ElementType::F32),
        Kind::Double => Some(ElementType::F64),
        Kind::Half => Some(ElementType::F16),
        Kind::BFloat16 => Some(ElementType::BF16),
        _ => None,
    }
}

fn kind(element_type: ElementType) -> Kind {
    match element_type {
        ElementType::F32 => Kind::Float,
        ElementType::F64 => Kind::Double,
        ElementType::I32 => Kind::Int,
        ElementType::I64 => Kind::Int64,
        ElementType::F16 => Kind::Half,
        ElementType::BF16 => Kind::BFloat16,
    }
}

/// A new contiguous tensor in the CPU's memory.
pub(super) fn zeros(len: usize, element_type: ElementType) -> Result<Tensor> {
    zeros_on(len, element_type, Device::Cpu)
}

/// A new contiguous tensor in any device's memory.
pub(super) fn zeros_on(len: usize, element_type: ElementType, device: Device) -> Result<Tensor> {
    Tensor::f_zeros([len as i64], (kind(element_type), device)).map_err(failed)
}

/// libtorch's complaint, without the C++ stack that follows its first lines.
pub(super) fn failed(error: TchError) -> Error {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.starts_with("Exception raised from"));
    Error::Training(format!("libtorch failed: {}", lines.collect::<Vec<_>>().join(" ").trim()))
}

/// The elements of a contiguous tensor in the CPU's memory, which [`zeros`] made with this type.
pub(super) fn elements<T: Element>(tensor: &Tensor) -> &[T] {
    let (start, len) = (tensor.data_ptr(), tensor.numel());
    assert!(element_kind_is::<T>(tensor) && tensor.is_contiguous() && tensor.device() == Device::Cpu);
    if len == 0 {
        return &[];
    }
    // SAFETY: the tensor is contiguous and of this type, so that `len` initialised elements begin at `start`, aligned for
    // them; it holds a reference to its memory as long as it is borrowed. libtorch writes there only in calls that use the
    // model, which the documentation rules out while a slice is borrowed, and tensors do not cross threads by reference.
    unsafe { std::slice::from_raw_parts(start.cast::<T>(), len) }
}

/// As [`elements`], to change.
pub(super) fn elements_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    let (start, len) = (tensor.data_ptr(), tensor.numel());
    assert!(element_kind_is::<T>(tensor) && tensor.is_contiguous() && tensor.device() == Device::Cpu);
    if len == 0 {
        return &mut [];
    }
    // SAFETY: as in `elements`; the exclusive borrow of the tensor makes this the only Rust reference.
    unsafe { std::slice::from_raw_parts_mut(start.cast::<T>(), len) }
}

fn element_kind_is<T: Element>(tensor: &Tensor) -> bool {
    tensor.kind() == kind(T::TYPE)
}

fn bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    match tensor.kind() {
        Kind::Double => bytemuck::cast_slice_mut(elements_mut::<f64>(tensor)),
        Kind::Half => bytemuck::cast_slice_mut(elements_mut::<half::f16>(tensor)),
        Kind::BFloat16 => bytemuck::cast_slice_mut(elements_mut::<half::bf16>(tensor)),
        _ => bytemuck::cast_slice_mut(elements_mut::<f32>(tensor)),
    }
}

//! Other people's models in flat buffers.

use esync::Error;
use esync::learner::FlatStore;
use esync::reduce::ElementType;
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

/// A model of two element types, with a statistic and a counter.
struct Mixed {
    store: nn::VarStore,
    single: Tensor,
    double: Tensor,
    mean: Tensor,
}

fn mixed() -> Mixed {
    let store = nn::VarStore::new(Device::Cpu);
    let fill = |tensor: Tensor, scale: f64| {
        tch::no_grad(|| {
            let count = tensor.numel() as i64;
            let values = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * scale).sin();
            tensor.shallow_clone().copy_(&values.view_as(&tensor));
        });
        tensor
    };
    let single = fill(store.root().var("a", &[4, 3], nn::Init::Const(0.0)), 0.7);
    let mean = fill(store.root().zeros_no_train("b_mean", &[3]), 0.1);
    let double = fill(store.root().var("c", &[3, 2], nn::Init::Const(0.0)).to_kind(Kind::Double), 1.3);
    // tch makes all variables of one kind; others come into a store like this.
    let double = double.detach().set_requires_grad(true);
    {
        let mut variables = store.variables_.lock().unwrap();
        variables.named_variables.insert("c".into(), double.shallow_clone());
        variables.trainable_variables[1].tensor = double.shallow_clone();
        variables.named_variables.insert("steps".into(), Tensor::from(7i64));
    }
    Mixed { store, single, double, mean }
}

impl Mixed {
    fn loss(&self, step: i64) -> Tensor {
        let input = (Tensor::arange(20, (Kind::Float, Device::Cpu)) + step).cos().view([5, 4]);
        let hidden = (input.matmul(&self.single) + &self.mean).tanh().to_kind(Kind::Double);
        hidden.matmul(&self.double).square().mean(Kind::Double)
    }

    fn values(&self) -> (Vec<f32>, Vec<f64>) {
        let flatten = |tensor: &Tensor| tensor.detach().contiguous().view(-1);
        (flatten(&self.single).try_into().unwrap(), flatten(&self.double).try_into().unwrap())
    }

    fn train(&self, optimizer: &mut nn::Optimizer, steps: std::ops::Range<i64>) {
        steps.for_each(|step| optimizer.backward_step(&self.loss(step)));
    }
}

#[test]
fn adopted_models_train_as_before_with_tchs_optimisers() {
    let plain = mixed();
    let mut optimizer = nn::Adam::default().build(&plain.store, 0.01).unwrap();
    plain.train(&mut optimizer, 0..30);
    for adopted_after in [0, 10] {
        let mut model = mixed();
        let mut optimizer = nn::Adam::default().build(&model.store, 0.01).unwrap();
        model.train(&mut optimizer, 0..adopted_after);
        let mut flat = FlatStore::adopt(&mut model.store).unwrap();
        model.train(&mut optimizer, adopted_after..30);
        flat.check().unwrap();
        assert_eq!(model.values(), plain.values());
        // The buffers hold what the model holds.
        let (single, double) = model.values();
        let mut groups = flat.groups_mut();
        let mut first = groups.next().unwrap();
        assert_eq!(first.values_as::<f32>().unwrap()[..12], single);
        let mut second = groups.next().unwrap();
        assert_eq!(second.values_as::<f64>().unwrap(), double);
        assert!(groups.next().is_none());
    }
}

#[test]
fn layouts_are_by_type_and_name_with_trained_variables_first() {
    let mut model = mixed();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    let described: Vec<(ElementType, Vec<String>, usize, usize)> = flat
        .layouts()
        .map(|(element_type, layout)| {
            let names = layout.tensors.iter().map(|tensor| tensor.name.clone()).collect();
            (element_type, names, layout.trainable, layout.len)
        })
        .collect();
    let expected = [
        (ElementType::F32, vec!["a".to_owned(), "b_mean".to_owned()], 12, 15),
        (ElementType::F64, vec!["c".to_owned()], 6, 6),
    ];
    assert_eq!(described, expected);
    assert_eq!(flat.left_alone(), [("steps".to_owned(), Kind::Int64)]);
    let mut group = flat.groups_mut().next().unwrap();
    assert_eq!(group.element_type(), ElementType::F32);
    assert!(group.values_as::<f64>().is_none() && group.gradients_as::<f32>().is_none());
    assert_eq!(group.values().len(), 15 * 4);
    assert_eq!(group.values().as_ptr() as usize % 64, 0);
}

#[test]
fn what_is_written_into_the_buffer_is_in_the_model_and_the_other_way_round() {
    let mut model = mixed();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    let mut group = flat.groups_mut().next().unwrap();
    group.values_as::<f32>().unwrap()[13] = 42.0;
    assert_eq!(model.mean.double_value(&[1]), 42.0);
    let _ = tch::no_grad(|| model.single.shallow_clone().fill_(3.0));
    let mut group = flat.groups_mut().next().unwrap();
    assert_eq!(group.values_as::<f32>().unwrap()[..12], [3.0; 12]);
}

#[test]
fn sixteen_bit_models_and_layers_of_tch_can_be_adopted() {
    for (kind, element_type) in [(Kind::Half, ElementType::F16), (Kind::BFloat16, ElementType::BF16)] {
        let mut store = nn::VarStore::new(Device::Cpu);
        let layer = nn::linear(store.root(), 3, 2, Default::default());
        store.set_kind(kind);
        let mut flat = FlatStore::adopt(&mut store).unwrap();
        flat.adopt_gradients().unwrap();
        flat.check().unwrap();
        let mut group = flat.groups_mut().next().unwrap();
        assert_eq!((group.element_type(), group.values().len()), (element_type, 16));
        group.values().fill(0);
        let output = layer.forward(&Tensor::ones([1, 3], (kind, Device::Cpu)));
        assert_eq!(output.abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}

#[test]
fn the_model_outlives_its_flat_store() {
    let mut model = mixed();
    let before = model.values();
    let view = {
        let _flat = FlatStore::adopt(&mut model.store).unwrap();
        model.single.detach().narrow(0, 1, 1)
    };
    // Memory that was freed would be reused and overwritten by this.
    let _others: Vec<Tensor> = (0..50).map(|_| Tensor::ones([15], (Kind::Float, Device::Cpu))).collect();
    assert_eq!(model.values(), before);
    assert_eq!(view.double_value(&[0, 0]), f64::from(before.0[3]));
    // It can be adopted again, and trained on.
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    model.loss(0).backward();
    assert_eq!(model.values(), before);
    drop(model);
    // And the other way round.
    assert_eq!(flat.groups_mut().next().unwrap().values_as::<f32>().unwrap()[..12], before.0);
}

#[test]
fn adopted_gradients_keep_their_values_and_are_added_to() {
    let plain = mixed();
    let mut model = mixed();
    plain.loss(0).backward();
    model.loss(0).backward();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    flat.adopt_gradients().unwrap();
    for step in 1..3 {
        plain.loss(step).backward();
        model.loss(step).backward();
    }
    flat.check().unwrap();
    let mut groups = flat.groups_mut();
    let expected: Vec<f32> = plain.single.grad().view(-1).try_into().unwrap();
    assert_eq!(groups.next().unwrap().gradients_as::<f32>().unwrap(), expected);
    let expected: Vec<f64> = plain.double.grad().view(-1).try_into().unwrap();
    assert_eq!(groups.next().unwrap().gradients_as::<f64>().unwrap(), expected);
}

#[test]
fn a_fresh_model_starts_with_zero_gradients() {
    let mut model = mixed();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    flat.adopt_gradients().unwrap();
    let mut group = flat.groups_mut().next().unwrap();
    assert_eq!(group.gradients_as::<f32>().unwrap(), [0.0; 12]);
}

#[test]
fn memory_that_was_taken_away_is_noticed() {
    let mut model = mixed();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    flat.adopt_gradients().unwrap();
    flat.check().unwrap();
    model.store.half();
    let Err(Error::Training(text)) = flat.check() else { panic!("not noticed") };
    assert!(text.contains("variable `a`"), "{text}");

    let mut model = mixed();
    let mut flat = FlatStore::adopt(&mut model.store).unwrap();
    flat.adopt_gradients().unwrap();
    let mut optimizer = nn::Adam::default().build(&model.store, 0.01).unwrap();
    optimizer.backward_step(&model.loss(0));
    let Err(Error::Training(text)) = flat.check() else { panic!("not noticed") };
    assert!(text.contains("gradient of variable `a`"), "{text}");
}

#[test]
fn stores_that_cannot_be_adopted_are_refused() {
    let refused = |store: &mut nn::VarStore| match FlatStore::adopt(store) {
        Err(error @ Error::Environment(_)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let mut empty = nn::VarStore::new(Device::Cpu);
    assert!(refused(&mut empty).contains("no parameters"));
    let _nothing = empty.root().var("nothing", &[0, 3], nn::Init::Const(0.0));
    assert!(refused(&mut empty).contains("no parameters"));
    assert!(refused(&mut nn::VarStore::new(Device::Cuda(0))).contains("CPU"));

    let mut model = mixed();
    let alias = model.single.shallow_clone();
    model.store.variables_.lock().unwrap().named_variables.insert("z".into(), alias);
    let before = model.values();
    let address = model.single.data_ptr();
    let text = refused(&mut model.store);
    assert!(text.contains("`a` and `z` share memory"), "{text}");
    assert_eq!((model.values(), model.single.data_ptr()), (before, address));
}

#[test]
fn empty_and_scalar_variables_are_no_trouble() {
    let mut store = nn::VarStore::new(Device::Cpu);
    let scalar = store.root().var("scale", &[], nn::Init::Const(2.0));
    let _nothing = store.root().var("nothing", &[0, 3], nn::Init::Const(0.0));
    let mut flat = FlatStore::adopt(&mut store).unwrap();
    flat.adopt_gradients().unwrap();
    (&scalar * 3.0).backward();
    flat.check().unwrap();
    let mut group = flat.groups_mut().next().unwrap();
    assert_eq!(group.layout().len, 1);
    assert_eq!(group.gradients_as::<f32>().unwrap(), [3.0]);
}

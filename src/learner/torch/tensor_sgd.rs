//! [`Sgd`] on tensors, for parameters that the host cannot reach.

use super::super::flat::failed;
use crate::error::Result;
use crate::learner::Sgd;
use tch::Tensor;

/// One update of `parameters` by `gradient`, as [`Sgd::step`]: each product and each sum is rounded for itself, so that the
/// bits are the host's. `velocity` is empty without momentum.
pub(super) fn step(
    sgd: &Sgd,
    parameters: &mut Tensor,
    gradient: &Tensor,
    velocity: &mut Tensor,
) -> Result<()> {
    let [rate, momentum, decay] = sgd.coefficients().map(f64::from);
    tch::no_grad(|| {
        let gradient = gradient.f_add(&parameters.f_mul_scalar(decay)?)?;
        let direction = if momentum == 0.0 {
            gradient
        } else {
            let _ = velocity.f_mul_scalar_(momentum)?;
            let _ = velocity.f_add_(&gradient)?;
            velocity.shallow_clone()
        };
        let _ = parameters.f_sub_(&direction.f_mul_scalar(rate)?)?;
        Ok(())
    })
    .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::SgdOptions;

    #[test]
    fn it_gives_the_bits_of_the_slices() {
        for (momentum, weight_decay) in [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.01)] {
            let options = SgdOptions { learning_rate: 0.1, momentum, weight_decay };
            let len = 1003;
            let mut parameters: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
            let mut tensor = Tensor::from_slice(&parameters);
            let (mut sgd, on_tensors) = (Sgd::new(options, len), Sgd::new(options, 0));
            let mut velocity = Tensor::zeros([len as i64], (tch::Kind::Float, tch::Device::Cpu));
            for round in 0..5 {
                let gradient: Vec<f32> = (0..len).map(|i| ((i + round) as f32 * 0.7).cos()).collect();
                sgd.step(&mut parameters, &gradient);
                step(&on_tensors, &mut tensor, &Tensor::from_slice(&gradient), &mut velocity).unwrap();
                assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), parameters, "round {round}, {options:?}");
            }
        }
    }
}

//! Which device each rank works on, and by which transport their vectors travel.

use super::TransportChoice;
use crate::collective::{Communicator, CommunicatorOptions};
use crate::device::{Device, DeviceChoices};
use crate::error::{Error, Result};
use crate::transport::Transport;
use std::sync::Arc;
use std::time::Duration;

/// What a rank works with.
pub struct Placed {
    /// The one it was started with, or `nccl` on top of it.
    pub transport: Arc<dyn Transport>,
    /// This rank's device.
    pub device: Device,
    /// Every rank's: `cpu` or `cuda:N`.
    pub devices: Vec<String>,
    /// What is worth telling about them; the same on all ranks.
    pub notice: Option<String>,
}

/// What ranks tell each other about their devices.
struct Told {
    device: String,
    /// What tells the GPU from all others; of `auto`, by which `nccl` is chosen, nothing without NCCL.
    identity: String,
}

impl Placed {
    /// Whether any rank works on a GPU.
    pub fn has_gpus(&self) -> bool {
        self.devices.iter().any(|device| device != CPU)
    }

    /// Opens this rank's device and agrees with the others on a transport. To be called by all ranks. `usable` says what else
    /// must hold for a GPU to be of use.
    ///
    /// Asked for `auto`, ranks that each have a GPU of their own talk by NCCL if all have it; else vectors of GPUs travel
    /// through host memory.
    ///
    /// # Errors
    /// `Usage` if there are not as many devices as ranks, or NCCL was asked for and a rank has no GPU; `Environment` if
    /// a device or NCCL that was asked for cannot be used; what the transport returns.
    pub fn agree(
        transport: Arc<dyn Transport>,
        choices: &DeviceChoices,
        wanted: TransportChoice,
        timeout: Duration,
        usable: impl FnOnce() -> Result<()>,
    ) -> Result<Placed> {
        let (rank, size) = (transport.rank(), transport.size());
        let host = &transport.peer(rank).host;
        let local_rank = (0..rank).filter(|&other| transport.peer(other).host == *host).count();
        let device = Device::open(choices.of(rank, size)?, local_rank, usable)?;
        let options = CommunicatorOptions { timeout, ..CommunicatorOptions::default() };
        let told = Told::by(&device);
        let all = Communicator::new(transport.clone(), options)?.gather_bytes(told.text().as_bytes())?;
        let all: Vec<Told> = all.iter().map(|text| Told::read(&String::from_utf8_lossy(text))).collect();
        let devices: Vec<String> = all.iter().map(|told| told.device.clone()).collect();
        let takes_nccl = match wanted {
            TransportChoice::Nccl => {
                if let Some(rank) = devices.iter().position(|device| device == CPU) {
                    return Err(Error::Usage(format!(
                        "--transport nccl needs a GPU on every rank, and rank {rank} works on the CPU: give it --device cuda, \
                         or use --transport mpi or threads"
                    )));
                }
                true
            }
            TransportChoice::Auto => size > 1 && all.iter().all(|told| told.is_alone_among(&all)),
            TransportChoice::Threads | TransportChoice::Shm | TransportChoice::Mpi => false,
        };
        let transport = if takes_nccl { over_nccl(transport, &device, timeout)? } else { transport };
        let has_gpus = devices.iter().any(|device| device != CPU);
        let notice = (has_gpus && size > 1 && !takes_nccl).then(|| {
            format!(
                "devices: {}; vectors of GPUs travel through host memory over {}",
                ranges(&devices),
                transport.name()
            )
        });
        Ok(Placed { transport, device, devices, notice })
    }
}

#[cfg(feature = "cuda")]
fn over_nccl(
    transport: Arc<dyn Transport>,
    device: &Device,
    timeout: Duration,
) -> Result<Arc<dyn Transport>> {
    let gpu = device.gpu().ok_or_else(|| Error::Internal("NCCL without a GPU".into()))?;
    Ok(Arc::new(crate::transport::nccl::Nccl::connect(transport, gpu.clone(), timeout)?))
}

#[cfg(not(feature = "cuda"))]
fn over_nccl(_: Arc<dyn Transport>, _: &Device, _: Duration) -> Result<Arc<dyn Transport>> {
    Err(Error::Environment(
        "this program was built without the feature `cuda`, which the transport nccl needs; build it with `--features cuda`"
            .into(),
    ))
}

const CPU: &str = "cpu";

impl Told {
    #[cfg(feature = "cuda")]
    fn by(device: &Device) -> Told {
        let identity = match (device.gpu(), crate::device::parts::nccl()) {
            (Some(gpu), Ok(_)) => gpu.uuid().iter().map(|byte| format!("{byte:02x}")).collect(),
            _ => String::new(),
        };
        Told { device: device.to_string(), identity }
    }

    #[cfg(not(feature = "cuda"))]
    fn by(device: &Device) -> Told {
        Told { device: device.to_string(), identity: String::new() }
    }

    fn text(&self) -> String {
        format!("{} {}", self.device, self.identity)
    }

    fn read(text: &str) -> Told {
        let (device, identity) = text.split_once(' ').unwrap_or((text, ""));
        Told { device: device.into(), identity: identity.into() }
    }

    /// Whether it has a GPU and NCCL, and no other rank has the same GPU.
    fn is_alone_among(&self, all: &[Told]) -> bool {
        !self.identity.is_empty() && all.iter().filter(|told| told.identity == self.identity).count() == 1
    }
}

/// `ranks 0-1 cuda:0, 2 cpu`.
fn ranges(devices: &[String]) -> String {
    let mut parts: Vec<(usize, usize, &str)> = Vec::new();
    for (rank, device) in devices.iter().enumerate() {
        match parts.last_mut() {
            Some((_, last, same)) if same == device => *last = rank,
            _ => parts.push((rank, rank, device)),
        }
    }
    let part = |(first, last, device): &(usize, usize, &str)| match first == last {
        true => format!("{first} {device}"),
        false => format!("{first}-{last} {device}"),
    };
    let parts: Vec<String> = parts.iter().map(part).collect();
    format!("{} {}", if devices.len() == 1 { "rank" } else { "ranks" }, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_the_same_device_are_told_together() {
        let devices = ["cuda:0", "cuda:0", "cuda:1", "cpu", "cpu", "cpu"].map(String::from);
        assert_eq!(ranges(&devices), "ranks 0-1 cuda:0, 2 cuda:1, 3-5 cpu");
        assert_eq!(ranges(&devices[..1]), "rank 0 cuda:0");
    }

    #[test]
    fn nccl_is_chosen_for_ranks_that_each_have_their_own_gpu() {
        let told = |texts: &[&str]| texts.iter().map(|text| Told::read(text)).collect::<Vec<_>>();
        let chosen = |all: &[Told]| all.iter().all(|told| told.is_alone_among(all));
        assert!(chosen(&told(&["cuda:0 aa", "cuda:1 bb", "cuda:0 cc"])));
        assert!(!chosen(&told(&["cuda:0 aa", "cuda:0 aa"])), "one GPU for two");
        assert!(!chosen(&told(&["cuda:0 aa", "cpu "])));
        assert!(!chosen(&told(&["cuda:0 aa", "cuda:1 "])), "no NCCL");
    }
}

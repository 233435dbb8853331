//! `--device`: what is asked for, and what a rank got.

#[cfg(feature = "cuda")]
use super::{Gpu, parts};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Which device a rank asks for. Ranks of one job may ask for different ones.
///
/// ```
/// use esync::device::DeviceChoice;
/// assert_eq!("cuda:1".parse::<DeviceChoice>()?, DeviceChoice::Cuda(Some(1)));
/// assert_eq!(DeviceChoice::Auto.to_string(), "auto");
/// assert!("gpu".parse::<DeviceChoice>().is_err());
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// A GPU if there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number, or else the one whose number is the rank's number on its host, modulo the number of GPUs.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => return Ok(DeviceChoice::Cuda(None)),
            _ => {}
        }
        let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        number.map(|number| DeviceChoice::Cuda(Some(number))).ok_or_else(|| {
            Error::Usage(format!(
                "there is no device `{text}`; choose one of `auto`, `cpu`, `cuda` and `cuda:N`"
            ))
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(None) => f.write_str("cuda"),
            DeviceChoice::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

/// The choice of all ranks: one for all of them, or one for each, separated by commas.
///
/// ```
/// use esync::device::{DeviceChoice, DeviceChoices};
/// let choices: DeviceChoices = "cuda:0,cpu".parse()?;
/// assert_eq!(choices.of(1, 2)?, DeviceChoice::Cpu);
/// assert!(choices.of(1, 3).is_err(), "there is none for rank 2");
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceChoices(Vec<DeviceChoice>);

impl DeviceChoices {
    /// The choice of `rank` among `size`.
    ///
    /// # Errors
    /// `Usage` if there are several, but not as many as ranks.
    pub fn of(&self, rank: usize, size: usize) -> Result<DeviceChoice> {
        match self.0.as_slice() {
            [one] => Ok(*one),
            several if several.len() == size => Ok(several[rank]),
            several => Err(Error::Usage(format!(
                "--device {self} names {} devices for {size} ranks; give one, or one for each rank",
                several.len()
            ))),
        }
    }

    /// Whether every rank is to work on the CPU.
    pub fn are_cpu(&self) -> bool {
        self.0.iter().all(|choice| *choice == DeviceChoice::Cpu)
    }
}

impl Default for DeviceChoices {
    fn default() -> Self {
        DeviceChoice::default().into()
    }
}

impl From<DeviceChoice> for DeviceChoices {
    fn from(choice: DeviceChoice) -> Self {
        DeviceChoices(vec![choice])
    }
}

impl FromStr for DeviceChoices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',').map(str::parse).collect::<Result<_>>().map(DeviceChoices)
    }
}

impl TryFrom<String> for DeviceChoices {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceChoices> for String {
    fn from(choices: DeviceChoices) -> String {
        choices.to_string()
    }
}

impl fmt::Display for DeviceChoices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(DeviceChoice::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// Where a rank's vectors lie.
#[derive(Debug, Clone, Default)]
pub enum Device {
    /// In the host's memory.
    #[default]
    Cpu,
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The device of that choice. `local_rank` is the rank's number among those of its host, from 0. What else must hold for
    /// a GPU to be of use (such as a libtorch that has CUDA) is said by `usable`, which is asked only where it matters.
    ///
    /// # Errors
    /// `Environment` if a GPU was asked for by name and cannot be used, with what is missing.
    pub fn open(
        choice: DeviceChoice,
        local_rank: usize,
        usable: impl FnOnce() -> Result<()>,
    ) -> Result<Device> {
        match choice {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto => Ok(Self::open_gpu(None, local_rank, usable).unwrap_or(Device::Cpu)),
            DeviceChoice::Cuda(number) => Self::open_gpu(number, local_rank, usable),
        }
    }

    #[cfg(feature = "cuda")]
    fn open_gpu(
        number: Option<usize>,
        local_rank: usize,
        usable: impl FnOnce() -> Result<()>,
    ) -> Result<Device> {
        let count = parts::device_count()?;
        parts::nvrtc()?;
        usable()?;
        Ok(Device::Gpu(Gpu::open(number.unwrap_or(local_rank % count))?))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpu(_: Option<usize>, _: usize, _: impl FnOnce() -> Result<()>) -> Result<Device> {
        Err(Error::Environment(
            "this program was built without the feature `cuda`; build it with `--features cuda`, or use --device cpu"
                .into(),
        ))
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        !matches!(self, Device::Cpu)
    }

    /// The GPU, if it is one.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        }
    }

    /// The number of the GPU, if it is one.
    pub fn ordinal(&self) -> Option<usize> {
        match self {
            Device::Cpu => None,
            #[cfg(feature = "cuda")]
            Device::Gpu(gpu) => Some(gpu.ordinal()),
        }
    }
}

/// `cpu`, or `cuda:N`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ordinal() {
            None => f.write_str("cpu"),
            Some(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:17"] {
            let choice: DeviceChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn auto_is_the_cpu_where_nothing_else_can_be_used() {
        let refuse = || Err(Error::Environment("no".into()));
        assert!(!Device::open(DeviceChoice::Auto, 0, refuse).unwrap().is_gpu());
        assert!(!Device::open(DeviceChoice::Cpu, 0, || Ok(())).unwrap().is_gpu());
        let error = Device::open(DeviceChoice::Cuda(None), 0, refuse).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
    }
}

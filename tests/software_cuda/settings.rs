//! What the environment says about the device. The table is in `lib.rs`.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Settings {
    /// The devices that this process sees, by their numbers on the host.
    pub(crate) devices: Vec<usize>,
    pub(crate) memory_bytes: usize,
    pub(crate) capability: Version,
    pub(crate) driver: Version,
    pub(crate) nvrtc: Version,
    pub(crate) nccl: Version,
    pub(crate) delays: Option<Delays>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) trace: Option<PathBuf>,
    pub(crate) nccl_stall: Option<Operation>,
    pub(crate) nccl_error: Option<Operation>,
    pub(crate) tells_of_aborts: bool,
    pub(crate) share_device: bool,
}

/// `major.minor.patch`; what is left out is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: i32,
    pub(crate) minor: i32,
    pub(crate) patch: i32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    pub(crate) seed: u64,
    pub(crate) longest: Duration,
}

/// One operation of a communicator, by the rank that runs it and how many it ran before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) rank: usize,
    pub(crate) number: u64,
}

/// The environment's settings, read once.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        devices: visible(variable("SOFTWARE_CUDA_DEVICES").unwrap_or(2)),
        memory_bytes: variable("SOFTWARE_CUDA_MEMORY").unwrap_or(64 << 30),
        capability: variable("SOFTWARE_CUDA_CAPABILITY").unwrap_or(version(9, 0, 0)),
        driver: variable("SOFTWARE_CUDA_DRIVER_VERSION").unwrap_or(version(13, 0, 0)),
        nvrtc: variable("SOFTWARE_CUDA_NVRTC_VERSION").unwrap_or(version(13, 0, 0)),
        nccl: variable("SOFTWARE_CUDA_NCCL_VERSION").unwrap_or(version(2, 28, 9)),
        delays: variable("SOFTWARE_CUDA_DELAYS"),
        cache: variable("SOFTWARE_CUDA_CACHE"),
        trace: variable("SOFTWARE_CUDA_TRACE"),
        nccl_stall: variable("SOFTWARE_CUDA_NCCL_STALL"),
        nccl_error: variable("SOFTWARE_CUDA_NCCL_ERROR"),
        tells_of_aborts: variable::<u32>("SOFTWARE_CUDA_NCCL_TELLS_OF_ABORTS") == Some(1),
        share_device: variable::<u32>("NCCL_MULTI_RANK_GPU_ENABLE") == Some(1),
    })
}

/// `CUDA_VISIBLE_DEVICES` chooses, as the real driver understands it: the first number that is none ends the list.
fn visible(devices: usize) -> Vec<usize> {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Err(_) => (0..devices).collect(),
        Ok(list) => {
            list.split(',').map_while(|it| it.trim().parse().ok().filter(|it| *it < devices)).collect()
        }
    }
}

pub(crate) const fn version(major: i32, minor: i32, patch: i32) -> Version {
    Version { major, minor, patch }
}

/// Ends the program if the variable is set to what cannot be read: a test must not run with other settings than it asked for.
fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("software device: {name}={text} cannot be read"),
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.').map(|part| part.parse().map_err(drop));
        let mut next = || parts.next().unwrap_or(Ok(0));
        let (major, minor, patch) = (next()?, next()?, next()?);
        Ok(version(major, minor, patch))
    }
}

impl FromStr for Delays {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (seed, microseconds) = text.split_once(':').ok_or(())?;
        let longest = Duration::from_micros(microseconds.parse().map_err(drop)?);
        Ok(Self { seed: seed.parse().map_err(drop)?, longest })
    }
}

impl FromStr for Operation {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (rank, number) = text.split_once(':').ok_or(())?;
        Ok(Self { rank: rank.parse().map_err(drop)?, number: number.parse().map_err(drop)? })
    }
}

/// Pauses of one thread: the same for a seed, a thread's number and the order of its operations.
#[derive(Debug)]
pub(crate) struct Pauses {
    state: u64,
    longest_microseconds: u64,
}

impl Pauses {
    pub(crate) fn of_thread(number: u64) -> Self {
        match settings().delays {
            None => Self { state: 0, longest_microseconds: 0 },
            Some(Delays { seed, longest }) => Self {
                state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd134_2543_de82_ef95),
                longest_microseconds: u64::try_from(longest.as_micros()).unwrap_or(u64::MAX),
            },
        }
    }

    /// Sleeps; half of the times not at all, so that long runs of operations stay together too.
    pub(crate) fn pause(&mut self) {
        if self.longest_microseconds == 0 {
            return;
        }
        let bits = self.bits();
        if bits & 1 == 0 {
            std::thread::sleep(Duration::from_micros((bits >> 1) % (self.longest_microseconds + 1)));
        }
    }

    /// The numbers below `count`, in random order if there are delays.
    pub(crate) fn order(&mut self, count: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..count).collect();
        if self.longest_microseconds > 0 {
            for end in (1..order.len()).rev() {
                order.swap(end, (self.bits() % (end as u64 + 1)) as usize);
            }
        }
        order
    }

    fn bits(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

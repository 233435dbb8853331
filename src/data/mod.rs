//! Data sets, their partition between workers, and the order in which a worker draws its mini-batches.
//!
//! | data set | images | train / test | from |
//! |---|---|---|---|
//! | `digits` | 1,797 of 8×8 | 1,437 / 360 | embedded (`DIGITS-LICENCE.md`) |
//! | `mnist`, `fashion-mnist` | 70,000 of 28×28 | 60,000 / 10,000 | IDX files in a directory |
//! | the same, with the `t10k` files alone | 10,000 of 28×28 | 8,000 / 2,000 | IDX files in a directory |
//! | `tinyshakespeare` | the characters of a text, each with the 16 before it | nine tenths / every 8th of the last tenth | any text file |
//!
//! Where this module splits into train and test itself, the split is shuffled and stratified (each class has the same share of
//! both parts) and fixed: it does not depend on `--seed`, so that accuracies of different runs can be compared. A text is not
//! shuffled: its end is tested on.

mod batches;
mod digits;
mod idx;
mod partition;
pub(crate) mod random;
mod stratified;
mod text;

pub use batches::{BatchPosition, Batches};
pub use partition::{Split, partition};

use crate::error::{Error, Result};
use std::path::Path;

/// What [`load`] accepts.
pub const DATASET_NAMES: [&str; 4] = ["digits", "mnist", "fashion-mnist", "tinyshakespeare"];

/// Images and their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    /// Row-major, images × channels × height × width. [`load`] standardises them: over the training set, the mean is 0 and
    /// the standard deviation 1.
    ///
    /// Of a text, the numbers of its characters, of which the samples are overlapping pieces: [`image`](Samples::image).
    pub pixels: Vec<f32>,
    /// One class for each image, from 0.
    pub labels: Vec<i64>,
}

impl Samples {
    /// How many images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The values of one image, of which each has `image_len`.
    ///
    /// ```
    /// let digits = esync::data::load("digits", None)?;
    /// assert_eq!(digits.train.image(2, 64), &digits.train.pixels[128..192]);
    /// # Ok::<(), esync::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If there is no such image.
    pub fn image(&self, index: usize, image_len: usize) -> &[f32] {
        &self.pixels[index * self.stride(image_len)..][..image_len]
    }

    /// How many values lie between the beginnings of two images: as many as one has, unless they overlap.
    pub(crate) fn stride(&self, image_len: usize) -> usize {
        match self.len() {
            0 | 1 => image_len,
            images => (self.pixels.len() - image_len) / (images - 1),
        }
    }

    /// At most `most` of the images at random, the same for the same seed. `image_len` is the number of values of one image.
    ///
    /// ```
    /// let digits = esync::data::load("digits", None)?;
    /// assert_eq!(digits.train.draw(digits.image_len(), 100, 1).len(), 100);
    /// # Ok::<(), esync::Error>(())
    /// ```
    pub fn draw(&self, image_len: usize, most: usize, seed: u64) -> Samples {
        let mut indices: Vec<u32> = (0..self.len() as u32).collect();
        random::shuffle(&mut indices, &mut random::generator(b"a sample", seed, 0, 0));
        indices.truncate(most);
        self.select(&indices, image_len)
    }

    /// The images `indices`, in that order. `image_len` is the number of values of one image.
    pub(crate) fn select(&self, indices: &[u32], image_len: usize) -> Samples {
        let mut chosen = Samples {
            pixels: Vec::with_capacity(indices.len() * image_len),
            labels: Vec::with_capacity(indices.len()),
        };
        for &index in indices {
            chosen.pixels.extend_from_slice(self.image(index as usize, image_len));
            chosen.labels.push(self.labels[index as usize]);
        }
        chosen
    }
}

/// A data set for classification, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// One of [`DATASET_NAMES`].
    pub name: String,
    /// One line for people: how many images of what size, and where the split comes from. Figures quote it.
    pub description: String,
    /// What is trained on.
    pub train: Samples,
    /// What accuracy is measured on.
    pub test: Samples,
    /// How many classes there are; labels are below it.
    pub classes: usize,
    /// Values for each pixel (1: grey).
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// The characters that the values and the classes of a text are the numbers of; `None` for images.
    pub alphabet: Option<Vec<char>>,
}

impl Dataset {
    /// How many values an image has: channels × height × width.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Divides `all` into train and test, shuffled and stratified, always in the same way. `self.train` is replaced.
    fn with_fixed_split(mut self, all: &Samples, test: usize) -> Dataset {
        let (train_indices, test_indices) = stratified::split(&all.labels, self.classes, test);
        self.train = all.select(&train_indices, self.image_len());
        self.test = all.select(&test_indices, self.image_len());
        self
    }

    /// Shifts and scales all pixels alike, so that the training set's have mean 0 and standard deviation 1: gradients of a
    /// first layer are then of the size that common learning rates are meant for.
    fn standardised(mut self) -> Dataset {
        let pixels = &self.train.pixels;
        let count = pixels.len().max(1) as f64;
        let mean = pixels.iter().map(|&pixel| f64::from(pixel)).sum::<f64>() / count;
        let variance = pixels.iter().map(|&pixel| (f64::from(pixel) - mean).powi(2)).sum::<f64>() / count;
        // Images of one colour have nothing to scale.
        let scale = if variance > 0.0 { 1.0 / variance.sqrt() } else { 1.0 };
        for pixel in self.train.pixels.iter_mut().chain(&mut self.test.pixels) {
            *pixel = ((f64::from(*pixel) - mean) * scale) as f32;
        }
        self
    }
}

/// Loads a data set: `digits` from the program itself, `tinyshakespeare` from the text file `data_dir` (or `input.txt` in it),
/// the others from the IDX files (plain or gzip) in `data_dir`.
///
/// ```
/// let digits = esync::data::load("digits", None)?;
/// assert_eq!((digits.train.len(), digits.test.len()), (1437, 360));
/// # Ok::<(), esync::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Usage`] for an unknown name, or if `data_dir` is needed and not given; [`Error::Data`] for files that are
/// missing, truncated or malformed.
pub fn load(dataset: &str, data_dir: Option<&Path>) -> Result<Dataset> {
    let loaded = match (dataset, data_dir) {
        ("tinyshakespeare", Some(path)) => return text::load(dataset, path),
        ("tinyshakespeare", None) => Err(Error::Usage(format!(
            "the data set `{dataset}` is read from a file: give a plain text file, or a directory with input.txt in it, with \
             --data-dir"
        ))),
        ("digits", _) => digits::load(),
        ("mnist" | "fashion-mnist", Some(directory)) => idx::load(dataset, directory),
        ("mnist" | "fashion-mnist", None) => Err(Error::Usage(format!(
            "the data set `{dataset}` is read from files: give the directory of its IDX files with --data-dir"
        ))),
        _ => Err(Error::Usage(format!(
            "there is no data set `{dataset}`; there are {}",
            DATASET_NAMES.map(|name| format!("`{name}`")).join(", ")
        ))),
    };
    loaded.map(Dataset::standardised)
}

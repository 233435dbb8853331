//! MNIST's file format: a magic number, sizes (big-endian), bytes; plain or gzip.

use super::{Dataset, Samples};
use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const CLASSES: usize = 10;

/// Of the `t10k` images alone, one in five is tested on.
const TEST_SHARE: usize = 5;

/// Loads the data set `name` from `directory`: the train and the t10k files, or the latter alone.
pub(super) fn load(name: &str, directory: &Path) -> Result<Dataset> {
    if !directory.is_dir() {
        let what = if directory.exists() { "is not a directory" } else { "there is no such directory" };
        return Err(Error::data(
            directory,
            format!("{what}; --data-dir names the directory of the IDX files"),
        ));
    }
    let train = find(directory, "train")?;
    let test = find(directory, "t10k")?;
    match (train, test) {
        (Some(train), Some(test)) => given_split(name, &train, &test),
        (None, Some(test)) => own_split(name, &test),
        (Some(_), None) => Err(missing(directory, "t10k-images-idx3-ubyte")),
        (None, None) => Err(missing(directory, "train-images-idx3-ubyte")),
    }
}

/// The normal case: the authors' own division.
fn given_split(name: &str, train: &Pair, test: &Pair) -> Result<Dataset> {
    let ((train_samples, height, width), (test_samples, test_height, test_width)) =
        (train.read()?, test.read()?);
    if (height, width) != (test_height, test_width) {
        let what = format!(
            "has images of {test_height}×{test_width}, but {} has {height}×{width}; \
             the files are of different data sets",
            train.images.display()
        );
        return Err(Error::data(&test.images, what));
    }
    let description = format!(
        "{name}: {} images of {height}×{width} to train, {} to test",
        train_samples.len(),
        test_samples.len()
    );
    Ok(Dataset {
        name: name.into(),
        description,
        train: train_samples,
        test: test_samples,
        classes: CLASSES,
        channels: 1,
        height,
        width,
        alphabet: None,
    })
}

/// Without the train files, the t10k images are divided.
fn own_split(name: &str, pair: &Pair) -> Result<Dataset> {
    let (all, height, width) = pair.read()?;
    let test = all.len() / TEST_SHARE;
    if test == 0 {
        let what = format!("holds {} images, too few to divide into train and test", all.len());
        return Err(Error::data(&pair.images, what));
    }
    let description = format!(
        "{name}: the t10k files alone, {} images of {height}×{width}, split {} / {test} after a fixed, stratified \
         shuffle (the train files are not there)",
        all.len(),
        all.len() - test
    );
    let dataset = Dataset {
        name: name.into(),
        description,
        train: Samples::default(),
        test: Samples::default(),
        classes: CLASSES,
        channels: 1,
        height,
        width,
        alphabet: None,
    };
    Ok(dataset.with_fixed_split(&all, test))
}

/// An images file and its labels file.
struct Pair {
    images: PathBuf,
    labels: PathBuf,
}

/// Looks for `train` or `t10k` files. None if there is neither images nor labels; an error if there is only one.
fn find(directory: &Path, part: &str) -> Result<Option<Pair>> {
    let images = find_file(directory, part, "images", "idx3");
    let labels = find_file(directory, part, "labels", "idx1");
    match (images, labels) {
        (Some(images), Some(labels)) => Ok(Some(Pair { images, labels })),
        (Some(_), None) => Err(missing(directory, &format!("{part}-labels-idx1-ubyte"))),
        (None, Some(_)) => Err(missing(directory, &format!("{part}-images-idx3-ubyte"))),
        (None, None) => Ok(None),
    }
}

/// The name as published, and with the dot that some archives have in it; plain first.
fn find_file(directory: &Path, part: &str, what: &str, idx: &str) -> Option<PathBuf> {
    ["-", "."]
        .iter()
        .flat_map(|separator| ["", ".gz"].map(|end| format!("{part}-{what}{separator}{idx}-ubyte{end}")))
        .map(|name| directory.join(name))
        .find(|path| path.exists())
}

fn missing(directory: &Path, name: &str) -> Error {
    let what = "there is no such file, plain or as .gz; the data set consists of train-images-idx3-ubyte, \
                train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (the last two alone will do)";
    Error::data(directory.join(name), what)
}

impl Pair {
    /// The samples, and the height and width of an image.
    fn read(&self) -> Result<(Samples, usize, usize)> {
        let (labels, [count]) = IdxFile::open(&self.labels)?.read(LABELS_MAGIC)?;
        let (pixels, [images, height, width]) = IdxFile::open(&self.images)?.read(IMAGES_MAGIC)?;
        if images != count {
            let what = format!("holds {images} images, but {} has {count} labels", self.labels.display());
            return Err(Error::data(&self.images, what));
        }
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= CLASSES) {
            let what = format!("label {index} is {}, but classes are 0 to {}", labels[index], CLASSES - 1);
            return Err(Error::data(&self.labels, what));
        }
        let samples = Samples {
            pixels: pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect(),
            labels: labels.iter().map(|&label| label.into()).collect(),
        };
        Ok((samples, height, width))
    }
}

struct IdxFile<'a> {
    path: &'a Path,
    bytes: Box<dyn Read>,
}

impl<'a> IdxFile<'a> {
    /// Opens a file; its first bytes say whether it is compressed, whatever its name says.
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::data(path, format!("cannot be opened: {e}")))?;
        let mut file = BufReader::new(file);
        let start = file.fill_buf().map_err(|e| Error::data(path, format!("cannot be read: {e}")))?;
        let is_gzip = start.starts_with(&GZIP_MAGIC);
        if !is_gzip && path.extension().is_some_and(|end| end == "gz") {
            let what =
                "its name ends in .gz, but it is not gzip; download it again, or remove .gz from its name";
            return Err(Error::data(path, what));
        }
        let bytes: Box<dyn Read> = if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(IdxFile { path, bytes })
    }

    /// The whole file: its bytes after the header, and its sizes, of which there are as many as the magic number says.
    fn read<const SIZES: usize>(mut self, magic: u32) -> Result<(Vec<u8>, [usize; SIZES])> {
        let found = self.read_u32()?;
        if found != magic {
            return Err(
                self.error(&format!("begins with {found:#010x} instead of {magic:#010x}{}", hint(found)))
            );
        }
        let mut sizes = [0; SIZES];
        for size in &mut sizes {
            *size = self.read_u32()? as usize;
        }
        let len = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let Some(len) = len.filter(|&len| len > 0 && len < isize::MAX as usize) else {
            return Err(self.error(&format!("says that its sizes are {sizes:?}")));
        };
        // Not reserved in advance: the length is only what a damaged file may claim.
        let mut body = Vec::new();
        self.bytes.by_ref().take(len as u64).read_to_end(&mut body).map_err(|e| self.io_error(&e))?;
        if body.len() < len {
            let what = format!("is truncated: its header promises {len} bytes, and there are {}", body.len());
            return Err(self.error(&what));
        }
        match self.bytes.read(&mut [0]) {
            Ok(0) => Ok((body, sizes)),
            Ok(_) => Err(self.error(&format!("goes on after the {len} bytes that its header promises"))),
            Err(e) => Err(self.io_error(&e)),
        }
    }

    fn read_u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.bytes.read_exact(&mut bytes).map_err(|e| self.io_error(&e))?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn io_error(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.error("is truncated"),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                self.error(&format!("is damaged: {error}"))
            }
            _ => Error::data(self.path, format!("cannot be read: {error}")),
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::data(self.path, format!("{what}; download it again"))
    }
}

fn hint(magic: u32) -> &'static str {
    match magic {
        IMAGES_MAGIC => " (it holds images: is it in the place of the labels?)",
        LABELS_MAGIC => " (it holds labels: is it in the place of the images?)",
        _ => " (it is no IDX file)",
    }
}

//! A plain text, to predict each character from those before it.

use super::{Dataset, Samples};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The file that is looked for in a directory.
const FILE_NAME: &str = "input.txt";

/// Characters that a prediction is made from.
const CONTEXT: usize = 16;

/// The last one in so many characters is tested on.
const TEST_SHARE: usize = 10;

/// Every so many-th character of the test part is predicted: neighbours say much the same, and measuring takes time.
const TEST_STRIDE: usize = 8;

/// Loads the data set `name` from a text file, or from `input.txt` in a directory.
///
/// A sample's values are the numbers (from 0, by code point) of [`CONTEXT`] characters, its class is the number of the next
/// one. Training samples begin at every character of the first nine tenths. They overlap, and are kept as the text itself.
pub(super) fn load(name: &str, path: &Path) -> Result<Dataset> {
    let path = file(path)?;
    let bytes = std::fs::read(&path).map_err(|e| Error::data(&path, format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let place = e.utf8_error().valid_up_to();
        Error::data(&path, format!("byte {place} is not UTF-8; the data set is a plain text file"))
    })?;
    let alphabet: Vec<char> = text.chars().collect::<BTreeSet<char>>().into_iter().collect();
    let number = |c: char| alphabet.binary_search(&c).unwrap_or(0);
    let numbers: Vec<usize> = text.chars().map(number).collect();
    let (train, test) = numbers.split_at(numbers.len() - numbers.len() / TEST_SHARE);
    if test.len() <= CONTEXT || alphabet.len() < 2 {
        return Err(Error::data(
            &path,
            format!(
                "holds {} characters, {} of them different: too few. A tenth is set aside for the test, and each prediction \
                 needs {CONTEXT} characters before it",
                numbers.len(),
                alphabet.len()
            ),
        ));
    }
    let (train, test) = (windows(train, 1), windows(test, TEST_STRIDE));
    let description = format!(
        "{name}: {} characters, {} different, each predicted from {CONTEXT}; {} to train, {} (every {TEST_STRIDE}th of the \
         last tenth) to test",
        numbers.len(),
        alphabet.len(),
        train.len(),
        test.len()
    );
    Ok(Dataset {
        name: name.into(),
        description,
        train,
        test,
        classes: alphabet.len(),
        channels: 1,
        height: 1,
        width: CONTEXT,
        alphabet: Some(alphabet),
    })
}

fn file(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
    match file.is_file() {
        true => Ok(file),
        false => Err(Error::data(
            &file,
            format!(
                "there is no such file; --data-dir names a plain text file, or a directory with {FILE_NAME} in it"
            ),
        )),
    }
}

/// A sample at every `stride`-th character, as long as there is a character after it.
fn windows(numbers: &[usize], stride: usize) -> Samples {
    let count = (numbers.len() - CONTEXT - 1) / stride + 1;
    let labels = (0..count).map(|sample| numbers[sample * stride + CONTEXT] as i64).collect();
    let end = (count - 1) * stride + CONTEXT;
    Samples { pixels: numbers[..end].iter().map(|&number| number as f32).collect(), labels }
}

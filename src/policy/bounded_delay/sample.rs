//! What the rules that go by the data see of it.

use crate::error::{Error, Result};

/// Samples of the training set, flattened, one row each.
///
/// ```
/// use esync::policy::bounded_delay::DataSample;
///
/// let sample = DataSample::new(2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])?;
/// assert_eq!((sample.rows(), sample.columns()), (3, 2));
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DataSample {
    columns: usize,
    values: Vec<f32>,
}

impl DataSample {
    /// How many rows the published rule draws.
    pub const PUBLISHED_ROWS: usize = 1000;

    /// Rows of `columns` values each, one after another.
    ///
    /// # Errors
    /// `Usage` if there is no row, the last one is not whole, or a value is not a finite number.
    pub fn new(columns: usize, values: Vec<f32>) -> Result<Self> {
        if values.is_empty() || columns == 0 || !values.len().is_multiple_of(columns) {
            return Err(Error::Usage(format!(
                "{} values are no sample of the training data with {columns} in a row",
                values.len()
            )));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Usage("the training data hold values that are not finite numbers".into()));
        }
        Ok(DataSample { columns, values })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A row.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_samples_are_refused() {
        for (columns, values) in [(2, vec![]), (0, vec![1.0]), (2, vec![1.0; 3]), (1, vec![f32::NAN])] {
            assert!(DataSample::new(columns, values).is_err());
        }
    }
}

//! Where a model's tensors lie in its flat buffer.

use std::ops::Range;

/// One tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLayout {
    /// Its name in the model, such as `conv1.weight`.
    pub name: String,
    /// Its sizes; it lies in row-major order. Empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements in the flat buffer.
    pub range: Range<usize>,
}

/// All tensors' places, one after the other: `trainable` elements, then the statistics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// In the order of their ranges, which leave no gaps.
    pub tensors: Vec<TensorLayout>,
    /// How many elements, from the first on, are trained; the optimiser and gradients know only those.
    pub trainable: usize,
    /// How many elements there are in all.
    pub len: usize,
}

impl Layout {
    /// Lays out tensors, given as name and shape, one after the other.
    pub fn new<N: Into<String>>(
        trainable: impl IntoIterator<Item = (N, Vec<usize>)>,
        statistics: impl IntoIterator<Item = (N, Vec<usize>)>,
    ) -> Self {
        let mut layout = Layout::default();
        layout.append(trainable);
        layout.trainable = layout.len;
        layout.append(statistics);
        layout
    }

    fn append<N: Into<String>>(&mut self, tensors: impl IntoIterator<Item = (N, Vec<usize>)>) {
        for (name, shape) in tensors {
            let range = self.len..self.len + shape.iter().product::<usize>();
            self.len = range.end;
            self.tensors.push(TensorLayout { name: name.into(), shape, range });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_follow_each_other() {
        let layout =
            Layout::new([("w", vec![2, 3]), ("scale", vec![]), ("none", vec![0, 4])], [("mean", vec![5])]);
        assert_eq!((layout.trainable, layout.len), (7, 12));
        let ranges: Vec<_> = layout.tensors.iter().map(|tensor| tensor.range.clone()).collect();
        assert_eq!(ranges, [0..6, 6..7, 7..7, 7..12]);
    }
}

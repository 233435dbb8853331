//! How a model's flat buffers are cut into fragments.

use crate::collective::part;
use crate::error::{Error, Result};
use crate::learner::TensorLayout;
use crate::policy::streaming_diloco::FragmentMap;
use std::ops::Range;

/// Into how many fragments parameters are cut, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragments {
    /// At least 1.
    pub count: u16,
    /// Which parameters make up a fragment.
    pub map: FragmentMap,
}

/// A fragment's place in a group of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ranges {
    /// First the trained ones, then the statistics; in ascending order.
    pub(super) ranges: Vec<Range<usize>>,
    /// Elements in all of them.
    pub(crate) len: usize,
    /// How many of these are trained.
    pub(crate) trainable: usize,
}

impl Ranges {
    pub(crate) fn whole(len: usize, trainable: usize) -> Ranges {
        Ranges { ranges: std::iter::once(0..len).collect(), len, trainable }
    }

    fn push(&mut self, range: Range<usize>, is_trained: bool) {
        if range.is_empty() {
            return;
        }
        self.len += range.len();
        if is_trained {
            self.trainable += range.len();
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    /// Copies the fragment out of `values`.
    pub(crate) fn gather<T: Copy>(&self, values: &[T], into: &mut Vec<T>) {
        into.clear();
        for range in &self.ranges {
            into.extend_from_slice(&values[range.clone()]);
        }
    }

    /// Copies the fragment back.
    pub(crate) fn scatter<T: Copy>(&self, from: &[T], values: &mut [T]) {
        let mut rest = from;
        for range in &self.ranges {
            let (piece, after) = rest.split_at(range.len());
            values[range.clone()].copy_from_slice(piece);
            rest = after;
        }
    }
}

impl Fragments {
    /// The places of all fragments in a group of `len` elements, of which `trainable` are trained.
    pub(crate) fn ranges(&self, tensors: &[TensorLayout], len: usize, trainable: usize) -> Vec<Ranges> {
        let count = usize::from(self.count);
        let mut fragments = vec![Ranges::default(); count];
        match self.map {
            FragmentMap::Contiguous => {
                for (index, fragment) in fragments.iter_mut().enumerate() {
                    let statistics = part(len - trainable, count, index);
                    fragment.push(part(trainable, count, index), true);
                    fragment.push(statistics.start + trainable..statistics.end + trainable, false);
                }
            }
            FragmentMap::Strided => {
                let layers = layers(tensors);
                for tensor in tensors {
                    let layer = layers.iter().position(|&layer| layer == layer_of(&tensor.name));
                    let fragment = &mut fragments[layer.unwrap_or_default() % count];
                    fragment.push(tensor.range.clone(), tensor.range.start < trainable);
                }
            }
        }
        fragments
    }

    /// # Errors
    /// `Usage` if a fragment would be empty. `trained` are the trained elements of each.
    pub(crate) fn check(&self, trained: &[usize]) -> Result<()> {
        if trained.iter().all(|&elements| elements > 0) {
            return Ok(());
        }
        let (count, filled) = (self.count, trained.iter().filter(|&&elements| elements > 0).count());
        Err(Error::Usage(match self.map {
            FragmentMap::Strided => format!(
                "--fragments is {count}, and this model has layers for {filled}: give at most {filled}, or --fragment-map \
                 contiguous, which cuts through layers"
            ),
            FragmentMap::Contiguous => {
                format!("--fragments is {count}, and this model has parameters for {filled} only")
            }
        }))
    }
}

/// A tensor's layer: `fc1` of `fc1.weight`.
fn layer_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(layer, _)| layer)
}

/// All layers, in the order of their first tensors.
fn layers(tensors: &[TensorLayout]) -> Vec<&str> {
    let mut layers: Vec<&str> = Vec::new();
    for tensor in tensors {
        let layer = layer_of(&tensor.name);
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::Layout;

    fn layout() -> Layout {
        let trained = [("a.weight", 6), ("a.bias", 2), ("b.weight", 3), ("c.weight", 4), ("c.bias", 1)];
        let statistics = [("a.mean", 2), ("b.mean", 3)];
        let sized = |(name, len): (&'static str, usize)| (name, vec![len]);
        Layout::new(trained.map(sized), statistics.map(sized))
    }

    #[test]
    fn fragments_cover_everything_once() {
        let Layout { tensors, trainable, len } = layout();
        for map in FragmentMap::ALL {
            for count in 1..=3 {
                let fragments = Fragments { count, map }.ranges(&tensors, len, trainable);
                let mut seen: Vec<usize> =
                    fragments.iter().flat_map(|fragment| fragment.ranges.iter().cloned().flatten()).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..len).collect::<Vec<_>>(), "{map}, {count}");
                assert_eq!(fragments.iter().map(|fragment| fragment.trainable).sum::<usize>(), trainable);
            }
        }
    }

    #[test]
    fn layers_take_turns_with_their_statistics() {
        let Layout { tensors, trainable, len } = layout();
        let strided = Fragments { count: 2, map: FragmentMap::Strided };
        let fragments = strided.ranges(&tensors, len, trainable);
        assert_eq!(fragments[0].ranges, [0..8, 11..18]);
        assert_eq!((fragments[0].trainable, fragments[0].len), (13, 15));
        assert_eq!(fragments[1].ranges, [8..11, 18..21]);
        let values: Vec<usize> = (0..len).collect();
        let (mut gathered, mut again) = (Vec::new(), vec![0; len]);
        for fragment in &fragments {
            fragment.gather(&values, &mut gathered);
            fragment.scatter(&gathered, &mut again);
        }
        assert_eq!(again, values);
    }

    #[test]
    fn more_fragments_than_layers_are_refused() {
        let Layout { tensors, trainable, len } = layout();
        let check = |map| {
            let fragments = Fragments { count: 4, map };
            let trained: Vec<usize> =
                fragments.ranges(&tensors, len, trainable).iter().map(|ranges| ranges.trainable).collect();
            fragments.check(&trained)
        };
        let error = check(FragmentMap::Strided).unwrap_err().to_string();
        assert!(error.contains("layers for 3: give at most 3"), "{error}");
        assert!(check(FragmentMap::Contiguous).is_ok());
    }
}

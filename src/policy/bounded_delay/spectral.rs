//! The spectral rule's figure: how alike the samples are, as the small eigenvalues of their similarity graph.

use super::DataSample;
use nalgebra::DMatrix;

/// Eigenvalues of which the mean is taken, the smallest (which is 0) among them.
const SMALLEST: usize = 10;

/// The mean of the ten smallest eigenvalues of the graph Laplacian `L = D − A`, divided by the number of samples. `A` holds the
/// cosine similarities of the rows, `D` its row sums.
///
/// Undivided, as published, the eigenvalues grow with the number of samples: at 1,000 of them the bound is far above any number
/// of workers, and means none at all. Divided it is about the mean similarity, at most 1, so that the bound is a share of the
/// workers.
pub(super) fn connectivity(sample: &DataSample) -> f64 {
    let (rows, columns) = (sample.rows(), sample.columns());
    let mut unit = DMatrix::from_fn(rows, columns, |row, column| f64::from(sample.row(row)[column]));
    for mut row in unit.row_iter_mut() {
        let length = row.norm();
        if length > 0.0 {
            row /= length;
        }
    }
    let similarity = &unit * unit.transpose();
    let mut laplacian = -&similarity;
    for row in 0..rows {
        laplacian[(row, row)] += similarity.row(row).sum();
    }
    let mut eigenvalues: Vec<f64> = laplacian.symmetric_eigenvalues().iter().copied().collect();
    eigenvalues.sort_by(f64::total_cmp);
    let smallest = &eigenvalues[..SMALLEST.min(rows)];
    // Samples that point away from each other have negative similarities, and then no connection at all.
    (smallest.iter().sum::<f64>() / smallest.len() as f64 / rows as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: &[[f32; 3]]) -> DataSample {
        DataSample::new(3, rows.concat()).unwrap()
    }

    #[test]
    fn a_complete_graph_has_its_known_eigenvalues() {
        // All similarities 1: the eigenvalues are 0 once and n otherwise. Of 20, the ten smallest have the mean 9n/10.
        let alike = sample(&[[1.0, 2.0, 2.0]; 20]);
        assert!((connectivity(&alike) - 0.9).abs() < 1e-9);
    }

    #[test]
    fn unconnected_groups_have_an_eigenvalue_of_zero_each() {
        // Two groups of three: the eigenvalues are 0 twice and 3 four times.
        let groups = sample(&[
            [1.0, 0.0, 0.0],
            [2.0, 0.0, 0.0],
            [3.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 5.0, 0.0],
        ]);
        assert!((connectivity(&groups) - 12.0 / 6.0 / 6.0).abs() < 1e-9);
        let nothing = sample(&[[0.0; 3]; 4]);
        assert_eq!(connectivity(&nothing), 0.0);
        assert_eq!(connectivity(&sample(&[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])), 0.0);
    }
}

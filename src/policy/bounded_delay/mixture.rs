//! The GMM rule's figure: how tight the samples' clusters are, by a mixture of Gaussians on their principal components.

use super::DataSample;
use nalgebra::{DMatrix, SymmetricEigen};

/// Principal components that are kept.
const COMPONENTS: usize = 8;
/// Rows from which their directions are computed: eigenvectors of a matrix of this size take a fraction of a second.
const DIRECTION_ROWS: usize = 256;
/// Least eigenvalue of a direction, as a share of the largest.
const LEAST_EIGENVALUE: f64 = 1e-9;
/// Gaussians.
const CLUSTERS: usize = 10;
const ITERATIONS: usize = 60;
/// Least variance of a Gaussian, as a share of the data's: a cluster of one sample must not have an infinite density.
const LEAST_VARIANCE: f64 = 1e-3;

/// The data's mean variance divided by the mean variance within the clusters: 1 without any clusters, 10 if they are a tenth as
/// wide (by variance) as the whole.
///
/// The published rule is `1 / mean(covariances)`, which depends on the scale of the pixels; the data's own variance takes that
/// out.
pub(super) fn tightness(sample: &DataSample) -> f64 {
    let points = principal_components(sample);
    let total = mean_variance(&points);
    if total <= 0.0 {
        return 1.0;
    }
    let within = Mixture::fit(&points, total).mean_covariance();
    (total / within).max(1.0)
}

/// Each row's coordinates along the directions in which the rows differ most.
fn principal_components(sample: &DataSample) -> DMatrix<f64> {
    let (rows, columns) = (sample.rows(), sample.columns());
    let mut centred = DMatrix::from_fn(rows, columns, |row, column| f64::from(sample.row(row)[column]));
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    // The Gram matrix of some rows has the same directions as the covariance matrix, and a bounded size.
    let some = centred.rows(0, rows.min(DIRECTION_ROWS));
    let gram = SymmetricEigen::new(some * some.transpose());
    let mut order: Vec<usize> = (0..gram.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| gram.eigenvalues[b].total_cmp(&gram.eigenvalues[a]));
    order.truncate(COMPONENTS.min(columns));
    // Where the rows do not differ, there is no direction but rounding errors.
    let least = gram.eigenvalues.max() * LEAST_EIGENVALUE;
    order.retain(|&index| gram.eigenvalues[index] > least.max(f64::MIN_POSITIVE));
    let mut directions = DMatrix::zeros(columns, order.len());
    for (mut direction, &index) in directions.column_iter_mut().zip(&order) {
        direction.copy_from(&(some.transpose() * gram.eigenvectors.column(index)));
        let length = direction.norm();
        direction /= length;
    }
    centred * directions
}

fn mean_variance(points: &DMatrix<f64>) -> f64 {
    points.column_iter().map(|column| column.variance()).sum::<f64>() / points.ncols().max(1) as f64
}

/// Gaussians with diagonal covariances, and their weights.
struct Mixture {
    weights: Vec<f64>,
    /// One row for each Gaussian.
    means: DMatrix<f64>,
    variances: DMatrix<f64>,
}

impl Mixture {
    /// Expectation maximisation from centres that lie far apart, the same for the same points.
    fn fit(points: &DMatrix<f64>, total_variance: f64) -> Mixture {
        let (rows, columns) = points.shape();
        let centres = far_apart(points, CLUSTERS.min(rows));
        let clusters = centres.len();
        let mut mixture = Mixture {
            weights: vec![1.0 / clusters as f64; clusters],
            means: DMatrix::from_fn(clusters, columns, |cluster, column| points[(centres[cluster], column)]),
            variances: DMatrix::from_element(clusters, columns, total_variance),
        };
        let mut shares = DMatrix::zeros(rows, clusters);
        for _ in 0..ITERATIONS {
            mixture.expect(points, &mut shares);
            mixture.maximise(points, &shares, LEAST_VARIANCE * total_variance);
        }
        mixture
    }

    /// How much of each point belongs to each Gaussian.
    fn expect(&self, points: &DMatrix<f64>, shares: &mut DMatrix<f64>) {
        for (row, point) in points.row_iter().enumerate() {
            for cluster in 0..self.weights.len() {
                let mut log_density = self.weights[cluster].max(f64::MIN_POSITIVE).ln();
                for column in 0..points.ncols() {
                    let variance = self.variances[(cluster, column)];
                    let distance = point[column] - self.means[(cluster, column)];
                    log_density -= 0.5 * (variance.ln() + distance * distance / variance);
                }
                shares[(row, cluster)] = log_density;
            }
            let mut row = shares.row_mut(row);
            let largest = row.max();
            row.apply(|share| *share = (*share - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
    }

    fn maximise(&mut self, points: &DMatrix<f64>, shares: &DMatrix<f64>, least_variance: f64) {
        let rows = points.nrows();
        for cluster in 0..self.weights.len() {
            let share = shares.column(cluster);
            let members = share.sum();
            self.weights[cluster] = members / rows as f64;
            if members < f64::EPSILON {
                continue;
            }
            for column in 0..points.ncols() {
                let coordinates = points.column(column);
                let mean = share.dot(&coordinates) / members;
                let spread =
                    share.iter().zip(&coordinates).map(|(share, x)| share * (x - mean).powi(2)).sum::<f64>();
                self.means[(cluster, column)] = mean;
                self.variances[(cluster, column)] = (spread / members).max(least_variance);
            }
        }
    }

    /// The mean of the Gaussians' variances, each counted by its weight.
    fn mean_covariance(&self) -> f64 {
        let mean_of = |cluster| self.variances.row(cluster).mean();
        self.weights.iter().enumerate().map(|(cluster, weight)| weight * mean_of(cluster)).sum()
    }
}

/// Rows of which each is the farthest from those before it; the first is the farthest from the origin.
fn far_apart(points: &DMatrix<f64>, count: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(count);
    let mut distances: Vec<f64> = points.row_iter().map(|point| point.norm_squared()).collect();
    for index in 0..count {
        let farthest = (0..distances.len()).fold(0, |best, row| match distances[row] > distances[best] {
            true => row,
            false => best,
        });
        chosen.push(farthest);
        for (row, distance) in distances.iter_mut().enumerate() {
            let new = (points.row(row) - points.row(farthest)).norm_squared();
            *distance = if index == 0 { new } else { distance.min(new) };
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four clusters at distance 10 · `apart`, each a square of 25 points of side 4.
    fn clusters(apart: f32, scale: f32) -> DataSample {
        let mut values = Vec::new();
        for cluster in 0..4 {
            for point in 0..25 {
                let (cx, cy) = ((cluster % 2) as f32 * 10.0 * apart, (cluster / 2) as f32 * 10.0 * apart);
                let (x, y) = ((point % 5) as f32, (point / 5) as f32);
                values.extend([scale * (cx + x), scale * (cy + y), scale * 0.5]);
            }
        }
        DataSample::new(3, values).unwrap()
    }

    #[test]
    fn tighter_clusters_count_more_and_the_scale_does_not() {
        let (loose, tight) = (tightness(&clusters(1.0, 1.0)), tightness(&clusters(5.0, 1.0)));
        assert!(loose > 1.0 && tight > 4.0 * loose, "{loose} {tight}");
        let scaled = tightness(&clusters(1.0, 255.0));
        assert!((scaled / loose - 1.0).abs() < 1e-6, "{scaled} {loose}");
    }

    #[test]
    fn samples_that_are_all_the_same_have_no_clusters() {
        let same = DataSample::new(3, vec![3.0; 30]).unwrap();
        assert_eq!(tightness(&same), 1.0);
        let single = DataSample::new(2, vec![3.0, 1.0]).unwrap();
        assert_eq!(tightness(&single), 1.0);
    }
}

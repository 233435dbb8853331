//! The fixed split into train and test.

use super::random::{generator, shuffle};

/// Indices of train and of test, each shuffled. Every class gives test the same share of its samples, to within one,
/// and `test` samples go to test in all (`test` ≤ number of labels). Labels are below `classes`.
pub(super) fn split(labels: &[i64], classes: usize, test: usize) -> (Vec<u32>, Vec<u32>) {
    let mut rng = generator(b"testsplt", 0, 0, 0);
    let mut members = vec![Vec::new(); classes];
    for (index, &label) in labels.iter().enumerate() {
        members[label as usize].push(index as u32);
    }
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let mut train_part = Vec::with_capacity(labels.len() - test);
    let mut test_part = Vec::with_capacity(test);
    for (class, take) in members.iter_mut().zip(quotas(&sizes, test)) {
        shuffle(class, &mut rng);
        test_part.extend_from_slice(&class[..take]);
        train_part.extend_from_slice(&class[take..]);
    }
    shuffle(&mut train_part, &mut rng);
    shuffle(&mut test_part, &mut rng);
    (train_part, test_part)
}

/// `wanted` shared out in proportion to `sizes`, in whole numbers, with the largest remainders rounded up.
fn quotas(sizes: &[usize], wanted: usize) -> Vec<usize> {
    let total = sizes.iter().sum::<usize>().max(1);
    let mut quotas: Vec<usize> = sizes.iter().map(|size| size * wanted / total).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|&class| std::cmp::Reverse(sizes[class] * wanted % total));
    let missing = wanted - quotas.iter().sum::<usize>();
    for &class in &by_remainder[..missing] {
        quotas[class] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_sum_up_and_never_exceed_a_class() {
        for (sizes, wanted) in
            [(vec![3, 3, 3], 4), (vec![10, 0, 1], 11), (vec![178, 182, 177], 100), (vec![], 0)]
        {
            let quotas = quotas(&sizes, wanted);
            assert_eq!(quotas.iter().sum::<usize>(), wanted);
            assert!(quotas.iter().zip(&sizes).all(|(quota, size)| quota <= size));
        }
    }

    #[test]
    fn every_index_appears_once() {
        let labels: Vec<i64> = (0..103).map(|i| i * i % 5).collect();
        let (train, test) = split(&labels, 5, 20);
        assert_eq!((train.len(), test.len()), (83, 20));
        let mut all = [train, test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<u32>>());
    }
}

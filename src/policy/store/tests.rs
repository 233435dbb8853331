use super::*;

const WORKERS: usize = 4;

fn never(_: &[f32]) -> Result<f64> {
    unreachable!("this rule measures nothing")
}

fn apply(store: &mut Store, from: Rank, payload: Payload, values: &[f32], rule: PushRule) {
    store.apply(from, payload, values, rule, &mut never).expect("a push that fits");
}

/// Numbers that look random and are the same everywhere, between −1 and 1.
fn values(seed: u32, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn close(store: &Store, expected: &[f64]) {
    assert_eq!(store.parameters().len(), expected.len());
    for (index, (&is, &should)) in store.parameters().iter().zip(expected).enumerate() {
        assert!((f64::from(is) - should).abs() < 1e-5 * should.abs().max(1.0), "{index}: {is} {should}");
    }
}

/// A store of 9 trained elements and 3 statistics, and the same in f64.
fn start() -> (Store, Vec<f64>) {
    let initial = values(1, 12);
    (Store::new(&initial, 9, WORKERS).unwrap().with_backups(), wide(&initial))
}

/// The statistics' rule, written once for all references.
fn statistics(w: &mut [f64], pushed: &[f32]) {
    for (w, &pushed) in w[9..].iter_mut().zip(&pushed[9..]) {
        *w += (f64::from(pushed) - *w) / WORKERS as f64;
    }
}

#[test]
fn added_and_buffered() {
    let (mut store, mut w) = start();
    let mut buffer = [0.0_f64; 9];
    for push in 0..6_u32 {
        let pushed = values(10 + push, 12);
        let buffered = push % 2 == 1;
        let scale = 0.25 * f64::from(push + 1);
        let rule = if buffered { PushRule::Buffer { scale } } else { PushRule::Add { scale } };
        let trained = store.parameters()[..9].to_vec();
        apply(&mut store, push as usize % WORKERS, Payload::Delta, &pushed, rule);
        for index in 0..9 {
            let to = if buffered { &mut buffer[index] } else { &mut w[index] };
            *to += scale * f64::from(pushed[index]);
        }
        statistics(&mut w, &pushed);
        assert!(!buffered || store.parameters()[..9] == trained[..], "not before it is published");
        close(&store, &w);
    }
    for (w, buffer) in w.iter_mut().zip(buffer) {
        *w += buffer;
    }
    assert_eq!(store.version(), Versions(6));
    store.publish().unwrap();
    close(&store, &w);
    store.publish().unwrap();
    close(&store, &w);
    assert_eq!(store.version(), Versions(8), "each apply and each publish");
}

#[test]
fn gradients_are_compensated_by_what_has_changed_since_that_workers_pull() {
    for decay in [None, Some(0.95)] {
        let (mut store, mut w) = start();
        let mut backups = vec![w.clone(); WORKERS];
        let mut mean_square = [0.0_f64; 9];
        let (learning_rate, lambda) = (0.5, 2.0);
        for push in 0..12_u32 {
            // Worker 3 pulls rarely: its backup is old, and nobody else's pull renews it.
            let from = [0, 1, 0, 3][push as usize % 4];
            let pushed = values(100 + push, 12);
            let rule = PushRule::DelayCompensated { learning_rate, lambda, mean_square_decay: decay };
            apply(&mut store, from, Payload::Gradient, &pushed, rule);
            for index in 0..9 {
                let g = f64::from(pushed[index]);
                let mut factor = lambda;
                if let Some(decay) = decay {
                    mean_square[index] = decay * mean_square[index] + (1.0 - decay) * g * g;
                    factor = lambda / (mean_square[index] + 1e-7).sqrt();
                }
                w[index] -= learning_rate * (g + factor * g * g * (w[index] - backups[from][index]));
            }
            statistics(&mut w, &pushed);
            if push % 3 != 0 || from != 3 {
                let (pulled, version) = store.pull(from);
                assert_eq!((pulled.len(), version), (12, Versions(u64::from(push) + 1)));
                backups[from] = w.clone();
            }
            close(&store, &w);
        }
    }
}

#[test]
fn losses_weigh_total_displacements() {
    let (mut store, w) = start();
    let initial = w.clone();
    // Any function of the parameters will do.
    let measure = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let mut total: Option<(Vec<f64>, f64)> = None;
    for push in 0..5_u32 {
        let pushed = values(200 + push, 12);
        let mut measured = Vec::new();
        let mut loss = |values: &[f32]| {
            measured.push(values.to_vec());
            Ok(measure(&wide(values)))
        };
        store.apply(1, Payload::Parameters, &pushed, PushRule::LossWeighted, &mut loss).unwrap();
        let displacement: Vec<f64> = wide(&pushed).iter().zip(&initial).map(|(x, w)| x - w).collect();
        let (merged, measurements) = match total.take() {
            None => (displacement, 1),
            Some((total, merged_loss)) => {
                let own_loss = measure(&wide(&pushed));
                let weigh =
                    |(g, g_k)| (g / merged_loss + g_k / own_loss) / (1.0 / merged_loss + 1.0 / own_loss);
                (total.into_iter().zip(displacement).map(weigh).collect(), 2)
            }
        };
        let w: Vec<f64> = initial.iter().zip(&merged).map(|(w, g)| w + g).collect();
        close(&store, &w);
        assert_eq!(measured.len(), measurements, "the push, except the first, and the merged parameters");
        assert_eq!(measured.last().unwrap(), store.parameters());
        let merged_loss = measure(&w);
        total = Some((merged, merged_loss));
    }
    let before = store.parameters().to_vec();
    let refused = store.apply(1, Payload::Parameters, &before, PushRule::LossWeighted, &mut |_| Ok(f64::NAN));
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("finite and not negative") && words.contains("rank 1"), "{words}");
    assert_eq!(store.parameters(), before);
}

#[test]
fn delayed_nesterov_is_the_published_recurrence() {
    for (period, carry) in [(1, 0.0), (3, 0.0), (3, 0.2), (4, 0.25)] {
        let (mut store, mut w) = start();
        let (learning_rate, momentum) = (0.7, 0.9);
        let (mut m, mut b) = ([0.0_f64; 9], [0.0_f64; 9]);
        for push in 0..13_u32 {
            let pushed = values(300 + push, 12);
            let rule = PushRule::DelayedNesterov { period, learning_rate, momentum, carry };
            apply(&mut store, 2, Payload::Delta, &pushed, rule);
            let n = f64::from(period);
            for index in 0..9 {
                // The paper's pseudo-gradient is minus the delta.
                let g = -f64::from(pushed[index]);
                b[index] += g;
                if (push + 1) % period == 0 {
                    m[index] = momentum * m[index] + b[index] / n;
                    w[index] -= learning_rate * ((1.0 - carry * n + carry) * momentum * m[index] + g / n);
                    b[index] = 0.0;
                } else {
                    w[index] -= learning_rate * (carry * momentum * m[index] + g / n);
                }
            }
            statistics(&mut w, &pushed);
            close(&store, &w);
        }
    }
}

#[test]
fn a_period_of_delayed_nesterov_is_one_nesterov_step_on_the_mean() {
    let (mut store, _) = start();
    let mut nesterov = crate::policy::OuterOptimiser::nesterov(0.7, 0.9);
    let mut expected = store.parameters()[..9].to_vec();
    for round in 0..3 {
        let mut mean = vec![0.0; 9];
        for push in 0..4 {
            let pushed = values(400 + 10 * round + push, 12);
            mean.iter_mut().zip(&pushed).for_each(|(mean, pushed)| *mean += pushed / 4.0);
            let rule = PushRule::DelayedNesterov { period: 4, learning_rate: 0.7, momentum: 0.9, carry: 0.0 };
            apply(&mut store, push as usize, Payload::Delta, &pushed, rule);
        }
        nesterov.apply(&mut expected, &mean);
        for (is, should) in store.parameters().iter().zip(&expected) {
            assert!((is - should).abs() < 1e-5, "{is} {should}");
        }
    }
}

#[test]
fn the_centre_moves_towards_the_workers() {
    let (mut store, mut w) = start();
    let pushed = values(500, 12);
    apply(&mut store, 0, Payload::Parameters, &pushed, PushRule::Elastic { alpha: 0.225 });
    for index in 0..9 {
        w[index] += 0.225 * (f64::from(pushed[index]) - w[index]);
    }
    statistics(&mut w, &pushed);
    close(&store, &w);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (mut store, w) = start();
    let mut good = values(600, 12);
    let refuse = |store: &mut Store, payload, values: &[f32], rule| {
        store.apply(2, payload, values, rule, &mut never).unwrap_err()
    };
    let add = PushRule::Add { scale: 1.0 };
    let error = refuse(&mut store, Payload::Delta, &good[1..], add);
    assert!(error.to_string().contains("rank 2 pushed 11 elements to a server of 12"), "{error}");
    let error = refuse(&mut store, Payload::Parameters, &good, add);
    assert!(error.to_string().contains("needs a delta or a gradient; rank 2 pushed Parameters"), "{error}");
    for (payload, rule) in [
        (Payload::Delta, PushRule::LossWeighted),
        (Payload::Gradient, PushRule::Elastic { alpha: 0.1 }),
        (
            Payload::Delta,
            PushRule::DelayCompensated { learning_rate: 0.1, lambda: 1.0, mean_square_decay: None },
        ),
        (
            Payload::Parameters,
            PushRule::DelayedNesterov { period: 1, learning_rate: 1.0, momentum: 0.9, carry: 0.0 },
        ),
    ] {
        refuse(&mut store, payload, &good, rule);
    }
    good[10] = f32::NEG_INFINITY;
    let error = refuse(&mut store, Payload::Delta, &good, add);
    assert_eq!((error.exit_code(), error.to_string().contains("element 10 of its push is -inf")), (7, true));
    apply(&mut store, 2, Payload::Delta, &good, PushRule::Discard);
    assert_eq!(store.version(), Versions(0));
    close(&store, &w);

    assert!(Store::new(&[1.0], 2, 1).is_err());
    assert!(Store::new(&[1.0], 1, 0).is_err());
    let mut bare = Store::new(&[1.0], 1, 1).unwrap();
    let rule = PushRule::DelayCompensated { learning_rate: 0.1, lambda: 1.0, mean_square_decay: None };
    let error = refuse(&mut bare, Payload::Gradient, &[1.0], rule);
    assert!(error.to_string().contains("keeps no backup for rank 2"), "{error}");
}

#[test]
fn bad_values_are_found_wherever_they_are() {
    let mut long = vec![1.0_f32; 10_000];
    assert_eq!(rules::first_not_finite(&long), None);
    long[9_999] = f32::NAN;
    assert_eq!(rules::first_not_finite(&long), Some(9_999));
    long[4_096] = f32::INFINITY;
    assert_eq!(rules::first_not_finite(&long), Some(4_096));
    assert_eq!(rules::first_not_finite(&[f32::MAX, f32::MIN_POSITIVE, -0.0]), None);
}

//! Data sets, partitions and mini-batches, through the public interface.

use esync::Error;
use esync::data::{BatchPosition, Batches, Dataset, Split, load, partition};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn class_counts(labels: &[i64], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    counts
}

fn assert_stratified(dataset: &Dataset) {
    let train = class_counts(&dataset.train.labels, dataset.classes);
    let test = class_counts(&dataset.test.labels, dataset.classes);
    let share = dataset.test.len() as f64 / (dataset.train.len() + dataset.test.len()) as f64;
    for class in 0..dataset.classes {
        let expected = share * (train[class] + test[class]) as f64;
        assert!((test[class] as f64 - expected).abs() <= 1.0, "class {class}: {} of {expected}", test[class]);
    }
    let count = dataset.train.pixels.len() as f64;
    let moment =
        |power| dataset.train.pixels.iter().map(|&pixel| f64::from(pixel).powi(power)).sum::<f64>() / count;
    assert!(
        moment(1).abs() < 1e-6 && (moment(2) - 1.0).abs() < 1e-6,
        "standardised: {} {}",
        moment(1),
        moment(2)
    );
    let image_len = dataset.image_len();
    for samples in [&dataset.train, &dataset.test] {
        assert_eq!(samples.pixels.len(), samples.len() * image_len);
        assert!(samples.pixels.iter().all(|pixel| pixel.is_finite()));
        // Shuffled: neighbours are of one class about as often as chance has it, not nearly always or never.
        let equal = samples.labels.windows(2).filter(|pair| pair[0] == pair[1]).count();
        let chance = samples.len() / dataset.classes;
        assert!(equal > chance / 2 && equal < chance * 2, "{equal} of {}", samples.len());
    }
}

#[test]
fn digits_are_complete_and_stratified() {
    let digits = load("digits", None).unwrap();
    assert_eq!((digits.train.len(), digits.test.len(), digits.classes), (1437, 360, 10));
    assert_eq!((digits.channels, digits.height, digits.width), (1, 8, 8));
    assert!(digits.description.contains("1437 / 360") && digits.description.contains("stratified"));
    assert_stratified(&digits);
    assert_eq!(load("digits", Some(Path::new("/nowhere"))).unwrap(), digits, "the split is fixed");
    // The split is a permutation of the file: counts by class and the sum of all pixels are those of the file.
    let mut labels = digits.train.labels.clone();
    labels.extend(&digits.test.labels);
    assert_eq!(class_counts(&labels, 10), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    // Standardised pixels are the file's 0 to 16, shifted and scaled.
    let pixels = || digits.train.pixels.iter().chain(&digits.test.pixels);
    let lowest = pixels().copied().fold(f32::MAX, f32::min);
    let unit = (pixels().copied().fold(f32::MIN, f32::max) - lowest) / 16.0;
    let sum: f64 = pixels().map(|&x| f64::from((x - lowest) / unit).round()).sum();
    assert_eq!(sum, 561_718.0);
}

#[test]
fn names_are_checked() {
    let Err(Error::Usage(text)) = load("cifar", None) else { panic!("accepted") };
    assert!(
        text.contains("`cifar`") && text.contains("`digits`, `mnist`, `fashion-mnist`, `tinyshakespeare`"),
        "{text}"
    );
    for name in ["mnist", "tinyshakespeare"] {
        let Err(Error::Usage(text)) = load(name, None) else { panic!("accepted") };
        assert!(text.contains("--data-dir"), "{text}");
    }
}

// --- IDX files ---

fn idx_images(count: usize, height: usize, width: usize) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    for size in [count, height, width] {
        bytes.extend((size as u32).to_be_bytes());
    }
    bytes.extend((0..count * height * width).map(|i| (i * 7 % 256) as u8));
    bytes
}

fn idx_labels(count: usize) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 1];
    bytes.extend((count as u32).to_be_bytes());
    // Multiplying by 3 gives every class its share without putting the labels in order.
    bytes.extend((0..count).map(|i| (i * 3 % 10) as u8));
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";

fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn full_directory() -> TempDir {
    directory(&[
        (TRAIN_IMAGES, idx_images(60, 6, 5)),
        (&format!("{TRAIN_LABELS}.gz"), gzip(&idx_labels(60))),
        (&format!("{TEST_IMAGES}.gz"), gzip(&idx_images(20, 6, 5))),
        ("t10k-labels.idx1-ubyte", idx_labels(20)),
    ])
}

#[test]
fn four_idx_files_keep_their_division_and_order() {
    let directory = full_directory();
    for name in ["mnist", "fashion-mnist"] {
        let data = load(name, Some(directory.path())).unwrap();
        assert_eq!((data.name.as_str(), data.train.len(), data.test.len()), (name, 60, 20));
        assert_eq!((data.channels, data.height, data.width, data.classes), (1, 6, 5, 10));
        assert_eq!(data.train.labels[..4], [0, 3, 6, 9]);
        // The file's first pixels are 0, 7, 14: equal distances stay equal.
        let [zero, seven, fourteen] = data.test.pixels[..3] else { panic!("no pixels") };
        assert!(((fourteen - zero) / (seven - zero) - 2.0).abs() < 1e-4, "{zero} {seven} {fourteen}");
        assert!(!data.description.contains("shuffle"), "{}", data.description);
    }
}

#[test]
fn two_idx_files_are_split() {
    let directory = directory(&[(TEST_IMAGES, idx_images(1000, 2, 2)), (TEST_LABELS, idx_labels(1000))]);
    let data = load("mnist", Some(directory.path())).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (800, 200));
    assert!(data.description.contains("split 800 / 200"), "{}", data.description);
    assert_stratified(&data);
}

#[test]
fn the_shared_mnist_files_load() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist10k");
    if !directory.is_dir() {
        println!("skipped: there is no {}", directory.display());
        return;
    }
    let data = load("mnist", Some(&directory)).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.height, data.width), (8000, 2000, 28, 28));
    assert_stratified(&data);
}

/// The data directory must be refused with a message that names `file` and says `what`.
fn assert_refused(directory: &Path, file: &str, what: &str) {
    match load("mnist", Some(directory)) {
        Err(error @ Error::Data { .. }) => {
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(what), "{text}: expected {file}, {what}");
            assert_eq!(error.exit_code(), 4);
        }
        other => panic!("{file}, {what}: {other:?}"),
    }
}

#[test]
fn missing_files_are_named() {
    let empty = directory(&[]);
    assert_refused(&empty.path().join("none"), "none", "no such directory");
    assert_refused(empty.path(), TRAIN_IMAGES, "no such file");
    let file = directory(&[("file", vec![])]);
    assert_refused(&file.path().join("file"), "file", "not a directory");
    for name in [TRAIN_IMAGES, "t10k-labels.idx1-ubyte"] {
        let directory = full_directory();
        fs::remove_file(directory.path().join(name)).unwrap();
        assert_refused(directory.path(), &name.replace('.', "-"), "no such file");
    }
    let train_only = directory(&[(TRAIN_IMAGES, idx_images(60, 6, 5)), (TRAIN_LABELS, idx_labels(60))]);
    assert_refused(train_only.path(), TEST_IMAGES, "no such file");
}

#[test]
fn damaged_files_are_refused() {
    let images = idx_images(20, 6, 5);
    let labels = idx_labels(20);
    let gz = |name: &str| format!("{name}.gz");
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    let longer = [images.clone(), vec![0]].concat();
    let huge = [vec![0, 0, 8, 3], vec![0xff; 12], vec![1, 2, 3]].concat();
    let claims_much = [vec![0, 0, 8, 3], vec![0, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 1, 0]].concat();
    let zipped = gzip(&images);
    let wrong_sum = with(&zipped, zipped.len() - 6, !zipped[zipped.len() - 6]);
    let cases: Vec<(String, Vec<u8>, &str)> = vec![
        (TEST_IMAGES.into(), with(&images, 2, 9), "no IDX file"),
        (TEST_IMAGES.into(), labels.clone(), "it holds labels"),
        (TEST_LABELS.into(), images.clone(), "it holds images"),
        (TEST_IMAGES.into(), images[..images.len() - 1].to_vec(), "promises 600 bytes, and there are 599"),
        (TEST_IMAGES.into(), images[..10].to_vec(), "truncated"),
        (TEST_IMAGES.into(), vec![], "truncated"),
        (TEST_LABELS.into(), labels[..6].to_vec(), "truncated"),
        (TEST_IMAGES.into(), longer.clone(), "goes on after"),
        (TEST_IMAGES.into(), idx_images(19, 6, 5), "19 images"),
        (TEST_LABELS.into(), idx_labels(21), "21 labels"),
        (TEST_LABELS.into(), with(&labels, 8 + 7, 10), "label 7 is 10"),
        (TEST_IMAGES.into(), idx_images(20, 0, 5), "sizes are [20, 0, 5]"),
        (TEST_IMAGES.into(), huge, "sizes are"),
        (TEST_IMAGES.into(), claims_much, "there are 0"),
        (gz(TEST_IMAGES), images.clone(), "not gzip"),
        (gz(TEST_IMAGES), vec![], "not gzip"),
        (gz(TEST_IMAGES), zipped[..zipped.len() / 2].to_vec(), "truncated"),
        (gz(TEST_IMAGES), wrong_sum, "damaged"),
        (gz(TEST_IMAGES), gzip(&longer), "goes on after"),
        (gz(TEST_IMAGES), [zipped, b"abc".to_vec()].concat(), "download it again"),
    ];
    for (name, bytes, what) in cases {
        let directory = directory(&[(TEST_IMAGES, images.clone()), (TEST_LABELS, labels.clone())]);
        // A compressed file takes the plain one's place.
        fs::remove_file(directory.path().join(name.trim_end_matches(".gz"))).unwrap();
        fs::write(directory.path().join(&name), bytes).unwrap();
        assert_refused(directory.path(), &name, what);
    }
}

#[test]
fn train_and_test_must_fit_together() {
    let directory = full_directory();
    fs::write(directory.path().join(TRAIN_IMAGES), idx_images(60, 5, 6)).unwrap();
    assert_refused(directory.path(), "t10k", "different data sets");
    let few = self::directory(&[(TEST_IMAGES, idx_images(4, 2, 2)), (TEST_LABELS, idx_labels(4))]);
    assert_refused(few.path(), TEST_IMAGES, "too few");
}

// --- texts ---

#[test]
fn a_text_is_cut_into_overlapping_samples() {
    let text: String = (0..400).map(|i| ['b', 'a', 'é', '\n'][i * i % 13 % 4]).collect();
    let directory = directory(&[("input.txt", text.clone().into_bytes())]);
    let data = load("tinyshakespeare", Some(directory.path())).unwrap();
    assert_eq!(load("tinyshakespeare", Some(&directory.path().join("input.txt"))).unwrap(), data);
    let alphabet = data.alphabet.clone().unwrap();
    assert_eq!((alphabet.as_slice(), data.classes), (&['\n', 'a', 'b', 'é'][..], 4));
    let context = data.image_len();
    // 360 characters to train: every one of them that has a context before it is predicted once. Of the other 40, every 8th.
    assert_eq!((context, data.train.len(), data.test.len()), (16, 360 - 16, 3));
    assert_eq!(data.train.pixels.len(), 360 - 1, "kept once");
    assert!(data.description.contains("400 characters, 4 different"), "{}", data.description);
    let characters: Vec<char> = text.chars().collect();
    for (samples, first, stride) in [(&data.train, 0, 1), (&data.test, 360, 8)] {
        for index in 0..samples.len() {
            let read = |number: f32| alphabet[number as usize];
            let from = first + index * stride;
            let found: Vec<char> = samples.image(index, context).iter().copied().map(read).collect();
            assert_eq!(found, characters[from..from + context]);
            assert_eq!(alphabet[samples.labels[index] as usize], characters[from + context]);
        }
    }
    let drawn = data.test.draw(context, 2, 1);
    assert_eq!((drawn.len(), drawn.pixels.len()), (2, 2 * context), "drawn samples are copies");
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let refused = |file: &[u8], says: &str| {
        let directory = directory(&[("input.txt", file.to_vec())]);
        let error = load("tinyshakespeare", Some(directory.path())).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 4 && text.contains("input.txt") && text.contains(says), "{text}");
    };
    refused(b"", "too few");
    refused(&b"ab".repeat(80), "holds 160 characters, 2 of them different: too few");
    refused(&[b'a'; 1000], "1 of them different");
    refused(b"caf\xe9 and more", "byte 3 is not UTF-8");
    let nowhere = tempfile::tempdir().unwrap();
    for path in [nowhere.path().to_path_buf(), nowhere.path().join("text.txt")] {
        let error = load("tinyshakespeare", Some(&path)).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("--data-dir"), "{error}");
    }
}

// --- partitions ---

#[test]
fn splits_are_parsed_and_printed() {
    for (text, split) in [
        ("iid", Split::Iid),
        ("by-class", Split::ByClass),
        ("contiguous", Split::Contiguous),
        ("dirichlet:0.5", Split::Dirichlet(0.5)),
    ] {
        assert_eq!(text.parse::<Split>().unwrap(), split);
        assert_eq!(split.to_string(), text);
        let json = serde_json::to_string(&split).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Split>(&json).unwrap(), split);
    }
    for text in [
        "",
        "IID",
        "dirichlet",
        "dirichlet:",
        "dirichlet:0",
        "dirichlet:-1",
        "dirichlet:nan",
        "dirichlet:inf",
    ] {
        let Err(Error::Usage(message)) = text.parse::<Split>() else { panic!("`{text}` accepted") };
        assert!(
            message.contains("`iid`, `by-class`, `contiguous`") && message.contains("dirichlet:0.5"),
            "{message}"
        );
    }
}

#[test]
fn impossible_partitions_are_refused() {
    assert_eq!(partition(&[1, 2], Split::Iid, 3, 1).unwrap_err().exit_code(), 2);
    assert_eq!(partition(&[1, 2], Split::Iid, 0, 1).unwrap_err().exit_code(), 2);
}

#[test]
fn splits_are_as_unequal_as_they_say() {
    let digits = load("digits", None).unwrap();
    let labels = &digits.train.labels;
    let classes_held = |split| {
        let shards = partition(labels, split, 5, 1).unwrap();
        let classes = shards.iter().map(|shard| {
            let held: Vec<i64> = shard.iter().map(|&index| labels[index as usize]).collect();
            class_counts(&held, 10).iter().filter(|&&count| count * 50 > shard.len()).count()
        });
        classes.collect::<Vec<usize>>()
    };
    assert_eq!(classes_held(Split::Iid), [10; 5]);
    assert_eq!(classes_held(Split::Dirichlet(1e4)), [10; 5]);
    assert!(classes_held(Split::ByClass).iter().all(|&classes| classes <= 3));
    assert!(classes_held(Split::Dirichlet(0.05)).iter().sum::<usize>() < 25);
}

fn any_split() -> impl Strategy<Value = Split> {
    prop_oneof![
        Just(Split::Iid),
        Just(Split::ByClass),
        Just(Split::Contiguous),
        (-5.0..3.0f64).prop_map(|e| Split::Dirichlet(10f64.powf(e)))
    ]
}

proptest! {
    #[test]
    fn every_sample_has_one_worker(
        labels in prop::collection::vec(0..10i64, 1..400),
        workers in 1..20usize,
        split in any_split(),
        seed: u64,
    ) {
        prop_assume!(labels.len() >= workers);
        let shards = partition(&labels, split, workers, seed).unwrap();
        prop_assert_eq!(&shards, &partition(&labels, split, workers, seed).unwrap());
        prop_assert_eq!(shards.len(), workers);
        prop_assert!(shards.iter().all(|shard| !shard.is_empty()));
        if !matches!(split, Split::Dirichlet(_)) {
            let sizes = || shards.iter().map(Vec::len);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
        if split == Split::ByClass {
            let order: Vec<i64> = shards.concat().iter().map(|&index| labels[index as usize]).collect();
            prop_assert!(order.is_sorted());
        }
        if split == Split::Contiguous {
            prop_assert!(shards.concat().is_sorted());
        }
        let mut all = shards.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..labels.len() as u32).collect::<Vec<u32>>());
    }

    // --- mini-batches ---

    #[test]
    fn each_epoch_draws_each_sample_once(shard_len in 1..60usize, batch_size in 1..70usize, seed: u64, rank in 0..5u64) {
        let shard: Vec<u32> = (0..shard_len as u32).map(|i| i * 3 + 1).collect();
        let mut batches = Batches::new(shard.clone(), batch_size, seed, rank).unwrap();
        let mut drawn = Vec::new();
        while drawn.len() < 4 * shard_len {
            let batch = batches.next_batch();
            prop_assert_eq!(batch.len(), batch_size);
            drawn.extend_from_slice(batch);
        }
        for epoch in drawn.chunks_exact(shard_len) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            prop_assert_eq!(&epoch, &shard);
        }
    }

    #[test]
    fn a_saved_position_goes_on_the_same_way(before in 0..40usize, elsewhere in 0..40usize, batch_size in 1..20usize) {
        let shard: Vec<u32> = (0..17).collect();
        let mut batches = Batches::new(shard.clone(), batch_size, 7, 1).unwrap();
        (0..before).for_each(|_| { batches.next_batch(); });
        let json = serde_json::to_string(&batches.position()).unwrap();
        let mut other = Batches::new(shard, batch_size, 7, 1).unwrap();
        (0..elsewhere).for_each(|_| { other.next_batch(); });
        other.seek(serde_json::from_str(&json).unwrap()).unwrap();
        for _ in 0..10 {
            prop_assert_eq!(batches.next_batch(), other.next_batch());
        }
    }
}

#[test]
fn epochs_ranks_and_seeds_have_their_own_orders() {
    let shard: Vec<u32> = (0..100).collect();
    let order = |seed, rank, epoch| {
        let mut batches = Batches::new(shard.clone(), 100, seed, rank).unwrap();
        (0..epoch).for_each(|_| {
            batches.next_batch();
        });
        batches.next_batch().to_vec()
    };
    let orders = [order(1, 0, 0), order(1, 0, 1), order(1, 1, 0), order(2, 0, 0)];
    for (index, one) in orders.iter().enumerate() {
        assert!(orders[..index].iter().all(|other| other != one));
    }
    assert_eq!(order(1, 0, 0), orders[0]);
}

#[test]
fn impossible_batches_are_refused() {
    assert_eq!(Batches::new(vec![], 1, 1, 0).unwrap_err().exit_code(), 2);
    assert_eq!(Batches::new(vec![1], 0, 1, 0).unwrap_err().exit_code(), 2);
    let mut batches = Batches::new(vec![1, 2], 1, 1, 0).unwrap();
    assert!(batches.seek(BatchPosition { epoch: 0, offset: 3 }).is_err());
    assert_eq!(batches.position(), BatchPosition::default());
}

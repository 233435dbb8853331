//! The embedded data set.

use super::{Dataset, Samples};
use crate::error::{Error, Result};
use flate2::read::GzDecoder;
use std::io::Read;

const FILE: &[u8] = include_bytes!("digits.csv.gz");
const IMAGE_LEN: usize = 64;
const LARGEST_PIXEL: u8 = 16;
const CLASSES: u8 = 10;
const TEST: usize = 360;

pub(super) fn load() -> Result<Dataset> {
    let mut text = String::new();
    GzDecoder::new(FILE).read_to_string(&mut text).map_err(|e| damaged(&e.to_string()))?;
    let all = parse(&text)?;
    let dataset = Dataset {
        name: "digits".into(),
        description: format!(
            "digits: {} images of 8×8, split {} / {TEST} after a fixed, stratified shuffle",
            all.len(),
            all.len() - TEST
        ),
        train: Samples::default(),
        test: Samples::default(),
        classes: CLASSES.into(),
        channels: 1,
        height: 8,
        width: 8,
        alphabet: None,
    };
    Ok(dataset.with_fixed_split(&all, TEST))
}

/// Lines of 64 pixels and the class, separated by commas.
fn parse(text: &str) -> Result<Samples> {
    let mut samples = Samples::default();
    for line in text.lines() {
        let mut columns = 0;
        for field in line.split(',') {
            let value: u8 = field.parse().map_err(|_| damaged(&format!("`{field}` is no number")))?;
            if columns < IMAGE_LEN && value <= LARGEST_PIXEL {
                samples.pixels.push(f32::from(value) / f32::from(LARGEST_PIXEL));
            } else if columns == IMAGE_LEN && value < CLASSES {
                samples.labels.push(value.into());
            } else {
                return Err(damaged(&format!("value {value} in column {columns}")));
            }
            columns += 1;
        }
        if columns != IMAGE_LEN + 1 {
            return Err(damaged(&format!("a line of {columns} columns")));
        }
    }
    Ok(samples)
}

/// Only a damaged build can cause this, yet a message is better than a panic.
fn damaged(what: &str) -> Error {
    Error::data(
        "digits.csv.gz",
        format!("the data set embedded in this program is damaged ({what}); build it again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_text_is_refused() {
        let good = vec!["16"; 64].join(",") + ",9";
        assert_eq!(parse(&good).unwrap().labels, [9]);
        for bad in
            [good.replace(",9", ",10"), good.replacen("16", "17", 1), "1,2,3".into(), "x".into(), good + ",1"]
        {
            assert_eq!(parse(&bad).unwrap_err().exit_code(), 4, "{bad}");
        }
    }
}

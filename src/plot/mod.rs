//! `esync plot`: pictures of runs, one page with all of them, and the story of a round.
//!
//! A run is a directory that `esync-train` or `esync sim` wrote; the directory of a comparison stands for its runs. A run's `metrics.jsonl` may be long, so it is streamed: one pass for the
//! figures, one for the stretch that the timeline shows, one for the round that is explained.

mod bars;
mod canvas;
mod comparison;
mod explain;
mod flags;
mod heat;
mod lines;
mod page;
mod read;
mod record;
mod run;
mod shares;
mod timeline;
mod units;

pub use flags::{Axis, Flags};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use run::Run;
use std::path::{Path, PathBuf};
use timeline::Timeline;

/// A picture, and what stands beside it.
struct Picture {
    /// Of the file, without `.svg`.
    name: String,
    /// A sentence on what it shows and how to read it.
    caption: String,
    svg: String,
}

/// Carries out `esync plot`: returns what to print.
///
/// # Errors
/// `Usage` for flags that make no sense; `Data` with file and line for a run that cannot be read; `File` if the pictures
/// cannot be written.
pub fn plot(flags: &Flags) -> Result<String> {
    let (folders, notes_on_folders) = comparison::runs(&flags.runs)?;
    if let Some(round) = flags.explain {
        return match &folders[..] {
            [run] => explain::explain(run, round),
            _ => Err(Error::Usage("--explain tells of one run: give one directory".into())),
        };
    }
    flags.check()?;
    let mut runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
    run::name_runs(&mut runs);
    let (pictures, mut notes) = pictures(&runs, flags)?;
    notes.extend(notes_on_folders);
    let page = page::page(&runs, &pictures);

    let out = flags.out.clone().unwrap_or_else(|| match &flags.runs[..] {
        [run] => run.join("plots"),
        _ => PathBuf::from("plots"),
    });
    std::fs::create_dir_all(&out).map_err(|e| {
        Error::file(&out, format!("cannot make the directory of the pictures: {e}; choose another --out"))
    })?;
    let path = |picture: &Picture| out.join(format!("{}.svg", picture.name));
    for picture in &pictures {
        write_atomically(&path(picture), &[picture.svg.as_bytes()])?;
    }
    let index = out.join("index.html");
    write_atomically(&index, &[page.as_bytes()])?;

    for run in &runs {
        notes.extend(run.notes.iter().map(|note| format!("{}: {note}", run.label)));
    }
    Ok(said(&pictures, &notes, &out, &index))
}

/// All pictures of these runs, and what could not be drawn.
fn pictures(runs: &[Run], flags: &Flags) -> Result<(Vec<Picture>, Vec<String>)> {
    let mut pictures = Vec::new();
    let mut notes = Vec::new();
    for value in [lines::Value::Accuracy, lines::Value::Loss] {
        for against in [lines::Against::Time, lines::Against::Samples, lines::Against::Bytes] {
            match lines::draw(runs, value, against, flags.axis)? {
                Ok(picture) => pictures.push(picture),
                Err(note) if !notes.contains(&note) => notes.push(note),
                Err(_) => {}
            }
        }
    }
    pictures.push(bars::throughput(runs)?);
    pictures.push(bars::traffic(runs)?);
    if runs.len() > 1 {
        pictures.push(shares::of_runs(runs)?);
    }
    for run in runs {
        pictures.push(shares::of_workers(run)?);
        let timeline = Timeline::read(run, flags.from, flags.seconds)?;
        pictures.push(timeline.draw(run)?);
        if let Some(picture) = heat::local_steps(run)? {
            pictures.push(picture);
        }
        if let Some(picture) = bars::staleness(run)? {
            pictures.push(picture);
        }
    }
    Ok((pictures, notes))
}

fn said(pictures: &[Picture], notes: &[String], out: &Path, index: &Path) -> String {
    let mut said: Vec<String> = notes.iter().map(|note| format!("note: {note}")).collect();
    said.push(format!(
        "{} pictures in {}, all of them in {}",
        pictures.len(),
        out.display(),
        index.display()
    ));
    said.join("\n") + "\n"
}

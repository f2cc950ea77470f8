//! Damaged files are moved aside, never read again and never removed: `quarantine/TIME-WHY-NAME`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::offline::segments::{make_folder, sync_folder};

/// The folder within the data folder.
const FOLDER: &str = "quarantine";

/// A place for something damaged that does not exist yet; its folder does. `why` is part of the name.
pub(crate) fn place(data_dir: &Path, name: &str, why: &str) -> io::Result<PathBuf> {
    let folder = data_dir.join(FOLDER);
    make_folder(&folder)?;
    let now = chrono::Utc::now().format("%Y%m%dT%H%M%S%.3fZ");
    let mut place = folder.join(format!("{now}-{why}-{name}"));
    let mut next = 1;
    while place.try_exists()? {
        place = folder.join(format!("{now}.{next}-{why}-{name}"));
        next += 1;
    }
    Ok(place)
}

/// Moves a file of a folder of the data folder aside, on disk when this returns; where it lies then.
pub(crate) fn set_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let place = place(folder.parent().unwrap_or(folder), &name, why)?;
    fs::rename(path, &place)?;
    place.parent().map_or(Ok(()), sync_folder)?;
    sync_folder(folder)?;
    Ok(place)
}

/// Hard links the files of a folder into a new one aside, so that they outlive what is done to the
/// folder; where they lie.
pub(crate) fn link_aside(data_dir: &Path, folder: &Path, why: &str) -> io::Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let place = place(data_dir, &name, why)?;
    make_folder(&place)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::hard_link(entry.path(), place.join(entry.file_name()))?;
        }
    }
    sync_folder(&place)?;
    Ok(place)
}

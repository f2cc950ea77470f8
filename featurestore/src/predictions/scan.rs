//! Reads the whole prediction log of a model: sealed Parquet, then the spool.

use super::PredictionRecord;
use super::columns::{Records, Row};
use super::seal::{closed_files, origin_of};
use super::spool::SpoolReader;
use crate::offline::OfflineError;
use crate::offline::segments::{Wanted, corrupt, model_folder};
use crate::online::shared::{Shared, locked};

/// Which rows to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range<'a> {
    pub(crate) model: &'a str,
    /// At or after.
    pub(crate) from_ms: i64,
    /// Before.
    pub(crate) to_ms: i64,
}

/// Calls `found` with each row of the files that may hold rows of `range` for which `wanted` says so.
/// Keeps seals out meanwhile, so that no row is read in both places.
pub(crate) fn scan(
    shared: &Shared,
    range: Range<'_>,
    wanted: &mut dyn FnMut(&Row<'_>) -> bool,
    found: &mut dyn FnMut(PredictionRecord),
) -> Result<(), OfflineError> {
    let _no_seal = locked(&shared.sealing);
    let spool = shared.data_dir.join("spool");
    let spooled = {
        let mut open = locked(&shared.spool);
        let flushed = open.flush();
        flushed.map_err(|error| corrupt(&spool, error.to_string()))?;
        closed_files(&spool).map_err(|error| corrupt(&spool, error.to_string()))?
    };
    let mut records = Records::new(&shared.definitions);
    let sealed = &shared.offline.predictions;
    let folder = format!("{}/", model_folder(range.model));
    let manifest = sealed.manifest()?;
    for file in &manifest.files {
        let misses = file.to_ms < range.from_ms || file.from_ms >= range.to_ms;
        if misses || !file.path.starts_with(&folder) {
            continue;
        }
        for batch in sealed.segment(file, Wanted::All)? {
            let read = records.read(&batch?, wanted);
            let read = read.map_err(|problem| corrupt(&sealed.shown(&file.path), problem))?;
            read.into_iter().for_each(&mut *found);
        }
    }
    for path in spooled {
        let name = path.file_stem().and_then(|name| name.to_str());
        let model = name.and_then(|name| Some(name.split_once('-')?.1));
        // Of a commit whose answer was lost the file is still here.
        let number = name.and_then(|name| Some(name.split_once('-')?.0));
        let is_sealed = number.is_some_and(|number| manifest.has_origin(&origin_of(number)));
        if model != Some(range.model) || is_sealed {
            continue;
        }
        let reader = SpoolReader::open(&path).map_err(|source| OfflineError::Io {
            path: path.clone(),
            source,
        })?;
        for batch in reader {
            let read = records.read(&batch, wanted);
            let read = read.map_err(|problem| corrupt(&path, problem))?;
            read.into_iter().for_each(&mut *found);
        }
    }
    Ok(())
}

//! Tables of before there were manifests: they consist of whatever lies in their folder.

use super::OfflineError;
use super::days::About;
use super::manifest::{Manifest, SealedFile};
use super::segments::{Segment, Wanted, Written, corrupt};
use super::table::{Table, described, revision_of};

/// What a folder of before there were manifests says about itself.
pub(crate) struct Legacy<'a> {
    /// As in [`Manifest::sealed_seq`].
    pub(crate) sealed_seq: u64,
    /// Whether the file of that path was left by a seal that did not end.
    pub(crate) unfinished: &'a dyn Fn(&str) -> bool,
}

impl Legacy<'static> {
    /// Nothing was ever sealed without a manifest, or all of it was whole.
    pub(crate) const NONE: Self = Self {
        sealed_seq: 0,
        unfinished: &|_| false,
    };
}

/// The manifest of a table that has none.
pub(super) fn manifest_of(table: &Table, legacy: &Legacy<'_>) -> Result<Manifest, OfflineError> {
    let mut manifest = Manifest {
        sealed_seq: legacy.sealed_seq,
        ..Manifest::default()
    };
    for (path, _) in table.listing()? {
        if revision_of(&path).is_some() {
            let path = table.shown(&path);
            let problem = format!("it is not there, but {} is", path.display());
            return Err(table.manifest_error(problem));
        }
        if (legacy.unfinished)(&path) {
            table.place().delete(&table.below(&path))?;
            continue;
        }
        manifest.files.push(describe(table, path)?);
    }
    Ok(manifest)
}

fn describe(table: &Table, path: String) -> Result<SealedFile, OfflineError> {
    let shown = table.shown(&path);
    let bytes = table.place().get(&table.below(&path))?;
    let bytes = bytes.ok_or_else(|| OfflineError::Missing {
        path: shown.clone(),
    })?;
    let mut written = Written::default();
    for rows in Segment::open(shown.clone(), bytes.clone(), Wanted::All)? {
        let added = written.add(&rows?, table.kind().indexed());
        added.map_err(|problem| corrupt(&shown, problem))?;
    }
    let about = About {
        folder: String::new(),
        name: String::new(),
        schema: serde_json::Value::Null,
        origin: origin_of(&path),
    };
    Ok(described(path, &bytes, written, &about))
}

/// What a file was sealed from: a backfill is known by its name.
fn origin_of(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('-') {
        Some((origin, _)) if origin.starts_with("backfill-") => origin.to_owned(),
        _ => "before manifests".to_owned(),
    }
}

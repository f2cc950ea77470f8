//! What the gateway recorded, read from its Parquet log as any outside engine would.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use arrow::array::Array;

use crate::flights::Table;

/// The scores of one policy by request id (here: flight).
pub(crate) type Scores = HashMap<i64, f32>;

/// Which recorded rows make up a policy.
pub(crate) struct Policy<'a> {
    pub model: &'a str,
    /// The version, or any where `None`.
    pub version: Option<i64>,
    pub role: &'a str,
}

/// Collects the scores of `policy` from `<data>/offline/predictions`.
pub(crate) fn scores(data: &Path, policy: &Policy<'_>) -> Result<Scores> {
    let folder = data
        .join("offline/predictions")
        .join(format!("model={}", policy.model));
    let mut scores = Scores::new();
    for file in parquet_files(&folder)? {
        let table = Table::read(&file)?;
        let request = table.text("request_id")?;
        let role = table.text("role")?;
        let version = table.whole("version")?;
        let score = table.number("score")?;
        for row in 0..table.rows() {
            let wanted = role.value(row) == policy.role
                && policy.version.is_none_or(|v| v == version.value(row))
                && request.is_valid(row);
            if wanted {
                let flight = request.value(row).parse().with_context(|| {
                    format!("{}: request id `{}`", file.display(), request.value(row))
                })?;
                scores.insert(flight, score.value(row));
            }
        }
    }
    Ok(scores)
}

/// All Parquet files below `folder`, by name.
fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

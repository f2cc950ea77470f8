//! Feature reads: one batched get for all states of all rows and the sequence number that they are at.

use std::collections::HashMap;

use super::ReadError;
use super::keys::{Column, Key};
use super::shared::Shared;
use crate::definition::ViewKey;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::window::ViewState;

/// Assembles a row for each request. Every state is fetched and decoded once, however many rows share it.
pub(crate) fn rows(
    shared: &Shared,
    service: &Service,
    requests: &[Vec<Value>],
    at_ms: i64,
) -> Result<Vec<FeatureRow>, ReadError> {
    let wanted: Vec<Vec<Option<ViewKey>>> = requests
        .iter()
        .map(|request| service.keys(request))
        .collect();
    let mut places: HashMap<&ViewKey, usize> = HashMap::new();
    let mut keys: Vec<(usize, &ViewKey)> = Vec::new();
    for row in &wanted {
        for (view, key) in row.iter().enumerate() {
            if let Some(key) = key {
                places.entry(key).or_insert_with(|| {
                    keys.push((view, key));
                    keys.len() - 1
                });
            }
        }
    }
    let last_seq = Key::LastSeq.to_bytes();
    let stored = shared
        .tables
        .get_many(
            Column::State,
            std::iter::once(last_seq.as_slice()).chain(keys.iter().map(|(_, key)| key.as_bytes())),
        )
        .map_err(ReadError::database)?;
    let mut stored = stored.into_iter();
    let as_of_seq = match stored.next().flatten() {
        Some(bytes) => bytes.as_ref().try_into().map(u64::from_le_bytes),
        None => Ok(0),
    }
    .map_err(|_| ReadError::Damaged("last sequence number".to_owned()))?;
    let mut states: Vec<Option<ViewState>> = Vec::with_capacity(keys.len());
    for ((index, _), bytes) in keys.iter().zip(stored) {
        let view = &service.needed_views()[*index];
        let state = bytes
            .map(|bytes| ViewState::decode(view, &bytes))
            .transpose();
        states.push(state.map_err(|error| {
            ReadError::Damaged(format!("a state of view `{}`: {error}", view.name))
        })?);
    }
    let rows: Vec<FeatureRow> = requests
        .iter()
        .zip(&wanted)
        .map(|(request, keys)| {
            let state = |view: usize| {
                let place = places.get(keys.get(view)?.as_ref()?)?;
                states.get(*place)?.as_ref()
            };
            service.assemble_from(request, state, at_ms, as_of_seq)
        })
        .collect();
    shared.metrics.count_features(&rows);
    Ok(rows)
}

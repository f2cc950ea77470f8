//! Labels of a group: last write wins, unknown predictions wait.

use super::{Group, Writer};
use crate::labels::{EntryKind, Label, LabelEntry, LabelsIngested, StoredLabel};
use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::shared::locked;
use crate::predictions::PredictionKey;

impl Writer {
    /// Adds a batch of labels to the group.
    pub(super) fn add_labels(
        &mut self,
        group: &mut Group,
        labels: &[Label],
        arrived_ms: i64,
    ) -> Result<LabelsIngested, ReadError> {
        let shared = std::sync::Arc::clone(&self.shared);
        let keys: Vec<_> = labels
            .iter()
            .map(|label| Key::Label(label.prediction).to_bytes())
            .collect();
        let stored = |column| {
            shared
                .tables
                .get_many(column, keys.iter().map(Vec::as_slice))
                .map_err(ReadError::database)
        };
        let (held, recorded) = (stored(Column::Labels)?, stored(Column::PredictionIndex)?);
        let mut ingested = LabelsIngested::default();
        for ((label, held), recorded) in labels.iter().zip(held).zip(recorded) {
            let prediction = label.prediction;
            let held = match (group.labels.get(&prediction), held) {
                (Some(held), _) => *held,
                (None, Some(bytes)) => Some(decode(prediction, &bytes)?),
                (None, None) => None,
            };
            let label = StoredLabel {
                value: label.value,
                label_ms: label.label_ms,
                arrived_ms,
            };
            let kind = match held {
                Some(held) if !label.supersedes(&held) => {
                    ingested.duplicates += 1;
                    continue;
                }
                Some(_) => EntryKind::Correction,
                None if recorded.is_some() || self.recorded_since(prediction, arrived_ms)? => {
                    EntryKind::Known
                }
                None => EntryKind::Pending,
            };
            ingested.accepted += 1;
            ingested.replaced += u64::from(kind == EntryKind::Correction);
            ingested.unknown += u64::from(kind == EntryKind::Pending);
            let entry = LabelEntry {
                kind,
                prediction,
                label,
            };
            self.put_label(group, entry);
        }
        self.expire(group, arrived_ms);
        self.counters.labels += ingested.accepted;
        self.counters.duplicate_labels += ingested.duplicates;
        self.counters.replaced_labels += ingested.replaced;
        Ok(ingested)
    }

    /// Stores an accepted label, its log entry, and that it waits if it does.
    fn put_label(&mut self, group: &mut Group, entry: LabelEntry) {
        let LabelEntry {
            kind,
            prediction,
            label,
        } = entry;
        let tables = &self.shared.tables;
        if kind == EntryKind::Pending {
            let arrived = label.arrived_ms.to_le_bytes();
            tables.put(&mut group.batch, Key::PendingLabel(prediction), &arrived);
        }
        let mut bytes = Vec::with_capacity(24);
        label.encode(&mut bytes);
        tables.put(&mut group.batch, Key::Label(prediction), &bytes);
        group.labels.insert(prediction, Some(label));
        self.log_label(group, entry);
    }

    /// Lets the labels of predictions that have been recorded enter the outcomes.
    pub(super) fn resolve(
        &mut self,
        group: &mut Group,
        predictions: &[PredictionKey],
    ) -> Result<(), ReadError> {
        let shared = std::sync::Arc::clone(&self.shared);
        for &prediction in predictions {
            let Some(arrived_ms) = locked(&shared.pending).remove(&prediction) else {
                continue;
            };
            self.pending_order.remove(&(arrived_ms, prediction));
            let tables = &shared.tables;
            tables.delete(&mut group.batch, Key::PendingLabel(prediction));
            let label = match group.labels.get(&prediction) {
                Some(label) => *label,
                None => {
                    let key = Key::Label(prediction);
                    let bytes = tables.get(key).map_err(ReadError::database)?;
                    bytes.map(|bytes| decode(prediction, &bytes)).transpose()?
                }
            };
            if let Some(label) = label {
                let kind = EntryKind::Resolved;
                self.log_label(
                    group,
                    LabelEntry {
                        kind,
                        prediction,
                        label,
                    },
                );
            }
        }
        Ok(())
    }

    /// Puts the prediction on the waiting list, unless it was recorded in the meantime. The list comes
    /// first and the index is read again after it, while the recorder writes the index first and reads
    /// the list after it: one of the two always sees the other.
    fn recorded_since(
        &mut self,
        prediction: PredictionKey,
        arrived_ms: i64,
    ) -> Result<bool, ReadError> {
        locked(&self.shared.pending).insert(prediction, arrived_ms);
        let found = self.shared.tables.get(Key::Prediction(prediction));
        let recorded = found.map_err(ReadError::database)?.is_some();
        if recorded {
            locked(&self.shared.pending).remove(&prediction);
        } else {
            self.pending_order.insert((arrived_ms, prediction));
        }
        Ok(recorded)
    }

    /// Drops labels that have waited past their TTL, and the oldest beyond the limit.
    fn expire(&mut self, group: &mut Group, now_ms: i64) {
        let shared = std::sync::Arc::clone(&self.shared);
        let oldest_ms = now_ms.saturating_sub(shared.options.pending_label_ttl_ms);
        while let Some(&(arrived_ms, prediction)) = self.pending_order.first() {
            let over = self.pending_order.len() > shared.options.pending_labels_max;
            if arrived_ms >= oldest_ms && !over {
                break;
            }
            self.pending_order.pop_first();
            locked(&shared.pending).remove(&prediction);
            let tables = &shared.tables;
            tables.delete(&mut group.batch, Key::PendingLabel(prediction));
            tables.delete(&mut group.batch, Key::Label(prediction));
            group.labels.insert(prediction, None);
            self.counters.expired_labels += 1;
            shared.metrics.labels_expired.increment(1);
        }
    }

    fn log_label(&mut self, group: &mut Group, entry: LabelEntry) {
        self.counters.label_seq += 1;
        let key = Key::LabelEntry(self.counters.label_seq);
        self.shared
            .tables
            .put(&mut group.batch, key, &entry.encode());
    }
}

fn decode(prediction: PredictionKey, mut bytes: &[u8]) -> Result<StoredLabel, ReadError> {
    StoredLabel::decode(&mut bytes)
        .ok_or_else(|| ReadError::Damaged(format!("label of prediction {prediction}")))
}

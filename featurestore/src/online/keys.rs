//! Every key of the database in one place: its column family, layout and lifetime.
//!
//! Numbers in keys are big endian, so that byte order is number order. Names of column families and
//! ordinals of meta keys are stored: add at the end, never renumber.

use crate::predictions::PredictionKey;

/// Format of the database as a whole; written once into [`Key::Format`].
/// In format 1 the stored states held every event of the log.
pub(crate) const FORMAT: u32 = 2;

/// A column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Column {
    /// View key → encoded view state, and the event up to which all of them go: one family, so that one
    /// batched get reads both at one cut. Lives as long as the view's definition.
    State,
    /// Sequence number → event. Kept until it is sealed and [`crate::log::seal`] prunes it.
    Events,
    /// Dedupe key of an event → its sequence number. Kept, or dropped in compaction as [`super::lives`] says.
    Dedupe,
    /// Prediction → the label that stands. Kept; expired with [`Column::PendingLabels`].
    Labels,
    /// Label log number → what happened to which label. Kept.
    LabelLog,
    /// Prediction → who scored it, when and how. Dropped in compaction after its TTL.
    PredictionIndex,
    /// Prediction → arrival of a label that waits for it. Until it comes, or the TTL.
    PendingLabels,
    /// Format, counters, source schemas, known views, cursors.
    Meta,
}

impl Column {
    /// Every column family, in the order of creation.
    pub(crate) const ALL: [Self; 8] = [
        Self::State,
        Self::Events,
        Self::Dedupe,
        Self::Labels,
        Self::LabelLog,
        Self::PredictionIndex,
        Self::PendingLabels,
        Self::Meta,
    ];

    /// Its name in the database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Events => "events",
            Self::Dedupe => "dedupe",
            Self::Labels => "labels",
            Self::LabelLog => "label_log",
            Self::PredictionIndex => "prediction_index",
            Self::PendingLabels => "pending_labels",
            Self::Meta => "meta",
        }
    }
}

/// A key of the database.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key<'a> {
    /// `[0xff; 8]`: no view has that id → the last event that is folded into the states stored here, u64
    /// little endian. Those after it are folded again at open.
    StatesSeq,
    /// [`crate::ViewKey`]: id of the view (8 bytes), then the encoded key values → state.
    State(&'a [u8]),
    /// seq (8 bytes) → [`crate::log`] entry.
    Event(u64),
    /// [`crate::Event::dedupe_key`] → seq, u64 little endian; where the key may be dropped then
    /// the event's time, i64 little endian.
    Dedupe(&'a [u8]),
    /// uuid (16 bytes), row (4 bytes) → [`crate::labels::StoredLabel`].
    Label(PredictionKey),
    /// number (8 bytes) → [`crate::labels::LabelEntry`].
    LabelEntry(u64),
    /// uuid, row → [`crate::predictions::index::Scored`].
    Prediction(PredictionKey),
    /// uuid, row → arrival in ms, i64 little endian.
    PendingLabel(PredictionKey),
    /// `0` → [`FORMAT`], u32 little endian.
    Format,
    /// `1` → [`crate::commit::Counters`].
    Counters,
    /// `2`, id (4 bytes) → a source's name and fields, JSON.
    Schema(u32),
    /// `3`, view id (8 bytes) → nothing: the states of the view go as far as [`Key::StatesSeq`].
    View(u64),
    /// `4` → first label log number that is not in Parquet, u64 little endian. Of before there were
    /// manifests, which say it now.
    LabelsSealed,
    /// `5` → next number of a spool file, u64 little endian.
    NextSegment,
    /// `6` → what to finish of an import that was cut off ([`crate::online::bulk`]).
    Bulk,
    /// `9`, `view` or `service`, space, `name@version` → its [`crate::Meaning`], JSON.
    Applied(&'a str),
    /// `8` → the last event that was pruned from [`Column::Events`], u64 little endian.
    EventsPruned,
    /// `10`, name of a source → time of its oldest event whose dedupe key may be dropped, i64 little endian.
    Forgettable(&'a str),
    /// `11`, name of a source → dedupe keys of events before that time may be gone, i64 little endian.
    Forgotten(&'a str),
}

const SCHEMA: u8 = 2;
const VIEW: u8 = 3;
const APPLIED: u8 = 9;
const FORGETTABLE: u8 = 10;
const FORGOTTEN: u8 = 11;

impl Key<'_> {
    /// Where it lives.
    pub(crate) fn column(&self) -> Column {
        match self {
            Self::StatesSeq | Self::State(_) => Column::State,
            Self::Event(_) => Column::Events,
            Self::Dedupe(_) => Column::Dedupe,
            Self::Label(_) => Column::Labels,
            Self::LabelEntry(_) => Column::LabelLog,
            Self::Prediction(_) => Column::PredictionIndex,
            Self::PendingLabel(_) => Column::PendingLabels,
            Self::Format
            | Self::Counters
            | Self::Schema(_)
            | Self::View(_)
            | Self::LabelsSealed
            | Self::NextSegment
            | Self::Applied(_)
            | Self::EventsPruned
            | Self::Forgettable(_)
            | Self::Forgotten(_)
            | Self::Bulk => Column::Meta,
        }
    }

    /// Its bytes within the column family.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_bytes(&mut out);
        out
    }

    /// Appends them.
    pub(crate) fn put_bytes(self, out: &mut Vec<u8>) {
        let mut tagged = |tag: u8, id: &[u8]| {
            out.push(tag);
            out.extend_from_slice(id);
        };
        match self {
            Self::Format => tagged(0, &[]),
            Self::Counters => tagged(1, &[]),
            Self::Schema(id) => tagged(SCHEMA, &id.to_be_bytes()),
            Self::View(id) => tagged(VIEW, &id.to_be_bytes()),
            Self::LabelsSealed => tagged(4, &[]),
            Self::NextSegment => tagged(5, &[]),
            Self::Bulk => tagged(6, &[]),
            Self::EventsPruned => tagged(8, &[]),
            Self::Applied(name) => tagged(APPLIED, name.as_bytes()),
            Self::Forgettable(name) => tagged(FORGETTABLE, name.as_bytes()),
            Self::Forgotten(name) => tagged(FORGOTTEN, name.as_bytes()),
            Self::StatesSeq => out.extend_from_slice(&[0xff; 8]),
            Self::State(bytes) | Self::Dedupe(bytes) => out.extend_from_slice(bytes),
            Self::Event(number) | Self::LabelEntry(number) => {
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Label(key) | Self::Prediction(key) | Self::PendingLabel(key) => {
                out.extend_from_slice(&key.to_bytes());
            }
        }
    }

    /// The id in a [`Key::Schema`].
    pub(crate) fn schema_id(bytes: &[u8]) -> Option<u32> {
        let id = bytes.strip_prefix(&[SCHEMA])?;
        Some(u32::from_be_bytes(id.try_into().ok()?))
    }

    /// The id in a [`Key::View`].
    pub(crate) fn view_id(bytes: &[u8]) -> Option<u64> {
        let id = bytes.strip_prefix(&[VIEW])?;
        Some(u64::from_be_bytes(id.try_into().ok()?))
    }

    /// The name in a [`Key::Applied`].
    pub(crate) fn applied(bytes: &[u8]) -> Option<&str> {
        std::str::from_utf8(bytes.strip_prefix(&[APPLIED])?).ok()
    }

    /// The number in a [`Key::Event`] or [`Key::LabelEntry`].
    pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The prediction in a [`Key::PendingLabel`] (or another key of a prediction).
    pub(crate) fn prediction(bytes: &[u8]) -> Option<PredictionKey> {
        let (id, row) = bytes.split_first_chunk::<16>()?;
        Some(PredictionKey {
            id: uuid::Uuid::from_bytes(*id),
            row: u32::from_be_bytes(row.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_keep_their_bytes() {
        let prediction = PredictionKey {
            id: uuid::Uuid::from_bytes(*b"0123456789abcdef"),
            row: 0x0102_0304,
        };
        assert_eq!(Key::Event(258).to_bytes(), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(
            Key::Label(prediction).to_bytes(),
            b"0123456789abcdef\x01\x02\x03\x04"
        );
        assert_eq!(
            Key::prediction(&Key::PendingLabel(prediction).to_bytes()),
            Some(prediction)
        );
        assert_eq!(Key::Schema(7).to_bytes(), [2, 0, 0, 0, 7]);
        assert_eq!(Key::schema_id(&[2, 0, 0, 0, 7]), Some(7));
        assert_eq!(Key::view_id(&Key::View(9).to_bytes()), Some(9));
        assert_eq!(Key::view_id(&[2, 0, 0, 0, 7]), None);
        assert_eq!(Key::number(&Key::LabelEntry(77).to_bytes()), Some(77));
        assert_eq!(Key::Applied("view a@1").to_bytes(), b"\x09view a@1");
        assert_eq!(Key::applied(b"\x09view a@1"), Some("view a@1"));
        assert_eq!(Key::Forgettable("a").to_bytes(), b"\x0aa");
        assert_eq!(Key::Forgotten("a").to_bytes(), b"\x0ba");
    }

    #[test]
    fn no_two_columns_share_a_name() {
        let mut names = Column::ALL.map(Column::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Column::ALL.len());
    }
}

//! What is left of a stored state when no read can see most of it any more.
//!
//! Reads and arrivals go forward: of a state whose newest event is older than every window and decay of its
//! view, and than its TTL, no tile is ever read again, and with a TTL no kept value is. What stays is the
//! newest event's time and number, which say `OUTSIDE_MAX_AGE` and since when, and where a later event
//! belongs; without a TTL its values too. A fold into that and a read of it from then on are as of the whole
//! state: which tiles an event may enter depends on the newest event alone.

use super::codec::{STATE_VERSION, STATE_VERSION_1, take, take_byte};
use super::{StateError, ViewState};
use crate::definition::{Decay, View, Window};
use crate::value::Value;
use crate::varint;

/// When states of a view expire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expiry {
    /// Age of the newest event, in milliseconds.
    age_ms: i64,
    /// Whether the kept values go too.
    values: bool,
}

impl Expiry {
    /// That of a view; `None` where nothing of its states ever expires. With `keep_values` kept values are
    /// read whatever their age, and stay.
    pub(crate) fn of(view: &View, keep_values: bool) -> Option<Self> {
        let windows = view.windows.iter().map(Window::tiling);
        let tilings = windows.chain(view.decays.iter().map(Decay::tiling));
        let tiles_ms = tilings.map(|tiling| tiling.span_ms()).max();
        let ttl_ms = view.ttl_ms.filter(|_| !keep_values);
        Some(Self {
            age_ms: tiles_ms.max(ttl_ms)?,
            values: ttl_ms.is_some(),
        })
    }

    /// What is left of an encoded state for reads at `from_ms` and later; `None` where that is not less.
    pub(crate) fn rest(self, view: &View, bytes: &[u8], from_ms: i64) -> Option<Vec<u8>> {
        let newest_ms = newest_ms(bytes).ok().flatten()?;
        if from_ms.saturating_sub(newest_ms) <= self.age_ms {
            return None;
        }
        let mut state = ViewState::decode(view, bytes).ok()?;
        state.release(view, from_ms);
        if self.values {
            state.last.fill(Value::Null);
        }
        let mut rest = Vec::with_capacity(bytes.len());
        state.encode(view, &mut rest);
        (rest.len() < bytes.len()).then_some(rest)
    }
}

/// The newest event's time at the front of an encoded state.
fn newest_ms(mut bytes: &[u8]) -> Result<Option<i64>, StateError> {
    let input = &mut bytes;
    match (take_byte(input)?, take_byte(input)?) {
        (STATE_VERSION | STATE_VERSION_1, 1) => Ok(Some(varint::unzigzag(take(input)?))),
        _ => Ok(None),
    }
}

//! Feast's feature server, as its clients know it: features by reference or by service, frames of
//! values into the online state, and what its other routes mean here.
//!
//! A feature view of Feast is a view of ours, a push source a source, a feature service a service. Owns
//! the wire format and the mapping; knows no HTTP. An answer is written column by column into one
//! buffer: a cell costs its text, a state that several rows share is read once.

mod answer;
mod columns;
mod error;
mod frame;
mod materialize;
mod online;
mod request;
mod selection;
mod time;

pub(crate) use error::{FeastError, SchemaError};
pub(crate) use frame::{push, write};
pub(crate) use materialize::{Materialize, materialize};
pub(crate) use online::online_features;

/// How far Feast is followed where it is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FeastRules {
    /// A value that is null or too old is `PRESENT`, the latter with its value, and a time is a number
    /// of seconds.
    pub compat: bool,
}

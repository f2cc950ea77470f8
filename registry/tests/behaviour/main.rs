//! The registry as its callers see it: a real SQLite file, a real folder, real processes.
//!
//! One binary, because each more would link SQLite again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod aliases;
mod artifacts;
mod crashes;
mod decisions;
mod fixture;
mod full;
mod opening;
mod runs;
mod versions;

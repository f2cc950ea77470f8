//! The store as its users see it: real files, a real RocksDB, kill -9. One binary, since each links RocksDB.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "online/applied.rs"]
mod applied;
#[path = "online/background.rs"]
mod background;
#[path = "online/backup.rs"]
mod backup;
#[path = "online/bond.rs"]
mod bond;
#[path = "online/bucket.rs"]
mod bucket;
#[path = "online/crash.rs"]
mod crash;
#[path = "online/damage.rs"]
mod damage;
#[path = "online/datasets.rs"]
mod datasets;
#[path = "online/disk.rs"]
mod disk;
#[path = "online/double.rs"]
mod double;
#[path = "online/events.rs"]
mod events;
#[path = "online/expiry.rs"]
mod expiry;
#[path = "online/export.rs"]
mod export;
#[path = "online/flights.rs"]
mod flights;
#[path = "online/formats.rs"]
mod formats;
#[path = "online/full.rs"]
mod full;
#[path = "online/history.rs"]
mod history;
#[path = "online/import.rs"]
mod import;
#[path = "online/kills.rs"]
mod kills;
#[path = "online/labels.rs"]
mod labels;
#[path = "online/mutants.rs"]
mod mutants;
#[path = "online/power.rs"]
mod power;
#[path = "online/predictions.rs"]
mod predictions;
#[path = "online/sealed.rs"]
mod sealed;
#[path = "online/strace.rs"]
mod strace;
#[path = "online/travel.rs"]
mod travel;
#[path = "online/unstored.rs"]
mod unstored;
#[path = "online/verifier.rs"]
mod verifier;
#[path = "online/views.rs"]
mod views;
#[path = "online/workload.rs"]
mod workload;

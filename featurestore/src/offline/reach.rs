//! What tables are sealed from, and whether a table belongs to it: parts of two backups do not fit.

use super::manifest::Manifest;
use super::table::TableKind;

/// What a table is sealed from: its log holds what lies behind `pruned`, up to `last`. For predictions that is
/// how many numbers of spool files were given out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    pub(crate) pruned: u64,
    pub(crate) last: u64,
}

/// What the three tables are sealed from.
pub(crate) struct Reaches {
    pub(crate) events: Reach,
    pub(crate) predictions: Reach,
    pub(crate) labels: Reach,
}

impl Reach {
    /// Nothing was pruned.
    pub(crate) fn up_to(last: u64) -> Self {
        Self { pruned: 0, last }
    }

    /// Why a table does not belong to it: it is ahead, or does not reach up to what was pruned. Of a spool
    /// file with a number that is given out again, nothing would be sealed.
    pub(super) fn refusal(self, kind: TableKind, manifest: &Manifest) -> Option<String> {
        let Self { pruned, last } = self;
        if kind == TableKind::Predictions {
            let sealed = manifest.spool_files();
            return (sealed > last).then(|| {
                format!(
                    "it holds spool file {}, but {last} were begun here",
                    sealed - 1
                )
            });
        }
        let sealed = manifest.sealed_seq;
        let fits = (pruned..=last).contains(&sealed);
        (!fits).then(|| {
            format!(
                "it is sealed up to {sealed}, but its log ends at {last} and was pruned up to {pruned}"
            )
        })
    }
}

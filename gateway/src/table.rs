//! The model table: everything a request may be answered with, as one immutable value.
//!
//! Readers take one snapshot and keep it to their end, so model, signature, service and version
//! belong together. *Prepare* (loading versions) may fail and happens elsewhere; *publish* is one
//! pointer store and cannot. A replaced table is let go by the reaper and never by a request.

mod index;
mod statistics;
mod version;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};

use crate::admission::Admission;
use crate::config::{Alias, ServeRules};
use crate::metrics::Metrics;
use crate::reaper::{Reaper, Retired};

pub(crate) use statistics::{Leaf, Timed, Totals};
pub(crate) use version::{
    BindError, Labels, LoadedVersion, NewVersion, RunFailure, Seat, Seats, request_tensors,
};

/// The alias whose version answers.
pub(crate) const CHAMPION: &str = "champion";
/// The alias whose version answers a share of the requests, where one is configured.
pub(crate) const CHALLENGER: &str = "challenger";

/// One model of a table that is about to be published.
pub(crate) struct ModelParts {
    pub name: Arc<str>,
    pub rules: Arc<ServeRules>,
    /// Version by alias, as the registry has them.
    pub aliases: BTreeMap<Box<str>, u32>,
    /// The versions that are loaded.
    pub versions: BTreeMap<u32, Arc<LoadedVersion>>,
}

/// One model, with the ways to answer for it resolved.
pub(crate) struct ServedModel {
    pub name: Arc<str>,
    pub aliases: BTreeMap<Box<str>, u32>,
    pub versions: BTreeMap<u32, Arc<LoadedVersion>>,
    /// Answers; `None` while no version is ready.
    pub champion: Option<Arc<LoadedVersion>>,
    /// Answers a share of the requests.
    pub split: Option<Split>,
    /// Answer in this order where the routed version cannot.
    pub chain: Vec<Arc<LoadedVersion>>,
    /// Answers when nothing else could.
    pub constant: Option<f32>,
    /// Score a copy of each answered request.
    pub shadows: Vec<Arc<LoadedVersion>>,
    /// The longest that a request may take.
    pub deadline: Option<Duration>,
    /// Its requests in flight, whatever the table.
    pub places: Arc<Admission>,
}

/// A share of the requests for another version than the champion.
pub(crate) struct Split {
    pub version: Arc<LoadedVersion>,
    /// Above 0, at most 1.
    pub share: f64,
}

impl ServedModel {
    /// The loaded version that a number or an alias names.
    pub(crate) fn version(&self, named: &str) -> Option<&Arc<LoadedVersion>> {
        let number = match self.aliases.get(named) {
            Some(&number) => number,
            None => named.parse().ok()?,
        };
        self.versions.get(&number)
    }
}

/// Every model, of one generation of the registry.
pub(crate) struct ModelTable {
    /// The registry's generation that it was made from.
    pub generation: i64,
    models: BTreeMap<Arc<str>, ServedModel>,
}

impl ModelTable {
    /// Resolves aliases, fallbacks and shadows among loaded versions. An alias without a loaded
    /// version is passed over: what is left still answers.
    pub(crate) fn new(generation: i64, parts: Vec<ModelParts>) -> Self {
        let resolved: Vec<_> = parts.iter().map(|model| resolve(model, &parts)).collect();
        let models = parts
            .into_iter()
            .zip(resolved)
            .map(|(parts, ways)| {
                let model = ServedModel {
                    name: Arc::clone(&parts.name),
                    aliases: parts.aliases,
                    versions: parts.versions,
                    champion: ways.champion,
                    split: ways.split,
                    chain: ways.chain,
                    constant: parts.rules.constant,
                    shadows: ways.shadows,
                    deadline: parts.rules.deadline,
                    places: Admission::new(parts.rules.in_flight),
                };
                (parts.name, model)
            })
            .collect();
        Self { generation, models }
    }

    pub(crate) fn model(&self, name: &str) -> Option<&ServedModel> {
        self.models.get(name)
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = &ServedModel> {
        self.models.values()
    }

    pub(crate) fn holds(&self, version: &Arc<LoadedVersion>) -> bool {
        let of_model = self.models.get(&version.model);
        let same = of_model.and_then(|model| model.versions.get(&version.version));
        same.is_some_and(|same| Arc::ptr_eq(same, version))
    }

    /// Takes over what outlives a table: the places of each model's requests in flight.
    fn succeed(&mut self, before: &Self) {
        for (name, model) in &mut self.models {
            if let Some(before) = before.models.get(name) {
                model.places = Arc::clone(&before.places);
            }
        }
    }

    /// Whether every model has a version that answers.
    pub(crate) fn is_ready(&self) -> bool {
        self.models.values().all(|model| model.champion.is_some())
    }
}

struct Ways {
    champion: Option<Arc<LoadedVersion>>,
    split: Option<Split>,
    chain: Vec<Arc<LoadedVersion>>,
    shadows: Vec<Arc<LoadedVersion>>,
}

fn resolve(model: &ModelParts, all: &[ModelParts]) -> Ways {
    let at = |parts: &ModelParts, alias: &str| {
        let number = parts.aliases.get(alias)?;
        parts.versions.get(number).cloned()
    };
    let champion = at(model, CHAMPION);
    let answers_alike = |version: &Arc<LoadedVersion>| {
        let champion = champion.as_ref();
        champion.is_some_and(|c| version.version != c.version && version.can_answer_for(c))
    };
    let split = at(model, CHALLENGER)
        .filter(|version| model.rules.canary_share > 0.0 && answers_alike(version))
        .map(|version| Split {
            version,
            share: model.rules.canary_share,
        });
    let mut chain: Vec<Arc<LoadedVersion>> = Vec::new();
    for alias in &model.rules.fallback {
        let next = at(model, alias).filter(&answers_alike);
        chain.extend(next.filter(|next| chain.iter().all(|v| v.version != next.version)));
    }
    let shadow = |Alias {
                      model: named,
                      alias,
                  }: &Alias| {
        let name = named.as_deref().unwrap_or(&model.name);
        at(all.iter().find(|parts| *parts.name == *name)?, alias)
    };
    let reads_alike = |version: &Arc<LoadedVersion>| {
        let champion = champion.as_ref();
        champion.is_some_and(|champion| version.can_read_for(champion))
    };
    Ways {
        split,
        chain,
        shadows: model
            .rules
            .shadow
            .iter()
            .filter_map(shadow)
            .filter(reads_alike)
            .collect(),
        champion,
    }
}

/// The table that is served now.
pub(crate) struct LiveTable(ArcSwapOption<ModelTable>);

impl LiveTable {
    /// Nothing is served until the first publication.
    ///
    /// # Errors
    /// When the thread cannot be made that replaced tables are dropped on.
    pub(crate) fn new() -> std::io::Result<(Arc<Self>, Publisher)> {
        let live = Arc::new(Self(ArcSwapOption::empty()));
        let publisher = Publisher {
            live: Arc::clone(&live),
            reaper: Reaper::start(Arc::clone(&live))?,
        };
        Ok((live, publisher))
    }

    /// The table at this moment. Not to be held across an await: a guard occupies one of the
    /// thread's few fast slots, and keeps the old table.
    pub(crate) fn snapshot(&self) -> Guard<Option<Arc<ModelTable>>> {
        self.0.load()
    }

    /// The table at this moment, to be held by a request to its end, over awaits too.
    pub(crate) fn held(&self) -> Option<Arc<ModelTable>> {
        self.0.load_full()
    }

    /// Whether a table was published in which every model answers.
    pub(crate) fn is_ready(&self) -> bool {
        self.snapshot()
            .as_ref()
            .is_some_and(|table| table.is_ready())
    }
}

/// The one who replaces the table.
pub(crate) struct Publisher {
    live: Arc<LiveTable>,
    reaper: Reaper,
}

impl Publisher {
    /// Puts `table` in place of the one that is served: infallible, one pointer store.
    pub(crate) fn publish(&mut self, mut table: ModelTable, metrics: &Metrics) {
        if let Some(before) = self.live.held() {
            table.succeed(&before);
        }
        let table = Arc::new(table);
        let before = self.live.0.swap(Some(Arc::clone(&table)));
        metrics.published(&table, before.as_deref());
        if let Some(before) = before {
            self.reaper.retire(Retired::Table(before));
        }
    }

    /// Lets go of a version that no published table needs.
    pub(crate) fn retire(&self, version: Arc<LoadedVersion>) {
        self.reaper.retire(Retired::Version(version));
    }
}

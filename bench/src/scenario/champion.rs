//! The champion of a model of versions that take turns, set by the admin interface as an operator
//! would, and looked at until it serves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Bench, ROWS};
use crate::client::Lane;
use crate::deployment::Deployed;
use crate::load::Load;
use crate::machine::resident_bytes;
use crate::models::{rows, versioned};
use crate::process::Gateway;
use crate::question::{json_calls, version_fits};

const MODEL: &str = "versioned";
/// Versions that take turns. The gateway holds fewer than these, so that each swap loads one.
pub(super) const VERSIONS: u16 = 8;
const SERVED_WITHIN: Duration = Duration::from_secs(120);

/// One swap as it was seen from outside.
pub(super) struct Seen {
    /// From the request to the first look at which the new version was served.
    pub took: Duration,
    /// Bytes of the gateway then.
    pub resident: u64,
}

/// A gateway that serves the first of the versions.
pub(super) async fn deploy(bench: &Bench, folder: PathBuf) -> Result<Gateway> {
    let versions = (1..=VERSIONS).map(|version| versioned(bench.seed, version));
    let deployed = Deployed {
        versions: versions.collect(),
        ..Deployed::plain(MODEL, Bytes::new())
    };
    bench.deploy(folder, vec![deployed]).await
}

/// A closed loop that checks each answer's value against the version that it names.
pub(super) fn load(bench: &Bench, gateway: &Gateway) -> Load {
    Load {
        check: version_fits,
        ..bench.closed(
            gateway.addresses.http,
            json_calls(MODEL, &rows(ROWS, bench.seed)),
        )
    }
}

/// The champion of the model, and who sets it.
pub(super) struct Champion {
    admin: Lane,
    pid: u32,
    version: u16,
}

impl Champion {
    pub(super) fn new(gateway: &Gateway) -> Self {
        Self {
            admin: Lane::new(gateway.addresses.admin),
            pid: gateway.pid(),
            version: 1,
        }
    }

    /// Makes the next version the champion `count` times, `every` so often.
    pub(super) async fn swap(&mut self, count: usize, every: Duration) -> Result<Vec<Seen>> {
        let mut seen = Vec::with_capacity(count);
        let mut due = Instant::now();
        for _ in 0..count {
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
            due += every;
            let asked = Instant::now();
            self.promote_next().await?;
            while self.served().await? != json!(self.version) {
                ensure!(
                    asked.elapsed() < SERVED_WITHIN,
                    "version {} was not served within {SERVED_WITHIN:?}",
                    self.version
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            seen.push(Seen {
                took: asked.elapsed(),
                resident: resident_bytes(self.pid),
            });
        }
        Ok(seen)
    }

    async fn promote_next(&mut self) -> Result<()> {
        let next = self.version % VERSIONS + 1;
        let body = json!({"version": next, "expected": self.version, "reason": "bench"});
        let path = format!("/v1/models/{MODEL}/aliases/champion");
        let body = serde_json::to_vec(&body)?.into();
        self.admin.post(&path, None, body).await?.json()?;
        self.version = next;
        Ok(())
    }

    /// The version that answers now.
    async fn served(&mut self) -> Result<Value> {
        let model = self
            .admin
            .get(&format!("/v1/models/{MODEL}"))
            .await?
            .json()?;
        Ok(model["ways"]["champion"].clone())
    }
}

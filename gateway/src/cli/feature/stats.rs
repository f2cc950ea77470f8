//! `loopgate feature stats`: the store's counters.

use anyhow::Result;

use super::super::{ProjectArgs, print_json};

pub(super) fn run(project: &ProjectArgs) -> Result<()> {
    print_json(&super::store(project.open()?)?.stats())
}

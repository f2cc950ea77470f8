//! `loopgate feature check`: whether features.toml is well defined, and what it defines.

use anyhow::Result;

use super::super::ProjectArgs;

pub(super) fn run(project: &ProjectArgs) -> Result<()> {
    let definitions = project.open()?.definitions;
    for source in &definitions.sources {
        println!("source {}: {} fields", source.name, source.fields.len());
    }
    for view in &definitions.views {
        println!("view {}: {} features", view.name, view.features.len());
    }
    for service in &definitions.services {
        println!(
            "service {}: {} features",
            service.id(),
            service.features.len()
        );
    }
    Ok(())
}

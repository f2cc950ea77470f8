//! `loopgate feature check --files`: whether every sealed file is there and the one that was sealed.

use anyhow::{Result, bail};
use featurestore::check_files;

use super::super::Project;

/// Reads every sealed file of the project; fails where one is not what its manifest says.
pub(super) fn run(project: &Project) -> Result<()> {
    let mut problems = 0;
    for table in check_files(&project.data)? {
        println!(
            "{}: {} files, {} rows, {} bytes; {} retired",
            table.table, table.files, table.rows, table.bytes, table.retired_files
        );
        for problem in &table.problems {
            println!("  {problem}");
        }
        problems += table.problems.len();
    }
    if problems > 0 {
        bail!("{problems} sealed files are not what was sealed");
    }
    Ok(())
}

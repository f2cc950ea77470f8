//! Results that are kept for good: `NAME.json`, `NAME.md` and its drawings as SVG for each scenario, and
//! a page of them all that is made from those files and from nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::finding::{Finding, put};

const PAGE: &str = "README.md";
/// Scenarios as the page shows them.
const ORDER: [&str; 15] = [
    "steady", "overload", "surge", "keys", "swap", "memory", "drain", "restart", "skew", "engines",
    "ingest", "entities", "join", "features", "peers",
];

/// Keeps a finding in `folder` and writes the page anew.
pub(crate) fn keep(finding: &Finding, folder: &Path) -> Result<()> {
    let name = finding.name;
    let mut images = String::new();
    for (k, (title, svg)) in finding.drawings().enumerate() {
        let file = match k {
            0 => format!("{name}.svg"),
            k => format!("{name}-{}.svg", k + 1),
        };
        put(folder, &file, &format!("{svg}\n"))?;
        writeln!(images, "![{title}]({file})\n").expect("a String takes all");
    }
    put(folder, &format!("{name}.json"), &finding.json())?;
    put(folder, &format!("{name}.md"), &finding.markdown(&images))?;
    put(folder, PAGE, &page(folder)?)
}

/// The page of what `folder` keeps.
fn page(folder: &Path) -> Result<String> {
    let mut list = String::new();
    let mut sections = String::new();
    for name in ORDER {
        let path = folder.join(format!("{name}.json"));
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let kept: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let conditions = &kept["conditions"];
        let shown = |field: &str| match &conditions[field] {
            Value::String(text) => text.clone(),
            Value::Null => "–".into(),
            other => other.to_string(),
        };
        writeln!(
            list,
            "| [{name}]({name}.json) | {} | {} | {} | {} |",
            shown("runs"),
            shown("seconds"),
            shown("commit"),
            shown("date")
        )
        .expect("a String takes all");
        let section = folder.join(format!("{name}.md"));
        let section = fs::read_to_string(&section)
            .with_context(|| format!("cannot read {}", section.display()))?;
        sections.push('\n');
        sections.push_str(&section);
    }
    Ok(format!(
        "# Benchmarks\n\nWritten by `make bench` and `make bench-peers`; [bench.md](../bench.md) says how \
         each figure is measured and what it does not say.\n\n\
         | scenario | runs | seconds each | commit | date |\n|---|---|---|---|---|\n{list}{sections}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_its_files_make() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks");
        let page_there = fs::read_to_string(folder.join(PAGE)).unwrap();
        assert_eq!(page_there, page(&folder).unwrap());
        let bench = fs::read_to_string(folder.join("../bench.md")).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if let Some(name) = name.strip_suffix(".json") {
                assert!(ORDER.contains(&name), "{name} is in no section of the page");
            }
        }
        for name in ORDER {
            assert!(
                bench.contains(&format!("| `{name}` |")),
                "{name} is not explained"
            );
        }
    }
}

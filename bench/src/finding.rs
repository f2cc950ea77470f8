//! What a scenario found: JSON for programs, a table for people, a page with plots.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::chart::{Bars, Plot, page};
use crate::machine::Conditions;

/// A scenario's result.
pub(crate) struct Finding {
    /// The files' name.
    pub name: &'static str,
    pub title: &'static str,
    /// What was measured and how often, in a sentence or two.
    pub method: String,
    pub conditions: Conditions,
    pub figures: Value,
    pub table: Table,
    pub plots: Vec<Plot>,
    pub bars: Vec<Bars>,
}

/// A small table of text.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, row: &[String]) {
        self.rows.push(row.to_vec());
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "| {} |\n|{}\n",
            self.head.join(" | "),
            "---|".repeat(self.head.len())
        );
        for row in &self.rows {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
        }
        text
    }
}

impl Finding {
    /// Its section of a page, with `between` before the line of conditions.
    pub(crate) fn markdown(&self, between: &str) -> String {
        format!(
            "## {}\n\n{}\n\n{}\n{between}{}.\n",
            self.title,
            self.method,
            self.table.markdown(),
            self.conditions.line()
        )
    }

    pub(crate) fn json(&self) -> String {
        let whole = json!({
            "scenario": self.name,
            "conditions": self.conditions,
            "method": self.method,
            "figures": self.figures,
        });
        format!("{whole:#}\n")
    }

    /// Its drawings, by title.
    pub(crate) fn drawings(&self) -> impl Iterator<Item = (&str, String)> {
        let bars = self.bars.iter().map(|bars| (&*bars.title, bars.svg()));
        let plots = self.plots.iter().map(|plot| (&*plot.title, plot.svg()));
        bars.chain(plots)
    }

    /// Prints it and writes `NAME.json` and `NAME.html` to `out`.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        let text = self.markdown("");
        println!("\n{text}");
        put(out, &format!("{}.json", self.name), &self.json())?;
        let html = page(self.title, &text, &self.plots, &self.bars);
        put(out, &format!("{}.html", self.name), &html)
    }
}

/// Writes a file of `folder`, which is made where it is missing.
pub(crate) fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.push(&["1".into(), "2".into()]);
        assert_eq!(table.markdown(), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}

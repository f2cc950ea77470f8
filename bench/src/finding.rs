//! What a scenario found, as it is kept: JSON for programs, a table for people, a page with plots.

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
    pub(crate) fn markdown(&self) -> String {
        format!(
            "## {}\n\n{}\n\n{}\n{}.\n",
            self.title,
            self.method,
            self.table.markdown(),
            self.conditions.line()
        )
    }

    /// Writes `NAME.json` and `NAME.html` to `out`, and to `record` `NAME.json` and `NAME.md`.
    pub(crate) fn write(&self, out: &Path, record: Option<&Path>) -> Result<()> {
        let text = self.markdown();
        println!("\n{text}");
        let whole = json!({
            "scenario": self.name,
            "conditions": self.conditions,
            "method": self.method,
            "figures": self.figures,
        });
        let json = format!("{whole:#}\n");
        let html = page(self.title, &text, &self.plots, &self.bars);
        put(out, &format!("{}.json", self.name), &json)?;
        put(out, &format!("{}.html", self.name), &html)?;
        if let Some(record) = record {
            put(record, &format!("{}.json", self.name), &json)?;
            put(record, &format!("{}.md", self.name), &text)?;
        }
        Ok(())
    }
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
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

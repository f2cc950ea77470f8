//! How far a long command is: a bar on a terminal, now and then a line elsewhere. On standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use featurestore::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows the progress of one import or backfill.
pub(super) struct Shown {
    what: String,
    began: Instant,
    bar: Option<ProgressBar>,
    line: Instant,
}

impl Shown {
    pub(super) fn new(what: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0).with_prefix(what.to_owned());
            let style = "{prefix} [{bar:30}] {bytes}/{total_bytes} {msg}, {eta} left";
            // The template is a constant: it parses.
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self {
            what: what.to_owned(),
            began: Instant::now(),
            bar,
            line: Instant::now(),
        }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let Progress {
            rows,
            bytes,
            bytes_total,
        } = progress;
        let rate = rows as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        if let Some(bar) = &self.bar {
            bar.set_length(bytes_total);
            bar.set_position(bytes);
            bar.set_message(format!("{rows} rows, {rate:.0} a second"));
        } else if self.line.elapsed() >= LINE_EVERY {
            self.line = Instant::now();
            let share = 100.0 * bytes as f64 / bytes_total.max(1) as f64;
            eprintln!(
                "{}: {rows} rows, {rate:.0} a second, {share:.0} %",
                self.what
            );
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

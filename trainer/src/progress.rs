//! What a run shows while it works: a bar when a person watches, log lines when not; and the flag
//! that asks it to stop.

use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Sends log lines to stderr, coloured only for a person.
pub(crate) fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// How long a run may take to wind up once it was asked to stop.
const GRACE: Duration = Duration::from_secs(20);

/// Asks a run to end early. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Asks once stdin is at its end, and calls `exit` if the run does not wind up in time.
    pub(crate) fn ask_at_end_of_stdin(self, exit: fn()) {
        thread::spawn(move || {
            let mut bytes = [0; 256];
            while matches!(io::stdin().read(&mut bytes), Ok(1..)) {}
            self.ask();
            thread::sleep(GRACE);
            exit();
        });
    }

    /// Whether it was asked.
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The progress of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    stop: Stop,
}

impl Progress {
    /// Draws on stderr if that is a terminal; writes log lines otherwise.
    pub(crate) fn new(stop: Stop) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {elapsed}");
            bar.set_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, stop }
    }

    /// Begins a phase of so many steps; it ends when the value is dropped.
    pub(crate) fn phase(&self, name: &'static str, steps: usize) -> Phase<'_> {
        if let Some(bar) = &self.bar {
            bar.set_message(name);
            bar.set_length(steps as u64);
            bar.set_position(0);
        }
        Phase {
            progress: self,
            name,
            began: Instant::now(),
        }
    }

    /// Says something that stays.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tracing::info!("{text}"),
        }
    }

    /// Whether the run was asked to stop.
    pub(crate) fn stop_asked(&self) -> bool {
        self.stop.asked()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A phase under way.
#[derive(Debug)]
pub(crate) struct Phase<'a> {
    progress: &'a Progress,
    name: &'static str,
    began: Instant,
}

impl Phase<'_> {
    /// One step is done; `Break` if the run should stop.
    pub(crate) fn step(&self) -> ControlFlow<()> {
        if let Some(bar) = &self.progress.bar {
            bar.inc(1);
        }
        if self.progress.stop_asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Drop for Phase<'_> {
    fn drop(&mut self) {
        if self.progress.bar.is_none() {
            let seconds = self.began.elapsed().as_secs_f64();
            tracing::info!(phase = self.name, seconds, "done");
        }
    }
}

//! A gateway under test: a project of its own in a fresh folder, models registered by the command
//! line as a user would, recording and statistics on, one serving thread on the server's core.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use crate::machine::Cores;
use crate::process::{Gateway, Start, run};

/// A model with its versions, the first of which becomes the champion.
pub(crate) struct Deployed {
    pub name: &'static str,
    pub versions: Vec<Bytes>,
    /// `auto`, `trees`, `tract` or `onnxruntime`.
    pub engine: &'static str,
    /// A feature service of the project, if it is bound to one.
    pub service: Option<&'static str>,
    /// Where it is not the gateway's own.
    pub deadline: Option<Duration>,
}

impl Deployed {
    /// One version, the engine of the gateway's choice, no features.
    pub(crate) fn plain(name: &'static str, version: Bytes) -> Self {
        Self {
            name,
            versions: vec![version],
            engine: "auto",
            service: None,
            deadline: None,
        }
    }
}

/// What is deployed, and where it runs.
pub(crate) struct Deployment<'a> {
    pub loopgate: &'a Path,
    /// Made anew.
    pub folder: PathBuf,
    pub models: Vec<Deployed>,
    /// The text of `features.toml`, if there is one.
    pub features: Option<String>,
    pub serving_threads: usize,
    pub core: Option<usize>,
    /// Whether every caller is asked for a key.
    pub keys: bool,
}

impl<'a> Deployment<'a> {
    /// Nothing yet, to be served by one thread on the server's core, for everybody.
    pub(crate) fn on_one_core(loopgate: &'a Path) -> Self {
        Self {
            loopgate,
            folder: PathBuf::new(),
            models: Vec::new(),
            features: None,
            serving_threads: 1,
            core: Cores::of_machine().map(|cores| cores.server),
            keys: false,
        }
    }

    /// Writes the project, registers the models and starts the gateway.
    pub(crate) async fn start(&self) -> Result<Gateway> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot clear {}", self.folder.display()))?;
        }
        fs::create_dir_all(self.folder.join("models"))?;
        let threads = self.serving_threads;
        fs::write(
            self.folder.join("loopgate.toml"),
            format!(
                "data = \"data\"\n\n[serving]\nthreads = {threads}\n\n[keys]\nrequired = {}\n",
                self.keys
            ),
        )?;
        fs::write(
            self.folder.join("features.toml"),
            self.features.as_deref().unwrap_or_default(),
        )?;
        for model in &self.models {
            let mut text = format!("engine = \"{}\"\n", model.engine);
            if let Some(service) = model.service {
                writeln!(text, "service = \"{service}\"")?;
            }
            if let Some(deadline) = model.deadline {
                writeln!(text, "deadline_ms = {}", deadline.as_millis())?;
            }
            let path = format!("models/{}.toml", model.name);
            fs::write(self.folder.join(path), text)?;
        }
        for model in &self.models {
            for version in &model.versions {
                self.register(model.name, version)?;
            }
        }
        self.restart().await
    }

    /// Starts a gateway on the project as it is.
    pub(crate) async fn restart(&self) -> Result<Gateway> {
        Gateway::start(&Start {
            loopgate: self.loopgate,
            project: &self.folder,
            log: &self.folder.join("gateway.log"),
            core: self.core,
        })
        .await
    }

    fn register(&self, name: &str, version: &Bytes) -> Result<()> {
        let file = self.folder.join(format!("{name}.onnx"));
        fs::write(&file, version)?;
        let project = self.folder.display().to_string();
        let file = file.display().to_string();
        let arguments = [
            "model",
            "register",
            &file,
            "--name",
            name,
            "--project",
            &project,
        ];
        run(self.loopgate, &arguments, &self.folder.join("register.log"))?;
        Ok(())
    }
}

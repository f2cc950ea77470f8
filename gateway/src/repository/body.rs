//! What a load request brings: a configuration and a file, as Triton's clients write them.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use registry::ModelName;
use serde::Deserialize;
use serde_json::Value;

use crate::table::Labels;

const CONFIG: &str = "config";
const FILE: &str = "file:";

/// A load request as its wire gave it.
pub(crate) enum LoadBody {
    /// `{"parameters": {"config": …, "file:1/model.onnx": …}}`, files in base64; or nothing.
    Json(Bytes),
    /// As gRPC brings it.
    Parameters(LoadParameters),
}

/// A load request, decoded.
#[derive(Debug, Default)]
pub(crate) struct LoadParameters {
    /// A model configuration of Triton's, as JSON.
    pub config: Option<String>,
    /// Name, such as `file:1/model.onnx`, and content of each file.
    pub files: Vec<(String, Bytes)>,
}

/// What is to be loaded.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// `None` loads again what is there.
    pub file: Option<Arc<[u8]>>,
    /// Rows of one request.
    pub rows_max: Option<usize>,
    /// What the classes of its outputs are called.
    pub labels: Labels,
}

/// Why a load request is refused before its file is looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is no load request: {0}")]
    Json(serde_json::Error),
    #[error("parameter `{0}` is not a text")]
    NotText(String),
    #[error("parameter `{0}` is not `file:VERSION/NAME`")]
    FileName(String),
    #[error("parameter `{0}` is not base64")]
    Base64(String),
    #[error("the request brings {0} files: a model is one, with its weights in it")]
    Files(usize),
    #[error("`config` is no model configuration: {0}")]
    Config(serde_json::Error),
    #[error("label file `{0}` of the configuration is not among the files, or is not UTF-8")]
    LabelFile(String),
    #[error("`config` is of model `{found}`, not of `{model}`")]
    OtherModel { found: String, model: ModelName },
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
}

/// Of Triton's configuration what means something here; the rest is passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    name: String,
    max_batch_size: i64,
    output: Vec<ConfigOutput>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigOutput {
    name: String,
    /// The file that has the label of each class on a line of its own.
    label_filename: String,
}

impl LoadBody {
    /// Decodes; a file of hundreds of megabytes takes a good part of a second.
    pub(crate) fn decode(self, model: &ModelName) -> Result<Load, BodyError> {
        let mut parameters = match self {
            Self::Json(body) => LoadParameters::read(&body)?,
            Self::Parameters(parameters) => parameters,
        };
        for (name, _) in &parameters.files {
            check_name(name)?;
        }
        let mut load = Load::default();
        if let Some(config) = &parameters.config {
            let config: Config = serde_json::from_str(config).map_err(BodyError::Config)?;
            if !config.name.is_empty() && config.name != model.as_str() {
                return Err(BodyError::OtherModel {
                    found: config.name.chars().take(64).collect(),
                    model: model.clone(),
                });
            }
            load.rows_max = usize::try_from(config.max_batch_size)
                .ok()
                .filter(|rows| *rows > 0);
            load.labels = take_labels(&config.output, &mut parameters.files)?;
        }
        match &parameters.files[..] {
            [] => {}
            [(_, content)] => load.file = Some(Arc::from(&content[..])),
            files => return Err(BodyError::Files(files.len())),
        }
        Ok(load)
    }
}

impl LoadParameters {
    fn read(body: &[u8]) -> Result<Self, BodyError> {
        let mut read = Self::default();
        if body.trim_ascii().is_empty() {
            return Ok(read);
        }
        let written: Written = serde_json::from_slice(body).map_err(BodyError::Json)?;
        for (name, value) in written.parameters {
            let is_file = name.starts_with(FILE);
            if name != CONFIG && !is_file {
                continue;
            }
            let Value::String(text) = value else {
                return Err(BodyError::NotText(shown(&name)));
            };
            if is_file {
                let content = STANDARD.decode(text);
                let content = content.map_err(|_| BodyError::Base64(shown(&name)))?;
                read.files.push((name, content.into()));
            } else {
                read.config = Some(text);
            }
        }
        Ok(read)
    }
}

/// Reads the label files that the outputs name, and takes them from the others.
fn take_labels(
    outputs: &[ConfigOutput],
    files: &mut Vec<(String, Bytes)>,
) -> Result<Labels, BodyError> {
    let names = |file: &str, label: &str| file.rsplit('/').next() == Some(label);
    let labelled = || {
        outputs
            .iter()
            .filter(|output| !output.label_filename.is_empty())
    };
    let mut labels = Labels::new();
    for ConfigOutput {
        name,
        label_filename,
    } in labelled()
    {
        let mut named = files.iter().filter(|(file, _)| names(file, label_filename));
        let content = named
            .next()
            .map(|(_, content)| std::str::from_utf8(content));
        let Some(Ok(text)) = content else {
            return Err(BodyError::LabelFile(shown(label_filename)));
        };
        labels.insert(name.clone(), lines(text));
    }
    files.retain(|(file, _)| !labelled().any(|output| names(file, &output.label_filename)));
    Ok(labels)
}

/// The labels of a label file.
pub(crate) fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// A file's name is looked at, never used: `file:`, a number, a slash and a name without one.
fn check_name(name: &str) -> Result<(), BodyError> {
    let safe = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
    };
    let parts = name
        .strip_prefix(FILE)
        .and_then(|path| path.split_once('/'));
    match parts {
        Some((version, file)) if version.parse::<u32>().is_ok() && safe(file) => Ok(()),
        _ => Err(BodyError::FileName(shown(name))),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(body: &str) -> Result<Load, String> {
        let model = "m".parse().unwrap();
        LoadBody::Json(Bytes::copy_from_slice(body.as_bytes()))
            .decode(&model)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_loads_again_what_is_there() {
        for body in ["", "  \n", "{}", r#"{"parameters":{}}"#] {
            let load = decode(body).unwrap();
            assert!(load.file.is_none() && load.rows_max.is_none(), "{body}");
        }
    }

    #[test]
    fn a_file_and_the_limit_of_a_configuration_are_read() {
        let config =
            json!({"name": "m", "backend": "onnxruntime", "max_batch_size": 8, "input": []});
        let parameters = json!({
            "config": config.to_string(),
            "file:1/model.onnx": STANDARD.encode(b"bytes"),
            "unknown": 7,
        });
        let load = decode(&json!({ "parameters": parameters }).to_string()).unwrap();
        assert_eq!(load.file.as_deref(), Some(&b"bytes"[..]));
        assert_eq!(load.rows_max, Some(8));
    }

    #[test]
    fn label_files_are_read_and_are_no_model_files() {
        let with = |labels: &str, content: &[u8]| {
            let config =
                json!({"output": [{"name": "p", "label_filename": "labels.txt"}, {"name": "q"}]});
            let parameters = json!({
                "config": config.to_string(),
                "file:1/model.onnx": STANDARD.encode(b"bytes"),
                labels: STANDARD.encode(content),
            });
            decode(&json!({ "parameters": parameters }).to_string())
        };
        let load = with("file:1/labels.txt", "no\r\nüber\n".as_bytes()).unwrap();
        assert_eq!(load.file.as_deref(), Some(&b"bytes"[..]));
        let labels = vec!["no".to_owned(), "über".to_owned()];
        assert_eq!(load.labels, Labels::from([("p".to_owned(), labels)]));
        let refused = with("file:1/label.txt", b"no").unwrap_err();
        assert!(refused.contains("labels.txt"), "{refused}");
        assert!(with("file:1/labels.txt", b"\xff").is_err());
    }

    #[test]
    fn what_is_no_load_request_is_refused_with_its_reason() {
        let with = |name: &str, value: Value| json!({"parameters": {name: value}}).to_string();
        for (body, part) in [
            ("[1".to_owned(), "no load request"),
            (with("config", json!(7)), "not a text"),
            (with("config", json!("{")), "no model configuration"),
            (with("config", json!(r#"{"name":"other"}"#)), "other"),
            (with("file:1/model.onnx", json!("*")), "not base64"),
            (with("file:1/model.onnx", json!(null)), "not a text"),
            (with("file:model.onnx", json!("")), "VERSION/NAME"),
            (with("file:../model.onnx", json!("")), "VERSION/NAME"),
            (with("file:1/../../etc/passwd", json!("")), "VERSION/NAME"),
            (with("file:1/..", json!("")), "VERSION/NAME"),
            (with("file:1/", json!("")), "VERSION/NAME"),
        ] {
            let refused = decode(&body).unwrap_err();
            assert!(refused.contains(part), "{body}: {refused}");
        }
        let two = json!({"parameters": {"file:1/model.onnx": "", "file:1/weights.bin": ""}});
        assert!(decode(&two.to_string()).unwrap_err().contains("2 files"));
    }
}

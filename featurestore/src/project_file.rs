//! Reading a project's TOML files so that every error can be acted on: file, line, key, and the
//! nearest known name. Used by whoever owns a section of a project file; knows none of them.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

/// A project file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectFileError {
    /// The file, as given
    pub file: String,
    /// Line, from 1
    pub line: Option<usize>,
    /// The key at fault
    pub key: Option<String>,
    /// The known name that looks most like the unknown one
    pub nearest: Option<String>,
    /// What is wrong
    pub problem: String,
}

impl std::error::Error for ProjectFileError {}

impl fmt::Display for ProjectFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(key) = &self.key
            && !self.problem.ends_with(&format!("key `{key}`"))
        {
            write!(f, "key `{key}`: ")?;
        }
        f.write_str(&self.problem)?;
        if let Some(nearest) = &self.nearest {
            write!(f, ", did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

/// Reads a whole project file into `T`, which refuses unknown keys.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ProjectFileError> {
    ProjectText::read(path)?.parse()
}

/// Parses the text of a project file into `T`; `file` is its name in errors.
pub fn parse_toml<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, ProjectFileError> {
    ProjectText::new(file, text).parse()
}

/// The text of a project file with its name: turns places in the text (as `toml::Spanned` gives
/// them) into errors with a line.
#[derive(Clone, Debug)]
pub struct ProjectText {
    file: String,
    text: String,
}

/// A project file's size is a person's work; more than this is a mistake.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl ProjectText {
    /// A text that is already here.
    pub fn new(file: &str, text: &str) -> Self {
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Reads a file of at most 4 MiB.
    pub fn read(path: &Path) -> Result<Self, ProjectFileError> {
        let file = path.display().to_string();
        let refuse = |problem: String| ProjectFileError {
            file: file.clone(),
            line: None,
            key: None,
            nearest: None,
            problem,
        };
        let bytes = std::fs::metadata(path)
            .map_err(|error| refuse(format!("cannot be read: {error}")))?
            .len();
        if bytes > FILE_BYTES_MAX {
            return Err(refuse(format!(
                "{bytes} bytes, at most {FILE_BYTES_MAX} are read"
            )));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| refuse(format!("cannot be read: {error}")))?;
        Ok(Self { file, text })
    }

    /// The text into `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ProjectFileError> {
        toml::from_str(&self.text).map_err(|error| self.refuse(&error))
    }

    /// An error at a place in the text.
    pub fn error(
        &self,
        span: Range<usize>,
        key: &str,
        problem: impl Into<String>,
    ) -> ProjectFileError {
        ProjectFileError {
            file: self.file.clone(),
            line: Some(self.line_of(span.start)),
            key: Some(key.to_owned()),
            nearest: None,
            problem: problem.into(),
        }
    }

    /// An error about a whole file.
    pub fn error_of_file(&self, problem: impl Into<String>) -> ProjectFileError {
        ProjectFileError {
            file: self.file.clone(),
            line: None,
            key: None,
            nearest: None,
            problem: problem.into(),
        }
    }

    /// The error with the name among `known` that looks most like `name`.
    pub fn unknown<'a>(
        &self,
        span: Range<usize>,
        key: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> ProjectFileError {
        ProjectFileError {
            nearest: nearest(name, known),
            ..self.error(span, key, format!("unknown name `{name}`"))
        }
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }

    /// serde and toml speak in messages; what they name stands in backticks.
    fn refuse(&self, error: &toml::de::Error) -> ProjectFileError {
        let message = error.message();
        let mut quoted = message.split('`').skip(1).step_by(2);
        let span = error.span();
        let line = span.as_ref().map(|span| self.line_of(span.start));
        let (key, nearest, problem) = if message.starts_with("unknown field") {
            let key = quoted.next().unwrap_or_default();
            (
                Some(key.to_owned()),
                nearest(key, quoted),
                format!("unknown key `{key}`"),
            )
        } else if message.starts_with("unknown variant") {
            let value = quoted.next().unwrap_or_default();
            let key = span.and_then(|span| self.key_before(span.start));
            (
                key,
                nearest(value, quoted),
                format!("unknown name `{value}`"),
            )
        } else if message.starts_with("missing field") {
            let key = quoted.next().unwrap_or_default();
            (Some(key.to_owned()), None, format!("missing key `{key}`"))
        } else {
            // Of the other messages only these are about the value of a key.
            let value = ["invalid type", "invalid value", "invalid length"]
                .iter()
                .any(|start| message.starts_with(start));
            let key = span
                .filter(|_| value)
                .and_then(|span| self.key_before(span.start));
            (key, None, message.trim_end().replace('\n', ", "))
        };
        ProjectFileError {
            file: self.file.clone(),
            line,
            key,
            nearest,
            problem,
        }
    }

    /// The key whose value stands at `offset`: the last `key =` on its line or on one above.
    fn key_before(&self, offset: usize) -> Option<String> {
        let before = self.text.get(..offset)?;
        let (before, _) = before.rsplit_once('=')?;
        let key = before.trim_end().trim_end_matches('"');
        let start = key
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .map_or(0, |position| position + 1);
        Some(key[start..].to_owned()).filter(|key| !key.is_empty())
    }
}

/// The name among `known` that looks most like `name`.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
    known
        .into_iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use toml::Spanned;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        limits: Limits,
        #[serde(default)]
        names: BTreeMap<Spanned<String>, Spanned<String>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        rows: u32,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Live,
        Replay,
    }

    fn refused(text: &str) -> String {
        parse_toml::<File>(text, "a.toml").unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_file_line_key_and_nearest() {
        assert_eq!(
            refused("[limits]\nrows = 3\nmoed = \"live\"\n"),
            "a.toml:3: unknown key `moed`, did you mean `mode`?"
        );
        assert_eq!(
            refused("[limits]\nrows = 3\nmode = \"relpay\"\n"),
            "a.toml:3: key `mode`: unknown name `relpay`, did you mean `replay`?"
        );
        assert_eq!(refused("\n[limits]\n"), "a.toml:2: missing key `rows`");
        assert_eq!(
            refused("limits = { mode = \"live\", rows = \"x\" }"),
            "a.toml:1: key `rows`: invalid type: string \"x\", expected u32"
        );
        assert!(refused("[limits\n").starts_with("a.toml:1: "));
        assert_eq!(
            refused("[limits]\nrows = 3\nrows = 4\n"),
            "a.toml:3: duplicate key"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_toml::<File>(Path::new("/nowhere/a.toml")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/a.toml: cannot be read: ")
        );
    }

    #[test]
    fn keys_know_their_place() {
        let text = ProjectText::new(
            "a.toml",
            "[limits]\nrows = 1\n[names]\nb = \"x\"\na = \"y\"\n",
        );
        let file: File = text.parse().unwrap();
        assert_eq!((file.limits.rows, file.limits.mode), (1, None));
        let error = |key: &Spanned<String>| text.error(key.span(), key.as_ref(), "is wrong");
        let lines: Vec<_> = file.names.keys().map(|key| error(key).line).collect();
        assert_eq!(lines, [Some(5), Some(4)]);
        assert_eq!(file.names.values().next().unwrap().as_ref(), "y");
    }
}

//! Files that are looked at again and again: whether any of them is another than it was.
//!
//! A look is one `stat` for each; no watches are held in the kernel, which lose what happens on
//! network file systems and when a folder is replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// What tells one state of a file from another: a rename brings another inode, a write another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// Some files and what they were at the last look.
#[derive(Debug)]
pub(crate) struct Watched {
    files: Vec<(PathBuf, Option<Identity>)>,
}

impl Watched {
    /// Takes the files as they are now for known.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = paths.into_iter();
        let known = |path: PathBuf| {
            let identity = identity(&path);
            (path, identity)
        };
        Self {
            files: files.map(known).collect(),
        }
    }

    /// Whether any file is another than at the last look; what is seen now is known from now on.
    pub(crate) fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, known) in &mut self.files {
            let seen = identity(path);
            changed |= seen != *known;
            *known = seen;
        }
        changed
    }
}

/// `None` for a file that is not there or may not be looked at.
fn identity(path: &PathBuf) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_changes_or_goes_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut watched = Watched::new([path.clone(), folder.path().join("none")]);
        assert!(!watched.changed());
        let replace = |text: &str| {
            let temporary = folder.path().join("t");
            fs::write(&temporary, text).unwrap();
            fs::rename(&temporary, &path).unwrap();
        };
        replace("a");
        assert!(watched.changed() && !watched.changed());
        replace("b");
        assert!(watched.changed() && !watched.changed());
        fs::write(&path, "longer").unwrap();
        assert!(watched.changed() && !watched.changed());
        fs::remove_file(&path).unwrap();
        assert!(watched.changed() && !watched.changed());
    }
}

//! A disk as a trace of system calls leaves it: what programs see of it, and what a power cut would.
//!
//! A file keeps what it held when it was last fsynced; a folder keeps the names that it had when it was last
//! fsynced. Everything else may be lost or not: [`Kept`] says which of it is.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::StdRng;

use crate::strace::{Call, Moment};

/// What a power cut leaves of that which was not fsynced.
pub(crate) enum Kept<'a> {
    /// Nothing.
    Synced,
    /// The names of all files, but none of their contents: a journal of metadata alone.
    Names,
    /// Of each folder all names or none, of each file a part; at random.
    Some(&'a mut StdRng),
}

type Names = BTreeMap<OsString, usize>;

enum Node {
    File {
        now: Vec<u8>,
        durable: Vec<u8>,
    },
    Folder {
        now: Names,
        durable: Names,
        /// Changes of names so far, and how many of them were fsynced. Names may reach the disk on their
        /// own, so that what is made and removed again is a change too.
        changes: u64,
        synced: u64,
    },
}

/// The folder of a child, and what it has open.
pub(crate) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    open: HashMap<i32, Open>,
    /// What the files that are being fsynced held when that began, by thread.
    syncing: HashMap<u32, (usize, Snapshot)>,
}

struct Open {
    node: usize,
    offset: usize,
    append: bool,
}

enum Snapshot {
    File(Vec<u8>),
    Folder(Names, u64),
}

impl Disk {
    /// `root` is empty and on disk.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            nodes: vec![folder()],
            open: HashMap::new(),
            syncing: HashMap::new(),
        }
    }

    /// Does what the moment did; whether it changed what a power cut would leave.
    pub(crate) fn apply(&mut self, moment: &Moment) -> bool {
        let call = match moment {
            Moment::SyncStarts { thread, fd } => {
                if let Some(open) = self.open.get(fd) {
                    let snapshot = match &self.nodes[open.node] {
                        Node::File { now, .. } => Snapshot::File(now.clone()),
                        Node::Folder { now, changes, .. } => {
                            Snapshot::Folder(now.clone(), *changes)
                        }
                    };
                    self.syncing.insert(*thread, (open.node, snapshot));
                }
                return false;
            }
            Moment::Done(call) => call,
        };
        match &*call.name {
            "openat" => self.opened(call),
            "close" => drop(call.fd().and_then(|fd| self.open.remove(&fd))),
            "write" | "writev" | "pwrite64" => return self.written(call),
            "ftruncate" => self.resized(call),
            "lseek" => {
                if let Some(open) = call.fd().and_then(|fd| self.open.get_mut(&fd)) {
                    open.offset = usize::try_from(call.answer).unwrap();
                }
            }
            "fsync" | "fdatasync" => return self.synced(call.thread),
            "rename" | "renameat" | "renameat2" => return self.renamed(call.path(0), call.path(1)),
            "link" | "linkat" => return self.linked(call.path(0), call.path(1)),
            "unlink" | "rmdir" | "unlinkat" => return self.removed(call),
            "mkdir" | "mkdirat" => return self.made(call.path(0), folder()).is_some(),
            "copy_file_range" => return self.copied(call),
            "pwritev" | "sendfile" => {
                let of_ours = call.fd().is_some_and(|fd| self.open.contains_key(&fd));
                assert!(!of_ours, "`{}` is not known to this disk", call.name);
            }
            _ => {}
        }
        false
    }

    /// The file or folder that a thread is bringing to disk, and where it is now.
    pub(crate) fn being_synced(&self, thread: u32) -> Option<(usize, PathBuf)> {
        let node = self.syncing.get(&thread)?.0;
        Some((node, self.path_of(node, 0, Path::new(""))?))
    }

    fn path_of(&self, wanted: usize, node: usize, path: &Path) -> Option<PathBuf> {
        if wanted == node {
            return Some(path.to_owned());
        }
        let Node::Folder { now, .. } = &self.nodes[node] else {
            return None;
        };
        let mut below = now.iter();
        below.find_map(|(name, &node)| self.path_of(wanted, node, &path.join(name)))
    }

    /// Whether nothing of `path` and what is below it would be lost in a power cut: contents and names.
    pub(crate) fn is_durable(&self, path: &Path) -> bool {
        let node = self.node(path);
        self.is_name_durable(path) && node.is_none_or(|node| self.is_node_durable(node, true))
    }

    /// The same of the names alone, those below `path` included.
    pub(crate) fn are_names_durable(&self, path: &Path) -> bool {
        let node = self.node(path);
        self.is_name_durable(path) && node.is_none_or(|node| self.is_node_durable(node, false))
    }

    /// Whether `path` would be there after a power cut if it is there now, whatever it holds.
    pub(crate) fn is_name_durable(&self, path: &Path) -> bool {
        let mut node = 0;
        for name in path.strip_prefix(&self.root).unwrap() {
            let Node::Folder { now, durable, .. } = &self.nodes[node] else {
                return false;
            };
            match now.get(name) {
                found if found != durable.get(name) => return false,
                Some(found) => node = *found,
                None => return true,
            }
        }
        true
    }

    /// What a power cut would leave of a file.
    pub(crate) fn durable(&self, path: &Path) -> &[u8] {
        match self.node(path).map(|node| &self.nodes[node]) {
            Some(Node::File { durable, .. }) => durable,
            _ => &[],
        }
    }

    fn is_node_durable(&self, node: usize, contents: bool) -> bool {
        match &self.nodes[node] {
            Node::File { now, durable } => !contents || now == durable,
            Node::Folder {
                now,
                changes,
                synced,
                ..
            } => {
                let mut below = now.values();
                changes == synced && below.all(|node| self.is_node_durable(*node, contents))
            }
        }
    }

    /// Writes what a power cut would leave into the empty folder `to`.
    pub(crate) fn cut(&self, mut kept: Kept<'_>, to: &Path) {
        self.write(0, &mut kept, to);
    }

    fn write(&self, node: usize, kept: &mut Kept<'_>, to: &Path) {
        match &self.nodes[node] {
            Node::File { now, durable } => {
                let left = match kept {
                    Kept::Synced | Kept::Names => durable.clone(),
                    Kept::Some(random) => torn(now, durable, random),
                };
                fs::write(to, left).unwrap();
            }
            Node::Folder { now, durable, .. } => {
                let names = match kept {
                    Kept::Synced => durable,
                    Kept::Names => now,
                    Kept::Some(random) => match random.random() {
                        true => now,
                        false => durable,
                    },
                };
                fs::create_dir_all(to).unwrap();
                for (name, node) in names {
                    self.write(*node, kept, &to.join(name));
                }
            }
        }
    }

    /// The folder that holds `path`, and its name there; nothing outside of the root.
    fn place<'p>(&self, path: &'p Path) -> Option<(usize, &'p OsStr)> {
        let below = path.strip_prefix(&self.root).ok()?;
        Some((self.node_below(below.parent()?)?, below.file_name()?))
    }

    fn node(&self, path: &Path) -> Option<usize> {
        self.node_below(path.strip_prefix(&self.root).ok()?)
    }

    fn node_below(&self, path: &Path) -> Option<usize> {
        let mut node = 0;
        for name in path {
            let Node::Folder { now, .. } = &self.nodes[node] else {
                return None;
            };
            node = *now.get(name)?;
        }
        Some(node)
    }

    /// To change them.
    fn names(&mut self, folder: usize) -> &mut Names {
        match &mut self.nodes[folder] {
            Node::Folder { now, changes, .. } => {
                *changes += 1;
                now
            }
            Node::File { .. } => panic!("a file has no names"),
        }
    }

    fn made(&mut self, path: &Path, node: Node) -> Option<usize> {
        let (folder, name) = self.place(path)?;
        let number = self.nodes.len();
        self.nodes.push(node);
        self.names(folder).insert(name.to_owned(), number);
        Some(number)
    }

    fn opened(&mut self, call: &Call) {
        let path = call.path(0);
        let node = match self.node(path) {
            Some(node) => node,
            None if call.text.contains("O_CREAT") => {
                let file = Node::File {
                    now: Vec::new(),
                    durable: Vec::new(),
                };
                let Some(node) = self.made(path, file) else {
                    return;
                };
                node
            }
            None => return,
        };
        if let Node::File { now, .. } = &mut self.nodes[node]
            && call.text.contains("O_TRUNC")
        {
            now.clear();
        }
        let open = Open {
            node,
            offset: 0,
            append: call.text.contains("O_APPEND"),
        };
        self.open.insert(i32::try_from(call.answer).unwrap(), open);
    }

    fn written(&mut self, call: &Call) -> bool {
        let Some(open) = call.fd().and_then(|fd| self.open.get_mut(&fd)) else {
            return false;
        };
        let Node::File { now, .. } = &mut self.nodes[open.node] else {
            return false;
        };
        let mut bytes = call.strings.concat();
        bytes.truncate(usize::try_from(call.answer).unwrap());
        let at = match (&*call.name, open.append) {
            ("pwrite64", _) => usize::try_from(call.last().unwrap()).unwrap(),
            (_, true) => now.len(),
            (_, false) => open.offset,
        };
        let end = at + bytes.len();
        if now.len() < end {
            now.resize(end, 0);
        }
        now[at..end].copy_from_slice(&bytes);
        if call.name != "pwrite64" {
            open.offset = end;
        }
        true
    }

    fn copied(&mut self, call: &Call) -> bool {
        let target = call.text.split(',').nth(2);
        let target = target.and_then(|fd| fd.trim().parse().ok());
        let length = usize::try_from(call.answer).unwrap();
        let Some(source) = call.fd().and_then(|fd| self.open.get_mut(&fd)) else {
            let of_ours = target.is_some_and(|fd: i32| self.open.contains_key(&fd));
            assert!(!of_ours, "copies from elsewhere are not known to this disk");
            return false;
        };
        let (node, start) = (source.node, source.offset);
        source.offset += length;
        let Node::File { now, .. } = &self.nodes[node] else {
            panic!("a folder was copied");
        };
        let bytes = now[start..start + length].to_vec();
        let Some(open) = target.and_then(|fd| self.open.get_mut(&fd)) else {
            return false;
        };
        let Node::File { now, .. } = &mut self.nodes[open.node] else {
            panic!("a folder was written");
        };
        now.truncate(open.offset);
        now.extend_from_slice(&bytes);
        open.offset += length;
        length > 0
    }

    fn resized(&mut self, call: &Call) {
        let length = usize::try_from(call.last().unwrap()).unwrap();
        let open = call.fd().and_then(|fd| self.open.get(&fd));
        if let Some(open) = open
            && let Node::File { now, .. } = &mut self.nodes[open.node]
        {
            now.resize(length, 0);
        }
    }

    fn synced(&mut self, thread: u32) -> bool {
        let Some((node, snapshot)) = self.syncing.remove(&thread) else {
            return false;
        };
        match (&mut self.nodes[node], snapshot) {
            (Node::File { durable, .. }, Snapshot::File(held)) => *durable = held,
            (
                Node::Folder {
                    durable, synced, ..
                },
                Snapshot::Folder(held, changes),
            ) => {
                (*durable, *synced) = (held, changes);
            }
            _ => panic!("a node changed its kind"),
        }
        true
    }

    fn renamed(&mut self, from: &Path, to: &Path) -> bool {
        let (Some((source, name)), Some((target, new))) = (self.place(from), self.place(to)) else {
            return false;
        };
        let node = self
            .names(source)
            .remove(name)
            .expect("the rename was done");
        self.names(target).insert(new.to_owned(), node);
        true
    }

    fn linked(&mut self, from: &Path, to: &Path) -> bool {
        let (Some(node), Some((target, new))) = (self.node(from), self.place(to)) else {
            return false;
        };
        self.names(target).insert(new.to_owned(), node);
        true
    }

    fn removed(&mut self, call: &Call) -> bool {
        let path = call.path(0);
        let place = match path.is_absolute() {
            true => self.place(path),
            false => {
                let folder = call.fd().and_then(|fd| self.open.get(&fd));
                folder.map(|open| (open.node, path.as_os_str()))
            }
        };
        let Some((folder, name)) = place else {
            return false;
        };
        self.names(folder).remove(name).is_some()
    }
}

fn folder() -> Node {
    Node::Folder {
        now: Names::new(),
        durable: Names::new(),
        changes: 0,
        synced: 0,
    }
}

/// Some of what was written since the last fsync: its first bytes.
fn torn(now: &[u8], durable: &[u8], random: &mut StdRng) -> Vec<u8> {
    if now == durable || random.random() {
        return now.to_vec();
    }
    let same = now.iter().zip(durable).take_while(|(a, b)| a == b).count();
    let end = random.random_range(same..=now.len());
    let mut left = now[..end].to_vec();
    left.extend_from_slice(durable.get(end..).unwrap_or_default());
    left
}

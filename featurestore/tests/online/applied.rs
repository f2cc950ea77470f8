//! A version of a definition means for ever what it meant when the folder first knew it.

use std::path::Path;
use std::sync::Arc;

use crate::flights::{DEFINITIONS, START_MS, Traffic, definitions};
use featurestore::{
    Application, ApplyError, ChangedMeaning, Definitions, FeatureStore, OpenError, StoreOptions,
    VersionName, Versioned,
};

fn parse(text: &str) -> Arc<Definitions> {
    Arc::new(Definitions::parse(text, "features.toml").unwrap())
}

fn open(folder: &Path, definitions: Arc<Definitions>) -> Result<FeatureStore, OpenError> {
    FeatureStore::open(folder, definitions, &StoreOptions::default())
}

fn changed(error: ApplyError) -> Vec<ChangedMeaning> {
    match error {
        ApplyError::Changed(changed) => changed,
        ApplyError::Folder(error) => panic!("{error}"),
    }
}

/// Why the folder is not opened with these definitions.
fn refused(folder: &Path, text: &str) -> Vec<ChangedMeaning> {
    match open(folder, parse(text)).map(|_| ()) {
        Err(OpenError::Changed(error)) => changed(error),
        other => panic!("{other:?}"),
    }
}

fn names(store: &FeatureStore) -> Vec<String> {
    let applied = store.applied().unwrap();
    let mut names: Vec<_> = applied
        .into_iter()
        .map(|applied| applied.version.to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn a_change_under_a_known_version_is_refused_and_says_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), definitions()).unwrap();
    let known = [
        "service `delay@1`",
        "view `aircraft@1`",
        "view `all@1`",
        "view `origin@1`",
        "view `wind@1`",
    ];
    assert_eq!(names(&store), known);
    let mut traffic = Traffic::new(31);
    let events = vec![traffic.departure(START_MS), traffic.departure(START_MS + 1)];
    store.ingest_events_blocking(events, START_MS + 1).unwrap();
    let request = [traffic.request()];
    let service = Arc::clone(traffic.definitions.service("delay").unwrap());
    let before = store.read_rows(&service, &request, START_MS + 1).unwrap();
    drop(store);

    let text = DEFINITIONS.replace("ttl = \"24h\"", "ttl = \"12h\"");
    let messages: Vec<_> = refused(folder.path(), &text)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        messages,
        [
            "view `aircraft@1` has changed since it was first applied (ttl \"1d\" to \"12h\"); what was \
             served and trained under it must stay: restore it, and write the change as version 2",
            "service `delay@1` has changed since it was first applied (views.aircraft@1.ttl \"1d\" to \
             \"12h\"); what was served and trained under it must stay: restore it, and write the change as \
             version 2",
        ]
    );
    let text = DEFINITIONS.replace("clip = [0, 60]", "clip = [0, 50]");
    let found = refused(folder.path(), &text);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].differences,
        ["columns.wind:last_wind.clip [0.0,60.0] to [0.0,50.0]"]
    );

    // A refusal leaves the folder as it was.
    let store = open(folder.path(), definitions()).unwrap();
    assert_eq!(names(&store), known);
    let after = store.read_rows(&service, &request, START_MS + 1).unwrap();
    assert_eq!(before, after);
}

/// A second version of `aircraft` that a second version of `delay` reads.
fn second() -> String {
    let view = DEFINITIONS.split("name = \"aircraft\"").nth(1).unwrap();
    let view = view.split("[[view]]").next().unwrap();
    let view = view.replace("ttl = \"24h\"", "ttl = \"12h\"\nversion = 2");
    let service = DEFINITIONS.split("[[service]]").nth(1).unwrap();
    let first = DEFINITIONS.replace("{ view = \"aircraft\" }", "{ view = \"aircraft@1\" }");
    let service = service.replace("version = 1", "version = 2");
    format!("{first}\n[[view]]\nname = \"aircraft\"{view}\n[[service]]{service}")
}

#[test]
fn a_new_version_stands_beside_the_old_one_which_answers_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(32);
    let events: Vec<_> = (0..50).map(|at| traffic.departure(START_MS + at)).collect();
    let at_ms = START_MS + 18 * 3_600_000;
    let requests: Vec<_> = (0..8).map(|_| traffic.request()).collect();
    let store = open(folder.path(), definitions()).unwrap();
    store.ingest_events_blocking(events, at_ms).unwrap();
    let first = Arc::clone(store.definitions().service("delay").unwrap());
    let before = store.read_rows(&first, &requests, at_ms).unwrap();
    let planned = store.apply(&parse(&second())).unwrap();
    let new = |kind, name: &str| {
        let name = name.to_owned();
        (VersionName { kind, name }, Application::New)
    };
    let added: Vec<_> = planned
        .into_iter()
        .filter(|(_, application)| *application == Application::New)
        .collect();
    assert_eq!(
        added,
        [
            new(Versioned::View, "aircraft@2"),
            new(Versioned::Service, "delay@2")
        ]
    );
    drop(store);

    let store = open(folder.path(), parse(&second())).unwrap();
    let [old, new] = ["delay@1", "delay@2"].map(|name| {
        let service = store.definitions().service(name).unwrap();
        store.read_rows(service, &requests, at_ms).unwrap()
    });
    assert_eq!(before, old);
    // After eighteen hours an aircraft is known to the first version only.
    assert!(old.iter().zip(&new).any(|(old, new)| old != new));
    drop(store);

    // Without the pin the first version of the service would silently read the second view.
    let unpinned = second().replace("aircraft@1", "aircraft");
    let found = refused(folder.path(), &unpinned);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].version.name, "delay@1");
    assert_eq!(found[0].next, 3);
    assert!(found[0].to_string().contains("aircraft@2"), "{}", found[0]);
}

#[test]
fn a_name_that_was_given_up_does_not_come_back_with_another_meaning() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), definitions()).unwrap());
    let service = DEFINITIONS.find("[[service]]").unwrap();
    let wind = DEFINITIONS.find("[[view]]\nname = \"wind\"").unwrap();
    let less = format!("{}{}", &DEFINITIONS[..wind], &DEFINITIONS[service..])
        .replace("{ view = \"wind\", default = 0.0, clip = [0, 60] },", "")
        .replace("version = 1", "version = 2");
    drop(open(folder.path(), parse(&less)).unwrap());
    let other = DEFINITIONS
        .replace("source = \"weather\"", "ttl = \"1h\"\nsource = \"weather\"")
        .replace("version = 1", "version = 3");
    let found = refused(folder.path(), &other);
    let names: Vec<_> = found.iter().map(|found| &*found.version.name).collect();
    assert_eq!((names, found[0].next), (vec!["wind@1"], 2));
    drop(open(folder.path(), definitions()).unwrap());
}

#[test]
fn a_view_may_have_more_features_but_none_may_change() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), definitions()).unwrap());
    let more = DEFINITIONS.replace(
        "{ sum = \"delay\" }]",
        "{ sum = \"delay\" }, { rate = \"late\" }]",
    );
    // The service takes all features of the view, so it is another one now.
    assert_eq!(refused(folder.path(), &more)[0].version.name, "delay@1");
    let more = more.replace("version = 1", "version = 2");
    drop(open(folder.path(), parse(&more)).unwrap());
    let renamed = more.replace("{ rate = \"late\" }]", "{ rate = \"late\", name = \"x\" }]");
    let renamed = renamed.replace("version = 2", "version = 3");
    drop(open(folder.path(), parse(&renamed)).unwrap());
    // What was left out is remembered.
    let other = renamed.replace(
        "{ sum = \"delay\" }",
        "{ mean = \"delay\", name = \"rate_late\" }",
    );
    let found = refused(folder.path(), &other.replace("version = 3", "version = 4"));
    assert_eq!(found[0].version.name, "origin@1");
    assert!(
        found[0].to_string().contains("rate_late_1h"),
        "{}",
        found[0]
    );
}

#[test]
fn what_is_remembered_comes_back_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../fixtures/meanings.toml")
        .replace("default = 0.3", "default = 0.30000001192092896")
        .replace(
            "clip = [0, 1e6]",
            "clip = [-1.1754943508222875e-38, 3.4028234663852886e38]",
        );
    let first = open(folder.path(), parse(&text)).unwrap();
    let known = first.applied().unwrap();
    drop(first);
    let again = open(folder.path(), parse(&text)).unwrap();
    assert_eq!(again.applied().unwrap(), known);
}

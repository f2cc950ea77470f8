//! Opening: a new registry, an old one, one of the future, and things that are none.

use registry::{OpenError, Registry};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, model, open, options};

#[tokio::test]
async fn a_registry_reopens_with_what_it_had() {
    let fixture = Fixture::new().await;
    fixture.versions(2).await;
    let before = fixture.registry.versions(&model()).await.unwrap();
    fixture.registry.close().await;
    for _ in 0..3 {
        let again = open(fixture.folder.path()).await;
        assert_eq!(again.versions(&model()).await.unwrap(), before);
        let bytes = again.get_artifact(&before[1].artifact).await.unwrap();
        assert_eq!(bytes, "model 2");
        again.close().await;
    }
    let mut raw = fixture.raw().await;
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
    assert_eq!(usize::try_from(applied).unwrap(), files.count());
}

#[tokio::test]
async fn the_file_is_in_wal_mode_with_foreign_keys_sound() {
    let fixture = Fixture::new().await;
    fixture.versions(1).await;
    let mut raw = fixture.raw().await;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    assert_eq!(mode, "wal");
    let broken = sqlx::query("PRAGMA foreign_key_check")
        .fetch_all(&mut raw)
        .await
        .unwrap();
    assert_eq!(broken.len(), 0);
    let check: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_registry_can_be_opened_by_many_at_once() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let mut openers = JoinSet::new();
        for _ in 0..8 {
            let options = options(&folder.path().join("a/b"));
            openers.spawn(async move {
                let registry = Registry::open(&options).await.unwrap();
                registry.ensure_model(&model(), 1).await.unwrap();
                registry.models().await.unwrap().len()
            });
        }
        assert_eq!(openers.join_all().await, [1; 8]);
    }
}

#[tokio::test]
async fn a_registry_of_a_newer_release_is_refused() {
    let fixture = Fixture::new().await;
    fixture.registry.close().await;
    let mut raw = fixture.raw().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999999, 'of the future', true, x'00', 0)",
    )
    .execute(&mut raw)
    .await
    .unwrap();
    let error = Registry::open(&options(fixture.folder.path()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("999999"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_registry_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let text = "this is not a database, but somebody's letter ".repeat(200);
    std::fs::write(&options.database, &text).unwrap();
    let error = Registry::open(&options).await.unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&options.database).unwrap(), text);
    std::fs::remove_file(&options.database).unwrap();
    std::fs::remove_dir(&options.artifacts).unwrap();
    std::fs::write(&options.artifacts, "a file").unwrap();
    let error = Registry::open(&options).await.unwrap_err();
    assert!(matches!(error, OpenError::Folder { .. }), "{error}");
}

//! Artifacts: whole or absent, and never other bytes than those of the name.

use std::path::{Path, PathBuf};

use registry::{ArtifactError, Digest};

use crate::fixture::Fixture;

pub(crate) fn file_of(folder: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.to_string();
    folder.join("artifacts/sha256").join(&hex[..2]).join(hex)
}

fn staged_of(folder: &Path, digest: &Digest) -> PathBuf {
    let mut name = file_of(folder, digest).into_os_string();
    name.push("#1");
    name.into()
}

#[tokio::test]
async fn an_artifact_lies_under_its_hash_and_comes_back() {
    let fixture = Fixture::new().await;
    let bytes = vec![7; 100_000];
    let digest = fixture.registry.put_artifact(bytes.clone()).await.unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert!(file_of(fixture.folder.path(), &digest).is_file());
    assert_eq!(fixture.registry.get_artifact(&digest).await.unwrap(), bytes);
    let again = fixture.registry.put_artifact(bytes.clone()).await.unwrap();
    assert_eq!(again, digest);
    let empty = fixture.registry.put_artifact(Vec::new()).await.unwrap();
    assert_eq!(
        fixture.registry.get_artifact(&empty).await.unwrap(),
        Vec::new()
    );
}

#[tokio::test]
async fn a_missing_artifact_is_named_by_digest_and_not_by_path() {
    let fixture = Fixture::new().await;
    let digest = Digest::of(b"nobody stored this");
    let error = fixture.registry.get_artifact(&digest).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("artifact sha256:{digest} does not exist")
    );
}

#[tokio::test]
async fn each_flipped_bit_and_each_cut_is_found() {
    let fixture = Fixture::new().await;
    let bytes: Vec<u8> = (0..2000_u32).map(|n| (n * 31 % 251) as u8).collect();
    let digest = fixture.registry.put_artifact(bytes.clone()).await.unwrap();
    let file = file_of(fixture.folder.path(), &digest);
    let mut spoilt: Vec<Vec<u8>> = (0..1000)
        .map(|n| {
            let mut flipped = bytes.clone();
            flipped[n * 2] ^= 1 << (n % 8);
            flipped
        })
        .collect();
    spoilt.extend((0..100).map(|n| bytes[..n * 20].to_vec()));
    spoilt.push([bytes.as_slice(), b"\0"].concat());
    for wrong in spoilt {
        std::fs::write(&file, &wrong).unwrap();
        let error = fixture.registry.get_artifact(&digest).await.unwrap_err();
        assert!(
            matches!(error, ArtifactError::Corrupt { found, .. } if found == Digest::of(&wrong)),
            "{error}"
        );
        let message = error.to_string();
        assert!(message.contains(&digest.to_string()), "{message}");
        assert!(!message.contains('/'), "{message}");
    }
    // Storing it once more heals it.
    fixture.registry.put_artifact(bytes.clone()).await.unwrap();
    assert_eq!(fixture.registry.get_artifact(&digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_corrupt_artifact_cannot_be_registered() {
    let fixture = Fixture::new().await;
    let new = fixture.new_version(1, None).await;
    std::fs::write(file_of(fixture.folder.path(), &new.artifact), b"rotten").unwrap();
    let error = fixture.registry.register_version(new).await.unwrap_err();
    assert!(error.to_string().contains("is corrupt"), "{error}");
    assert_eq!(fixture.registry.models().await.unwrap()[0].latest, 0);
}

#[tokio::test]
async fn a_half_written_artifact_is_invisible_harmless_and_swept() {
    let fixture = Fixture::new().await;
    let (registry, folder) = (&fixture.registry, fixture.folder.path());
    let bytes = vec![1; 50_000];
    let digest = Digest::of(&bytes);
    let staged = staged_of(folder, &digest);
    std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
    std::fs::write(&staged, &bytes[..4096]).unwrap();

    let error = registry.get_artifact(&digest).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Missing { .. }), "{error}");
    registry.put_artifact(bytes.clone()).await.unwrap();
    assert_eq!(registry.get_artifact(&digest).await.unwrap(), bytes);

    assert_eq!(
        registry.sweep_unfinished_artifacts(1).await.unwrap(),
        0,
        "too young"
    );
    assert!(staged.exists());
    assert_eq!(
        registry
            .sweep_unfinished_artifacts(i64::MAX / 2)
            .await
            .unwrap(),
        1
    );
    assert!(!staged.exists());
    assert_eq!(registry.get_artifact(&digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_store_that_cannot_be_written_says_why_without_a_path() {
    let fixture = Fixture::new().await;
    let bytes = b"a model".to_vec();
    let digest = Digest::of(&bytes);
    // A file where the folder of this digest should be.
    let folder = file_of(fixture.folder.path(), &digest);
    let folder = folder.parent().unwrap();
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    std::fs::write(folder, b"").unwrap();
    let message = fixture
        .registry
        .put_artifact(bytes)
        .await
        .unwrap_err()
        .to_string();
    let expected = format!("artifact sha256:{digest} could not be written: not a directory");
    assert_eq!(message, expected);
}

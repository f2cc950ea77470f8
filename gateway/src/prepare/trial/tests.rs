use super::*;
use crate::onnx;

const LIMITS: TrialLimits = TrialLimits {
    memory_bytes_max: 1 << 30,
    timeout: Duration::from_secs(60),
    cpu: Duration::from_secs(60),
};

fn file(bytes: Vec<u8>) -> Artifact {
    Artifact::new(bytes.into())
}

#[test]
fn a_file_is_tried_once_for_each_engine_and_a_refused_one_again() {
    let verdicts = Verdicts::default();
    let tract = EngineChoice::Only(EngineKind::Tract);
    let first = file(onnx::affine(&[1.0], 0.0));
    for _ in 0..3 {
        let passed = verdicts.on(&first, tract, &LIMITS).unwrap();
        assert_eq!(
            (passed.engine, passed.digest),
            (EngineKind::Tract, first.digest)
        );
        assert_eq!(verdicts.kept().len(), 1, "tried again");
    }
    verdicts.on(&first, EngineChoice::Auto, &LIMITS).unwrap();
    verdicts
        .on(&file(onnx::whole_numbers()), tract, &LIMITS)
        .unwrap();
    assert_eq!(verdicts.kept().len(), 3);
    let broken = file(b"no model".to_vec());
    assert!(verdicts.on(&broken, tract, &LIMITS).is_err());
    assert_eq!(verdicts.kept().len(), 3);
}

#[test]
fn the_oldest_verdict_makes_place() {
    let verdicts = Verdicts::default();
    let tract = EngineChoice::Only(EngineKind::Tract);
    let first = file(onnx::affine(&[1.0], 0.0));
    let passed = verdicts.on(&first, tract, &LIMITS).unwrap();
    for k in 1..VERDICTS_MAX {
        let mut other = passed.clone();
        other.digest = Digest::of(&k.to_le_bytes());
        verdicts.kept().push_back((tract, other));
    }
    let last = file(onnx::whole_numbers());
    verdicts.on(&last, tract, &LIMITS).unwrap();
    assert_eq!(verdicts.kept().len(), VERDICTS_MAX);
    let is_kept = |file: &Artifact| {
        let kept = verdicts.kept();
        kept.iter().any(|(_, passed)| passed.digest == file.digest)
    };
    assert!(is_kept(&last) && !is_kept(&first));
}

//! Aliases: compare-and-set, promotion, roll back, history.

use std::collections::BTreeMap;

use proptest::prelude::*;
use registry::{
    AliasChange, AliasError, AliasEvent, AliasName, LookupError, ModelName, Promotion, Registry,
    Release, Rollback, Version,
};
use sqlx::SqliteConnection;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, model};

const ROUNDS: i64 = 60;

fn promotion(model: &ModelName, to: Version, expected: Option<Version>) -> Promotion<'_> {
    Promotion {
        model,
        challenger: to,
        expected_champion: expected,
        reason: "won",
        at_ms: 10,
    }
}

fn rollback(model: &ModelName, expected: Version) -> Rollback<'_> {
    Rollback {
        model,
        expected_champion: expected,
        reason: "decayed",
        at_ms: 20,
    }
}

async fn try_champion(
    registry: Registry,
    expected: Option<Version>,
    to: Version,
) -> Result<i64, AliasError> {
    let change = AliasChange {
        model: &model(),
        alias: &AliasName::champion(),
        expected,
        to: Some(to),
        reason: "race",
        at_ms: 5,
    };
    registry.set_alias(change).await
}

fn assert_no_gaps(history: &[AliasEvent]) {
    let mut now: BTreeMap<AliasName, Option<Version>> = BTreeMap::new();
    let mut generation = 0;
    for event in history {
        assert!(
            event.generation == generation || event.generation == generation + 1,
            "generation {} after {generation}",
            event.generation
        );
        generation = event.generation;
        let before = now.insert(event.alias.clone(), event.to).flatten();
        assert_eq!(event.from, before, "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_writers_in_two_handles_exactly_one_wins_each_round() {
    let fixture = Fixture::new().await;
    fixture.versions(4).await;
    let other = fixture.another().await;
    let mut champion = None;
    for round in 1..=ROUNDS {
        // Two candidates that differ from each other and from what is set.
        let offset = if round % 2 == 0 { 0 } else { 2 };
        let mut race = JoinSet::new();
        race.spawn(try_champion(fixture.registry.clone(), champion, 1 + offset));
        race.spawn(try_champion(other.clone(), champion, 2 + offset));
        let results = race.join_all().await;
        let won: Vec<&i64> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
        assert_eq!(won, [&round], "{results:?}");
        let lost = results.iter().find_map(|r| r.as_ref().err()).unwrap();
        let now = fixture.registry.release(&model()).await.unwrap().champion();
        assert!(
            matches!(lost, AliasError::Conflict { expected, found, .. }
                if *expected == champion && *found == now),
            "{lost}"
        );
        champion = now;
    }
    let history = fixture.registry.history(&model()).await.unwrap();
    assert_eq!(history.len(), usize::try_from(ROUNDS).unwrap());
    assert_no_gaps(&history);
    assert_eq!(other.history(&model()).await.unwrap(), history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_that_retry_all_get_through_and_leave_no_gap() {
    let fixture = Fixture::new().await;
    fixture.versions(4).await;
    let mut writers = JoinSet::new();
    for writer in 0..4_u32 {
        let registry = if writer % 2 == 0 {
            fixture.registry.clone()
        } else {
            fixture.another().await
        };
        writers.spawn(async move {
            let mut done = 0;
            while done < 15 {
                let expected = registry.release(&model()).await.unwrap().champion();
                if expected == Some(writer + 1) {
                    // Ours already: pass it on, so that each of our turns is a change.
                    let next = (writer + 1) % 4 + 1;
                    let _ = try_champion(registry.clone(), expected, next).await;
                    continue;
                }
                match try_champion(registry.clone(), expected, writer + 1).await {
                    Ok(_) => done += 1,
                    Err(AliasError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    writers.join_all().await;
    let history = fixture.registry.history(&model()).await.unwrap();
    assert!(history.len() >= 60);
    assert_no_gaps(&history);
    let generations: Vec<i64> = history.iter().map(|event| event.generation).collect();
    let expected: Vec<i64> = (1..=i64::try_from(history.len()).unwrap()).collect();
    assert_eq!(generations, expected);
}

#[tokio::test]
async fn a_promotion_moves_all_three_aliases_in_one_generation() {
    let fixture = Fixture::new().await;
    fixture.versions(2).await;
    let (registry, model) = (&fixture.registry, model());
    assert_eq!(
        registry.promote(promotion(&model, 1, None)).await.unwrap(),
        1
    );
    fixture.set(&AliasName::challenger(), None, Some(2)).await;
    let generation = registry
        .promote(promotion(&model, 2, Some(1)))
        .await
        .unwrap();
    assert_eq!(generation, 3);

    let release = registry.release(&model).await.unwrap();
    assert_eq!((release.generation, release.changed_generation), (3, 3));
    assert_eq!(release.champion(), Some(2));
    assert_eq!(release.fallback(), Some(1));
    assert_eq!(release.challenger(), None);
    let history = registry.history(&model).await.unwrap();
    let last: Vec<(&str, Option<Version>, Option<Version>)> = history
        .iter()
        .filter(|event| event.generation == 3)
        .map(|event| (event.alias.as_str(), event.from, event.to))
        .collect();
    let expected = [
        ("challenger", Some(2), None),
        ("champion", Some(1), Some(2)),
        ("fallback", None, Some(1)),
    ];
    assert_eq!(last, expected);
}

#[tokio::test]
async fn a_promotion_against_a_stale_champion_conflicts_and_changes_nothing() {
    let fixture = Fixture::new().await;
    fixture.versions(3).await;
    let (registry, model) = (&fixture.registry, model());
    registry.promote(promotion(&model, 1, None)).await.unwrap();
    registry
        .promote(promotion(&model, 2, Some(1)))
        .await
        .unwrap();
    let before = registry.release(&model).await.unwrap();

    let error = registry
        .promote(promotion(&model, 3, Some(1)))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "alias `champion` of model `delay` is version 2, not version 1"
    );
    let error = registry
        .promote(promotion(&model, 3, None))
        .await
        .unwrap_err();
    assert!(matches!(error, AliasError::Conflict { .. }), "{error}");
    let error = registry.roll_back(rollback(&model, 1)).await.unwrap_err();
    assert!(matches!(error, AliasError::Conflict { .. }), "{error}");
    let error = registry
        .promote(promotion(&model, 2, Some(2)))
        .await
        .unwrap_err();
    assert!(
        matches!(error, AliasError::AlreadyChampion { version: 2, .. }),
        "{error}"
    );
    assert_eq!(registry.release(&model).await.unwrap(), before);
}

#[tokio::test]
async fn a_roll_back_returns_to_the_fallback_and_never_to_what_failed() {
    let fixture = Fixture::new().await;
    fixture.versions(3).await;
    let (registry, model) = (&fixture.registry, model());
    registry.promote(promotion(&model, 1, None)).await.unwrap();
    let error = registry.roll_back(rollback(&model, 1)).await.unwrap_err();
    assert!(matches!(error, AliasError::NoFallback { .. }), "{error}");
    registry
        .promote(promotion(&model, 2, Some(1)))
        .await
        .unwrap();
    registry
        .promote(promotion(&model, 3, Some(2)))
        .await
        .unwrap();

    registry.roll_back(rollback(&model, 3)).await.unwrap();
    let release = registry.release(&model).await.unwrap();
    assert_eq!((release.champion(), release.fallback()), (Some(2), Some(1)));
    // One step further back the fallback's fallback is what has just been left, or nothing.
    registry.roll_back(rollback(&model, 2)).await.unwrap();
    let release = registry.release(&model).await.unwrap();
    assert_eq!((release.champion(), release.fallback()), (Some(1), None));
    // An operator who goes back by promotion, and then back again.
    registry
        .promote(promotion(&model, 2, Some(1)))
        .await
        .unwrap();
    registry
        .promote(promotion(&model, 1, Some(2)))
        .await
        .unwrap();
    registry.roll_back(rollback(&model, 1)).await.unwrap();
    let release = registry.release(&model).await.unwrap();
    assert_eq!((release.champion(), release.fallback()), (Some(2), None));
    assert_no_gaps(&registry.history(&model).await.unwrap());
}

#[tokio::test]
async fn unknown_models_and_versions_are_named() {
    let fixture = Fixture::new().await;
    let (registry, model) = (&fixture.registry, model());
    let error = registry
        .promote(promotion(&model, 7, None))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "model `delay` has no version 7");
    let other: ModelName = "other".parse().unwrap();
    let error = registry
        .promote(promotion(&other, 1, None))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "model `other` is not in the registry");
    let error = registry.release(&other).await.unwrap_err();
    assert!(matches!(error, LookupError::UnknownModel(_)), "{error}");
}

#[tokio::test]
async fn what_served_when_can_be_asked() {
    let fixture = Fixture::new().await;
    fixture.versions(2).await;
    let (registry, model) = (&fixture.registry, model());
    let at = |at_ms, to, expected| Promotion {
        at_ms,
        ..promotion(&model, to, expected)
    };
    registry.promote(at(100, 1, None)).await.unwrap();
    registry.promote(at(200, 2, Some(1))).await.unwrap();
    for (at_ms, champion, generation) in [
        (99, None, 0),
        (100, Some(1), 1),
        (199, Some(1), 1),
        (200, Some(2), 2),
    ] {
        let release = registry.release_at(&model, at_ms).await.unwrap();
        assert_eq!(release.champion(), champion, "at {at_ms}");
        assert_eq!(release.generation, generation, "at {at_ms}");
    }
}

#[tokio::test]
async fn the_generation_counts_over_all_models_and_only_changes() {
    let fixture = Fixture::new().await;
    fixture.versions(1).await;
    let registry = &fixture.registry;
    let other: ModelName = "delay-static".parse().unwrap();
    registry.ensure_model(&other, 1).await.unwrap();
    let mut new = fixture.new_version(9, None).await;
    new.model = other.clone();
    registry.register_version(new).await.unwrap();

    assert_eq!(registry.generation().await.unwrap(), 0);
    registry
        .promote(promotion(&model(), 1, None))
        .await
        .unwrap();
    registry.promote(promotion(&other, 1, None)).await.unwrap();
    assert_eq!(registry.generation().await.unwrap(), 2);
    let release = registry.release(&model()).await.unwrap();
    assert_eq!((release.generation, release.changed_generation), (2, 1));
    fixture.set(&AliasName::champion(), Some(1), Some(1)).await;
    assert_eq!(
        registry.generation().await.unwrap(),
        2,
        "no change, no generation"
    );
    fixture.set(&AliasName::champion(), Some(1), None).await;
    assert_eq!(
        registry.release(&model()).await.unwrap().aliases,
        BTreeMap::new()
    );
}

#[tokio::test]
async fn sql_itself_refuses_to_change_history_or_to_leave_a_gap() {
    let fixture = Fixture::new().await;
    fixture.versions(2).await;
    let model = model();
    fixture
        .registry
        .promote(promotion(&model, 1, None))
        .await
        .unwrap();
    let before = fixture.registry.history(&model).await.unwrap();
    let mut raw: SqliteConnection = fixture.raw().await;
    for statement in [
        "UPDATE alias_events SET to_version = 2",
        "DELETE FROM alias_events",
        "INSERT OR REPLACE INTO alias_events VALUES (1, 'delay', 'champion', NULL, 2, '', 0)",
        "INSERT OR REPLACE INTO alias_events VALUES (1, 'delay', 'champion', 1, 2, '', 0)",
        // A step that does not start where the last one ended, and generations left out or reused.
        "INSERT INTO alias_events VALUES (2, 'delay', 'champion', 2, 1, '', 0)",
        "INSERT INTO alias_events VALUES (3, 'delay', 'champion', 1, 2, '', 0)",
        "INSERT INTO alias_events VALUES (0, 'delay', 'champion', 1, 2, '', 0)",
        "INSERT INTO alias_events VALUES (2, 'delay', 'champion', 1, 1, '', 0)",
        "INSERT INTO alias_events VALUES (2, 'delay', 'champion', 1, 9, '', 0)",
    ] {
        let result = sqlx::query(statement).execute(&mut raw).await;
        assert!(result.is_err(), "accepted: {statement}");
    }
    assert_eq!(fixture.registry.history(&model).await.unwrap(), before);
    let good = "INSERT INTO alias_events VALUES (2, 'delay', 'champion', 1, 2, '', 0)";
    sqlx::query(good).execute(&mut raw).await.unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Set { alias: u8, to: Option<Version> },
    Promote(Version),
    RollBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8, proptest::option::of(1..4_u32)).prop_map(|(alias, to)| Step::Set { alias, to }),
        (1..4_u32).prop_map(Step::Promote),
        Just(Step::RollBack),
    ]
}

async fn take(registry: &Registry, step: &Step, release: &Release) -> bool {
    let model = model();
    let aliases = [
        AliasName::champion(),
        AliasName::challenger(),
        AliasName::fallback(),
        AliasName::simple(),
    ];
    let result = match step {
        Step::Set { alias, to } => {
            let alias = &aliases[usize::from(*alias)];
            let change = AliasChange {
                model: &model,
                alias,
                expected: release.get(alias),
                to: *to,
                reason: "step",
                at_ms: 1,
            };
            registry.set_alias(change).await
        }
        Step::Promote(version) => {
            let promotion = promotion(&model, *version, release.champion());
            registry.promote(promotion).await
        }
        Step::RollBack => match release.champion() {
            Some(champion) => registry.roll_back(rollback(&model, champion)).await,
            None => return false,
        },
    };
    result.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn after_any_steps_history_replayed_is_the_release(steps in proptest::collection::vec(step(), 1..20)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new().await;
            fixture.versions(3).await;
            let mut before = fixture.registry.release(&model()).await.unwrap();
            for step in &steps {
                let taken = take(&fixture.registry, step, &before).await;
                let after = fixture.registry.release(&model()).await.unwrap();
                match step {
                    Step::Promote(version) if taken => {
                        assert_eq!(after.champion(), Some(*version));
                        assert_eq!(after.fallback(), before.champion().or(before.fallback()));
                        assert_eq!(after.challenger(), None);
                        assert_ne!(after.champion(), after.fallback().filter(|_| before.champion().is_some()));
                    }
                    Step::RollBack if taken => {
                        assert_eq!(after.champion(), before.fallback());
                        assert_ne!(after.fallback(), before.champion());
                        assert_ne!(after.fallback(), after.champion());
                        assert_eq!(after.challenger(), before.challenger());
                    }
                    _ if !taken => assert_eq!(after, before),
                    _ => {}
                }
                before = after;
            }
            let history = fixture.registry.history(&model()).await.unwrap();
            assert_no_gaps(&history);
            let mut replayed = BTreeMap::new();
            for event in history {
                match event.to {
                    Some(version) => replayed.insert(event.alias, version),
                    None => replayed.remove(&event.alias),
                };
            }
            assert_eq!(replayed, before.aliases);
        });
    }
}

//! The loop of one model over simulated days, with a real registry and store.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::process::{Command, Stdio};

use monitor::trigger::TriggerCause;
use monitor::{LoopState, LoopStatus, ModelLoop, OperatorRequest, Skew, Verdict};
use registry::{RunStatus, Version};

use world::{START_MS, Traffic, World, dead_pid};

/// Days of decayed traffic until the loop trains.
async fn until_training(
    world: &mut World,
    model_loop: &mut ModelLoop,
    champion: Version,
) -> LoopStatus {
    for _ in 0..10 {
        let status = world.day(model_loop, champion, Traffic::Decayed).await;
        if status.state == LoopState::Training {
            return status;
        }
    }
    panic!("ten days of decay trained nothing");
}

/// A world whose loop has just started a training for decay.
async fn training() -> (World, ModelLoop) {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    for _ in 0..3 {
        world.day(&mut model_loop, 1, Traffic::Good).await;
    }
    until_training(&mut world, &mut model_loop, 1).await;
    (world, model_loop)
}

/// A world whose loop has just promoted version 2 over version 1.
async fn soaking() -> (World, ModelLoop) {
    let (mut world, mut model_loop) = training().await;
    let challenger = world.challenger(&mut model_loop).await;
    world.loaded.insert(challenger);
    let status = world.tick(&mut model_loop).await;
    assert_eq!(
        (status.state, status.champion),
        (LoopState::Soaking, Some(2))
    );
    (world, model_loop)
}

#[tokio::test]
async fn good_days_are_healthy_and_train_nothing() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    for day in 0..8 {
        let status = world.day(&mut model_loop, 1, Traffic::Good).await;
        let expected = if day == 0 {
            Verdict::Unknown
        } else {
            Verdict::Healthy
        };
        assert_eq!(status.verdict, expected, "day {day}: {}", status.reason);
        assert!(status.has_baseline);
        assert_eq!(status.state, LoopState::Watching);
    }
    let status = world.tick(&mut model_loop).await;
    let features: Vec<_> = status.drift.iter().map(|drift| &*drift.feature).collect();
    for feature in ["x", "kind", "score"] {
        assert!(features.contains(&feature), "{feature} has an index");
    }
    assert!(status.drift[0].psi < 0.05, "{:?}", status.drift);
    assert!(world.decisions("trigger").await.is_empty());
    assert_eq!(world.decisions("verdict").await.len(), 8);
}

#[tokio::test]
async fn decay_trains_a_challenger_that_is_prepared_promoted_and_soaked() {
    let (mut world, mut model_loop) = training().await;
    let trigger = world.newest("trigger").await;
    assert_eq!(trigger.outcome, "decay");
    assert_eq!(trigger.evidence["champion"], 1);
    assert!(trigger.reason.contains("log_loss"), "{}", trigger.reason);

    let challenger = world.challenger(&mut model_loop).await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.registered), (LoopState::Preparing, 1));
    assert!(status.busy());
    assert_eq!(
        world.alias("champion").await,
        Some(1),
        "not before it is ready"
    );

    world.loaded.insert(challenger);
    let status = world.tick(&mut model_loop).await;
    assert_eq!(status.state, LoopState::Soaking);
    assert_eq!((status.champion, status.fallback), (Some(2), Some(1)));
    assert_eq!((status.challenger, status.promotions), (None, 1));
    assert_eq!(model_loop.baseline().unwrap().version, 2);
    let promotion = world.newest("promotion").await;
    assert_eq!(
        (promotion.version, promotion.evidence["from"].as_i64()),
        (Some(2), Some(1))
    );
    let lineage = world.registry.lineage(&world.model, 2).await.unwrap();
    assert_eq!(
        lineage.trigger.map(|trigger| trigger.outcome).as_deref(),
        Some("decay")
    );

    for _ in 0..2 {
        assert_eq!(world.tick(&mut model_loop).await.state, LoopState::Soaking);
        world.day(&mut model_loop, 2, Traffic::Good).await;
    }
    assert_eq!(world.tick(&mut model_loop).await.state, LoopState::Watching);
}

#[tokio::test]
async fn a_data_fault_alarms_and_never_trains() {
    let mut world = World::new().await;
    world.policy.trigger.confirm = monitor::policy::Confirm::new(1, 1).unwrap();
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    world.day(&mut model_loop, 1, Traffic::Good).await;
    for _ in 0..6 {
        let status = world.day(&mut model_loop, 1, Traffic::Unseen).await;
        assert_eq!(status.verdict, Verdict::DataFault, "{}", status.reason);
        assert_eq!(status.state, LoopState::Watching);
    }
    assert!(world.decisions("trigger").await.is_empty());
    let verdict = world.newest("verdict").await;
    let kinds: Vec<_> = verdict.evidence["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["kind"].as_str().unwrap())
        .collect();
    assert!(
        kinds.contains(&"missing") && kinds.contains(&"unknown_category"),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn rows_served_otherwise_than_the_log_has_them_train_nothing_until_a_night_finds_none() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    world.skew = Some(Skew {
        rows: 1000,
        features: [("x".to_owned(), 1)].into(),
    });
    for _ in 0..6 {
        let status = world.day(&mut model_loop, 1, Traffic::Decayed).await;
        assert_eq!(status.verdict, Verdict::DataFault, "{}", status.reason);
        assert_eq!(status.state, LoopState::Watching);
    }
    let verdict = world.newest("verdict").await;
    assert_eq!(verdict.evidence["faults"][0]["kind"], "skew");
    assert!(world.decisions("trigger").await.is_empty());
    world.skew = None;
    until_training(&mut world, &mut model_loop, 1).await;
    assert_eq!(world.newest("trigger").await.outcome, "decay");
}

#[tokio::test]
async fn a_rejected_challenger_changes_nothing_and_doubles_the_wait() {
    let (mut world, mut model_loop) = training().await;
    let trigger = world.newest("trigger").await;
    let run = world.start_run(Some(trigger.id), 1, world.now_ms).await;
    let outcome = "rejected: beats_champion: lower bound -0.002";
    world.finish(&run, RunStatus::Finished, outcome).await;
    world.let_trainer_end(&mut model_loop, 0).await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.rejected), (LoopState::Watching, 1));
    assert_eq!(status.last_run.unwrap().outcome, outcome);
    let doubled_ms = 2 * world.policy.trigger.cooldown.ms();
    assert_eq!(status.cooldown_until_ms, Some(world.now_ms + doubled_ms));
    assert_eq!((status.champion, status.challenger), (Some(1), None));

    let ended_ms = world.now_ms;
    until_training(&mut world, &mut model_loop, 1).await;
    assert_eq!(world.now_ms - ended_ms, doubled_ms);
}

#[tokio::test]
async fn a_trainer_that_records_nothing_or_dies_is_a_failed_run_and_the_loop_goes_on() {
    let (mut world, mut model_loop) = training().await;
    world.let_trainer_end(&mut model_loop, 0).await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.failed), (LoopState::Watching, 1));
    let failure = world.newest("training_failed").await;
    assert_eq!(
        failure.reason,
        "trainer ended with code 0 and recorded no run"
    );
    assert_eq!(failure.evidence["log"], "at work\n");

    until_training(&mut world, &mut model_loop, 1).await;
    let trigger = world.newest("trigger").await;
    let run = world.start_run(Some(trigger.id), 1, world.now_ms).await;
    world.let_trainer_end(&mut model_loop, 101).await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.failed), (LoopState::Watching, 2));
    let run = world.registry.run(&run).await.unwrap().summary;
    assert_eq!(run.status, RunStatus::Failed);
    assert_eq!(run.outcome.as_deref(), Some("trainer ended with code 101"));
    assert_eq!(world.alias("challenger").await, None);

    until_training(&mut world, &mut model_loop, 1).await;
    model_loop.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_cannot_be_started_is_told_and_waits_out_its_cooldown() {
    let mut world = World::new().await;
    std::fs::remove_file(world.trainer()).unwrap();
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    let mut failed_on = Vec::new();
    for day in 0..9 {
        let status = world.day(&mut model_loop, 1, Traffic::Decayed).await;
        assert_eq!(status.state, LoopState::Watching);
        if status.failed as usize > failed_on.len() {
            failed_on.push(day);
        }
    }
    assert_eq!(failed_on, [2, 7], "five days apart");
    let failure = world.newest("training_failed").await;
    assert!(
        failure.reason.contains("cannot be started"),
        "{}",
        failure.reason
    );
}

#[tokio::test]
async fn a_run_left_behind_by_a_crash_is_marked_failed_and_keeps_its_cooldown() {
    let (mut world, model_loop) = training().await;
    let trigger = world.newest("trigger").await;
    let run = world
        .start_run(Some(trigger.id), dead_pid(), world.now_ms)
        .await;
    drop(model_loop);

    let mut model_loop = world.start_loop().await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.failed), (LoopState::Watching, 1));
    let run = world.registry.run(&run).await.unwrap().summary;
    assert_eq!(run.status, RunStatus::Failed);
    assert!(run.outcome.unwrap().ends_with("is gone"));
    let began_ms = world.now_ms;
    let cooldown_ms = world.policy.trigger.cooldown.ms();
    assert_eq!(status.cooldown_until_ms, Some(began_ms + cooldown_ms));
    until_training(&mut world, &mut model_loop, 1).await;
    assert_eq!(world.now_ms - began_ms, cooldown_ms);
    model_loop.shut_down().await;
}

#[tokio::test]
async fn a_crash_before_the_trainer_recorded_its_run_is_a_failed_run_too() {
    let (world, model_loop) = training().await;
    drop(model_loop);
    let mut model_loop = world.start_loop().await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.failed), (LoopState::Watching, 1));
    assert_eq!(
        world.newest("training_failed").await.reason,
        "the trainer recorded no run"
    );
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was_in_every_state() {
    let (mut world, mut model_loop) = training().await;
    let challenger = world.challenger(&mut model_loop).await;
    // The run ended while nobody looked: the end is found in the registry.
    drop(model_loop);
    let mut model_loop = world.start_loop().await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.state, status.registered), (LoopState::Preparing, 1));
    drop(model_loop);

    let mut model_loop = world.start_loop().await;
    let status = world.tick(&mut model_loop).await;
    assert_eq!(
        (status.state, status.challenger),
        (LoopState::Preparing, Some(challenger))
    );
    world.loaded.insert(challenger);
    let before = world.tick(&mut model_loop).await;
    assert_eq!(before.state, LoopState::Soaking);
    drop(model_loop);

    let mut model_loop = world.start_loop().await;
    let after = world.tick(&mut model_loop).await;
    assert_eq!(after, before, "nothing is remembered that was not written");
    assert_eq!(world.decisions("promotion").await.len(), 1);
    assert_eq!(world.decisions("training").await.len(), 1);
}

#[tokio::test]
async fn a_restart_between_evaluations_repeats_none_and_keeps_k_of_n() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    for _ in 0..2 {
        world.day(&mut model_loop, 1, Traffic::Decayed).await;
    }
    let before = world.tick(&mut model_loop).await;
    assert_eq!(before.verdict, Verdict::Decay);
    let mut model_loop = world.start_loop().await;
    let after = world.tick(&mut model_loop).await;
    assert_eq!(after, before);
    assert_eq!(world.decisions("verdict").await.len(), 2);
    let status = world.day(&mut model_loop, 1, Traffic::Decayed).await;
    assert_eq!(
        status.state,
        LoopState::Training,
        "the second of two was seen before the restart"
    );
    model_loop.shut_down().await;
}

#[tokio::test]
async fn a_promotion_whose_decision_was_lost_in_a_crash_is_recorded_after_it() {
    let mut world = World::new().await;
    let second = world.register(None, START_MS).await;
    world.loaded.insert(second);
    let promotion = registry::Promotion {
        model: &world.model,
        challenger: second,
        expected_champion: Some(1),
        reason: "version 2 passed its gates",
        at_ms: START_MS,
    };
    world.registry.promote(promotion).await.unwrap();
    for _ in 0..2 {
        let mut model_loop = world.start_loop().await;
        let status = world.tick(&mut model_loop).await;
        assert_eq!((status.state, status.promotions), (LoopState::Soaking, 1));
    }
    assert_eq!(world.decisions("promotion").await.len(), 1);
    let rollback = registry::Rollback {
        model: &world.model,
        expected_champion: second,
        reason: "worse",
        at_ms: START_MS + 1,
    };
    world.registry.roll_back(rollback).await.unwrap();
    for _ in 0..2 {
        let mut model_loop = world.start_loop().await;
        let status = world.tick(&mut model_loop).await;
        assert_eq!(
            (status.state, status.champion),
            (LoopState::Watching, Some(1))
        );
        assert_eq!((status.promotions, status.rollbacks), (1, 1));
    }
}

#[tokio::test]
async fn a_challenger_that_the_gateway_refuses_is_cleared_with_the_reason() {
    let (mut world, mut model_loop) = training().await;
    let challenger = world.challenger(&mut model_loop).await;
    world.refused.insert(challenger, "engines disagree".into());
    let status = world.tick(&mut model_loop).await;
    assert_eq!(
        (status.state, status.champion),
        (LoopState::Watching, Some(1))
    );
    assert_eq!(world.alias("challenger").await, None);
    let decision = world.newest("rollout").await;
    assert_eq!(
        (decision.outcome.as_str(), decision.version),
        ("refused", Some(challenger))
    );
    assert!(decision.reason.contains("engines disagree"));
    assert!(world.decisions("promotion").await.is_empty());
}

#[tokio::test]
async fn a_challenger_that_is_never_ready_is_given_up() {
    let (mut world, mut model_loop) = training().await;
    world.challenger(&mut model_loop).await;
    assert_eq!(
        world.tick(&mut model_loop).await.state,
        LoopState::Preparing
    );
    world.now_ms += world.policy.rollout.prepare_max.ms();
    assert_eq!(world.tick(&mut model_loop).await.state, LoopState::Watching);
    assert_eq!(world.newest("rollout").await.outcome, "given_up");
    assert_eq!(world.alias("challenger").await, None);
}

#[tokio::test]
async fn a_challenger_judged_against_a_champion_of_the_past_is_not_promoted() {
    let (mut world, mut model_loop) = training().await;
    let other = world.register(None, START_MS).await;
    world.set("champion", Some(1), Some(other)).await;
    let challenger = world.challenger(&mut model_loop).await;
    world.loaded.extend([other, challenger]);
    let status = world.tick(&mut model_loop).await;
    assert_eq!(
        (status.state, status.champion),
        (LoopState::Watching, Some(other))
    );
    assert_eq!((status.challenger, status.promotions), (None, 0));
    assert_eq!(world.newest("rollout").await.outcome, "conflict");
}

#[tokio::test]
async fn a_much_worse_new_champion_is_rolled_back_and_the_next_training_waits() {
    let (mut world, mut model_loop) = soaking().await;
    world.day(&mut model_loop, 2, Traffic::Decayed).await;
    let status = world.day(&mut model_loop, 2, Traffic::Decayed).await;
    // The old champion had decayed as well: as bad is not worse.
    assert_eq!((status.champion, status.rollbacks), (Some(2), 0));

    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    for _ in 0..2 {
        world.day(&mut model_loop, 1, Traffic::Good).await;
    }
    let second = world.register(None, world.now_ms).await;
    world.loaded.insert(second);
    let status = world
        .ask(&mut model_loop, OperatorRequest::Promote(second))
        .await;
    assert!(status.answer.unwrap().accepted);
    assert_eq!(status.state, LoopState::Soaking);
    world.day(&mut model_loop, 2, Traffic::Decayed).await;
    let status = world.day(&mut model_loop, 2, Traffic::Decayed).await;
    assert_eq!(
        (status.state, status.champion),
        (LoopState::Watching, Some(1))
    );
    assert_eq!((status.rollbacks, status.promotions), (1, 1));
    let rollback = world.newest("rollback").await;
    assert_eq!(rollback.evidence["grounds"]["soak"]["against"], "before");
    let doubled_ms = 2 * world.policy.trigger.cooldown.ms();
    assert_eq!(status.cooldown_until_ms, Some(world.now_ms + doubled_ms));
    let mut restarted = world.start_loop().await;
    let after = world.tick(&mut restarted).await;
    assert_eq!(after.cooldown_until_ms, status.cooldown_until_ms);
    assert_eq!((after.state, after.rollbacks), (LoopState::Watching, 1));
}

#[tokio::test]
async fn a_person_may_train_at_any_time_but_one_run_at_a_time() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    let status = world.ask(&mut model_loop, OperatorRequest::TrainNow).await;
    assert!(status.answer.unwrap().accepted);
    assert_eq!(
        (status.state, status.training_for),
        (LoopState::Training, Some(TriggerCause::Operator))
    );
    for request in [OperatorRequest::TrainNow, OperatorRequest::Promote(1)] {
        let answer = world.ask(&mut model_loop, request).await.answer.unwrap();
        assert!(!answer.accepted, "{}", answer.message);
    }
    world.let_trainer_end(&mut model_loop, 1).await;
    world.now_ms += 1;
    let status = world.tick(&mut model_loop).await;
    assert_eq!(status.failed, 1);
    assert!(status.cooldown_until_ms.unwrap() > world.now_ms);
    let status = world.ask(&mut model_loop, OperatorRequest::TrainNow).await;
    assert!(
        status.answer.unwrap().accepted,
        "the cooldown binds the loop, not a person"
    );
    model_loop.shut_down().await;
}

#[tokio::test]
async fn a_run_that_somebody_started_by_hand_is_waited_for() {
    let world = World::new().await;
    let mut model_loop = world.start_loop().await;
    // Named as the trainer is; it ends with its standard input.
    let mut by_hand = Command::new("sh")
        .args(["-c", "read line"])
        .arg(world.trainer())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    world.start_run(None, by_hand.id(), START_MS).await;
    let status = world.ask(&mut model_loop, OperatorRequest::TrainNow).await;
    let answer = status.answer.unwrap();
    assert!(
        !answer.accepted && answer.message.ends_with("is under way"),
        "{}",
        answer.message
    );
    drop(by_hand.stdin.take());
    by_hand.wait().unwrap();
    let status = world.ask(&mut model_loop, OperatorRequest::TrainNow).await;
    assert!(status.answer.unwrap().accepted);
    model_loop.shut_down().await;
}

#[tokio::test]
async fn a_person_may_promote_and_roll_back_and_is_told_what_cannot_be() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    for request in [
        OperatorRequest::RollBack,
        OperatorRequest::Promote(1),
        OperatorRequest::Promote(99),
    ] {
        let answer = world.ask(&mut model_loop, request).await.answer.unwrap();
        assert!(!answer.accepted, "{request:?}: {}", answer.message);
    }
    let second = world.register(None, START_MS).await;
    let status = world
        .ask(&mut model_loop, OperatorRequest::Promote(second))
        .await;
    assert_eq!(status.state, LoopState::Preparing);
    world.loaded.insert(second);
    let status = world.tick(&mut model_loop).await;
    assert_eq!((status.champion, status.fallback), (Some(2), Some(1)));
    let status = world.ask(&mut model_loop, OperatorRequest::RollBack).await;
    assert!(status.answer.unwrap().accepted);
    assert_eq!(
        (status.state, status.champion),
        (LoopState::Watching, Some(1))
    );
    assert_eq!((status.promotions, status.rollbacks), (1, 1));
}

#[tokio::test]
async fn a_model_without_a_champion_is_watched_without_complaint() {
    let mut world = World::new().await;
    world.set("champion", Some(1), None).await;
    let mut model_loop = world.start_loop().await;
    for _ in 0..3 {
        let status = world.day(&mut model_loop, 1, Traffic::Decayed).await;
        assert_eq!((status.state, status.champion), (LoopState::Watching, None));
        assert!(!status.has_baseline);
    }
    assert!(world.decisions("verdict").await.is_empty());
}

#[tokio::test]
async fn a_damaged_or_lost_baseline_is_made_again() {
    let world = World::new().await;
    let first = world.start_loop().await.baseline().unwrap();
    let folder = world
        .trainer()
        .with_file_name("data")
        .join("baselines/delay");
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for damage in ["", "{}", "not JSON"] {
        std::fs::write(&file, damage).unwrap();
        assert_eq!(world.start_loop().await.baseline().unwrap(), first);
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(world.start_loop().await.baseline().unwrap(), first);
    assert!(first.score.rows() > 0, "its own scores are part of it");
}

#[tokio::test]
async fn a_version_trained_on_rows_computed_anew_has_the_baseline_of_the_same_rows_served() {
    let mut world = World::new().await;
    let mut model_loop = world.start_loop().await;
    world.tick(&mut model_loop).await;
    let served = model_loop.baseline().unwrap();
    world.rows = "recomputed_rows";
    let second = world.register(None, START_MS).await;
    world.set("champion", Some(1), Some(second)).await;
    world.loaded.insert(second);
    world.tick(&mut model_loop).await;
    let recomputed = model_loop.baseline().unwrap();
    assert_eq!(recomputed.version, second);
    let same_but_for_the_version = monitor::Baseline {
        version: second,
        ..monitor::Baseline::clone(&served)
    };
    assert_eq!(*recomputed, same_but_for_the_version);
}

//! The admin interface's route table.

use crate::access::Access;
use crate::keys::Scope;
use crate::routing::Route;

/// What a row leads to; each a handler of `Admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    ShowLoop,
    MoveClock,
    ListFeatures,
    ReadFeatures,
    BackUp,
    ListModels,
    ShowModel,
    ListVersions,
    ListHistory,
    ListRuns,
    ListDecisions,
    ShowLineage,
    ShowRun,
    Promote,
    RollBack,
    Train,
    SetAlias,
}

const ADMIN: Access = Access::Scoped(Scope::Admin);

pub(crate) const ROUTES: &[Route<Action>] = &[
    Route::get("v1/loop", ADMIN, Action::ShowLoop),
    Route::post("v1/clock", ADMIN, Action::MoveClock),
    Route::get("v1/features", ADMIN, Action::ListFeatures),
    Route::post("v1/features/{service}", ADMIN, Action::ReadFeatures),
    Route::post("v1/backup", ADMIN, Action::BackUp),
    Route::get("v1/models", ADMIN, Action::ListModels),
    Route::get("v1/models/{model}", ADMIN, Action::ShowModel),
    Route::get("v1/models/{model}/versions", ADMIN, Action::ListVersions),
    Route::get("v1/models/{model}/history", ADMIN, Action::ListHistory),
    Route::get("v1/models/{model}/runs", ADMIN, Action::ListRuns),
    Route::get("v1/models/{model}/runs/{run}", ADMIN, Action::ShowRun),
    Route::get("v1/models/{model}/decisions", ADMIN, Action::ListDecisions),
    Route::get(
        "v1/models/{model}/lineage/{version}",
        ADMIN,
        Action::ShowLineage,
    ),
    Route::post("v1/models/{model}/promote", ADMIN, Action::Promote),
    Route::post("v1/models/{model}/rollback", ADMIN, Action::RollBack),
    Route::post("v1/models/{model}/train", ADMIN, Action::Train),
    Route::post("v1/models/{model}/aliases/{alias}", ADMIN, Action::SetAlias),
    Route::get("v1/runs/{run}", ADMIN, Action::ShowRun),
];

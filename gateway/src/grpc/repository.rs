//! The repository and what its versions have done: index and statistics.

use tonic::Status;

use super::message::repository_index_response::ModelIndex;
use super::message::{
    InferBatchStatistics, InferStatistics, ModelStatistics, ModelStatisticsRequest,
    ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse, StatisticDuration,
};
use super::{model, status};
use crate::route;
use crate::serve::Core;
use crate::table::{Leaf, LoadedVersion};

/// What the one repository holds; its name is not looked at.
pub(super) fn index(core: &Core, asked: &RepositoryIndexRequest) -> RepositoryIndexResponse {
    let table = core.table.snapshot();
    let index = table.as_ref().map(|table| table.index(asked.ready));
    let models = index.unwrap_or_default().into_iter();
    RepositoryIndexResponse {
        models: models
            .map(|indexed| ModelIndex {
                name: indexed.name.into(),
                version: indexed.version.map_or_else(String::new, Into::into),
                state: indexed.state.to_owned(),
                reason: indexed.reason.into_owned(),
            })
            .collect(),
    }
}

/// The statistics of one version, of one model's, or of all.
pub(super) fn statistics(
    core: &Core,
    asked: &ModelStatisticsRequest,
) -> Result<ModelStatisticsResponse, Status> {
    let target = match &*asked.name {
        "" => None,
        name => Some(model::target(name, &asked.version)?),
    };
    let table = core.table.snapshot();
    let versions = route::versions(table.as_deref(), target.as_ref());
    let versions = versions.map_err(|error| status::of_route(&error))?;
    Ok(ModelStatisticsResponse {
        model_stats: versions.into_iter().map(of_version).collect(),
    })
}

fn of_version(version: &LoadedVersion) -> ModelStatistics {
    let totals = version.statistics.totals();
    let stats = totals.inference_stats;
    ModelStatistics {
        name: version.model.to_string(),
        version: version.label.to_string(),
        // The clock of a replay may stand before the epoch.
        last_inference: u64::try_from(totals.last_inference).unwrap_or(0),
        inference_count: totals.inference_count,
        execution_count: totals.execution_count,
        inference_stats: Some(InferStatistics {
            success: leaf(stats.success),
            fail: leaf(stats.fail),
            queue: leaf(stats.queue),
            compute_input: leaf(stats.compute_input),
            compute_infer: leaf(stats.compute_infer),
            compute_output: leaf(stats.compute_output),
            cache_hit: leaf(stats.cache_hit),
            cache_miss: leaf(stats.cache_miss),
        }),
        batch_stats: totals
            .batch_stats
            .into_iter()
            .map(|batch| InferBatchStatistics {
                batch_size: batch.batch_size.into(),
                compute_input: leaf(batch.compute_input),
                compute_infer: leaf(batch.compute_infer),
                compute_output: leaf(batch.compute_output),
            })
            .collect(),
        memory_usage: Vec::new(),
        response_stats: Default::default(),
    }
}

/// Clients read every leaf, so none is left out.
fn leaf(Leaf { count, ns }: Leaf) -> Option<StatisticDuration> {
    Some(StatisticDuration { count, ns })
}

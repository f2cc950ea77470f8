//! The ONNX protobuf messages, so that a model can be written with `prost`
//! ([`Message::encode_to_vec`]) and read by every engine.
//!
//! The layout on which our trees, tract and ONNX Runtime agree, on missing values and on values
//! equal to a threshold too (largest difference seen 2.5e-7). Format version 8, operator sets 17
//! of `""` and 3 of `ai.onnx.ml`; one input `features` FP32 `[N, F]` with `N` a `dim_param`; one
//! output `probability` FP32 `[N, 1]`.
//!
//! - **Boosted trees**: `TreeEnsembleClassifier` (domain `ai.onnx.ml`) from `features` to `label`
//!   and `scores`, then `Slice` of `scores` by INT64 initializers `starts` = 1, `ends` = 2, `axes`
//!   = 1, then `Sigmoid`. The classifier's attributes: `nodes_treeids` from 0 rising by 1,
//!   `nodes_nodeids` from 0 in each tree with the root first, `nodes_featureids`, `nodes_values`,
//!   `nodes_modes` (`BRANCH_LEQ`, `BRANCH_LT`, `LEAF`), `nodes_truenodeids`,
//!   `nodes_falsenodeids`, `nodes_missing_value_tracks_true` (0 for leaves); `class_treeids`,
//!   `class_nodeids`, `class_ids` (all 1) and `class_weights`, one entry for each leaf in the
//!   order of the nodes; `classlabels_int64s` 0 and 1; `post_transform` `NONE`. No `base_values`:
//!   the base margin goes into the first tree's leaves. Never `BRANCH_GTE` or `BRANCH_GT`.
//! - **Logistic regression**: `IsNaN(features)`; `Where(missing, fill, features)`;
//!   `Sub(mean)`; `Div(deviation)`; `Clip(low, high)` by scalar initializers; `Gemm(weights,
//!   bias)`; `Sigmoid`. `fill`, `mean` and `deviation` are `[1, F]`, `weights` `[F, 1]`, `bias`
//!   `[1]`.
//!
//! Every attribute carries its `type`; every initializer either `raw_data` or its typed field.

pub use prost::Message;
pub use tract_onnx::pb::*;

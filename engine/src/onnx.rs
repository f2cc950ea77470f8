//! The structural check of an ONNX file, before any ONNX library sees its bytes.
//!
//! Owns: which files may be loaded at all, and the [`Signature`] read from the graph.
//! Must not know: engines, what an operator computes.
//! Costs: one pass without recursion; memory grows with the number of names, not with the weights.
//! Trap: strictness is the point. A field that is unknown, doubled or of another wire type is
//! refused, since two parsers may read it in two ways.

mod findings;
mod labels;
mod operators;
mod schema;
mod stored;
mod walk;
mod wire;
mod zip_map;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::signature::Signature;

/// Bounds of the structural check. A file beyond one of them is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxLimits {
    /// Bytes of the whole file.
    pub file_bytes_max: usize,
    /// Protobuf messages inside one another; prost stops at 100.
    pub depth_max: usize,
    /// Nodes of all graphs together.
    pub nodes_max: usize,
    /// Tensors of all graphs and attributes together.
    pub tensors_max: usize,
    /// Protobuf messages of any kind.
    pub messages_max: usize,
    /// Strings in repeated fields: names of values, modes of tree nodes, string tensors.
    pub strings_max: usize,
    /// Axes of a tensor.
    pub rank_max: usize,
    /// Inputs of the model, and outputs.
    pub values_max: usize,
}

impl Default for OnnxLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: 256 << 20,
            depth_max: 32,
            nodes_max: 100_000,
            tensors_max: 100_000,
            messages_max: 500_000,
            strings_max: 4_000_000,
            rank_max: 16,
            values_max: 1_024,
        }
    }
}

/// An operator and how many nodes use it, subgraphs included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorUse {
    /// `ai.onnx` or `ai.onnx.ml`.
    pub domain: String,
    /// The operator's type, such as `Gemm`.
    pub name: String,
    /// Nodes that use it.
    pub nodes: usize,
}

/// The bytes of an ONNX file that passed the structural check, and its signature.
///
/// Only the check makes one, and every engine asks for one, so that no library parses bytes that
/// were not checked.
#[derive(Clone)]
pub struct OnnxFile {
    bytes: Arc<[u8]>,
    signature: Signature,
    operators: Vec<OperatorUse>,
}

impl OnnxFile {
    /// Checks the bytes of a file within `limits`.
    ///
    /// # Errors
    /// When the file is cut short or malformed, exceeds a limit, keeps data outside itself, uses
    /// an operator, domain or operator set that is not allowed, defines functions, or has an
    /// input or output that is no tensor.
    pub fn check(bytes: Arc<[u8]>, limits: &OnnxLimits) -> Result<Self, CheckError> {
        if bytes.len() > limits.file_bytes_max {
            return Err(CheckError::TooLarge {
                bytes: bytes.len(),
                bytes_max: limits.file_bytes_max,
            });
        }
        let findings = walk::walk(&bytes, limits)?;
        if findings.has_zip_map() {
            let bytes = zip_map::cut(&bytes)?;
            let (signature, operators) = walk::walk(&bytes, limits)?.finish(limits)?;
            return Ok(Self {
                bytes,
                signature,
                operators,
            });
        }
        let (signature, operators) = findings.finish(limits)?;
        Ok(Self {
            bytes,
            signature,
            operators,
        })
    }

    /// What the model takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The bytes that were checked; what is loaded must be these. They are the file's own, or,
    /// where it ended in `ZipMap`, a copy without it.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// The labels of each output that holds a classifier's scores, in the order of its columns;
    /// nothing for an output whose columns are only numbered.
    pub fn class_labels(&self) -> BTreeMap<String, Vec<String>> {
        let mut operators = self.operators.iter();
        match operators.any(|operator| labels::is_classifier(&operator.name)) {
            true => labels::labels(&self.bytes),
            false => BTreeMap::new(),
        }
    }

    /// The operators in use, by domain and name.
    pub fn operators(&self) -> &[OperatorUse] {
        &self.operators
    }
}

impl fmt::Debug for OnnxFile {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnnxFile")
            .field("bytes", &self.bytes.len())
            .field("signature", &self.signature)
            .finish_non_exhaustive()
    }
}

/// Why a file may not be loaded. Always the file's fault; never worth a retry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// More bytes than allowed.
    #[error("file has {bytes} bytes, more than the {bytes_max} allowed")]
    TooLarge {
        /// The file's length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The file ends inside a field.
    #[error("file is cut short at byte {at}")]
    Truncated {
        /// Where it ends.
        at: usize,
    },
    /// The bytes are no ONNX protobuf.
    #[error("file is no valid onnx model: {problem} at byte {at}")]
    Malformed {
        /// Where the field stands.
        at: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A count exceeds its limit.
    #[error("model has more than {max} {what}")]
    Limit {
        /// What was counted, in the plural.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A part that every model needs is not there; a file cut between two fields ends here too.
    #[error("model has no {what}")]
    Missing {
        /// The part.
        what: &'static str,
    },
    /// A part of the format that is not served.
    #[error("model uses {what}, which is not supported")]
    Unsupported {
        /// The part.
        what: String,
    },
    /// A tensor whose bytes are elsewhere.
    #[error("tensor `{tensor}` keeps its data in an external file")]
    ExternalData {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor whose shape, type and bytes disagree.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A node that may not run.
    #[error("operator `{operator}` of domain `{domain}` is not allowed (node `{node}`){reason}")]
    Operator {
        /// The operator's type.
        operator: String,
        /// Its domain, `ai.onnx` for the empty one.
        domain: String,
        /// The node's name, or its first output.
        node: String,
        /// Why, starting with a colon; empty when it is simply unknown.
        reason: String,
    },
    /// An operator set outside the range that is served.
    #[error("operator set {version} of domain `{domain}` is not allowed, {reason}")]
    Opset {
        /// The domain, `ai.onnx` for the empty one.
        domain: String,
        /// The version that the file imports.
        version: i64,
        /// What is allowed.
        reason: String,
    },
    /// An input, output or other value that cannot be served.
    #[error("value `{value}` {problem}")]
    Value {
        /// The value's name.
        value: String,
        /// What is wrong.
        problem: String,
    },
}

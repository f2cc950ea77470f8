//! What the walk found, and the rules that need more than one field.

use std::collections::{BTreeMap, HashSet};

use super::operators::{self, IR_VERSIONS, ML_VERSIONS, ONNX_VERSIONS};
use super::schema::{Message, field};
use super::walk::Frame;
use super::{CheckError, OnnxLimits, OperatorUse};
use crate::signature::{Signature, TensorSpec};
use crate::tensor::DataType;

/// What stands in the file, borrowed from it. The drafts belong to the message that is open.
#[derive(Debug, Default)]
pub(super) struct Findings<'a> {
    pub(super) ir_version: Option<i64>,
    pub(super) nodes: usize,
    pub(super) tensors: usize,
    pub(super) tensor: TensorDraft<'a>,
    pub(super) value: ValueDraft<'a>,
    pub(super) opset: (&'a str, i64),
    pub(super) property: &'a str,
    has_graph: bool,
    opsets: BTreeMap<&'a str, i64>,
    operators: BTreeMap<(&'a str, &'a str), (usize, &'a str)>,
    inputs: Vec<ValueDraft<'a>>,
    outputs: Vec<ValueDraft<'a>>,
    initializers: HashSet<&'a str>,
    /// Outputs of the main graph's nodes.
    computed: HashSet<&'a str>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ValueDraft<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: i64,
    /// The axis that is open; -1 while it has no fixed length.
    pub(super) dimension: i64,
    shape: Option<Vec<i64>>,
}

#[derive(Debug, Default)]
pub(super) struct TensorDraft<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: i64,
    pub(super) dims: Vec<i64>,
    pub(super) raw_bytes: Option<usize>,
    pub(super) is_external: bool,
    /// Elements found in each of the typed fields 4, 5, 6, 7, 10 and 11.
    typed: BTreeMap<u32, usize>,
}

impl TensorDraft<'_> {
    pub(super) fn add(&mut self, number: u32, count: usize) {
        *self.typed.entry(number).or_default() += count;
    }

    fn check(&self) -> Result<(), CheckError> {
        if self.is_external {
            return Err(CheckError::ExternalData {
                tensor: self.name.to_owned(),
            });
        }
        let refuse = |problem: String| {
            Err(CheckError::Tensor {
                tensor: self.name.to_owned(),
                problem,
            })
        };
        let elements = self.dims.iter().try_fold(1_usize, |product, &dim| {
            product.checked_mul(usize::try_from(dim).ok()?)
        });
        let Some(elements) = elements.filter(|&count| count <= isize::MAX.unsigned_abs() / 8)
        else {
            return refuse(format!("has an impossible shape {:?}", self.dims));
        };
        let Some((size, typed_field)) = storage(self.datatype) else {
            return refuse(format!("has an unsupported element type {}", self.datatype));
        };
        let found = match (self.raw_bytes, self.typed.len()) {
            (Some(_), 1..) => return refuse("keeps its elements in two fields".to_owned()),
            (Some(bytes), 0) => match size {
                Some(size) if bytes.is_multiple_of(size) => bytes / size,
                _ => return refuse(format!("has {bytes} raw bytes that are no whole elements")),
            },
            (None, 0) => 0,
            (None, 1) => match self.typed.get(&typed_field) {
                Some(&count) => count,
                None => return refuse("keeps its elements in a field of another type".to_owned()),
            },
            (None, _) => return refuse("keeps its elements in two fields".to_owned()),
        };
        if found != elements {
            let shape = &self.dims;
            return refuse(format!(
                "has shape {shape:?} and {found} elements instead of {elements}"
            ));
        }
        Ok(())
    }
}

/// Bytes of one raw element (`None` where raw is not allowed) and the number of the typed field.
fn storage(datatype: i64) -> Option<(Option<usize>, u32)> {
    Some(match datatype {
        1 => (Some(4), 4),
        2 | 3 | 9 => (Some(1), 5),
        4 | 5 | 10 | 16 => (Some(2), 5),
        6 => (Some(4), 5),
        7 => (Some(8), 7),
        8 => (None, 6),
        11 => (Some(8), 10),
        12 => (Some(4), 11),
        13 => (Some(8), 11),
        _ => return None,
    })
}

fn datatype(number: i64) -> Option<DataType> {
    Some(match number {
        1 => DataType::Fp32,
        2 => DataType::Uint8,
        3 => DataType::Int8,
        4 => DataType::Uint16,
        5 => DataType::Int16,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        10 => DataType::Fp16,
        11 => DataType::Fp64,
        12 => DataType::Uint32,
        13 => DataType::Uint64,
        16 => DataType::Bf16,
        _ => return None,
    })
}

impl<'a> Findings<'a> {
    pub(super) fn open(&mut self, message: Message, number: u32) {
        match message {
            Message::Tensor => self.tensor = TensorDraft::default(),
            Message::Value => self.value = ValueDraft::default(),
            Message::Shape => self.value.shape = Some(Vec::new()),
            Message::Dimension => self.value.dimension = -1,
            Message::Opset => self.opset = ("", 0),
            Message::Property => {
                self.property = "";
                // Of all messages only a tensor has properties in this field.
                self.tensor.is_external |= number == field::TENSOR_EXTERNAL;
            }
            _ => {}
        }
    }

    /// `is_main` tells a part of the model's graph from one of a subgraph.
    pub(super) fn close(&mut self, frame: &Frame<'a>, is_main: bool) -> Result<(), CheckError> {
        match frame.message {
            Message::Graph => self.has_graph |= frame.field == field::MODEL_GRAPH,
            Message::Node => return self.close_node(frame),
            Message::Tensor => {
                self.tensor.check()?;
                if is_main && frame.field == field::GRAPH_INITIALIZER {
                    return self.close_initializer();
                }
            }
            Message::SparseTensor => {
                return Err(CheckError::Unsupported {
                    what: "sparse tensors".to_owned(),
                });
            }
            Message::Dimension => {
                let dimension = self.value.dimension;
                if dimension < -1 {
                    return self.refuse_value(format!("has an axis of {dimension}"));
                }
                let shape = self.value.shape.get_or_insert_default();
                shape.push(dimension);
            }
            Message::Value if is_main => match frame.field {
                field::GRAPH_INPUT => self.inputs.push(self.value.clone()),
                field::GRAPH_OUTPUT => self.outputs.push(self.value.clone()),
                _ => {}
            },
            Message::Opset => return self.close_opset(),
            Message::Property if self.property == "ort_config" => {
                return Err(CheckError::Unsupported {
                    what: "a session configuration inside the file".to_owned(),
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// A value of the main graph that a node computes.
    pub(super) fn define(&mut self, name: &'a str) -> Result<(), CheckError> {
        if self.computed.insert(name) {
            return Ok(());
        }
        Err(CheckError::Value {
            value: name.to_owned(),
            problem: "is computed by two nodes".to_owned(),
        })
    }

    pub(super) fn no_tensor(&self, what: &str) -> CheckError {
        CheckError::Value {
            value: self.value.name.to_owned(),
            problem: format!("is a {what}, which has no tensor form"),
        }
    }

    fn close_node(&mut self, frame: &Frame<'a>) -> Result<(), CheckError> {
        let node = frame.node;
        let domain = plain_domain(node.domain);
        let label = if node.name.is_empty() {
            node.output
        } else {
            node.name
        };
        if operators::introduced(domain, node.operator).is_none() {
            return Err(refuse_operator(
                domain,
                node.operator,
                label,
                operators::refusal(domain, node.operator).to_owned(),
            ));
        }
        let uses = self.operators.entry((domain, node.operator));
        uses.or_insert((0, label)).0 += 1;
        Ok(())
    }

    fn close_initializer(&mut self) -> Result<(), CheckError> {
        let name = self.tensor.name;
        if !name.is_empty() && self.initializers.insert(name) {
            return Ok(());
        }
        Err(CheckError::Tensor {
            tensor: name.to_owned(),
            problem: "has no name of its own".to_owned(),
        })
    }

    fn close_opset(&mut self) -> Result<(), CheckError> {
        let (domain, version) = self.opset;
        let refuse = |reason: String| {
            Err(CheckError::Opset {
                domain: shown_domain(plain_domain(domain)),
                version,
                reason,
            })
        };
        let domain = plain_domain(domain);
        let allowed = match domain {
            "" => ONNX_VERSIONS,
            "ai.onnx.ml" => ML_VERSIONS,
            _ => return refuse("only ai.onnx and ai.onnx.ml are".to_owned()),
        };
        if !allowed.contains(&version) {
            return refuse(format!("{} to {} are", allowed.start(), allowed.end()));
        }
        if self.opsets.insert(domain, version).is_some() {
            return refuse("the domain is imported twice".to_owned());
        }
        Ok(())
    }

    fn refuse_value(&self, problem: String) -> Result<(), CheckError> {
        Err(CheckError::Value {
            value: self.value.name.to_owned(),
            problem,
        })
    }

    /// The rules over the whole file, then its signature and operators.
    pub(super) fn finish(
        self,
        limits: &OnnxLimits,
    ) -> Result<(Signature, Vec<OperatorUse>), CheckError> {
        let missing = |what| Err(CheckError::Missing { what });
        match self.ir_version {
            None => return missing("format version"),
            Some(version) if !IR_VERSIONS.contains(&version) => {
                return Err(CheckError::Unsupported {
                    what: format!("format version {version}"),
                });
            }
            Some(_) => {}
        }
        if !self.has_graph {
            return missing("graph");
        }
        if self.opsets.is_empty() {
            return missing("import of an operator set");
        }
        for (&(domain, operator), &(_, node)) in &self.operators {
            let since = operators::introduced(domain, operator).unwrap_or(i64::MAX);
            let reason = match self.opsets.get(domain) {
                None => ": the file does not import the domain".to_owned(),
                Some(&version) if version < since => {
                    format!(": it needs operator set {since}, the file imports {version}")
                }
                Some(_) => continue,
            };
            return Err(refuse_operator(domain, operator, node, reason));
        }
        let signature = self.signature(limits)?;
        let operators = self
            .operators
            .iter()
            .map(|(&(domain, name), &(nodes, _))| OperatorUse {
                domain: shown_domain(domain),
                name: name.to_owned(),
                nodes,
            })
            .collect();
        Ok((signature, operators))
    }

    fn signature(&self, limits: &OnnxLimits) -> Result<Signature, CheckError> {
        let mut names = HashSet::new();
        let mut inputs = Vec::new();
        for value in &self.inputs {
            if self.initializers.contains(value.name) {
                continue;
            }
            let refused = match () {
                () if self.computed.contains(value.name) => "is an input and computed by a node",
                () if !names.insert(value.name) => "is an input twice",
                () => {
                    inputs.push(value.spec()?);
                    continue;
                }
            };
            return Err(value.refuse(refused.to_owned()));
        }
        let mut outputs = Vec::new();
        let mut seen = HashSet::new();
        for value in &self.outputs {
            let is_known = names.contains(value.name)
                || self.computed.contains(value.name)
                || self.initializers.contains(value.name);
            if !is_known {
                return Err(value.refuse("is an output that no node computes".to_owned()));
            }
            if !seen.insert(value.name) {
                return Err(value.refuse("is an output twice".to_owned()));
            }
            outputs.push(value.spec()?);
        }
        for (count, what, lack) in [
            (inputs.len(), "inputs", "input"),
            (outputs.len(), "outputs", "output"),
        ] {
            if count == 0 {
                return Err(CheckError::Missing { what: lack });
            }
            if count > limits.values_max {
                let max = limits.values_max;
                return Err(CheckError::Limit { what, max });
            }
        }
        Ok(Signature { inputs, outputs })
    }
}

impl ValueDraft<'_> {
    fn spec(&self) -> Result<TensorSpec, CheckError> {
        if self.name.is_empty() {
            return Err(self.refuse("has no name".to_owned()));
        }
        let datatype = datatype(self.datatype).ok_or_else(|| {
            self.refuse(format!("has an unsupported element type {}", self.datatype))
        })?;
        let shape = self
            .shape
            .clone()
            .ok_or_else(|| self.refuse("declares no shape".to_owned()))?;
        Ok(TensorSpec {
            name: self.name.to_owned(),
            datatype,
            shape,
        })
    }

    fn refuse(&self, problem: String) -> CheckError {
        CheckError::Value {
            value: self.name.to_owned(),
            problem,
        }
    }
}

/// Two spellings of one domain.
fn plain_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn shown_domain(domain: &str) -> String {
    if domain.is_empty() { "ai.onnx" } else { domain }.to_owned()
}

fn refuse_operator(domain: &str, operator: &str, node: &str, reason: String) -> CheckError {
    CheckError::Operator {
        operator: operator.to_owned(),
        domain: shown_domain(domain),
        node: node.to_owned(),
        reason,
    }
}

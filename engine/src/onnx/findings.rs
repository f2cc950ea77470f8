//! What the walk found, and the rules that need more than one field.

use std::collections::{BTreeMap, HashSet};

use super::operators::{self, IR_VERSIONS, ML_VERSIONS, ONNX_VERSIONS};
use super::schema::{Message, field};
use super::stored::TensorDraft;
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
    /// The outermost type around the tensor, by its name.
    container: Option<&'static str>,
    shape: Option<Vec<i64>>,
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
            Message::Sequence => self.value.wrap("sequence"),
            Message::Map => self.value.wrap("map"),
            Message::Optional => self.value.wrap("optional value"),
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

    /// True when a node makes maps of probabilities, which [`super::zip_map`] cuts off.
    pub(super) fn has_zip_map(&self) -> bool {
        self.operators.contains_key(&ZIP_MAP)
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
            "" => Some(ONNX_VERSIONS),
            "ai.onnx.ml" => Some(ML_VERSIONS),
            // Exporters import what they might have used; a node that does use it is refused.
            _ => None,
        };
        if let Some(allowed) = allowed.filter(|allowed| !allowed.contains(&version)) {
            return refuse(format!("{} to {} are", allowed.start(), allowed.end()));
        }
        // skl2onnx imports the standard's domain under both of its spellings.
        if *self.opsets.entry(domain).or_insert(version) != version {
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
        if let Some(&(_, node)) = self.operators.get(&ZIP_MAP) {
            let (domain, operator) = ZIP_MAP;
            let reason = operators::refusal(domain, operator).to_owned();
            return Err(refuse_operator(domain, operator, node, reason));
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
        if outputs.is_empty() {
            return Err(CheckError::Missing { what: "output" });
        }
        for (count, what) in [(inputs.len(), "inputs"), (outputs.len(), "outputs")] {
            if count > limits.values_max {
                let max = limits.values_max;
                return Err(CheckError::Limit { what, max });
            }
        }
        Ok(Signature { inputs, outputs })
    }
}

impl ValueDraft<'_> {
    fn wrap(&mut self, container: &'static str) {
        self.container.get_or_insert(container);
    }

    fn spec(&self) -> Result<TensorSpec, CheckError> {
        if self.name.is_empty() {
            return Err(self.refuse("has no name".to_owned()));
        }
        if let Some(container) = self.container {
            return Err(self.refuse(format!("is a {container}, which has no tensor form")));
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

/// The operator that scikit-learn's exports end in, with its domain.
const ZIP_MAP: (&str, &str) = ("ai.onnx.ml", "ZipMap");

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

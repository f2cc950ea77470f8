//! The plain operators around the ensemble, folded into one plan for the input and one for each
//! output.

use std::borrow::Cow;
use std::ops::Range;

use tract_onnx::pb::{NodeProto, tensor_proto::DataType as OnnxType};

use super::ensemble::Ensemble;
use super::graph::{Graph, attribute, is, label};
use crate::signature::{Signature, TensorSpec};
use crate::tensor::{DataType, TensorData};

/// The one input, on its way to the trees.
#[derive(Debug)]
pub(super) struct InputPlan {
    /// Columns, where the file fixes them.
    pub(super) columns: Option<usize>,
}

impl InputPlan {
    pub(super) fn read(
        graph: &Graph<'_>,
        ensemble: &NodeProto,
        signature: &Signature,
    ) -> Result<Self, String> {
        let [spec] = signature.inputs.as_slice() else {
            let count = signature.inputs.len();
            return Err(format!("it has {count} inputs, trees take one"));
        };
        let &[_, columns] = spec.shape.as_slice() else {
            return Err(format!("input `{}` has no rows and columns", spec.name));
        };
        let mut value = ensemble.input.first().ok_or("the ensemble has no input")?;
        let mut is_cast = false;
        while *value != spec.name {
            let (node, _) = graph
                .producer(value)
                .ok_or_else(|| format!("the trees read `{value}`, which is no input"))?;
            if is_float_cast(node) {
                is_cast = true;
            } else if !is(node, "", "Identity") {
                return Err(left_to_others(node, "before"));
            }
            value = node.input.first().ok_or("a node has no input")?;
        }
        match spec.datatype {
            DataType::Fp32 => {}
            DataType::Fp64 | DataType::Int64 | DataType::Int32 if is_cast => {}
            other => return Err(format!("an input of {other} is left to other engines")),
        }
        Ok(Self {
            columns: usize::try_from(columns).ok(),
        })
    }

    /// The input's values as the trees read them.
    pub(super) fn cast<'a>(&self, data: &'a TensorData) -> Result<Cow<'a, [f32]>, String> {
        // Casts round as the operator does: to nearest, ties to even.
        Ok(match data {
            TensorData::Fp32(values) => Cow::Borrowed(values),
            TensorData::Fp64(values) => values.iter().map(|&v| v as f32).collect(),
            TensorData::Int64(values) => values.iter().map(|&v| v as f32).collect(),
            TensorData::Int32(values) => values.iter().map(|&v| v as f32).collect(),
            other => return Err(format!("unexpected input of {}", other.datatype())),
        })
    }
}

/// One output: columns of the scores, how often the sigmoid runs over them, and the shape.
#[derive(Debug)]
pub(super) struct OutputPlan {
    /// Columns of the scores that the ensemble keeps.
    pub(super) columns: Range<usize>,
    pub(super) sigmoids: usize,
    pub(super) form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `[rows, columns]`
    Matrix,
    /// `[rows]`, of one column
    Vector,
}

impl OutputPlan {
    pub(super) fn read(
        graph: &Graph<'_>,
        source: &NodeProto,
        ensemble: &Ensemble,
        spec: &TensorSpec,
    ) -> Result<Self, String> {
        let nodes = chain(graph, source, &spec.name)?;
        let mut plan = Self {
            columns: 0..ensemble.declared_width,
            sigmoids: 0,
            form: Form::Matrix,
        };
        for node in nodes {
            plan.fold(graph, node)?;
        }
        let first = ensemble.first_column;
        if plan.columns.start < first || plan.columns.is_empty() {
            return Err(format!(
                "output `{}` is a column on which runtimes disagree",
                spec.name
            ));
        }
        plan.columns = plan.columns.start - first..plan.columns.end - first;
        let rank = match plan.form {
            Form::Matrix => 2,
            Form::Vector => 1,
        };
        if spec.datatype != DataType::Fp32 || spec.shape.len() != rank {
            return Err(format!("output `{}` is declared otherwise", spec.name));
        }
        Ok(plan)
    }

    fn fold(&mut self, graph: &Graph<'_>, node: &NodeProto) -> Result<(), String> {
        let refuse = || left_to_others(node, "after");
        let operator = match node.domain.as_str() {
            "" | "ai.onnx" => node.op_type.as_str(),
            _ => return Err(refuse()),
        };
        let constant = |index: usize| {
            let name = node.input.get(index)?;
            graph.constant_ints(name)
        };
        let axes = || constant(1).or_else(|| Some(attribute(node, "axes")?.ints.clone()));
        match operator {
            "Identity" => {}
            "Cast" if is_float_cast(node) => {}
            "Sigmoid" => self.sigmoids += 1,
            "Slice" if self.form == Form::Matrix => {
                self.columns = slice(&self.columns, constant).ok_or_else(refuse)?;
            }
            "Reshape" => {
                let is_plain = attribute(node, "allowzero").is_none_or(|zero| zero.i == 0);
                let shape = constant(1).filter(|_| is_plain).ok_or_else(refuse)?;
                let width = self.columns.len();
                self.form = match *shape.as_slice() {
                    [-1] if width == 1 => Form::Vector,
                    [-1 | 0, columns] if usize::try_from(columns) == Ok(width) => Form::Matrix,
                    _ => return Err(refuse()),
                };
            }
            "Squeeze" if self.form == Form::Matrix && self.columns.len() == 1 => {
                match axes().as_deref() {
                    Some([1 | -1]) => self.form = Form::Vector,
                    _ => return Err(refuse()),
                }
            }
            "Unsqueeze" if self.form == Form::Vector => match axes().as_deref() {
                Some([1 | -1]) => self.form = Form::Matrix,
                _ => return Err(refuse()),
            },
            _ => return Err(refuse()),
        }
        Ok(())
    }
}

/// The nodes from the scores of `source` to the value `output`, in the order in which they run.
fn chain<'a>(
    graph: &Graph<'a>,
    source: &NodeProto,
    output: &str,
) -> Result<Vec<&'a NodeProto>, String> {
    let is_classifier = source.op_type == "TreeEnsembleClassifier";
    let mut nodes = Vec::new();
    let mut value = output;
    loop {
        let (node, index) = graph
            .producer(value)
            .ok_or_else(|| format!("output `{output}` does not come from the trees"))?;
        if std::ptr::eq(node, source) {
            if is_classifier && index == 0 {
                return Err(format!(
                    "the labels of output `{output}` are left to other engines"
                ));
            }
            nodes.reverse();
            return Ok(nodes);
        }
        // A graph with a cycle would never get to the source.
        if nodes.len() > 64 {
            return Err(format!("output `{output}` is far from the trees"));
        }
        nodes.push(node);
        value = node
            .input
            .first()
            .ok_or_else(|| format!("output `{output}` does not come from the trees"))?;
    }
}

/// Columns after a Slice along axis 1 in steps of 1.
fn slice(
    columns: &Range<usize>,
    constant: impl Fn(usize) -> Option<Vec<i64>>,
) -> Option<Range<usize>> {
    let one = |index: usize| match constant(index)?.as_slice() {
        &[value] => Some(value),
        _ => None,
    };
    let (start, end, axis) = (one(1)?, one(2)?, one(3)?);
    let step = constant(4).map_or(Some(1), |step| step.first().copied())?;
    if !matches!(axis, 1 | -1) || step != 1 {
        return None;
    }
    let width = i64::try_from(columns.len()).ok()?;
    let place = |at: i64| {
        let from_start = if at < 0 { at.saturating_add(width) } else { at };
        usize::try_from(from_start.clamp(0, width)).ok()
    };
    let (start, end) = (place(start)?, place(end)?);
    (start < end).then(|| columns.start + start..columns.start + end)
}

fn is_float_cast(node: &NodeProto) -> bool {
    is(node, "", "Cast")
        && attribute(node, "to").is_some_and(|to| to.i == i64::from(OnnxType::Float as i32))
}

fn left_to_others(node: &NodeProto, place: &str) -> String {
    format!(
        "operator `{}` {place} the trees is left to other engines (node `{}`)",
        node.op_type,
        label(node)
    )
}

//! A graph of ensembles and plain operators as a list of steps over whole columns.
//!
//! Reshapes cost nothing: the value keeps its elements and gets another shape. Only what the
//! outputs need is run.

use std::collections::HashMap;

use tract_onnx::pb::NodeProto;

use super::graph::{Graph, attribute, int, ints, is, label};
use super::operator::{Buffers, Operator};
use crate::signature::{Signature, TensorSpec};
use crate::tensor::{DataType, Tensor, TensorData};

/// The steps from the inputs to the outputs.
#[derive(Debug)]
pub(super) struct Program {
    inputs: usize,
    steps: Vec<Step>,
    /// Values that steps compute; the inputs stand before them.
    values: usize,
    /// Each with whether no later one is the same value.
    outputs: Vec<(Value, bool)>,
}

#[derive(Debug)]
struct Step {
    operator: Operator,
    inputs: Vec<usize>,
    /// Where its outputs start among the computed values.
    output: usize,
}

/// What a step reads.
pub(super) struct Arguments<'a> {
    places: &'a [usize],
    inputs: &'a [Tensor],
    known: &'a [TensorData],
}

impl<'a> Arguments<'a> {
    pub(super) fn get(&self, index: usize) -> &'a TensorData {
        let place = self.places[index];
        match place.checked_sub(self.inputs.len()) {
            None => self.inputs[place].data(),
            Some(place) => &self.known[place],
        }
    }
}

/// The length of an axis that the file leaves open.
pub(super) const OPEN: usize = usize::MAX;

/// A value while the program is made: where it stands, and what it is.
#[derive(Clone, Debug)]
pub(super) struct Value {
    place: usize,
    pub(super) datatype: DataType,
    /// The axes after that of the rows.
    pub(super) axes: Vec<usize>,
}

impl Value {
    /// Elements of a row.
    pub(super) fn width(&self) -> Option<usize> {
        self.axes.iter().try_fold(1_usize, |width, &axis| {
            (axis != OPEN).then(|| width.checked_mul(axis))?
        })
    }

    /// Columns, where it has rows and columns.
    pub(super) fn columns(&self) -> Option<usize> {
        match *self.axes.as_slice() {
            [columns] if columns != OPEN => Some(columns),
            _ => None,
        }
    }
}

impl Program {
    /// # Errors
    /// In a sentence, when an operator is left to other engines.
    pub(super) fn new(graph: &Graph<'_>, signature: &Signature) -> Result<Self, String> {
        let names = || signature.outputs.iter().map(|spec| spec.name.as_str());
        let nodes = graph.needed(names());
        if !nodes
            .iter()
            .any(|node| node.op_type.starts_with("TreeEnsemble"))
        {
            return Err("it has no ensemble of trees".to_owned());
        }
        let mut maker = Maker {
            graph,
            values: HashMap::new(),
            refused: HashMap::new(),
            steps: Vec::new(),
            inputs: signature.inputs.len(),
            computed: 0,
        };
        for (place, spec) in signature.inputs.iter().enumerate() {
            maker.values.insert(&spec.name, input(place, spec)?);
        }
        for node in nodes {
            maker.add(node)?;
        }
        let outputs = signature.outputs.iter().map(|spec| maker.output(spec));
        let outputs: Vec<_> = outputs.collect::<Result<_, _>>()?;
        let is_last = |at: usize, value: &Value| {
            let mut later = outputs[at + 1..].iter();
            later.all(|other| other.place != value.place)
        };
        Ok(Self {
            outputs: outputs
                .iter()
                .enumerate()
                .map(|(at, value)| (value.clone(), is_last(at, value)))
                .collect(),
            inputs: maker.inputs,
            values: maker.computed,
            steps: maker.steps,
        })
    }

    /// # Errors
    /// In a sentence, when the inputs differ in their rows or are too narrow.
    pub(super) fn run(
        &self,
        inputs: &[Tensor],
        buffers: &mut Buffers,
    ) -> Result<Vec<Tensor>, String> {
        if inputs.len() != self.inputs {
            let count = inputs.len();
            return Err(format!("expected {} inputs, found {count}", self.inputs));
        }
        let mut counts = inputs.iter().map(|input| input.shape().first().copied());
        let rows = counts.next().flatten().unwrap_or(0);
        if counts.any(|count| count != Some(rows)) {
            return Err("the inputs differ in their number of rows".to_owned());
        }
        let mut values = std::mem::take(&mut buffers.values);
        values.resize_with(self.values, || TensorData::Fp32(Vec::new()));
        for step in &self.steps {
            // A step reads what stands before its outputs.
            let (known, outputs) = values.split_at_mut(step.output);
            let arguments = Arguments {
                places: &step.inputs,
                inputs,
                known,
            };
            step.operator.run(&arguments, rows, outputs, buffers)?;
        }
        let outputs = self.outputs.iter().map(|(output, is_last)| {
            let data = match output.place.checked_sub(self.inputs) {
                None => inputs[output.place].data().clone(),
                Some(place) if *is_last => {
                    std::mem::replace(&mut values[place], TensorData::Fp32(Vec::new()))
                }
                Some(place) => values[place].clone(),
            };
            let open = || data.len() / rows.max(1);
            let axes = output
                .axes
                .iter()
                .map(|&axis| if axis == OPEN { open() } else { axis });
            let shape = std::iter::once(rows).chain(axes).collect();
            Tensor::new(shape, data).map_err(|error| error.to_string())
        });
        let outputs = outputs.collect();
        buffers.values = values;
        outputs
    }
}

fn input(place: usize, spec: &TensorSpec) -> Result<Value, String> {
    let Some((_, axes)) = spec.shape.split_first() else {
        return Err(format!("input `{}` has no rows", spec.name));
    };
    Ok(Value {
        place,
        datatype: spec.datatype,
        axes: axes
            .iter()
            .map(|&axis| usize::try_from(axis).unwrap_or(OPEN))
            .collect(),
    })
}

struct Maker<'a> {
    graph: &'a Graph<'a>,
    values: HashMap<&'a str, Value>,
    /// Labels that are not served, with the reason.
    refused: HashMap<&'a str, String>,
    steps: Vec<Step>,
    inputs: usize,
    computed: usize,
}

impl<'a> Maker<'a> {
    fn value(&self, node: &NodeProto, index: usize) -> Result<&Value, String> {
        let name = node.input.get(index).ok_or_else(|| left_to_others(node))?;
        let known = self.values.get(name.as_str());
        known.ok_or_else(|| format!("`{name}` is computed by no operator that is known here"))
    }

    fn add(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let inputs = node
            .input
            .iter()
            .filter(|name| self.values.contains_key(name.as_str()));
        let mut inputs: Vec<Value> = inputs
            .map(|name| self.values[name.as_str()].clone())
            .collect();
        if let Some(value) = self.reshaped(node)? {
            self.name(node, 0, value);
            return Ok(());
        }
        if node.op_type.starts_with("TreeEnsemble") {
            let value = self.value(node, 0)?;
            // Integers are compared with thresholds of FP32, and are FP32 for that.
            if matches!(value.datatype, DataType::Int64 | DataType::Int32) {
                let value = value.clone();
                let made = (DataType::Fp32, value.axes.clone());
                inputs = vec![self.step(Operator::Cast, &[value], made)];
            }
        }
        let (operator, outputs) = Operator::read(node, &inputs, self.graph)?;
        if let (Operator::Trees(trees), Some(label)) = (&operator, node.output.first())
            && outputs.len() > 1
            && let Some(reason) = trees.label_refusal()
        {
            self.refused.insert(label, reason);
        }
        let mut outputs = outputs.into_iter();
        if let Some(first) = outputs.next() {
            let value = self.step(operator, &inputs, first);
            self.name(node, 0, value.clone());
            for (index, (datatype, axes)) in (1..).zip(outputs) {
                let place = value.place + index;
                self.computed += 1;
                self.name(
                    node,
                    index,
                    Value {
                        place,
                        datatype,
                        axes,
                    },
                );
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        operator: Operator,
        inputs: &[Value],
        (datatype, axes): (DataType, Vec<usize>),
    ) -> Value {
        self.steps.push(Step {
            operator,
            inputs: inputs.iter().map(|value| value.place).collect(),
            output: self.computed,
        });
        self.computed += 1;
        Value {
            place: self.inputs + self.computed - 1,
            datatype,
            axes,
        }
    }

    fn name(&mut self, node: &'a NodeProto, index: usize, value: Value) {
        let name = node.output.get(index).map_or("", String::as_str);
        if !name.is_empty() && !self.refused.contains_key(name) {
            self.values.insert(name, value);
        }
    }

    /// The value of a node that leaves the elements as they are; none of another node.
    fn reshaped(&self, node: &NodeProto) -> Result<Option<Value>, String> {
        let constant = |index: usize| {
            let name = node.input.get(index)?;
            self.graph.constant_ints(name)
        };
        let axes = || constant(1).or_else(|| Some(attribute(node, "axes")?.ints.clone()));
        let axes = match (node.domain.as_str(), node.op_type.as_str()) {
            // A ZipMap is served as the table of scores that it would make maps of.
            ("" | "ai.onnx", "Identity") | ("ai.onnx.ml", "ZipMap") => {
                self.value(node, 0)?.axes.clone()
            }
            ("" | "ai.onnx", "Reshape") if int(node, "allowzero", 0) == 0 => {
                let shape = constant(1).ok_or_else(|| left_to_others(node))?;
                let value = self.value(node, 0)?;
                reshape(value, &shape).ok_or_else(|| left_to_others(node))?
            }
            ("" | "ai.onnx", "Flatten") if int(node, "axis", 1) == 1 => {
                let width = self.value(node, 0)?.width();
                vec![width.ok_or_else(|| left_to_others(node))?]
            }
            ("" | "ai.onnx", "Squeeze") => {
                let value = self.value(node, 0)?;
                let axes = axes().and_then(|axes| squeeze(value, &axes));
                axes.ok_or_else(|| left_to_others(node))?
            }
            ("" | "ai.onnx", "Unsqueeze") => {
                let value = self.value(node, 0)?;
                let axes = axes().and_then(|axes| unsqueeze(value, &axes));
                axes.ok_or_else(|| left_to_others(node))?
            }
            _ if is(node, "", "Cast") => {
                let value = self.value(node, 0)?;
                if Operator::cast_type(node) != Some(value.datatype) {
                    return Ok(None);
                }
                value.axes.clone()
            }
            _ => return Ok(None),
        };
        let value = self.value(node, 0)?.clone();
        Ok(Some(Value { axes, ..value }))
    }

    fn output(&self, spec: &TensorSpec) -> Result<Value, String> {
        let name = &spec.name;
        if let Some(reason) = self.refused.get(name.as_str()) {
            return Err(format!(
                "the labels of output `{name}` are left to other engines: {reason}"
            ));
        }
        let value = self.values.get(name.as_str());
        let value = value.ok_or_else(|| format!("output `{name}` does not come from the trees"))?;
        let mut axes = value.axes.iter().zip(spec.shape.iter().skip(1));
        let fits = spec.shape.len() == 1 + value.axes.len()
            && axes.all(|(&axis, &declared)| {
                usize::try_from(declared).is_ok_and(|declared| declared == axis) || declared < 0
            });
        if spec.datatype != value.datatype || !fits {
            return Err(format!("output `{name}` is declared otherwise"));
        }
        Ok(value.clone())
    }
}

/// The axes after a Reshape that keeps the rows.
fn reshape(value: &Value, shape: &[i64]) -> Option<Vec<usize>> {
    let width = value.width()?;
    let (&rows, axes) = shape.split_first()?;
    let known = |&axis: &i64| usize::try_from(axis).ok().filter(|&axis| axis > 0);
    match rows {
        // The rest is as many elements as a row has, so the rows are what is left.
        -1 => {
            let axes: Vec<_> = axes.iter().map(known).collect::<Option<_>>()?;
            (axes.iter().product::<usize>() == width).then_some(axes)
        }
        0 => match axes {
            [-1] => Some(vec![width]),
            axes => {
                let axes: Vec<_> = axes.iter().map(known).collect::<Option<_>>()?;
                (axes.iter().product::<usize>() == width).then_some(axes)
            }
        },
        _ => None,
    }
}

fn squeeze(value: &Value, axes: &[i64]) -> Option<Vec<usize>> {
    let rank = i64::try_from(value.axes.len()).ok()? + 1;
    let axes: Vec<_> = axes
        .iter()
        .map(|&axis| if axis < 0 { axis + rank } else { axis })
        .collect();
    let is_one = |&axis: &i64| {
        let axis = usize::try_from(axis - 1).ok();
        axis.and_then(|axis| value.axes.get(axis)) == Some(&1)
    };
    if axes.is_empty() || !axes.iter().all(is_one) {
        return None;
    }
    let kept = (1..)
        .zip(&value.axes)
        .filter(|(axis, _)| !axes.contains(axis));
    Some(kept.map(|(_, &length)| length).collect())
}

fn unsqueeze(value: &Value, axes: &[i64]) -> Option<Vec<usize>> {
    let &[axis] = axes else { return None };
    let rank = i64::try_from(value.axes.len()).ok()? + 2;
    let axis = if axis < 0 { axis + rank } else { axis };
    let at = usize::try_from(axis - 1)
        .ok()
        .filter(|&at| at <= value.axes.len())?;
    let mut axes = value.axes.clone();
    axes.insert(at, 1);
    Some(axes)
}

pub(super) fn left_to_others(node: &NodeProto) -> String {
    format!(
        "operator `{}` is left to other engines here (node `{}`)",
        node.op_type,
        label(node)
    )
}

/// The columns of a table that a Slice, Gather or ArrayFeatureExtractor picks, and the axes then.
pub(super) fn picked(
    node: &NodeProto,
    value: &Value,
    graph: &Graph<'_>,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let columns = value.columns()?;
    let width = i64::try_from(columns).ok()?;
    let constant = |index: usize| graph.constant_ints(node.input.get(index)?);
    if node.op_type == "Slice" {
        let one = |index: usize| match constant(index)?.as_slice() {
            &[value] => Some(value),
            _ => None,
        };
        let has_steps = node.input.get(4).is_some_and(|name| !name.is_empty());
        if !matches!(one(3)?, 1 | -1) || (has_steps && one(4)? != 1) {
            return None;
        }
        let place = |at: i64| {
            let from_start = if at < 0 { at.saturating_add(width) } else { at };
            usize::try_from(from_start.clamp(0, width)).ok()
        };
        let picked: Vec<_> = (place(one(1)?)?..place(one(2)?)?).collect();
        let count = picked.len();
        return (count > 0).then_some((picked, vec![count]));
    }
    if node.op_type == "Gather" && !matches!(int(node, "axis", 0), 1 | -1) {
        return None;
    }
    let place = |&at: &i64| {
        let at = if at < 0 && node.op_type == "Gather" {
            at + width
        } else {
            at
        };
        usize::try_from(at).ok().filter(|&at| at < columns)
    };
    let picked: Vec<_> = constant(1)?.iter().map(place).collect::<Option<_>>()?;
    let rank = graph.constant(node.input.get(1)?)?.dims.len();
    let axes = match (node.op_type.as_str(), rank) {
        ("Gather", 0) => vec![],
        ("Gather", 1) | ("ArrayFeatureExtractor", 1 | 2) => vec![picked.len()],
        _ => return None,
    };
    (!picked.is_empty()).then_some((picked, axes))
}

/// The axis along which a Concat or a list of axes works is that of the columns.
pub(super) fn is_along_columns(node: &NodeProto) -> bool {
    attribute(node, "axis").is_some_and(|axis| matches!(axis.i, 1 | -1))
        && ints(node, "axes").is_empty()
}

//! What a step does: an ensemble, or one of the plain operators that exporters put around it.

use tract_onnx::pb::{NodeProto, tensor_proto::DataType as OnnxType};

use super::ensemble::{Ensemble, EnsembleBuffers, Kind, Labels};
use super::graph::{Graph, attribute, is, text};
use super::number::Number;
use super::plain::{Plain, cast};
use super::program::{Arguments, OPEN, Value, left_to_others};
use super::{indexed, keyed};
use crate::tensor::{DataType, TensorData};

#[derive(Debug)]
pub(super) enum Operator {
    Trees(Box<Trees>),
    /// To the type of the output's buffer, which the step before it cannot know: FP32.
    Cast,
    CastDouble,
    Plain(Plain),
}

/// An ensemble in the width of its input.
#[derive(Debug)]
pub(super) enum Trees {
    Single(Ensemble<f32>),
    /// FP64 in, and FP64 out where `is_wide`.
    Double {
        ensemble: Ensemble<f64>,
        is_wide: bool,
    },
}

/// The type and the axes after that of the rows of each output.
pub(super) type Made = Vec<(DataType, Vec<usize>)>;

/// Kept between runs, so that a run allocates its outputs only.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) values: Vec<TensorData>,
    single: EnsembleBuffers<f32>,
    double: EnsembleBuffers<f64>,
    scores: Vec<f64>,
    classes: Vec<usize>,
}

impl Operator {
    /// Reads a node whose inputs, but for constants, are `inputs`.
    pub(super) fn read(
        node: &NodeProto,
        inputs: &[Value],
        graph: &Graph<'_>,
    ) -> Result<(Self, Made), String> {
        if node.op_type.starts_with("TreeEnsemble") && node.domain == "ai.onnx.ml" {
            return Trees::read(node, inputs);
        }
        if is(node, "", "Cast") {
            let [value] = inputs else {
                return Err(left_to_others(node));
            };
            let datatype = Self::cast_type(node);
            let from = [
                DataType::Fp32,
                DataType::Fp64,
                DataType::Int64,
                DataType::Int32,
            ];
            let operator = match datatype.filter(|_| from.contains(&value.datatype)) {
                Some(DataType::Fp32) => Self::Cast,
                Some(DataType::Fp64) => Self::CastDouble,
                _ => return Err(left_to_others(node)),
            };
            let datatype = datatype.unwrap_or(value.datatype);
            return Ok((operator, vec![(datatype, value.axes.clone())]));
        }
        let (plain, datatype, axes) =
            Plain::read(node, inputs, graph).ok_or_else(|| left_to_others(node))?;
        Ok((Self::Plain(plain), vec![(datatype, axes)]))
    }

    /// What a Cast casts to.
    pub(super) fn cast_type(node: &NodeProto) -> Option<DataType> {
        let to = attribute(node, "to")?.i;
        match OnnxType::try_from(i32::try_from(to).ok()?).ok()? {
            OnnxType::Float => Some(DataType::Fp32),
            OnnxType::Double => Some(DataType::Fp64),
            OnnxType::Int64 => Some(DataType::Int64),
            OnnxType::Int32 => Some(DataType::Int32),
            OnnxType::String => Some(DataType::Bytes),
            OnnxType::Bool => Some(DataType::Bool),
            _ => None,
        }
    }

    /// Writes the outputs, which are the first of `outputs`.
    pub(super) fn run(
        &self,
        arguments: &Arguments<'_>,
        rows: usize,
        outputs: &mut [TensorData],
        buffers: &mut Buffers,
    ) -> Result<(), String> {
        match self {
            Self::Trees(trees) => trees.run(arguments.get(0), rows, outputs, buffers),
            Self::Cast => cast(arguments.get(0), singles(&mut outputs[0])),
            Self::CastDouble => cast(arguments.get(0), doubles(&mut outputs[0])),
            Self::Plain(plain) => plain.run(arguments, rows, &mut outputs[0]),
        }
    }
}

impl Trees {
    fn read(node: &NodeProto, inputs: &[Value]) -> Result<(Operator, Made), String> {
        let [value] = inputs else {
            return Err(left_to_others(node));
        };
        let [columns] = *value.axes.as_slice() else {
            return Err("the trees' input has no rows and columns".to_owned());
        };
        let is_indexed = node.op_type == "TreeEnsemble";
        let trees = match value.datatype {
            DataType::Fp32 => {
                let read = if is_indexed {
                    indexed::read
                } else {
                    keyed::read
                };
                Self::Single(Ensemble::new(read(node)?)?)
            }
            DataType::Fp64 => {
                let read = if is_indexed {
                    indexed::read
                } else {
                    keyed::read
                };
                Self::Double {
                    ensemble: Ensemble::new(read(node)?)?,
                    is_wide: is_indexed,
                }
            }
            other => return Err(format!("trees on {other} are left to other engines")),
        };
        let columns_min = trees.columns_min();
        if columns != OPEN && columns < columns_min {
            let last = columns_min - 1;
            return Err(format!(
                "the trees read column {last}, the input has {columns}"
            ));
        }
        let (targets, kind) = match &trees {
            Self::Single(ensemble) => (ensemble.targets, &ensemble.kind),
            Self::Double { ensemble, .. } => (ensemble.targets, &ensemble.kind),
        };
        let scores = match trees {
            Self::Double { is_wide: true, .. } => DataType::Fp64,
            _ => DataType::Fp32,
        };
        let mut made = vec![(scores, vec![targets])];
        if let Kind::Classifier { labels, .. } = kind {
            let label = match labels {
                Labels::Numbers(_) => DataType::Int64,
                Labels::Names(_) => DataType::Bytes,
            };
            made.insert(0, (label, vec![]));
        }
        Ok((Operator::Trees(Box::new(trees)), made))
    }

    fn columns_min(&self) -> usize {
        match self {
            Self::Single(ensemble) => ensemble.columns_min(),
            Self::Double { ensemble, .. } => ensemble.columns_min(),
        }
    }

    /// Why the labels of a classifier are not served.
    pub(super) fn label_refusal(&self) -> Option<String> {
        match self {
            Self::Single(ensemble) => ensemble.label_refusal(),
            Self::Double { ensemble, .. } => ensemble.label_refusal(),
        }
    }

    fn run(
        &self,
        input: &TensorData,
        rows: usize,
        outputs: &mut [TensorData],
        buffers: &mut Buffers,
    ) -> Result<(), String> {
        let columns = match rows {
            0 => self.columns_min(),
            rows => input.len() / rows,
        };
        if columns < self.columns_min() {
            return Err(format!(
                "the trees need {} columns, found {columns}",
                self.columns_min()
            ));
        }
        let kind = match self {
            Self::Single(ensemble) => &ensemble.kind,
            Self::Double { ensemble, .. } => &ensemble.kind,
        };
        let (labels, scores) = match (kind, outputs) {
            (Kind::Classifier { labels, .. }, [label, scores, ..]) => {
                (Some((labels, label)), scores)
            }
            (_, [scores, ..]) => (None, scores),
            (_, []) => return Err("a step has no outputs".to_owned()),
        };
        buffers.classes.clear();
        let classes = labels.is_some().then_some(&mut buffers.classes);
        match (self, input) {
            (Self::Single(ensemble), TensorData::Fp32(input)) => {
                let scores = singles(scores);
                ensemble.run((input, columns), &mut buffers.single, scores, classes);
            }
            (Self::Double { ensemble, is_wide }, TensorData::Fp64(input)) => {
                let all = if *is_wide {
                    doubles(scores)
                } else {
                    &mut buffers.scores
                };
                ensemble.run((input, columns), &mut buffers.double, all, classes);
                if !is_wide {
                    let scores = singles(scores);
                    scores.clear();
                    scores.extend(buffers.scores.iter().map(|score| score.to_f32()));
                }
            }
            (_, other) => return Err(format!("unexpected input of {}", other.datatype())),
        }
        if let Some((labels, output)) = labels {
            let classes = buffers.classes.iter();
            match labels {
                Labels::Numbers(labels) => {
                    let output = integers(output);
                    output.clear();
                    output.extend(classes.map(|&class| labels[class]));
                }
                Labels::Names(labels) => {
                    let labels = classes.map(|&class| labels[class].clone());
                    *output = TensorData::Bytes(labels.collect());
                }
            }
        }
        Ok(())
    }
}

macro_rules! buffer {
    ($name:ident, $variant:ident, $type:ty) => {
        /// The buffer as this type, emptied where it was another.
        pub(super) fn $name(data: &mut TensorData) -> &mut Vec<$type> {
            if !matches!(data, TensorData::$variant(_)) {
                *data = TensorData::$variant(Vec::new());
            }
            match data {
                TensorData::$variant(values) => values,
                _ => unreachable!("the line above made it so"),
            }
        }
    };
}

buffer!(singles, Fp32, f32);
buffer!(doubles, Fp64, f64);
buffer!(integers, Int64, i64);

/// The text of an attribute as UTF-8.
pub(super) fn name_of<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    std::str::from_utf8(text(node, name)?).ok()
}

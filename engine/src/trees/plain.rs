//! The plain operators, on whole columns: their meaning is that of ONNX Runtime.

use std::collections::HashMap;

use tract_onnx::pb::NodeProto;

use super::graph::{Graph, attribute, floats, int, ints, texts};
use super::number::Number;
use super::operator::{integers, name_of, singles};
use super::program::{Arguments, Value, is_along_columns, picked};
use crate::tensor::{DataType, TensorData};

#[derive(Debug)]
pub(super) enum Plain {
    /// These columns of a table of `width`.
    Pick {
        columns: Vec<usize>,
        width: usize,
    },
    /// Tables of these widths side by side.
    Concat {
        widths: Vec<usize>,
    },
    Sigmoid,
    /// An operand for each column, or one for all.
    Arithmetic {
        kind: Arithmetic,
        operand: Vec<f32>,
    },
    /// `(x - offset) * scale`, by column or for all.
    Scale {
        offset: Vec<f32>,
        scale: Vec<f32>,
    },
    /// Another value for the one that is replaced.
    Impute {
        replaced: f32,
        imputed: Vec<f32>,
    },
    Normalize {
        norm: Norm,
        width: usize,
    },
    /// A column for each category.
    OneHot {
        categories: Categories,
        width: usize,
    },
    Encode {
        keys: Categories,
        values: Values,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    SubtractFrom,
    Multiply,
    Divide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    Max,
    L1,
    L2,
}

/// Categories by their places.
#[derive(Debug)]
pub(super) enum Categories {
    Numbers(HashMap<i64, usize>),
    Names(HashMap<Vec<u8>, usize>),
}

/// The values of a LabelEncoder, the default last.
#[derive(Debug)]
pub(super) enum Values {
    Singles(Vec<f32>),
    Numbers(Vec<i64>),
    Names(Vec<Vec<u8>>),
}

type Read = (Plain, DataType, Vec<usize>);

impl Plain {
    /// None where the node is another operator or has a form that is not known here.
    pub(super) fn read(node: &NodeProto, inputs: &[Value], graph: &Graph<'_>) -> Option<Read> {
        let first = inputs.first()?;
        let is_single = first.datatype == DataType::Fp32;
        let same = |plain| Some((plain, DataType::Fp32, first.axes.clone()));
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("" | "ai.onnx", "Slice" | "Gather") | ("ai.onnx.ml", "ArrayFeatureExtractor")
                if is_single && inputs.len() == 1 =>
            {
                let (columns, axes) = picked(node, first, graph)?;
                let width = first.columns()?;
                Some((Self::Pick { columns, width }, DataType::Fp32, axes))
            }
            ("" | "ai.onnx", "Concat") if is_along_columns(node) => concat(node, inputs),
            ("ai.onnx.ml", "FeatureVectorizer") => {
                let (plain, datatype, axes) = concat(node, inputs)?;
                let Self::Concat { widths } = &plain else {
                    return None;
                };
                let declared = ints(node, "inputdimensions").iter();
                let is_whole = declared
                    .map(|&d| usize::try_from(d).ok())
                    .eq(widths.iter().map(|&w| Some(w)));
                (is_whole && datatype == DataType::Fp32).then_some((plain, datatype, axes))
            }
            ("" | "ai.onnx", "Sigmoid") if is_single => same(Self::Sigmoid),
            ("" | "ai.onnx", "Add" | "Sub" | "Mul" | "Div") if is_single => {
                same(arithmetic(node, first, graph)?)
            }
            ("ai.onnx.ml", "Scaler") if is_single => {
                let width = first.columns()?;
                same(Self::Scale {
                    offset: by_column(floats(node, "offset"), width)?,
                    scale: by_column(floats(node, "scale"), width)?,
                })
            }
            ("ai.onnx.ml", "Imputer") if is_single => {
                let replaced = attribute(node, "replaced_value_float").map_or(0.0, |found| found.f);
                let imputed = by_column(floats(node, "imputed_value_floats"), first.columns()?)?;
                same(Self::Impute { replaced, imputed })
            }
            ("ai.onnx.ml", "Normalizer") if is_single => {
                let norm = match name_of(node, "norm").unwrap_or("MAX") {
                    "MAX" => Norm::Max,
                    "L1" => Norm::L1,
                    "L2" => Norm::L2,
                    _ => return None,
                };
                same(Self::Normalize {
                    norm,
                    width: first.columns()?,
                })
            }
            ("ai.onnx.ml", "OneHotEncoder") if int(node, "zeros", 1) == 1 => {
                let categories = Categories::read(node, "cats_int64s", "cats_strings")?;
                categories.take(first.datatype).then_some(())?;
                first.width()?;
                let width = categories.len();
                let axes = first.axes.iter().copied().chain([width]).collect();
                Some((Self::OneHot { categories, width }, DataType::Fp32, axes))
            }
            ("ai.onnx.ml", "LabelEncoder") => encode(node, first),
            _ => None,
        }
    }

    /// Writes the value; what is shorter than its rows ask for is the fault of this engine.
    pub(super) fn run(
        &self,
        arguments: &Arguments<'_>,
        rows: usize,
        output: &mut TensorData,
    ) -> Result<(), String> {
        let input = arguments.get(0);
        match self {
            Self::Concat { widths } => return side_by_side(arguments, widths, rows, output),
            Self::OneHot { categories, width } => {
                let output = singles(output);
                output.clear();
                output.resize(input.len() * width, 0.0);
                categories.find(input, |at, place| {
                    if let Some(place) = place {
                        output[at * width + place] = 1.0;
                    }
                });
                return Ok(());
            }
            Self::Encode { keys, values } => {
                values.write(keys, input, output);
                return Ok(());
            }
            _ => {}
        }
        let TensorData::Fp32(input) = input else {
            return Err(format!("unexpected input of {}", input.datatype()));
        };
        let output = singles(output);
        output.clear();
        match self {
            Self::Pick { columns, width } => {
                for row in input.chunks_exact(*width) {
                    output.extend(columns.iter().map(|&column| row[column]));
                }
            }
            Self::Sigmoid => output.extend(input.iter().map(|&x| 1.0 / (1.0 + (-x).exp()))),
            Self::Arithmetic { kind, operand } => {
                let operands = operand.iter().cycle();
                output.extend(input.iter().zip(operands).map(|(&x, &y)| kind.of(x, y)));
            }
            Self::Scale { offset, scale } => {
                let by = offset.iter().zip(scale).cycle();
                output.extend(
                    input
                        .iter()
                        .zip(by)
                        .map(|(x, (offset, scale))| (x - offset) * scale),
                );
            }
            Self::Impute { replaced, imputed } => {
                let is_replaced = |x: f32| x == *replaced || (x.is_nan() && replaced.is_nan());
                let imputed = imputed.iter().cycle();
                let value = |(&x, &imputed): (&f32, &f32)| if is_replaced(x) { imputed } else { x };
                output.extend(input.iter().zip(imputed).map(value));
            }
            Self::Normalize { norm, width } => {
                for row in input.chunks_exact(*width) {
                    norm.write(row, output);
                }
            }
            Self::Concat { .. } | Self::OneHot { .. } | Self::Encode { .. } => {}
        }
        Ok(())
    }
}

/// Numbers as another float; casts round as the operator does: to nearest, ties to even.
pub(super) fn cast<T: Number + FromNumbers>(
    input: &TensorData,
    output: &mut Vec<T>,
) -> Result<(), String> {
    output.clear();
    match input {
        TensorData::Fp32(values) => output.extend(values.iter().map(|&v| T::of(v))),
        TensorData::Fp64(values) => output.extend(values.iter().map(|&v| T::of_double(v))),
        TensorData::Int64(values) => output.extend(values.iter().map(|&v| T::of_integer(v))),
        TensorData::Int32(values) => {
            output.extend(values.iter().map(|&v| T::of_integer(v.into())));
        }
        other => return Err(format!("unexpected input of {}", other.datatype())),
    }
    Ok(())
}

pub(super) trait FromNumbers {
    fn of_double(x: f64) -> Self;
    fn of_integer(x: i64) -> Self;
}

macro_rules! from_numbers {
    ($type:ty) => {
        impl FromNumbers for $type {
            fn of_double(x: f64) -> Self {
                x as $type
            }

            fn of_integer(x: i64) -> Self {
                x as $type
            }
        }
    };
}

from_numbers!(f32);
from_numbers!(f64);

impl Arithmetic {
    fn of(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Add => x + y,
            Self::Subtract => x - y,
            Self::SubtractFrom => y - x,
            Self::Multiply => x * y,
            Self::Divide => x / y,
        }
    }
}

impl Norm {
    fn write(self, row: &[f32], output: &mut Vec<f32>) {
        let size: f32 = match self {
            Self::Max => row
                .iter()
                .fold(f32::MIN, |max, &x| if max < x { x } else { max }),
            Self::L1 => row.iter().map(|x| x.abs()).sum(),
            Self::L2 => row.iter().map(|x| x * x).sum(),
        };
        if size == 0.0 {
            output.extend_from_slice(row);
            return;
        }
        output.extend(row.iter().map(|&x| match self {
            Self::Max | Self::L1 => x / size,
            Self::L2 => (x * x / size).sqrt().copysign(x),
        }));
    }
}

/// One value for each column.
fn by_column(values: &[f32], width: usize) -> Option<Vec<f32>> {
    match values {
        &[value] => Some(vec![value; width]),
        values => (values.len() == width && width > 0).then(|| values.to_vec()),
    }
}

fn arithmetic(node: &NodeProto, value: &Value, graph: &Graph<'_>) -> Option<Plain> {
    let [left, right] = node.input.as_slice() else {
        return None;
    };
    let (constant, is_first) = match (graph.constant(left), graph.constant(right)) {
        (Some(constant), None) => (constant, true),
        (None, Some(constant)) => (constant, false),
        _ => return None,
    };
    let kind = match (node.op_type.as_str(), is_first) {
        ("Add", _) => Arithmetic::Add,
        ("Mul", _) => Arithmetic::Multiply,
        ("Sub", false) => Arithmetic::Subtract,
        ("Sub", true) => Arithmetic::SubtractFrom,
        ("Div", false) => Arithmetic::Divide,
        _ => return None,
    };
    let operand = f32::of_tensor(constant)?;
    // The constant's shape must not widen the value or reach its rows.
    let rank = value.axes.len() + 1;
    let is_scalar = operand.len() == 1 && constant.dims.len() <= rank;
    let is_row = match *constant.dims.as_slice() {
        [_] | [1, _] => value.columns() == Some(operand.len()),
        _ => false,
    };
    (is_scalar || is_row).then_some(Plain::Arithmetic { kind, operand })
}

fn concat(node: &NodeProto, inputs: &[Value]) -> Option<Read> {
    let datatype = inputs.first()?.datatype;
    let widths: Vec<_> = inputs.iter().map(Value::columns).collect::<Option<_>>()?;
    let is_known = matches!(datatype, DataType::Fp32 | DataType::Int64 | DataType::Bytes);
    if !is_known
        || inputs.len() != node.input.len()
        || inputs.iter().any(|v| v.datatype != datatype)
    {
        return None;
    }
    let width = widths.iter().sum();
    Some((Plain::Concat { widths }, datatype, vec![width]))
}

fn side_by_side(
    arguments: &Arguments<'_>,
    widths: &[usize],
    rows: usize,
    output: &mut TensorData,
) -> Result<(), String> {
    macro_rules! joined {
        ($variant:ident, $output:expr) => {{
            let output = $output;
            output.clear();
            for row in 0..rows {
                for (index, &width) in widths.iter().enumerate() {
                    if let TensorData::$variant(values) = arguments.get(index) {
                        output.extend_from_slice(&values[row * width..(row + 1) * width]);
                    }
                }
            }
        }};
    }
    match arguments.get(0) {
        TensorData::Fp32(_) => joined!(Fp32, singles(output)),
        TensorData::Int64(_) => joined!(Int64, integers(output)),
        TensorData::Bytes(_) => {
            let mut texts = Vec::new();
            joined!(Bytes, &mut texts);
            *output = TensorData::Bytes(texts);
        }
        other => return Err(format!("unexpected input of {}", other.datatype())),
    }
    Ok(())
}

impl Categories {
    fn read(node: &NodeProto, numbers: &str, names: &str) -> Option<Self> {
        let (numbers, names) = (ints(node, numbers), texts(node, names));
        let (categories, count) = match (numbers.is_empty(), names.is_empty()) {
            (false, true) => {
                let numbers_by_place = numbers.iter().copied().zip(0..).collect();
                (Self::Numbers(numbers_by_place), numbers.len())
            }
            (true, false) => (
                Self::Names(names.iter().cloned().zip(0..).collect()),
                names.len(),
            ),
            _ => return None,
        };
        // Of two equal categories, runtimes keep one or the other.
        (categories.len() == count).then_some(categories)
    }

    fn len(&self) -> usize {
        match self {
            Self::Numbers(places) => places.len(),
            Self::Names(places) => places.len(),
        }
    }

    fn take(&self, datatype: DataType) -> bool {
        match self {
            Self::Numbers(_) => datatype == DataType::Int64,
            Self::Names(_) => datatype == DataType::Bytes,
        }
    }

    /// Calls `found` with each element's place in `input` and its category's.
    fn find(&self, input: &TensorData, mut found: impl FnMut(usize, Option<usize>)) {
        match (self, input) {
            (Self::Numbers(places), TensorData::Int64(values)) => {
                for (at, value) in values.iter().enumerate() {
                    found(at, places.get(value).copied());
                }
            }
            (Self::Names(places), TensorData::Bytes(values)) => {
                for (at, value) in values.iter().enumerate() {
                    found(at, places.get(value).copied());
                }
            }
            _ => {}
        }
    }
}

fn encode(node: &NodeProto, input: &Value) -> Option<Read> {
    let known = |name: &str| {
        let name = name.strip_prefix("keys_").or(name.strip_prefix("values_"));
        matches!(name, Some("int64s" | "strings" | "floats"))
    };
    let mut attributes = node
        .attribute
        .iter()
        .map(|attribute| attribute.name.as_str());
    if !attributes.all(|name| {
        known(name) || matches!(name, "default_int64" | "default_float" | "default_string")
    }) {
        return None;
    }
    let keys = Categories::read(node, "keys_int64s", "keys_strings")?;
    if !keys.take(input.datatype) || !floats(node, "keys_floats").is_empty() {
        return None;
    }
    let count = keys.len();
    let (numbers, singles, names) = (
        ints(node, "values_int64s"),
        floats(node, "values_floats"),
        texts(node, "values_strings"),
    );
    let (values, datatype) = match [numbers.len(), singles.len(), names.len()] {
        [length, 0, 0] if length == count => {
            let default = int(node, "default_int64", -1);
            let numbers = numbers.iter().copied().chain([default]).collect();
            (Values::Numbers(numbers), DataType::Int64)
        }
        [0, length, 0] if length == count => {
            let default = attribute(node, "default_float").map_or(-0.0, |found| found.f);
            let singles = singles.iter().copied().chain([default]).collect();
            (Values::Singles(singles), DataType::Fp32)
        }
        [0, 0, length] if length == count => {
            let default = attribute(node, "default_string")
                .map_or(b"_Unused".to_vec(), |found| found.s.clone());
            let names = names.iter().cloned().chain([default]).collect();
            (Values::Names(names), DataType::Bytes)
        }
        _ => return None,
    };
    Some((Plain::Encode { keys, values }, datatype, input.axes.clone()))
}

impl Values {
    fn write(&self, keys: &Categories, input: &TensorData, output: &mut TensorData) {
        match self {
            Self::Singles(values) => {
                let output = singles(output);
                output.clear();
                keys.find(input, |_, place| {
                    output.push(values[place.unwrap_or(values.len() - 1)])
                });
            }
            Self::Numbers(values) => {
                let output = integers(output);
                output.clear();
                keys.find(input, |_, place| {
                    output.push(values[place.unwrap_or(values.len() - 1)])
                });
            }
            Self::Names(values) => {
                let mut texts = Vec::new();
                keys.find(input, |_, place| {
                    texts.push(values[place.unwrap_or(values.len() - 1)].clone())
                });
                *output = TensorData::Bytes(texts);
            }
        }
    }
}

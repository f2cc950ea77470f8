//! Times the engines on one generated file: trees grown on rows that look like real ones.
//!
//! `cargo run --release -p engine --example evaluate [trees] [leaves] [columns] [rounds]`; the
//! default is 200 trees of 31 leaves on 71 columns, 41 rounds. In a round each engine runs each
//! batch size in turn, so that what else the machine does falls on all of them. Printed is the
//! median time of a row, sessions and inputs made before, on one thread.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::proto::attribute_proto::AttributeType;
use engine::proto::tensor_proto::DataType;
use engine::proto::tensor_shape_proto::{Dimension, dimension};
use engine::proto::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use engine::{EngineKind, Model, OnnxFile, OnnxLimits, Session, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ROWS: usize = 4_096;
const BATCHES: [usize; 5] = [1, 8, 16, 64, 256];
/// Time of one engine at one batch size in one round.
const TURN: Duration = Duration::from_millis(3);
/// tract finds a leaf by walking all leaves; larger batches tell nothing more.
const TRACT_BATCH_MAX: usize = 8;

struct Timed {
    engine: EngineKind,
    session: Session,
    batch: usize,
    inputs: Vec<Tensor>,
    micros: Vec<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: usize| -> Result<usize, Box<dyn Error>> {
        Ok(arguments.next().map_or(Ok(default), |text| text.parse())?)
    };
    let (trees, leaves, columns, rounds) = (next(200)?, next(31)?, next(71)?, next(41)?);
    let random = &mut StdRng::seed_from_u64(7);
    let table = table(columns, random);
    let model = boosted(
        columns,
        (0..trees).map(|_| grow(&table, columns, leaves, random)),
    );
    let bytes = model.encode_to_vec();
    println!(
        "{trees} trees of {leaves} leaves on {columns} columns, {} bytes",
        bytes.len()
    );
    let file = OnnxFile::check(Arc::from(bytes), &OnnxLimits::default())?;
    let mut timed = Vec::new();
    for engine in EngineKind::ALL {
        match Model::load(&file, engine) {
            Ok(model) => {
                for batch in BATCHES {
                    if engine == EngineKind::Tract && batch > TRACT_BATCH_MAX {
                        continue;
                    }
                    let inputs = table.chunks_exact(batch * columns).map(|rows| {
                        Tensor::new(vec![batch, columns], TensorData::Fp32(rows.to_vec()))
                    });
                    timed.push(Timed {
                        engine,
                        session: model.session()?,
                        batch,
                        inputs: inputs.collect::<Result<_, _>>()?,
                        micros: Vec::new(),
                    });
                }
            }
            Err(error) => println!("{error}"),
        }
    }
    for round in 0..rounds {
        for timed in &mut timed {
            timed.turn(round)?;
        }
    }
    report(&mut timed, rounds);
    Ok(())
}

impl Timed {
    fn turn(&mut self, round: usize) -> Result<(), Box<dyn Error>> {
        let mut rows = 0;
        let started = Instant::now();
        for input in self.inputs.iter().cycle().skip(round % self.inputs.len()) {
            black_box(self.session.run(std::slice::from_ref(black_box(input)))?);
            rows += self.batch;
            if started.elapsed() >= TURN {
                break;
            }
        }
        self.micros
            .push(started.elapsed().as_secs_f64() * 1e6 / rows as f64);
        Ok(())
    }

    fn median(&mut self) -> f64 {
        self.micros.sort_by(f64::total_cmp);
        self.micros[self.micros.len() / 2]
    }
}

fn report(timed: &mut [Timed], rounds: usize) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']));
    println!("machine: {name}; median of {rounds} interleaved rounds, µs a row");
    println!(
        "{:>6} {:>12} {:>10} {:>16}",
        "batch", "engine", "µs a row", "of onnxruntime"
    );
    for batch in BATCHES {
        let mut of_batch: Vec<_> = timed.iter_mut().filter(|t| t.batch == batch).collect();
        let medians: Vec<_> = of_batch
            .iter_mut()
            .map(|t| (t.engine, t.median()))
            .collect();
        let runtime = medians.iter().find(|m| m.0 == EngineKind::OnnxRuntime);
        for (engine, micros) in &medians {
            let times = runtime.map_or(String::new(), |r| format!("{:.2} x as fast", r.1 / micros));
            println!(
                "{batch:>6} {:>12} {micros:>10.3} {times:>16}",
                engine.as_str()
            );
        }
    }
}

/// Counts, amounts with missing values, amounts that are mostly zero, and bell curves.
fn table(columns: usize, random: &mut StdRng) -> Vec<f32> {
    let mut table = Vec::with_capacity(ROWS * columns);
    for at in 0..ROWS * columns {
        let mut unit = || random.random_range(0.0_f32..1.0);
        table.push(match at % columns % 4 {
            0 => (unit() * 12.0).floor(),
            1 if unit() < 0.05 => f32::NAN,
            1 => unit() * unit() * 100.0,
            2 if unit() < 0.6 => 0.0,
            2 => unit(),
            _ => unit() + unit() + unit() - 1.5,
        });
    }
    table
}

struct Split {
    feature: usize,
    threshold: f32,
    missing_is_yes: bool,
    yes: usize,
}

/// A tree grown as boosters grow theirs: a leaf of many rows is split next, at one of its rows.
fn grow(table: &[f32], columns: usize, leaves: usize, random: &mut StdRng) -> Vec<Option<Split>> {
    let rows: Vec<_> = (0..ROWS)
        .filter(|_| random.random_range(0..4) == 0)
        .collect();
    let mut nodes = vec![None];
    let mut open = vec![(0, rows)];
    while open.len() < leaves {
        let size = |rows: &[usize], unit: f32| rows.len() as f32 * (0.2 + unit);
        let sizes = open
            .iter()
            .map(|(_, rows)| size(rows, random.random_range(0.0..1.0)));
        let largest = sizes.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let (node, rows) = open.swap_remove(largest.map_or(0, |largest| largest.0));
        let feature = random.random_range(0..columns);
        let threshold = table[rows[random.random_range(0..rows.len())] * columns + feature];
        let (below, above): (Vec<_>, Vec<_>) = rows
            .iter()
            .partition(|&&row| table[row * columns + feature] <= threshold);
        if below.is_empty() || above.is_empty() {
            open.push((node, rows));
            continue;
        }
        let yes = nodes.len();
        nodes[node] = Some(Split {
            feature,
            threshold,
            missing_is_yes: random.random(),
            yes,
        });
        nodes.extend([None, None]);
        open.extend([(yes, below), (yes + 1, above)]);
    }
    nodes
}

/// The layout that our trainer writes: see `engine::proto`.
fn boosted(columns: usize, trees: impl Iterator<Item = Vec<Option<Split>>>) -> ModelProto {
    let mut integers: [Vec<i64>; 9] = Default::default();
    let (mut thresholds, mut modes, mut weights) = (vec![], vec![], vec![]);
    let random = &mut StdRng::seed_from_u64(8);
    for (tree, nodes) in (0_i64..).zip(trees) {
        for (id, node) in (0_i64..).zip(&nodes) {
            let split = node.as_ref().map_or([0; 4], |split| {
                let yes = split.yes as i64;
                [
                    split.feature as i64,
                    yes,
                    yes + 1,
                    i64::from(split.missing_is_yes),
                ]
            });
            let mut push = |at: usize, value| integers[at].push(value);
            push(0, tree);
            push(1, id);
            (2..).zip(split).for_each(|(at, value)| push(at, value));
            thresholds.push(node.as_ref().map_or(0.0, |split| split.threshold));
            modes.push(if node.is_some() { "BRANCH_LEQ" } else { "LEAF" });
            if node.is_none() {
                push(6, tree);
                push(7, id);
                push(8, 1);
                weights.push(random.random_range(-0.1_f32..0.1));
            }
        }
    }
    let names = [
        "nodes_treeids",
        "nodes_nodeids",
        "nodes_featureids",
        "nodes_truenodeids",
        "nodes_falsenodeids",
        "nodes_missing_value_tracks_true",
        "class_treeids",
        "class_nodeids",
        "class_ids",
    ];
    let mut classifier = node(
        "TreeEnsembleClassifier",
        &["features"],
        &["label", "scores"],
    );
    classifier.domain = "ai.onnx.ml".into();
    classifier.attribute = names
        .into_iter()
        .zip(integers)
        .map(|(name, values)| ints(name, values))
        .collect();
    classifier.attribute.extend([
        ints("classlabels_int64s", vec![0, 1]),
        AttributeProto {
            floats: thresholds,
            ..attribute("nodes_values", AttributeType::Floats)
        },
        AttributeProto {
            floats: weights,
            ..attribute("class_weights", AttributeType::Floats)
        },
        AttributeProto {
            strings: modes.into_iter().map(Into::into).collect(),
            ..attribute("nodes_modes", AttributeType::Strings)
        },
    ]);
    let starts = ["starts", "ends", "axes"].into_iter().zip([1, 2, 1]);
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: domain.into(),
        version,
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset("", 17), opset("ai.onnx.ml", 3)],
        graph: Some(GraphProto {
            name: "boosted".into(),
            node: vec![
                classifier,
                node("Slice", &["scores", "starts", "ends", "axes"], &["margin"]),
                node("Sigmoid", &["margin"], &["probability"]),
            ],
            initializer: starts.map(|(name, value)| constant(name, value)).collect(),
            input: vec![value("features", columns)],
            output: vec![value("probability", 1)],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: kind as i32,
        ..Default::default()
    }
}

fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        ints: values,
        ..attribute(name, AttributeType::Ints)
    }
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: operator.into(),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

fn constant(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![1],
        data_type: DataType::Int64 as i32,
        int64_data: vec![value],
        ..Default::default()
    }
}

fn value(name: &str, columns: usize) -> ValueInfoProto {
    let dim = |value| Dimension {
        value: Some(value),
        ..Default::default()
    };
    let shape = TensorShapeProto {
        dim: vec![
            dim(dimension::Value::DimParam("N".into())),
            dim(dimension::Value::DimValue(columns as i64)),
        ],
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(shape),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

//! Models that harm whoever reads them: refused in a child process, and the gateway serves on.

use engine::proto::attribute_proto::AttributeType;
use engine::proto::tensor_proto::DataLocation;
use engine::proto::tensor_proto::DataType;
use engine::proto::{AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorProto};

use crate::onnx::{affine, model, node, value};
use crate::process::{Gateway, Setup};
use crate::repository::{answer, load};

fn integers(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Int64 as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// `x` → `y`, unchanged, beside `nodes` whose last output is `big`.
fn beside(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, big: DataType) -> Vec<u8> {
    let mut all = vec![node("Identity", &["x"], "y")];
    all.extend(nodes);
    model(GraphProto {
        name: "bomb".into(),
        node: all,
        initializer,
        input: vec![value("x", DataType::Float, &[-1, 1])],
        output: vec![
            value("y", DataType::Float, &[-1, 1]),
            value("big", big, &[-1]),
        ],
        ..Default::default()
    })
}

/// Small files that ask for a gibibyte and more, each in another way.
fn memory_bombs() -> Vec<(&'static str, Vec<u8>)> {
    const COUNT: i64 = 1 << 29;
    let count = || integers("count", &[1], &[COUNT]);
    let scalar = |name: &str, of: i64| integers(name, &[], &[of]);
    let one = || integers("one", &[1], &[1]);
    let range = [scalar("from", 0), scalar("to", COUNT), scalar("step", 1)];
    let padded = integers("pads", &[2], &[0, COUNT]);
    let whole = DataType::Int64;
    vec![
        (
            "ConstantOfShape",
            beside(
                vec![node("ConstantOfShape", &["count"], "big")],
                vec![count()],
                DataType::Float,
            ),
        ),
        (
            "Expand",
            beside(
                vec![node("Expand", &["one", "count"], "big")],
                vec![one(), count()],
                whole,
            ),
        ),
        (
            "Tile",
            beside(
                vec![node("Tile", &["one", "count"], "big")],
                vec![one(), count()],
                whole,
            ),
        ),
        (
            "Range",
            beside(
                vec![node("Range", &["from", "to", "step"], "big")],
                range.to_vec(),
                whole,
            ),
        ),
        (
            "Pad",
            beside(
                vec![node("Pad", &["one", "pads"], "big")],
                vec![one(), padded],
                whole,
            ),
        ),
    ]
}

/// A minute and more of multiplications from a file of some kilobytes.
fn time_bomb() -> Vec<u8> {
    let mut nodes = vec![node("ConstantOfShape", &["side"], "m0")];
    for k in 0..200 {
        let (from, to) = (format!("m{k}"), format!("m{}", k + 1));
        nodes.push(node("MatMul", &[&from, "m0"], &to));
    }
    nodes.push(node("Reshape", &["m200", "flat"], "big"));
    let initializer = vec![
        integers("side", &[2], &[2000, 2000]),
        integers("flat", &[1], &[-1]),
    ];
    beside(nodes, initializer, DataType::Float)
}

/// A loop of 2^62 turns.
fn endless() -> Vec<u8> {
    let whole = |name: &str, dims: &[i64]| value(name, DataType::Int64, dims);
    let body = GraphProto {
        name: "body".into(),
        node: vec![
            node("Identity", &["go"], "on"),
            node("Add", &["sum", "turn"], "more"),
        ],
        input: vec![
            whole("turn", &[]),
            value("go", DataType::Bool, &[]),
            whole("sum", &[]),
        ],
        output: vec![value("on", DataType::Bool, &[]), whole("more", &[])],
        ..Default::default()
    };
    let mut turns = node("Loop", &["turns", "", "from"], "total");
    turns.attribute = vec![AttributeProto {
        name: "body".into(),
        r#type: AttributeType::Graph as i32,
        g: Some(body),
        ..Default::default()
    }];
    let initializer = vec![
        integers("turns", &[], &[1 << 62]),
        integers("from", &[], &[0]),
        integers("flat", &[1], &[-1]),
    ];
    let flat = node("Reshape", &["total", "flat"], "big");
    beside(vec![turns, flat], initializer, DataType::Int64)
}

/// Graphs inside one another, far deeper than any parser's stack.
fn depth_bomb() -> Vec<u8> {
    let mut graph = GraphProto::default();
    for _ in 0..60 {
        let mut outer = node("If", &["c"], "y");
        outer.attribute = vec![AttributeProto {
            name: "then_branch".into(),
            g: Some(graph),
            ..Default::default()
        }];
        graph = GraphProto {
            node: vec![outer],
            ..Default::default()
        };
    }
    model(graph)
}

fn external(location: &str) -> Vec<u8> {
    let weights = TensorProto {
        name: "one".into(),
        dims: vec![1],
        data_type: DataType::Int64 as i32,
        data_location: Some(DataLocation::External as i32),
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: location.into(),
        }],
        ..Default::default()
    };
    beside(
        vec![node("Identity", &["one"], "big")],
        vec![weights],
        DataType::Int64,
    )
}

/// Processes whose parent is `pid`, zombies included.
fn children(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: std::fs::DirEntry| {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.split_whitespace().count()
    };
    tasks.map(|task| of_task(task.unwrap())).sum()
}

#[test]
fn a_model_that_harms_its_reader_is_refused_and_the_gateway_serves_on() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[0.0], 1.0))],
        config: "[prepare]\ncpu_max_s = 2\ntimeout_ms = 100000\n",
        ..Setup::default()
    });
    let good = affine(&[1.0], 0.5);
    // Once before, so that what the first load takes is taken.
    assert_eq!(load(&gateway, "warm", &good).status, 200);
    let before = gateway.resident_kib();
    let mut hostile = memory_bombs();
    hostile.push(("time", time_bomb()));
    hostile.push(("endless", endless()));
    hostile.push(("depth", depth_bomb()));
    hostile.push(("nothing", Vec::new()));
    hostile.push(("zeros", vec![0; 1 << 20]));
    for cut in [good.len() / 4, good.len() / 2, good.len() - 1] {
        hostile.push(("cut", good[..cut].to_vec()));
    }
    for (name, bytes) in hostile {
        let reply = load(&gateway, "m", &bytes);
        assert_eq!(reply.status, 400, "{name}: {}", reply.text());
        println!("{name} ({} bytes): {}", bytes.len(), reply.error());
        assert_eq!(answer(&gateway, "m"), ("1".to_owned(), 1.0), "after {name}");
        assert_eq!(children(gateway.pid()), 0, "after {name}");
    }
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown <= 32 << 10, "{grown} KiB more");
    gateway.drain();
}

#[test]
fn data_outside_of_the_file_is_refused_wherever_it_is_said_to_be() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[0.0], 1.0))],
        ..Setup::default()
    });
    for location in [
        "weights.bin",
        "../weights.bin",
        "a/../../weights.bin",
        "/etc/passwd",
        "/proc/self/environ",
        "file:///etc/passwd",
        "..\\weights.bin",
        "",
    ] {
        let reply = load(&gateway, "m", &external(location));
        assert_eq!(reply.status, 400, "{location}: {}", reply.text());
        assert!(reply.error().contains("external file"), "{}", reply.error());
        assert_eq!(answer(&gateway, "m"), ("1".to_owned(), 1.0));
    }
    gateway.drain();
}

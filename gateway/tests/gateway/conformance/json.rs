//! Requests and answers in JSON.

use serde_json::json;

use super::{ROWS, ask, assert_scores, data, echoing, echoing_by_runtime, gateway, scores};
use crate::onnx::{DataType, affine};
use crate::process::{Gateway, Setup};

#[test]
fn an_id_comes_back_and_none_where_none_was() {
    let gateway = gateway();
    let id = |more: &str| scores(&gateway, more).json().get("id").cloned();
    assert_eq!(id(r#""id":"a\"\u00e9","#), Some(json!("a\"é")));
    assert_eq!(id(r#""id":"","#), Some(json!("")));
    assert_eq!(id(""), None);
    assert_eq!(scores(&gateway, r#""id":7,"#).status, 400);
}

#[test]
fn outputs_are_all_or_those_asked_for_in_that_order() {
    let gateway = gateway();
    let names = |outputs: &str| {
        let reply = scores(&gateway, outputs);
        let outputs = reply.json()["outputs"].as_array().cloned();
        let name = |output: &serde_json::Value| output["name"].as_str().unwrap().to_owned();
        let names: Vec<_> = outputs.iter().flatten().map(name).collect();
        (reply.status, names.join(" "))
    };
    let both = (200, "score probability".to_owned());
    assert_eq!(names(""), both);
    assert_eq!(names(r#""outputs":[],"#), both);
    let reversed = names(r#""outputs":[{"name":"probability"},{"name":"score"}],"#);
    assert_eq!(reversed, (200, "probability score".to_owned()));
    let one = names(r#""outputs":[{"name":"probability","parameters":{"x":1}}],"#);
    assert_eq!(one, (200, "probability".to_owned()));
    assert_eq!(names(r#""outputs":[{"name":"none"}],"#).0, 400);
    assert_eq!(
        names(r#""outputs":[{"name":"score"},{"name":"score"}],"#).0,
        400
    );
    assert_eq!(names(r#""outputs":[{}],"#).0, 400);
}

#[test]
fn nested_data_is_what_flat_data_is() {
    let gateway = echoing(&[("m", DataType::Float, &[-1, 2, 2])]);
    let flat = ask(&gateway, "m", "[2,2,2]", "FP32", "[1,2,3,4,5,6,7,8]");
    let nested = ask(
        &gateway,
        "m",
        "[2,2,2]",
        "FP32",
        "[[[1,2],[3,4]],[[5,6],[7,8]]]",
    );
    assert_eq!(data(&flat), data(&nested));
    assert_eq!(data(&flat), json!([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
}

#[test]
fn ragged_data_is_refused() {
    let gateway = echoing(&[("m", DataType::Float, &[-1, 2])]);
    for ragged in [
        "[[1,2],[3]]",
        "[[1,2],[3,4,5]]",
        "[[1,2],3,4]",
        "[1,[2,3],4]",
        "[[1,2],[[3],4]]",
    ] {
        assert_eq!(
            ask(&gateway, "m", "[2,2]", "FP32", ragged).status,
            400,
            "{ragged}"
        );
    }
}

#[test]
fn as_many_elements_come_as_the_shape_says() {
    let gateway = echoing(&[("m", DataType::Float, &[-1, 2])]);
    for data in ["[1,2,3]", "[1,2,3,4,5]", "[]", "[[1,2]]"] {
        let reply = ask(&gateway, "m", "[2,2]", "FP32", data);
        assert_eq!(reply.status, 400, "{data}");
        assert!(!reply.error().is_empty());
    }
}

#[test]
fn a_batch_of_no_rows_has_an_answer_of_no_rows() {
    let gateway = gateway();
    let body = ROWS.replace("[2,2]", "[0,2]").replace("[1,2,3,4]", "[]");
    let reply = gateway.post(
        "/v2/models/affine/infer",
        &format!(r#"{{"inputs":[{body}]}}"#),
    );
    let output = reply.json()["outputs"][0].clone();
    assert_eq!(
        output,
        json!({"name": "score", "datatype": "FP32", "shape": [0, 1], "data": []})
    );
}

#[test]
fn a_scalar_has_the_empty_shape() {
    let gateway = echoing(&[("m", DataType::Double, &[])]);
    for written in ["2.5", "[2.5]"] {
        let reply = ask(&gateway, "m", "[]", "FP64", written);
        assert_eq!(data(&reply), json!([2.5]));
        assert_eq!(reply.json()["outputs"][0]["shape"], json!([]));
    }
}

#[test]
fn a_request_may_not_leave_a_length_open() {
    let gateway = echoing(&[("m", DataType::Float, &[-1])]);
    for shape in ["[-1]", "[1.5]", "[\"1\"]", "[null]", "[1e30]", "{}"] {
        assert_eq!(
            ask(&gateway, "m", shape, "FP32", "[1]").status,
            400,
            "{shape}"
        );
    }
}

#[test]
fn integers_are_exact_and_in_range() {
    let types = [
        (
            "INT8",
            DataType::Int8,
            "-128",
            "127",
            ["-129", "128", "300"],
        ),
        (
            "INT16",
            DataType::Int16,
            "-32768",
            "32767",
            ["-32769", "32768", "1e9"],
        ),
        (
            "INT32",
            DataType::Int32,
            "-2147483648",
            "2147483647",
            ["-2147483649", "2147483648", "1.5"],
        ),
        (
            "INT64",
            DataType::Int64,
            "-9223372036854775808",
            "9223372036854775807",
            ["-9223372036854775809", "9223372036854775808", "true"],
        ),
        ("UINT8", DataType::Uint8, "0", "255", ["-1", "256", "NaN"]),
        (
            "UINT16",
            DataType::Uint16,
            "0",
            "65535",
            ["-1", "65536", "\"1\""],
        ),
        (
            "UINT32",
            DataType::Uint32,
            "0",
            "4294967295",
            ["-1", "4294967296", "null"],
        ),
        (
            "UINT64",
            DataType::Uint64,
            "0",
            "18446744073709551615",
            ["-1", "18446744073709551616", "0.5"],
        ),
    ];
    let models: Vec<_> = types.iter().map(|t| (t.0, t.1, &[-1][..])).collect();
    let gateway = echoing(&models);
    for (name, _, least, most, wrong) in types {
        let reply = ask(
            &gateway,
            name,
            "[4]",
            name,
            &format!("[{least},{most},3.0,1e1]"),
        );
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        let written = format!(r#""data":[{least},{most},3,10]"#);
        assert!(reply.text().contains(&written), "{}", reply.text());
        for wrong in wrong {
            let reply = ask(&gateway, name, "[1]", name, &format!("[{wrong}]"));
            assert_eq!(reply.status, 400, "{name} took {wrong}");
        }
    }
}

#[test]
fn floats_are_exact_and_too_large_ones_refused() {
    let gateway = echoing(&[
        ("s", DataType::Float, &[-1]),
        ("d", DataType::Double, &[-1]),
    ]);
    let singles = "[0.1,1e-45,3.4028235e38,-0.0,16777217,0.10000000149011612]";
    let reply = ask(&gateway, "s", "[6]", "FP32", singles);
    assert!(
        reply
            .text()
            .contains(r#""data":[0.1,1e-45,3.4028235e+38,-0.0,16777216.0,0.1]"#),
        "{}",
        reply.text()
    );
    let doubles = "[0.1,5e-324,1.7976931348623157e+308,0.30000000000000004]";
    let reply = ask(&gateway, "d", "[4]", "FP64", doubles);
    assert!(
        reply.text().contains(&format!(r#""data":{doubles}"#)),
        "{}",
        reply.text()
    );
    for (model, datatype, wrong) in [
        ("s", "FP32", "1e400"),
        ("s", "FP32", "3.5e38"),
        ("s", "FP32", "-1e39"),
        ("d", "FP64", "1e400"),
        ("d", "FP64", "true"),
        ("d", "FP64", "\"1\""),
    ] {
        let reply = ask(&gateway, model, "[1]", datatype, &format!("[{wrong}]"));
        assert_eq!(reply.status, 400, "{datatype} took {wrong}");
    }
}

#[test]
fn numbers_that_are_none_go_in_and_out_as_bare_tokens() {
    let gateway = echoing(&[("m", DataType::Float, &[-1])]);
    let reply = ask(&gateway, "m", "[3]", "FP32", "[NaN, Infinity ,-Infinity]");
    assert!(
        reply.text().contains(r#""data":[NaN,Infinity,-Infinity]"#),
        "{}",
        reply.text()
    );
    for wrong in ["nan", "-NaN", "Inf", "+Infinity", "null"] {
        assert_eq!(
            ask(&gateway, "m", "[1]", "FP32", &format!("[{wrong}]")).status,
            400,
            "{wrong}"
        );
    }
}

#[test]
fn booleans_may_be_zero_and_one() {
    let gateway = echoing(&[("m", DataType::Bool, &[-1])]);
    let reply = ask(&gateway, "m", "[4]", "BOOL", "[true,false,1,0]");
    assert_eq!(data(&reply), json!([true, false, true, false]));
    for wrong in ["2", "1.0", "\"true\"", "null"] {
        assert_eq!(
            ask(&gateway, "m", "[1]", "BOOL", &format!("[{wrong}]")).status,
            400,
            "{wrong}"
        );
    }
}

#[test]
fn texts_keep_every_character_through_json() {
    let Some(gateway) = echoing_by_runtime(&[("m", DataType::String, &[-1])]) else {
        return;
    };
    let texts = r#"["a\"\\\/\b\f\n\r\t","\u00e9\ud83d\ude00","é😀",""]"#;
    let reply = ask(&gateway, "m", "[4]", "BYTES", texts);
    assert_eq!(
        data(&reply),
        json!(["a\"\\/\u{8}\u{c}\n\r\t", "é😀", "é😀", ""])
    );
    for wrong in [
        r#""\ud83d""#,
        r#""\ude00""#,
        r#""\x""#,
        "\"\u{1}\"",
        "1",
        "null",
    ] {
        assert_eq!(
            ask(&gateway, "m", "[1]", "BYTES", &format!("[{wrong}]")).status,
            400,
            "{wrong}"
        );
    }
}

#[test]
fn unknown_keys_are_passed_over_wherever_they_stand() {
    let gateway = gateway();
    let noise = r#""noise":{"deep":[1e400,null,{"a":[]}],"text":"\u0000"},"#;
    let input = ROWS.replacen('{', &format!("{{{noise}"), 1);
    let body =
        format!(r#"{{{noise}"inputs":[{input}],"parameters":{{{noise}"content_type":"np"}}}}"#);
    assert_scores(&gateway.post("/v2/models/affine/infer", &body));
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let gateway = gateway();
    for more in [
        r#""id":"a","id":"a","#,
        r#""inputs":[],"#,
        r#""outputs":[],"outputs":[],"#,
    ] {
        assert_eq!(scores(&gateway, more).status, 400, "{more}");
    }
    let twice = ROWS.replacen("\"name\"", r#""shape":[2,2],"name""#, 1);
    let reply = gateway.post(
        "/v2/models/affine/infer",
        &format!(r#"{{"inputs":[{twice}]}}"#),
    );
    assert_eq!(reply.status, 400);
    let reply = gateway.post(
        "/v2/models/affine/infer",
        &format!(r#"{{"inputs":[{ROWS},{ROWS}]}}"#),
    );
    assert_eq!(reply.status, 400);
}

#[test]
fn keys_come_in_any_order() {
    let gateway = gateway();
    let keys = [
        r#""name":"features""#,
        r#""shape":[2,2]"#,
        r#""datatype":"FP32""#,
        r#""data":[[1,2],[3,4]]"#,
    ];
    for first in 0..4 {
        for second in (0..4).filter(|&k| k != first) {
            let rest = (0..4).filter(|&k| k != first && k != second);
            let order = [first, second].into_iter().chain(rest);
            let input: Vec<_> = order.map(|k| keys[k]).collect();
            let body = format!(
                r#"{{"outputs":[],"inputs":[{{{}}}],"id":"x"}}"#,
                input.join(",")
            );
            assert_scores(&gateway.post("/v2/models/affine/infer", &body));
        }
    }
}

#[test]
fn depth_is_bounded_and_the_bound_survived() {
    let gateway = gateway();
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert_scores(&scores(&gateway, &format!(r#""x":{},"#, deep(60))));
    for n in [65, 100_000] {
        assert_eq!(
            scores(&gateway, &format!(r#""x":{},"#, deep(n))).status,
            400
        );
    }
    assert_scores(&scores(&gateway, ""));
}

#[test]
fn a_batch_larger_than_allowed_is_refused() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        config: "[serving]\nrows_max = 1",
        ..Setup::default()
    });
    let reply = scores(&gateway, "");
    assert_eq!(reply.status, 400);
    assert!(reply.error().contains("at most 1"), "{}", reply.error());
    assert_eq!(
        gateway.get("/v2/models/affine/config").json()["max_batch_size"],
        1
    );
}

#[test]
fn a_version_may_be_a_word() {
    let gateway = gateway();
    let infer = |version: &str| {
        let path = format!("/v2/models/affine/versions/{version}/infer");
        gateway.post(&path, &format!(r#"{{"inputs":[{ROWS}]}}"#))
    };
    assert_scores(&infer("champion"));
    assert_scores(&infer("1"));
    for unknown in ["stable", "2", "-1", "1.0", "%2e%2e"] {
        let reply = infer(unknown);
        assert_eq!(reply.status, 404, "{unknown}: {}", reply.text());
    }
}

#[test]
fn classification_gives_the_best_classes_as_texts() {
    let gateway = echoing(&[("m", DataType::Float, &[-1, 3])]);
    let ask = |outputs: &str| {
        let body = format!(
            r#"{{"inputs":[{{"name":"x","shape":[2,3],"datatype":"FP32","data":[0.25,0.5,0.125,3,1,2]}}],"outputs":{outputs}}}"#
        );
        gateway.post("/v2/models/m/infer", &body)
    };
    let reply = ask(r#"[{"name":"y","parameters":{"classification":2}}]"#);
    assert_eq!(
        reply.json()["outputs"][0],
        json!({"name": "y", "datatype": "BYTES", "shape": [2, 2], "data": ["0.5:1", "0.25:0", "3:0", "2:2"]})
    );
    assert_eq!(
        ask(r#"[{"name":"y","parameters":{"classification":-1}}]"#).status,
        400
    );
}

#[test]
fn parameters_are_applied_refused_or_passed_over() {
    let gateway = gateway();
    let with = |parameters: &str| scores(&gateway, &format!(r#""parameters":{{{parameters}}},"#));
    assert_scores(&with(r#""timeout":60000000,"priority":1,"mine":[{}]"#));
    assert_eq!(with(r#""timeout":1"#).status, 504);
    for refused in [
        r#""timeout":-1"#,
        r#""timeout":"soon""#,
        r#""priority":-1"#,
        r#""binary_data_output":1"#,
        r#""sequence_id":1"#,
        r#""sequence_start":true"#,
        r#""triton_x":1"#,
        r#""headers":"a""#,
    ] {
        assert_eq!(with(refused).status, 400, "{refused}");
    }
    let shared = r#""outputs":[{"name":"score","parameters":{"shared_memory_region":"r"}}],"#;
    assert_eq!(scores(&gateway, shared).status, 501);
}

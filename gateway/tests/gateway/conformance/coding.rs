//! Content encodings.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use super::{ROWS, assert_scores, echoing, gateway};
use crate::onnx::{DataType, affine};
use crate::process::{Gateway, Setup};
use crate::wire::Reply;

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn send(gateway: &Gateway, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    gateway
        .connect()
        .request("POST", "/v2/models/affine/infer", headers, body)
}

fn request() -> Vec<u8> {
    format!(r#"{{"inputs":[{ROWS}]}}"#).into_bytes()
}

#[test]
fn requests_may_be_gzip_or_zlib_which_is_called_deflate() {
    let gateway = gateway();
    assert_scores(&send(
        &gateway,
        &[("content-encoding", "gzip")],
        &gzip(&request()),
    ));
    assert_scores(&send(
        &gateway,
        &[("Content-Encoding", "DEFLATE")],
        &zlib(&request()),
    ));
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
    bare.write_all(&request()).unwrap();
    let bare = bare.finish().unwrap();
    let cut = &gzip(&request())[..20];
    let more = [zlib(&request()), b"x".to_vec()].concat();
    for (encoding, body) in [
        ("deflate", &bare[..]),
        ("deflate", &gzip(&request())),
        ("gzip", &zlib(&request())),
        ("gzip", &request()),
        ("gzip", cut),
        ("deflate", &more),
        ("gzip", b""),
    ] {
        let reply = send(&gateway, &[("content-encoding", encoding)], body);
        assert_eq!(reply.status, 400, "{encoding}: {body:?}");
        assert!(!reply.error().is_empty());
    }
    let reply = send(&gateway, &[("content-encoding", "br")], &request());
    assert_eq!(
        (reply.status, reply.header("accept-encoding")),
        (415, Some("gzip, deflate"))
    );
}

#[test]
fn the_jsons_length_is_that_before_compression() {
    let gateway = gateway();
    let json = r#"{"inputs":[{"name":"features","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#;
    let rows = [1.0_f32, 2.0, 3.0, 4.0];
    let blob: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    let length = json.len().to_string();
    let headers = [
        ("content-encoding", "gzip"),
        ("inference-header-content-length", &length),
    ];
    assert_scores(&send(
        &gateway,
        &headers,
        &gzip(&[json.as_bytes(), &blob].concat()),
    ));
}

#[test]
fn a_body_is_bounded_by_what_it_decodes_to() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        config: "[http]\nbody_bytes_max = 2000000",
        ..Setup::default()
    });
    let padded = |bytes: usize| {
        let mut body = request();
        body.resize(bytes, b' ');
        body
    };
    // Within the ratio's free megabyte, beyond the ratio, beyond the bound.
    let headers = [("content-encoding", "gzip")];
    assert_scores(&send(&gateway, &headers, &gzip(&padded(1_000_000))));
    for bytes in [1_500_000, 50_000_000] {
        for (encoding, body) in [
            ("gzip", gzip(&padded(bytes))),
            ("deflate", zlib(&padded(bytes))),
        ] {
            let reply = send(&gateway, &[("content-encoding", encoding)], &body);
            assert_eq!(reply.status, 413, "{bytes} {encoding}");
        }
    }
    assert_scores(&send(&gateway, &[], &request()));
}

#[test]
fn answers_are_compressed_for_those_who_ask_where_it_pays() {
    let gateway = echoing(&[("affine", DataType::Float, &[-1])]);
    let ask = |elements: usize, accept: &str| {
        let data = vec!["0.5"; elements].join(",");
        let body = format!(
            r#"{{"inputs":[{{"name":"x","shape":[{elements}],"datatype":"FP32","data":[{data}]}}]}}"#
        );
        send(&gateway, &[("accept-encoding", accept)], body.as_bytes())
    };
    let plain = ask(8000, "identity");
    assert_eq!(plain.header("content-encoding"), None);
    for (accept, expected) in [
        ("gzip", Some("gzip")),
        ("deflate", Some("deflate")),
        ("gzip;q=0.2, deflate;q=0.7", Some("deflate")),
        ("gzip;q=0, deflate", Some("deflate")),
        ("*", Some("gzip")),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate;q=0.0", None),
        ("*;q=0", None),
        ("br", None),
        ("", None),
    ] {
        let reply = ask(8000, accept);
        assert_eq!(
            (reply.status, reply.header("content-encoding")),
            (200, expected),
            "{accept}"
        );
        let mut text = String::new();
        match expected {
            Some("gzip") => GzDecoder::new(&reply.body[..])
                .read_to_string(&mut text)
                .unwrap(),
            Some(_) => ZlibDecoder::new(&reply.body[..])
                .read_to_string(&mut text)
                .unwrap(),
            None => (&reply.body[..]).read_to_string(&mut text).unwrap(),
        };
        let outputs = |text: &str| text.split_once("\"outputs\"").unwrap().1.to_owned();
        assert_eq!(outputs(&text), outputs(plain.text()), "{accept}");
        assert_eq!(reply.header("vary").is_some(), expected.is_some());
    }
    assert_eq!(ask(8, "gzip").header("content-encoding"), None);
}

//! Names that would be paths: refused on every route, and nothing outside is looked at.

use crate::onnx::affine;
use crate::process::{Gateway, Setup};

/// What attackers of model servers have sent as a name.
fn hostile_names() -> Vec<String> {
    let dots = [
        "..",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "%252e%252e",
        "\u{ff0e}\u{ff0e}",
        "%ef%bc%8e%ef%bc%8e",
        "%c0%ae%c0%ae",
    ];
    let slashes = [
        "%2f",
        "%5c",
        "\\",
        "%252f",
        "%c0%af",
        "%ef%bc%8f",
        "%00",
        "%0a",
    ];
    let mut names: Vec<String> = dots.iter().map(|&dots| dots.to_owned()).collect();
    for dots in dots {
        for slash in slashes {
            names.push(format!("{dots}{slash}etc{slash}passwd"));
        }
    }
    names.extend(
        [
            "%",
            "%4",
            "%zz",
            "%ff",
            "a%20b",
            "a%00",
            ".a",
            "x".repeat(4096).as_str(),
        ]
        .map(str::to_owned),
    );
    names
}

#[test]
fn a_name_that_would_be_a_path_is_refused_on_every_route() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[0.0], 1.0))],
        ..Setup::default()
    });
    let routes = [
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("GET", "/v2/models/{}/config"),
        ("GET", "/v2/models/{}/stats"),
        ("GET", "/v2/models/{}/versions/1"),
        ("POST", "/v2/models/{}/infer"),
        ("POST", "/v2/repository/models/{}/load"),
        ("POST", "/v2/repository/models/{}/unload"),
    ];
    let names = hostile_names();
    assert!(names.len() >= 80, "{}", names.len());
    for name in &names {
        for (method, route) in routes {
            let path = route.replace("{}", name);
            let reply = gateway.connect().request(method, &path, &[], b"");
            assert_eq!(reply.status, 400, "{method} {path}: {}", reply.text());
        }
    }
    gateway.drain();
}

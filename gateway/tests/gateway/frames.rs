//! HTTP/2 in frames made by hand: floods that no client library sends. They cost memory within a
//! bound, and whoever else comes is served.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::onnx::affine;
use crate::patience::PATIENCE;
use crate::process::{Gateway, Setup};

const INFER: &str = "/v2/models/m/infer";
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

/// Kinds of frames (RFC 9113, 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
/// The most that a frame carries where nothing else was agreed.
const FRAME_BYTES_MAX: usize = 16 << 10;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A text in HPACK (RFC 7541, 5.2), as it is.
fn text(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match u8::try_from(value.len()) {
        Ok(length) if length < 127 => bytes.push(length),
        _ => {
            bytes.push(127);
            let mut rest = value.len() - 127;
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend(value);
    bytes
}

/// The head of a prediction: `:method: POST` and `:scheme: http` by index, path and authority
/// in full.
fn head() -> Vec<u8> {
    [
        &[0x83, 0x86, 0x04][..],
        &text(INFER.as_bytes()),
        &[0x01],
        &text(b"x"),
    ]
    .concat()
}

/// Numbers of a client's streams.
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// What is sent on one connection, piece by piece.
type Flood = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// Requests that are taken back at once.
fn rapid_resets() -> Flood {
    let pair = |stream| {
        let asked = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head());
        [asked, frame(RST_STREAM, 0, stream, &CANCEL)].concat()
    };
    let streams: Vec<u32> = streams().take(25_000).collect();
    let pieces: Vec<Vec<u8>> = streams
        .chunks(1000)
        .map(|streams| streams.iter().flat_map(|&stream| pair(stream)).collect())
        .collect();
    Box::new(pieces.into_iter())
}

/// Requests that the gateway must take back, since something in them is wrong (CVE-2025-8671).
fn made_resets() -> Flood {
    Box::new(streams().take(25_000).map(|stream| {
        let asked = frame(HEADERS, END_HEADERS, stream, &head());
        [asked, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    }))
}

/// One head that never ends.
fn continuations() -> Flood {
    let field = [&[0x00][..], &text(b"a"), &text(&[b'b'; 100])].concat();
    let fields = field.repeat(FRAME_BYTES_MAX / field.len());
    let begun = frame(HEADERS, 0, 1, &head());
    let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &fields), 4096);
    Box::new(std::iter::once(begun).chain(more))
}

/// A header of 3,900 bytes, and then heads in which each byte stands for it.
fn packed_headers() -> Flood {
    let kept = [&[0x40][..], &text(b"a"), &text(&[b'b'; 3900])].concat();
    let first = [head(), kept].concat();
    let bomb = [head(), vec![0xbe; 16_000]].concat();
    let frames = streams().take(200).map(move |stream| {
        let block = if stream == 1 { &first } else { &bomb };
        frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
    });
    Box::new(frames)
}

/// One body of nothing, in pieces.
fn empty_data() -> Flood {
    let begun = frame(HEADERS, END_HEADERS, 1, &head());
    let nothing = frame(DATA, 0, 1, b"").repeat(1000);
    Box::new(std::iter::once(begun).chain(std::iter::repeat_n(nothing, 1000)))
}

/// Frames that must each be answered.
fn answered(kind: u8, payload: &[u8]) -> Flood {
    Box::new(std::iter::repeat_n(
        frame(kind, 0, 0, payload).repeat(1000),
        200,
    ))
}

/// Whether the gateway reads on to the end, and whether we read what it answers.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Yes,
    No,
}

/// A flood by name.
type Case = (&'static str, fn() -> Flood, Reading);

/// Sends a flood; whether the gateway ended the connection before the flood did.
fn is_cut_off(address: SocketAddr, flood: Flood, reading: Reading) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let opened = [&preface[..], &frame(SETTINGS, 0, 0, b"")].concat();
    stream.write_all(&opened).unwrap();
    std::thread::scope(|scope| {
        if reading == Reading::Yes {
            scope.spawn(move || {
                let mut bytes = [0; 4096];
                while answers.read(&mut bytes).is_ok_and(|count| count > 0) {}
            });
        }
        let mut ended = false;
        for piece in flood {
            ended = stream.write_all(&piece).is_err();
            if ended {
                break;
            }
        }
        // Ends our reader where the gateway has not.
        drop(stream.shutdown(Shutdown::Both));
        ended
    })
}

#[test]
fn floods_of_http_2_frames_cost_little_and_nobody_else_notices() {
    const GROWTH_KIB_MAX: u64 = 32 << 10;
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config: "[http]\nwrite_timeout_ms = 500",
        ..Setup::default()
    });
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
    let before = gateway.resident_kib();
    let asked = || gateway.metric("loopgate_requests_total", "operation=\"infer\"");
    let floods: [Case; 9] = [
        ("rapid resets", rapid_resets, Reading::Yes),
        ("rapid resets unread", rapid_resets, Reading::No),
        ("made resets", made_resets, Reading::Yes),
        ("continuations", continuations, Reading::Yes),
        ("packed headers", packed_headers, Reading::Yes),
        ("empty data", empty_data, Reading::Yes),
        ("settings", || answered(SETTINGS, b""), Reading::Yes),
        ("settings unread", || answered(SETTINGS, b""), Reading::No),
        ("pings unread", || answered(PING, &[0; 8]), Reading::No),
    ];
    for (name, flood, reading) in floods {
        let started = asked();
        std::thread::scope(|scope| {
            // Three on the port of HTTP, one on that of gRPC.
            let cut: Vec<_> = [gateway.http, gateway.http, gateway.http, gateway.grpc]
                .map(|address| scope.spawn(move || is_cut_off(address, flood(), reading)))
                .into_iter()
                .collect();
            for _ in 0..20 {
                assert_eq!(gateway.post(INFER, GOOD).status, 200, "{name}");
            }
            let cut: Vec<bool> = cut.into_iter().map(|cut| cut.join().unwrap()).collect();
            let grown = gateway.resident_kib().saturating_sub(before);
            let asked = asked() - started;
            println!("{name}: cut off {cut:?}, {grown} KiB more, {asked} requests");
            assert!(grown <= GROWTH_KIB_MAX, "{name}: {grown} KiB more");
            assert!(asked <= 1000.0, "{name}: {asked} requests were answered");
        });
    }
    gateway.drain();
}

//! The generator against servers that misbehave on purpose. Nothing here asserts how fast anything is:
//! only what is counted, and from where latency counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::*;

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";

/// A server that answers each request of each connection by `answer`, given the request's number on
/// its connection; it closes the connection where there is no answer. It lives as long as the test.
fn server(answer: fn(usize, &mut TcpStream) -> Option<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = 0;
                while read_request(&mut stream) && answer(request, &mut stream).is_some() {
                    request += 1;
                }
            });
        }
    });
    address
}

/// Reads a head and the body `{}`.
fn read_request(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n{}") {
        match stream.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn load(address: SocketAddr) -> Load {
    let call = Call {
        path: "/".into(),
        headers: Vec::new(),
        body: Bytes::from_static(b"{}"),
    };
    Load {
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(300),
        timeout: Duration::from_secs(20),
        patience: Duration::from_secs(20),
        ..Load::closed(address, vec![call], 2)
    }
}

#[test]
fn good_answers_are_counted_and_nothing_fails() {
    let address = server(|_, stream| stream.write_all(GOOD).ok());
    for transport in [Transport::KeepAlive, Transport::ConnectionPerRequest] {
        let tally = Load {
            transport,
            ..load(address)
        }
        .run()
        .unwrap();
        assert!(tally.answered() > 0);
        assert_eq!(tally.failed_in_all(), 0, "{:?}", tally.failures);
        assert_eq!(tally.statuses[&200], tally.answered());
    }
}

#[test]
fn statuses_are_told_apart() {
    let address = server(|request, stream| {
        let status = ["429 Too Many Requests", "503 Unavailable", "404 Not Found"][request % 3];
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).ok()
    });
    let tally = load(address).run().unwrap();
    assert_eq!(tally.answered(), 0);
    for (failure, status) in [
        (Failure::Shed, 429),
        (Failure::Server, 503),
        (Failure::Refused, 404),
    ] {
        assert!(tally.failures(failure) > 0);
        assert_eq!(tally.failures(failure), tally.statuses[&status]);
    }
}

#[test]
fn a_wrong_answer_is_a_failure() {
    let address = server(|_, stream| stream.write_all(GOOD).ok());
    let tally = Load {
        check: |body| body != b"good",
        ..load(address)
    }
    .run()
    .unwrap();
    assert_eq!(tally.answered(), 0);
    assert!(tally.failures(Failure::Wrong) > 0);
}

#[test]
fn a_connection_that_ends_before_its_answer_is_a_reset() {
    let address = server(|request, stream| match request {
        0 => stream.write_all(GOOD).ok(),
        // Half an answer, then the end.
        _ => {
            drop(stream.write_all(&GOOD[..GOOD.len() - 2]));
            None
        }
    });
    let tally = load(address).run().unwrap();
    assert!(tally.answered() > 0);
    assert!(tally.failures(Failure::Reset) > 0);
    assert_eq!(tally.failed_in_all(), tally.failures(Failure::Reset));
}

#[test]
fn nobody_listening_is_a_failed_connect() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tally = load(free).run().unwrap();
    assert!(tally.failures(Failure::Connect) > 0);
    assert_eq!(tally.failed_in_all(), tally.failures(Failure::Connect));
}

#[test]
fn no_answer_is_a_timeout_for_what_was_sent_and_unsent_for_what_waited() {
    let address = server(|_, stream| {
        // Until the client gives up and closes.
        drop(stream.read(&mut [0]));
        None
    });
    let tally = Load {
        arrivals: Arrivals::Poisson {
            per_second: 2000.0,
            seed: 7,
        },
        connections: 1,
        timeout: Duration::from_millis(400),
        patience: Duration::from_millis(400),
        ..load(address)
    }
    .run()
    .unwrap();
    assert_eq!(tally.answered(), 0);
    assert!(tally.failures(Failure::Timeout) > 0);
    assert!(tally.failures(Failure::Unsent) > 0);
}

/// The server takes 20 ms for a request and has one connection; 200 requests a second are meant to
/// start. A generator that waited for its turn before it started the clock would see 20 ms each time.
#[test]
fn latency_counts_from_the_intended_start() {
    const TAKES: Duration = Duration::from_millis(20);
    let address = server(|_, stream| {
        thread::sleep(TAKES);
        stream.write_all(GOOD).ok()
    });
    let tally = Load {
        arrivals: Arrivals::Poisson {
            per_second: 200.0,
            seed: 7,
        },
        connections: 1,
        measured: Duration::from_millis(500),
        ..load(address)
    }
    .run()
    .unwrap();
    assert_eq!(tally.failed_in_all(), 0, "{:?}", tally.failures);
    let arrivals = tally.answered();
    assert!(arrivals > 50, "{arrivals} arrivals");
    // One after the other they end no earlier than at arrivals × 20 ms; the last was meant to start
    // before 500 ms.
    let floor = TAKES * u32::try_from(arrivals).unwrap() - Duration::from_millis(500);
    let last = Duration::from_nanos(tally.latency.max());
    assert!(last >= floor - TAKES, "last {last:?}, floor {floor:?}");
    assert!(tally.latency.min() >= TAKES.as_nanos() as u64 * 99 / 100);
}

#[test]
fn the_same_seed_offers_the_same_number_of_requests() {
    let address = server(|_, stream| stream.write_all(GOOD).ok());
    let offered = |seed| {
        let tally = Load {
            arrivals: Arrivals::Poisson {
                per_second: 1000.0,
                seed,
            },
            connections: 8,
            ..load(address)
        }
        .run()
        .unwrap();
        tally.answered() + tally.failed_in_all()
    };
    assert_eq!(offered(7), offered(7));
}

/// The server holds the only connection until the client gives up; who has no patience is never sent.
#[test]
fn without_patience_an_arrival_that_finds_no_connection_is_unsent_at_once() {
    let address = server(|_, stream| {
        drop(stream.read(&mut [0]));
        None
    });
    let tally = Load {
        arrivals: Arrivals::Poisson {
            per_second: 2000.0,
            seed: 7,
        },
        connections: 1,
        timeout: Duration::from_secs(1),
        patience: Duration::ZERO,
        ..load(address)
    }
    .run()
    .unwrap();
    // All were meant to start within 300 ms, one was sent.
    assert_eq!(tally.failures(Failure::Timeout), 1);
    assert_eq!(tally.failures(Failure::Unsent) + 1, tally.failed_in_all());
    assert!(tally.failures(Failure::Unsent) > 100);
}

#[test]
fn a_refused_caller_asks_again_and_counts_once() {
    const REFUSAL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
    // Two refusals before each good answer.
    let address = server(|request, stream| {
        let answer = if request % 3 < 2 { REFUSAL } else { GOOD };
        stream.write_all(answer).ok()
    });
    let run = |retries| Load {
        retries,
        connections: 1,
        ..load(address)
    };
    let tally = run(2).run().unwrap();
    assert!(tally.answered() > 0);
    assert_eq!(tally.failed_in_all(), 0);
    assert_eq!(tally.statuses[&429], 2 * tally.statuses[&200]);
    let tally = run(1).run().unwrap();
    assert!(tally.failures(Failure::Shed) > 0);
}

#[test]
fn calls_beyond_the_counted_ones_are_sent_and_not_counted() {
    let address = server(|_, stream| stream.write_all(GOOD).ok());
    let one = load(address);
    let tally = Load {
        calls: vec![one.calls[0].clone(), one.calls[0].clone()],
        counted_calls: 1,
        connections: 1,
        ..one
    }
    .run()
    .unwrap();
    assert!(tally.answered() > 0);
    assert!(tally.sent.abs_diff(2 * tally.answered()) <= 1);
}

//! `steady`: what the gateway makes of one core, as a share of what a bare hyper server makes of it
//! with the same bytes; and its latency at half of that.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, CONNECTIONS, ROWS, answer, measure, must_be_clean};
use crate::account;
use crate::chart::{Bars, short};
use crate::deployment::{Deployed, Deployment};
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Call, Load, Tally, Transport};
use crate::machine::Conditions;
use crate::models::{ensemble, rows};
use crate::process::Gateway;
use crate::question::{binary_calls, grpc_calls, json_calls};
use crate::server::{Server, ask};

const MODEL: &str = "scored";
/// Connections of the open loop at half load: enough that none is waited for.
const OPEN_CONNECTIONS: usize = 64;

/// One line of the table: a load on the gateway, and on the bare server that answers the same bytes.
struct Subject {
    name: &'static str,
    load: Load,
    pid: u32,
    bare: Option<(Load, Server)>,
    per_second: Vec<f64>,
    ratio: Vec<f64>,
    cpu_ratio: Vec<f64>,
    cpu_us: Vec<f64>,
    total: Option<Tally>,
    bare_per_second: Vec<f64>,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let folder = bench.folder("steady")?;
    let plain = bench
        .deploy(
            folder.join("plain"),
            vec![Deployed::plain(MODEL, ensemble(bench.seed))],
        )
        .await?;
    let bound = Deployment {
        folder: folder.join("features"),
        models: vec![Deployed {
            service: Some(account::SERVICE),
            ..Deployed::plain(MODEL, ensemble(bench.seed))
        }],
        features: Some(account::features_toml()),
        ..Deployment::on_one_core(&bench.loopgate)
    }
    .start()
    .await?;
    account::fill(bound.addresses.http, bench.seed).await?;
    let mut left_out = Vec::new();
    let mut subjects = subjects(bench, &plain, &bound, &mut left_out).await?;
    for round in 0..bench.rounds {
        eprintln!("steady: round {} of {}", round + 1, bench.rounds);
        for subject in &mut subjects {
            subject.run_once().await?;
        }
    }
    let half = half_load(bench, &subjects[0]).await?;
    drop(
        subjects
            .iter_mut()
            .map(|subject| subject.bare.take())
            .collect::<Vec<_>>(),
    );
    plain.drain().await?;
    bound.drain().await?;
    Ok(finding(
        bench,
        conditions,
        &subjects,
        half.as_ref(),
        &left_out,
    ))
}

async fn subjects(
    bench: &Bench,
    plain: &Gateway,
    bound: &Gateway,
    left_out: &mut Vec<String>,
) -> Result<Vec<Subject>> {
    let rows = rows(ROWS, bench.seed);
    let http = plain.addresses.http;
    let json = json_calls(MODEL, &rows);
    let binary = binary_calls(MODEL, &rows);
    let grpc = grpc_calls(MODEL, &rows);
    let asked = account::calls(MODEL, bound.addresses.http, ROWS, bench.seed).await?;
    let mut subjects =
        vec![Subject::against_bare(bench, "JSON", (http, plain.pid()), json.clone()).await?];
    let refusal = ask(http, &binary[0]).await?;
    if refusal.status.is_success() {
        subjects.push(
            Subject::against_bare(bench, "binary tensors", (http, plain.pid()), binary).await?,
        );
    } else {
        left_out.push(format!("binary tensors: answered {}", refusal.status));
    }
    subjects.push(
        Subject::against_bare(
            bench,
            "JSON, features from 4 views",
            (bound.addresses.http, bound.pid()),
            asked,
        )
        .await?,
    );
    let anew = Load {
        transport: Transport::ConnectionPerRequest,
        ..bench.closed(http, json.clone())
    };
    subjects.push(Subject::new("JSON, a connection each", anew, plain.pid()));
    let h2 = Load {
        transport: Transport::Http2 { streams: 4 },
        connections: CONNECTIONS / 4,
        ..bench.closed(http, json)
    };
    if h2
        .clone()
        .shortened()
        .run_beside()
        .await
        .is_ok_and(|tally| tally.answered() > 0)
    {
        subjects.push(Subject::new("JSON over h2", h2, plain.pid()));
    } else {
        left_out.push("JSON over h2: no answer on the HTTP port".into());
    }
    let unary = Load {
        transport: Transport::Grpc { streams: 4 },
        connections: CONNECTIONS / 4,
        ..bench.closed(plain.addresses.grpc, grpc)
    };
    subjects.push(Subject::new("gRPC, raw contents", unary, plain.pid()));
    Ok(subjects)
}

impl Subject {
    fn new(name: &'static str, load: Load, pid: u32) -> Self {
        Self {
            name,
            load,
            pid,
            bare: None,
            per_second: Vec::new(),
            ratio: Vec::new(),
            cpu_ratio: Vec::new(),
            cpu_us: Vec::new(),
            total: None,
            bare_per_second: Vec::new(),
        }
    }

    /// With a bare server that answers what the gateway answered to the first call.
    async fn against_bare(
        bench: &Bench,
        name: &'static str,
        (address, pid): (SocketAddr, u32),
        calls: Vec<Call>,
    ) -> Result<Self> {
        let body = answer(address, &calls[0]).await?;
        let header_length = calls[0].headers.first().map(|_| json_head(&body));
        let core = Bench::server_core();
        let folder = bench.folder("steady")?;
        let server = Server::bare(core, &folder, &calls[0], &body, header_length).await?;
        let bare = bench.closed(server.address, calls.clone());
        Ok(Self {
            bare: Some((bare, server)),
            ..Self::new(name, bench.closed(address, calls), pid)
        })
    }

    /// The bare server and the gateway, one right after the other.
    async fn run_once(&mut self) -> Result<()> {
        let bare = match &self.bare {
            Some((load, server)) => Some(measure(load.clone(), server.pid()).await?),
            None => None,
        };
        let own = measure(self.load.clone(), self.pid).await?;
        must_be_clean(self.name, &own.tally)?;
        self.per_second.push(own.tally.per_second());
        self.cpu_us.push(own.server_cpu_us);
        if let Some(bare) = bare {
            must_be_clean("bare", &bare.tally)?;
            self.bare_per_second.push(bare.tally.per_second());
            self.ratio
                .push(own.tally.per_second() / bare.tally.per_second());
            self.cpu_ratio.push(bare.server_cpu_us / own.server_cpu_us);
        }
        match &mut self.total {
            Some(total) => total.add(&own.tally)?,
            None => self.total = Some(own.tally),
        }
        Ok(())
    }

    fn row(&self, total: &Tally) -> Vec<String> {
        let percent = |shares: &[f64]| match shares {
            [] => "–".to_owned(),
            shares => format!("{:.0} %", 100.0 * median(shares)),
        };
        vec![
            self.name.into(),
            short(median(&self.per_second)),
            percent(&self.ratio),
            percent(&self.cpu_ratio),
            short(median(&self.cpu_us)),
            short(total.quantile_us(0.5)),
            short(total.quantile_us(0.99)),
            match total.busy_us() {
                0.0 => "–".into(),
                us => short(us),
            },
        ]
    }

    fn json(&self, total: &Tally) -> Value {
        json!({
            "per_second": self.per_second,
            "bare_per_second": self.bare_per_second,
            "ratio": self.ratio,
            "cpu_ratio": self.cpu_ratio,
            "server_cpu_us": self.cpu_us,
            "all_runs": total.json(),
        })
    }
}

/// The length of a binary answer's JSON head: it is one object, so up to the brace that closes it.
fn json_head(body: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut in_text = false;
    for (k, byte) in body.iter().enumerate() {
        match byte {
            b'"' => in_text = !in_text,
            b'{' if !in_text => depth += 1,
            b'}' if !in_text => {
                depth -= 1;
                if depth == 0 {
                    return k + 1;
                }
            }
            _ => {}
        }
    }
    body.len()
}

/// An open loop at half of the gateway's capacity: the gateway and the bare server at one rate.
struct Half {
    per_second: f64,
    own: Tally,
    bare: Tally,
    discarded: usize,
}

/// `None` where the generator was late in every run of a server: the machine was busy.
async fn half_load(bench: &Bench, subject: &Subject) -> Result<Option<Half>> {
    let per_second = median(&subject.per_second) / 2.0;
    let (mut own, mut bare): (Option<Tally>, Option<Tally>) = (None, None);
    let mut discarded = 0;
    let Some((bare_load, _)) = &subject.bare else {
        anyhow::bail!("half load is measured against a bare server");
    };
    for round in 0..bench.rounds {
        for (load, sum) in [(bare_load, &mut bare), (&subject.load, &mut own)] {
            let tally = Load {
                arrivals: Arrivals::Poisson {
                    per_second,
                    seed: bench.seed + round as u64,
                },
                connections: OPEN_CONNECTIONS,
                ..load.clone()
            }
            .run_beside()
            .await?;
            match sum {
                _ if !tally.on_time() => discarded += 1,
                Some(sum) => sum.add(&tally)?,
                None => *sum = Some(tally),
            }
        }
    }
    Ok(own.zip(bare).map(|(own, bare)| Half {
        per_second,
        own,
        bare,
        discarded,
    }))
}

impl Half {
    fn sentence(&self) -> String {
        let quantiles = |tally: &Tally| {
            let [a, b, c] = [0.5, 0.99, 0.999].map(|quantile| short(tally.quantile_us(quantile)));
            format!("{a}, {b} and {c} µs")
        };
        format!(
            "At half load (open loop, {}/s, {OPEN_CONNECTIONS} connections) p50, p99 and p99.9 are {}, the \
             bare server's at that rate {}: {} µs between the two p99. Runs discarded because the \
             generator was late: {}.",
            short(self.per_second),
            quantiles(&self.own),
            quantiles(&self.bare),
            short(self.beyond_us()),
            self.discarded
        )
    }

    /// What the gateway's tail is above the bare server's.
    fn beyond_us(&self) -> f64 {
        self.own.quantile_us(0.99) - self.bare.quantile_us(0.99)
    }

    fn json(&self) -> Value {
        json!({
            "per_second": self.per_second,
            "gateway": self.own.json(),
            "bare": self.bare.json(),
            "p99_beyond_bare_us": self.beyond_us(),
            "discarded": self.discarded,
        })
    }
}

fn finding(
    bench: &Bench,
    conditions: Conditions,
    subjects: &[Subject],
    half: Option<&Half>,
    left_out: &[String],
) -> Finding {
    let mut table = Table::new(&[
        "one row of 71 floats, 200 × 31 trees",
        "per second",
        "of bare hyper",
        "by processor time",
        "gateway µs/request",
        "p50 µs",
        "p99 µs",
        "generator µs/request",
    ]);
    let mut figures = serde_json::Map::new();
    let mut bars = Vec::new();
    for subject in subjects {
        if let Some(total) = &subject.total {
            table.push(&subject.row(total));
            figures.insert(subject.name.into(), subject.json(total));
        }
        if !subject.bare_per_second.is_empty() {
            let name = format!("bare hyper, {}", subject.name);
            bars.push((name, median(&subject.bare_per_second)));
        }
        bars.push((subject.name.to_owned(), median(&subject.per_second)));
    }
    let half_load = half.map_or_else(
        || "Half load: the generator was late in every run, the machine was busy.".to_owned(),
        Half::sentence,
    );
    let method = format!(
        "One serving thread on one core, recording and statistics on, {CONNECTIONS} connections, closed \
         loop, {} interleaved runs of {} s, each after one of a bare hyper server that reads the same body \
         and answers the same bytes; medians. {half_load}{}",
        bench.rounds,
        bench.run.as_secs_f64(),
        match left_out {
            [] => String::new(),
            left_out => format!(" Left out: {}.", left_out.join("; ")),
        }
    );
    figures.insert("half_load".into(), half.map_or(Value::Null, Half::json));
    figures.insert("left_out".into(), json!(left_out));
    Finding {
        name: "steady",
        title: "Steady: one core",
        method,
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Answers per second".into(),
            unit: "/s".into(),
            bars,
        }],
    }
}

impl Load {
    /// Just enough to see whether anything answers.
    fn shortened(self) -> Self {
        Self {
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_binary_answer_ends_with_its_object() {
        let head = br#"{"a":{"b}":1},"c":"}"}"#;
        let mut body = head.to_vec();
        body.extend_from_slice(b"}{\0\"");
        assert_eq!(json_head(&body), head.len());
    }
}

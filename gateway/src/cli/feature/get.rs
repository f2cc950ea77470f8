//! `loopgate feature get`: one row of a service or a view, now or at a past moment.
//!
//! Asks the gateway where one has the folder open, else opens the folder.

use std::net::SocketAddr;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use featurestore::{Field, FieldType, OpenError, nearest, time_ms};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::super::admin_client::Call;
use super::super::{ProjectArgs, block_on, print, print_json, wall_ms};
use super::text::{span, table, time};
use crate::lookup::{RowsAsked, RowsTold, Target, Times};

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// A service or a view: `delay`, `delay@2`, `view:delay`
    name: String,
    /// The request's fields, or the view's keys
    #[arg(value_name = "FIELD=VALUE", value_parser = field_value)]
    fields: Vec<(String, String)>,
    /// The moment that the row is asked for: RFC 3339, or milliseconds. Default now
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<i64>,
    /// Count the events that had arrived by then. Default `--at`; without either, the online state
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    known_at: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The gateway's admin listener, where it is not the one of loopgate.toml
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

fn field_value(text: &str) -> Result<(String, String), String> {
    let (field, value) = text.split_once('=').ok_or("expected FIELD=VALUE")?;
    Ok((field.to_owned(), value.to_owned()))
}

pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    let json = text
        .parse()
        .map_or_else(|_| json!(text), |ms: i64| json!(ms));
    time_ms(&json).map_err(|problem| problem.to_string())
}

pub(super) fn run(args: &GetArgs) -> Result<()> {
    let project = args.project.open()?;
    let target = Target::find(&project.definitions, &args.name)?;
    let row = row(target.fields(), &args.fields)?;
    // Asked of a gateway, now is its own.
    let known_at_ms = args.known_at.or(args.at);
    let times = Times {
        at_ms: args.at.unwrap_or_else(wall_ms),
        known_at_ms,
    };
    let asked = RowsAsked::new(target, std::slice::from_ref(&row), times)?;
    let tls = project.serve.security.tls.clone();
    let address = args.admin.unwrap_or(project.serve.listeners.admin);
    let told = match super::open(project) {
        Ok(store) => asked.tell(&store, &mut |_| ControlFlow::Continue(()))?,
        Err(held @ OpenError::Held { .. }) => {
            let body = json!({"rows": [row], "at_ms": args.at, "known_at_ms": known_at_ms});
            let call = Call {
                method: Method::POST,
                path: &format!("/v1/features/{}", args.name),
                body: Bytes::from(body.to_string()),
            };
            let answer = block_on(super::ask(call, address, tls.as_ref()));
            let answer = answer.with_context(|| held.to_string())?;
            serde_json::from_value(answer).context("the gateway's answer")?
        }
        Err(error) => return Err(error.into()),
    };
    ensure!(
        told.rows.len() == 1,
        "one row was asked for, {} came",
        told.rows.len()
    );
    if args.json {
        return print_json(&as_json(&told));
    }
    print(&drawn(&told))
}

/// The fields as JSON of their types; what is no number where one is wanted is left to be refused.
fn row(fields: &[Field], given: &[(String, String)]) -> Result<Map<String, Value>> {
    let mut row = Map::new();
    for (name, text) in given {
        let Some(field) = fields.iter().find(|field| &*field.name == name.as_str()) else {
            let names = fields.iter().map(|field| &*field.name);
            let known = names.clone().collect::<Vec<_>>().join(", ");
            match nearest(name, names) {
                Some(like) => {
                    bail!("unknown field `{name}`, did you mean `{like}`? It takes {known}")
                }
                None => bail!("unknown field `{name}`: this is asked without fields"),
            }
        };
        let value = match field.ty {
            FieldType::String => json!(text),
            _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        };
        if row.insert(name.clone(), value).is_some() {
            bail!("field `{name}` is given twice");
        }
    }
    if let Some(missing) = fields
        .iter()
        .find(|field| !field.nullable && !row.contains_key(&*field.name))
    {
        bail!("field `{}` ({}) is missing", missing.name, missing.ty);
    }
    Ok(row)
}

/// How old the newest event of a feature was when the row was asked for.
fn age_ms(told: &RowsTold, event_ms: i64) -> Option<i64> {
    (event_ms != 0).then(|| told.at_ms - event_ms)
}

fn as_json(told: &RowsTold) -> Value {
    let rows = told.rows.iter().map(|row| {
        let features = told.features.iter().enumerate().map(|(index, name)| {
            let event_ms = row.event_times_ms.get(index).copied().unwrap_or(0);
            json!({
                "feature": name,
                "value": row.values.get(index),
                "status": row.statuses.get(index),
                "event_ms": (event_ms != 0).then_some(event_ms),
                "age_ms": age_ms(told, event_ms),
            })
        });
        json!({
            "service": told.service,
            "view": told.view,
            "at_ms": told.at_ms,
            "known_at_ms": told.known_at_ms,
            "as_of_seq": row.as_of_seq,
            "refused": row.refused,
            "features": features.collect::<Vec<_>>(),
        })
    });
    rows.collect::<Vec<_>>().pop().unwrap_or_default()
}

fn drawn(told: &RowsTold) -> String {
    let name = match (&told.service, &told.view) {
        (Some(service), _) => format!("service {service}"),
        (None, view) => format!("view {}", view.as_deref().unwrap_or_default()),
    };
    let known = match told.known_at_ms {
        Some(known_ms) => format!("known at {}", time(known_ms)),
        None => "as served now".to_owned(),
    };
    let mut text = String::new();
    for row in &told.rows {
        let at = time(told.at_ms);
        text.push_str(&format!(
            "{name} at {at}, {known}, up to event {}\n\n",
            row.as_of_seq
        ));
        let head = ["feature", "value", "status", "newest event", "age"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (index, feature) in told.features.iter().enumerate() {
            let value = row.values.get(index).filter(|value| !value.is_null());
            let value = value.map_or("-".to_owned(), |value| match (value, &told.service) {
                (Value::String(text), _) => text.clone(),
                // A service's values are of 32 bits: more digits would say nothing.
                (value, Some(_)) => value
                    .as_f64()
                    .map_or_else(|| value.to_string(), |wide| (wide as f32).to_string()),
                (value, None) => value.to_string(),
            });
            let event_ms = row.event_times_ms.get(index).copied().unwrap_or(0);
            let age = age_ms(told, event_ms);
            rows.push(vec![
                feature.clone(),
                value,
                row.statuses.get(index).cloned().unwrap_or_default(),
                age.map_or("-".to_owned(), |_| time(event_ms)),
                age.map_or("-".to_owned(), span),
            ]);
        }
        text.push_str(&table("  ", &rows));
        if let Some(refused) = &row.refused {
            text.push_str(&format!("\nno model may answer from it: {refused}\n"));
        }
    }
    text
}

//! Derived features: the language against a naive evaluator, and what a service makes of it.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "reference/tree_walk.rs"]
mod tree_walk;

use std::sync::Arc;

use featurestore::expression::{DEPTH_MAX, Expression, NODES_MAX};
use featurestore::{Definitions, Event, FeatureRow, Service, Status, Value, ViewState};
use proptest::prelude::*;

use self::tree_walk::{Sample, Tree, any_sample, any_tree, scope};

const DEFINITIONS: &str = r#"
[[source]]
name = "payments"
time = "paid_at"
id = ["payment"]
fields = { payment = "int", card = "string", paid_at = "time", amount = "float?", country = "string?", shop_id = "int" }

[[view]]
name = "card"
source = "payments"
keys = ["card"]
windows = ["1h", "24h"]
ttl = "7d"
features = [{ count = true }, { sum = "amount" }, { mean = "amount" }, { last = "paid_at" }, { last = "country" }, { last = "shop_id" }]

[[derived]]
name = "share_of_day"
expression = "card:sum_amount_1h / card:sum_amount_24h"

[[service]]
name = "fraud"
version = 1
request = { card = "string?", amount = "float", merchant = "string", merchant_id = "int", trusted_id = "int?", ordered_at = "time?" }
features = [
  { request = "amount", name = "pounds" },
  { derived = "share_of_day" },
  { derived = "share_of_day", name = "share_or_none", default = -1 },
  { name = "ratio", expression = "amount / coalesce(card:mean_amount_24h, 1)", clip = [0, 10] },
  { view = "card", features = ["last_country"], dictionary = ["UK", "US"], name = "country" },
  { name = "abroad", expression = "card:last_country != 'UK'" },
  { name = "same_shop", expression = "card:last_shop_id == merchant_id" },
  { name = "since", expression = "hours_between(card:last_paid_at, at)" },
  { name = "trusted", expression = "merchant_id == trusted_id" },
  { name = "size", expression = "bucket(amount, [10, 100, 1000])" },
  { name = "night", expression = "hour(at) < 6 or hour(at) >= 22" },
  { name = "weekday", expression = "day_of_week(at)" },
  { name = "waited", expression = "hours_between(ordered_at, at)" },
  { name = "kind", expression = "if(merchant == 'ACME', 'own', merchant)", dictionary = ["own", "Shop"] },
  { name = "grown", difference = ["card:count_24h", "card:count_1h"] },
  { name = "grown_too", expression = "card:count_24h - card:count_1h" },
]
"#;

/// A Friday, 01:00:00Z.
const AT_MS: i64 = 1_362_099_600_000;
const HOUR_MS: i64 = 3_600_000;

fn service(text: &str) -> Arc<Service> {
    let definitions = Definitions::parse(text, "features.toml").unwrap();
    Arc::clone(definitions.service("fraud").unwrap())
}

fn refused(from: &str, to: &str) -> String {
    assert!(DEFINITIONS.contains(from), "{from}");
    let text = DEFINITIONS.replacen(from, to, 1);
    Definitions::parse(&text, "features.toml")
        .unwrap_err()
        .to_string()
}

/// The state of a card after payments of the given ages and amounts.
fn state(service: &Service, payments: &[(i64, Option<f64>)]) -> Option<ViewState> {
    let view = &service.needed_views()[0];
    let mut state = ViewState::default();
    for (&(age_ms, amount), number) in payments.iter().zip(1..) {
        let values = vec![
            Value::Int(number),
            Value::String("c1".into()),
            Value::Int(AT_MS - age_ms),
            amount.map_or(Value::Null, Value::Float),
            amount.map_or(Value::Null, |_| Value::String("US".into())),
            Value::Int((1 << 60) + 1),
        ];
        let event: Event = view.source.event(0, values, AT_MS).unwrap();
        state.fold(view, &event, number.unsigned_abs());
    }
    (!payments.is_empty()).then_some(state)
}

fn request() -> Vec<Value> {
    vec![
        Value::String("c1".into()),
        Value::Float(60.0),
        Value::String("ACME".into()),
        Value::Int((1 << 60) + 1),
        Value::Int(1 << 60),
        Value::Int(AT_MS - 90 * 60_000),
    ]
}

struct Column {
    value: f32,
    status: Status,
    event_ms: i64,
}

fn column(service: &Service, row: &FeatureRow, name: &str) -> Column {
    let place = service.feature_names().position(|known| known == name);
    let place = place.unwrap();
    Column {
        value: row.values[place],
        status: row.statuses[place],
        event_ms: row.event_times_ms[place],
    }
}

#[test]
fn a_service_computes_what_its_expressions_say() {
    let service = service(DEFINITIONS);
    let payments = [(30 * 60_000, Some(30.0)), (5 * HOUR_MS, Some(10.0))];
    let row = service.assemble(&request(), &[state(&service, &payments)], AT_MS, 2);
    let value = |name: &str| column(&service, &row, name).value;
    assert_eq!(value("pounds"), 60.0);
    assert_eq!(value("share_of_day"), 0.75);
    assert_eq!(value("share_or_none"), 0.75);
    assert_eq!(value("ratio"), 3.0);
    // Ids that are one apart beyond 2^53 are not the same.
    assert_eq!(value("trusted"), 0.0);
    assert_eq!(value("size"), 1.0);
    assert_eq!(value("night"), 1.0);
    assert_eq!(value("country"), 1.0);
    assert_eq!(value("abroad"), 1.0);
    assert_eq!(value("same_shop"), 1.0);
    assert_eq!(value("since"), 0.5);
    assert_eq!(value("weekday"), 5.0);
    assert_eq!(value("waited"), 1.5);
    assert_eq!(value("kind"), 0.0);
    assert_eq!(value("grown").to_bits(), value("grown_too").to_bits());
    let newest_ms = AT_MS - 30 * 60_000;
    assert_eq!(column(&service, &row, "ratio").event_ms, newest_ms);
    assert_eq!(column(&service, &row, "size").event_ms, AT_MS);
    assert!(row.statuses.iter().all(|&status| status == Status::Present));
}

#[test]
fn the_example_of_the_docs_is_right() {
    let page = include_str!("../../docs/features.md");
    let example = page.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let before = DEFINITIONS.split("[[derived]]").next().unwrap();
    let before = before.replace("country", "merchant");
    let service = service(&format!("{before}{example}"));
    assert_eq!(service.features.len(), 5);
}

#[test]
fn what_is_missing_says_why() {
    let service = service(DEFINITIONS);
    let mut request = request();
    request[2] = Value::String("Other".into());
    request[4] = Value::Null;
    request[5] = Value::Null;
    let row = |payments: &[(i64, Option<f64>)]| {
        service.assemble(&request, &[state(&service, payments)], AT_MS, 2)
    };
    let unknown = row(&[]);
    let status = |row: &FeatureRow, name: &str| column(&service, row, name).status;
    assert_eq!(status(&unknown, "share_of_day"), Status::NotFound);
    assert_eq!(column(&service, &unknown, "share_or_none").value, -1.0);
    assert_eq!(status(&unknown, "share_or_none"), Status::NotFound);
    // The default of `coalesce` is a value like another: 60 / 1, clipped.
    assert_eq!(status(&unknown, "ratio"), Status::Present);
    assert_eq!(column(&service, &unknown, "ratio").value, 10.0);
    assert_eq!(status(&unknown, "trusted"), Status::NullValue);
    assert_eq!(status(&unknown, "country"), Status::NotFound);
    assert_eq!(status(&unknown, "abroad"), Status::NotFound);
    assert_eq!(status(&unknown, "waited"), Status::NullValue);
    assert_eq!(status(&unknown, "kind"), Status::UnknownCategory);
    let old = row(&[(8 * 24 * HOUR_MS, Some(1.0))]);
    assert_eq!(status(&old, "share_of_day"), Status::OutsideMaxAge);
    assert_eq!(status(&old, "country"), Status::OutsideMaxAge);
    assert_eq!(status(&old, "since"), Status::OutsideMaxAge);
    // 0 / 0 is no number.
    let free = row(&[(0, None)]);
    assert_eq!(status(&free, "share_of_day"), Status::NullValue);
    assert!(column(&service, &free, "share_of_day").value.is_nan());
    assert_eq!(status(&free, "country"), Status::NullValue);
    assert_eq!(status(&free, "abroad"), Status::NullValue);
    assert_eq!(column(&service, &free, "country").event_ms, AT_MS);
}

#[test]
fn a_number_too_large_for_32_bits_is_null() {
    let text = DEFINITIONS.replace("bucket(amount, [10, 100, 1000])", "amount * 1e300");
    let service = service(&text);
    let row = service.assemble(&request(), &[None], AT_MS, 0);
    let size = column(&service, &row, "size");
    assert_eq!(size.status, Status::NullValue);
    assert!(size.value.is_nan());
}

#[test]
fn a_wrong_expression_is_refused_with_line_key_column_and_nearest_name() {
    let cases = [
        (
            "bucket(amount,",
            "bucket(amuont,",
            "features.toml:34: key `expression`: column 8: unknown name `amuont`, did you mean `amount`?",
        ),
        (
            "bucket(amount,",
            "bukket(amount,",
            "features.toml:34: key `expression`: column 1: unknown function `bukket`, did you mean `bucket`?",
        ),
        (
            "card:mean_amount_24h, 1)",
            "card:mean_amount_2h, 1)",
            "features.toml:28: key `expression`: column 19: unknown name `mean_amount_2h`, did you mean `mean_amount_24h`?",
        ),
        (
            "amount / coalesce",
            "amount + merchant / coalesce",
            "features.toml:28: key `expression`: column 10: `/` takes a number here, `merchant` is a string",
        ),
        (
            "hour(at) < 6 or",
            "hour(at) < 6 < 7 or",
            "features.toml:35: key `expression`: column 14: comparisons do not chain: write `a < b and b < c`",
        ),
        (
            "'own', merchant)",
            "'own', amount)",
            "features.toml:38: key `expression`: column 31: `if` takes a string here, `amount` is a number",
        ),
        (
            "\"day_of_week(at)\"",
            "\"at\"",
            "features.toml:36: key `expression`: `at` is a time, which is no feature: take its `hour`, or the `hours_between` it and another, in an `expression`",
        ),
        (
            ", dictionary = [\"own\", \"Shop\"]",
            "",
            "features.toml:38: key `expression`: `if(merchant == 'ACME', 'own', merchant)` is a string and needs a `dictionary`",
        ),
        (
            "[10, 100, 1000]",
            "[10, 100, 100]",
            "features.toml:34: key `expression`: column 26: `100` is not above the bound before it",
        ),
        (
            "name = \"ratio\", ",
            "",
            "features.toml:28: key `expression`: needs a `name` for its column",
        ),
        (
            "card:sum_amount_1h /",
            "cart:sum_amount_1h /",
            "features.toml:26: key `derived`: column 1: unknown name `cart`, did you mean `card`?",
        ),
        (
            "card:sum_amount_1h /",
            "card:sum_amount_1h //",
            "features.toml:18: key `expression`: column 21: expected a value, found `/`",
        ),
        (
            "{ derived = \"share_of_day\" },",
            "{ derived = \"share_of_dya\" },",
            "features.toml:26: key `derived`: unknown name `share_of_dya`, did you mean `share_of_day`?",
        ),
        (
            "[[service]]",
            "[[derived]]\nname = \"unused\"\nexpression = \"1\"\n[[service]]",
            "features.toml:21: key `derived`: no service uses `unused`",
        ),
        (
            "default = -1",
            "missing = \"default\"",
            "features.toml:27: key `missing`: needs a `default`",
        ),
        (
            "default = -1",
            "default = -1, missing = \"refuse\"",
            "features.toml:27: key `missing`: does not go with `default`",
        ),
        (
            "default = -1",
            "missing = \"refused\"",
            "features.toml:27: key `missing`: unknown name `refused`, did you mean `refuse`?",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refused(from, to), message);
    }
}

#[test]
fn a_field_called_at_and_the_moment_are_told_apart() {
    let renamed = |text: &str| {
        DEFINITIONS
            .replace(
                "amount = \"float\", merchant",
                "at = \"float\", amount = \"float\", merchant",
            )
            .replace("bucket(amount, [10, 100, 1000])", text)
    };
    let error = Definitions::parse(&renamed("hour(at)"), "features.toml").unwrap_err();
    assert!(
        error.to_string().contains("`at` is the request's moment"),
        "{error}"
    );
    let text = renamed("`at` + 1")
        .replace("hour(at)", "1")
        .replace("_week(at)", "_week(ordered_at)");
    let text = text.replace(", at)", ", ordered_at)");
    Definitions::parse(&text, "features.toml").unwrap();
}

#[test]
fn a_column_that_refuses_names_itself_and_its_status() {
    let service = service(&DEFINITIONS.replace("default = -1", "missing = \"refuse\""));
    let row = service.assemble(&request(), &[None], AT_MS, 0);
    assert_eq!(
        service.check_row(&row).unwrap_err().to_string(),
        "feature `share_or_none` is NOT_FOUND, and `fraud@1` refuses a row without it"
    );
    let row = service.assemble(&request(), &[state(&service, &[(0, Some(1.0))])], AT_MS, 0);
    assert_eq!(service.check_row(&row), Ok(()));
    let plain = self::service(DEFINITIONS);
    let row = plain.assemble(&request(), &[None], AT_MS, 0);
    assert_eq!(plain.check_row(&row), Ok(()));
}

#[test]
fn a_name_is_for_an_entry_of_one_column() {
    let text = DEFINITIONS.replace(
        "{ derived = \"share_of_day\" },",
        "{ view = \"card\", features = [\"count_1h\"], name = \"recent\" }, { derived = \"share_of_day\" },",
    );
    assert_eq!(service(&text).feature_names().nth(1), Some("recent"));
    let text = text.replace("[\"count_1h\"]", "[\"count_1h\", \"count_24h\"]");
    let error = Definitions::parse(&text, "features.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "features.toml:26: key `features`: names one column, but the entry has more"
    );
}

#[test]
fn size_and_depth_are_bounded() {
    let refusal = |text: &str| Expression::parse(text).unwrap_err().problem;
    let deep = format!("{}1{}", "(".repeat(DEPTH_MAX), ")".repeat(DEPTH_MAX));
    assert_eq!(refusal(&deep), "is nested deeper than 32");
    Expression::parse(&deep[1..deep.len() - 1]).unwrap();
    assert_eq!(refusal(&"-".repeat(4000)), "is nested deeper than 32");
    let terms = NODES_MAX.div_ceil(2);
    let wide = vec!["1"; terms].join("+");
    Expression::parse(&wide).unwrap();
    assert_eq!(refusal(&format!("{wide}+1")), "has more than 256 parts");
    let bounds = (0..300).map(|bound| bound.to_string());
    let bounds = format!("bucket(1, [{}])", bounds.collect::<Vec<_>>().join(","));
    assert_eq!(refusal(&bounds), "has more than 256 parts");
    assert_eq!(
        refusal(&" ".repeat(5000)),
        "5000 bytes, at most 4096 are read"
    );
    // Each level leaves fifteen values behind that wait for the next.
    let fifteen = "1,".repeat(15);
    let waiting = format!("max({fifteen}max({fifteen}max({fifteen}1)))");
    let error = Expression::parse(&waiting).unwrap();
    let error = error.resolve(&mut scope()).unwrap_err();
    assert_eq!(
        error.problem,
        "more than 32 values wait for one another here"
    );
}

#[test]
fn precedence_is_that_of_arithmetic() {
    for (text, full) in [
        ("1 + 2 * 3", "1 + (2 * 3)"),
        ("1 - 2 - 3", "(1 - 2) - 3"),
        ("-1 * 2", "(-1) * 2"),
        (
            "not true or false and 1 < 2",
            "(not true) or (false and (1 < 2))",
        ),
        ("not 1 + 1 == 2", "not ((1 + 1) == 2)"),
        ("8 / 4 / 2", "(8 / 4) / 2"),
    ] {
        let parsed = Expression::parse(text).unwrap();
        assert_eq!(parsed, Expression::parse(full).unwrap());
        assert_eq!(parsed.to_string(), text);
    }
    for wrong in [
        "",
        "1 +",
        "(1",
        "1)",
        "a b",
        "f(",
        "if()",
        "1 == not true",
        "a = 1",
        "'a",
        "`",
        "1.2.3",
        "3x",
        "é",
        "bucket(1, [])",
        "bucket(1)",
        "coalesce(1)",
        "hour(at, at)",
        "1 ] 2",
    ] {
        assert!(Expression::parse(wrong).is_err(), "{wrong}");
    }
}

/// Words from which texts are made that are nearly expressions.
fn nearly() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        Just("if("),
        Just("coalesce("),
        Just("bucket("),
        Just("("),
        Just(")"),
        Just("["),
        Just("]"),
        Just(","),
        Just("-"),
        Just("*"),
        Just("<"),
        Just("=="),
        Just("and"),
        Just("not"),
        Just("at"),
        Just("n1"),
        Just("v:n"),
        Just("v@2:n"),
        Just("`a-b`"),
        Just("'x'"),
        Just("\"y\""),
        Just("12"),
        Just("1.5e-7"),
        Just("true"),
        Just("hour("),
        Just("é"),
        Just("@"),
        Just(":"),
        Just("."),
    ];
    proptest::collection::vec(words, 0..24).prop_map(|words| words.join(" "))
}

fn reads_back(text: &str) -> Result<(), TestCaseError> {
    if let Ok(parsed) = Expression::parse(text) {
        let written = parsed.to_string();
        let again = Expression::parse(&written);
        prop_assert_eq!(again.as_ref(), Ok(&parsed), "{} as {}", text, written);
        prop_assert_eq!(again.unwrap().to_string(), written);
        let _ = parsed.resolve(&mut scope());
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_an_expression_or_refused(bytes: Vec<u8>) {
        reads_back(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_words_are_an_expression_or_refused(text in nearly()) {
        reads_back(&text)?;
    }

    #[test]
    fn a_program_computes_what_a_walk_of_the_tree_does(tree in any_tree(), sample in any_sample()) {
        check(&tree, &sample)?;
    }
}

/// The text of a tree, read, resolved and run, against a walk of the tree itself.
fn check(tree: &Tree, sample: &Sample) -> Result<(), TestCaseError> {
    let text = tree.text();
    let parsed = Expression::parse(&text).unwrap();
    let walked = tree.walk(sample);
    for expression in [Expression::parse(&parsed.to_string()).unwrap(), parsed] {
        let program = match expression.resolve(&mut scope()) {
            Ok(program) => program,
            Err(error) => {
                prop_assert!(
                    error.problem.starts_with("more than 32 values"),
                    "{}: {}",
                    text,
                    error
                );
                return Ok(());
            }
        };
        let ran = program.run(|operand| sample.datum(operand));
        prop_assert!(
            tree_walk::same(ran, &walked),
            "{}: {:?}, not {:?}",
            text,
            ran,
            walked
        );
    }
    Ok(())
}

//! Expressions the plain way: a typed tree with its own text and its own, lazy evaluation. Shares
//! nothing with the program but the names of operands.

use std::cmp::Ordering;

use chrono::{DateTime, Datelike, Timelike, Utc};
use featurestore::expression::{Datum, Operand, Scope, Type, Unknown};
use featurestore::{InView, Status};
use proptest::prelude::*;

/// A value as the walk knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    Missing(Status),
    Float(f64),
    Int(i64),
    Flag(bool),
    Word(String),
    Moment(i64),
}

/// An expression.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Constant(Plain),
    /// Operand number; two of each type
    Name(usize),
    At,
    Prefix(&'static str, Box<Tree>),
    Infix(Box<Tree>, &'static str, Box<Tree>),
    Call(&'static str, Vec<Tree>),
    Bucket(Box<Tree>, Vec<i32>),
}

/// Operands: numbers 0, 1 (integers 2, 3), bools 4, 5, strings 6, 7, times 8, 9, features 10, 11.
const NAMES: [&str; 12] = [
    "f0", "f1", "i0", "i1", "b0", "b1", "s0", "`s-1`", "t0", "t1", "v:x", "v@2:x",
];

/// A row: one value for each operand, and its moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    values: Vec<Plain>,
    at_ms: i64,
}

impl Sample {
    pub(crate) fn datum(&self, operand: Operand) -> Datum<'_> {
        let place = match operand {
            Operand::Moment => return Datum::Time(self.at_ms),
            Operand::Field { field, .. } => field,
            Operand::Feature { at, .. } => 10 + at.view,
        };
        match &self.values[place] {
            Plain::Missing(status) => Datum::Missing(*status),
            Plain::Float(number) => Datum::number(*number),
            Plain::Int(number) => Datum::Int(*number),
            Plain::Flag(flag) => Datum::Bool(*flag),
            Plain::Word(word) => Datum::Text(word),
            Plain::Moment(ms) => Datum::Time(*ms),
        }
    }
}

struct Names;

/// The operands by name.
pub(crate) fn scope() -> impl Scope {
    Names
}

impl Scope for Names {
    fn field(&mut self, name: &str) -> Result<(Operand, Type), Unknown> {
        let bare = |known: &&str| known.trim_matches('`') == name && !known.contains(':');
        let place = NAMES.iter().position(bare);
        let field = place.ok_or_else(|| Unknown {
            problem: format!("unknown name `{name}`"),
            nearest: None,
        })?;
        let ty = match field {
            0..=3 => Type::Number,
            4 | 5 => Type::Bool,
            6 | 7 => Type::Text,
            _ => Type::Time,
        };
        Ok((Operand::Field { field, ty }, ty))
    }

    fn feature(&mut self, view: &str, _: &str) -> Result<(Operand, Type), Unknown> {
        let view = usize::from(view == "v@2");
        let at = InView { view, feature: 0 };
        let ty = Type::Number;
        Ok((Operand::Feature { at, ty }, ty))
    }
}

/// Whether a program's value is that of the walk, to the bit.
pub(crate) fn same(ran: Datum<'_>, walked: &Plain) -> bool {
    match (ran, walked) {
        (Datum::Missing(a), Plain::Missing(b)) => a == *b,
        (Datum::Number(a), Plain::Float(b)) => a.to_bits() == b.to_bits(),
        (Datum::Int(a), Plain::Int(b)) | (Datum::Time(a), Plain::Moment(b)) => a == *b,
        (Datum::Bool(a), Plain::Flag(b)) => a == *b,
        (Datum::Text(a), Plain::Word(b)) => a == *b,
        _ => false,
    }
}

impl Tree {
    /// With parentheses around everything.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Constant(Plain::Float(number)) => format!("{number:?}"),
            Self::Constant(Plain::Int(number)) => number.to_string(),
            Self::Constant(Plain::Flag(flag)) => flag.to_string(),
            Self::Constant(Plain::Word(word)) => format!("'{word}'"),
            Self::Constant(other) => unreachable!("{other:?} has no text"),
            Self::Name(place) => NAMES[*place].to_owned(),
            Self::At => "at".to_owned(),
            Self::Prefix(sign, operand) => format!("({sign} {})", operand.text()),
            Self::Infix(left, sign, right) => format!("({} {sign} {})", left.text(), right.text()),
            Self::Call(name, arguments) => {
                let arguments: Vec<_> = arguments.iter().map(Self::text).collect();
                format!("{name}({})", arguments.join(", "))
            }
            Self::Bucket(operand, bounds) => format!("bucket({}, {bounds:?})", operand.text()),
        }
    }

    pub(crate) fn walk(&self, sample: &Sample) -> Plain {
        match self {
            Self::Constant(value) => value.clone(),
            Self::Name(place) => sample.values[*place].clone(),
            Self::At => Plain::Moment(sample.at_ms),
            Self::Prefix(sign, operand) => match (*sign, operand.walk(sample)) {
                ("-", Plain::Float(number)) => Plain::Float(-number),
                ("-", Plain::Int(i64::MIN)) => Plain::Missing(Status::NullValue),
                ("-", Plain::Int(number)) => Plain::Int(-number),
                (_, Plain::Flag(flag)) => Plain::Flag(!flag),
                (_, missing) => missing,
            },
            Self::Infix(left, sign, right) => {
                let left = left.walk(sample);
                if let Plain::Missing(_) = left {
                    return left;
                }
                let right = right.walk(sample);
                if let Plain::Missing(_) = right {
                    return right;
                }
                infix(&left, sign, &right)
            }
            Self::Call("if", arguments) => match arguments[0].walk(sample) {
                Plain::Flag(true) => arguments[1].walk(sample),
                Plain::Flag(false) => arguments[2].walk(sample),
                missing => missing,
            },
            Self::Call("coalesce", arguments) => {
                let first = arguments[0].walk(sample);
                if !matches!(first, Plain::Missing(_)) {
                    return first;
                }
                for argument in &arguments[1..] {
                    let value = argument.walk(sample);
                    if !matches!(value, Plain::Missing(_)) {
                        return value;
                    }
                }
                first
            }
            Self::Call("present", arguments) => {
                Plain::Flag(!matches!(arguments[0].walk(sample), Plain::Missing(_)))
            }
            Self::Call(name, arguments) => {
                let mut values = Vec::new();
                for argument in arguments {
                    match argument.walk(sample) {
                        missing @ Plain::Missing(_) => return missing,
                        value => values.push(value),
                    }
                }
                called(name, &values)
            }
            Self::Bucket(operand, bounds) => match operand.walk(sample) {
                missing @ Plain::Missing(_) => missing,
                value => {
                    let value = float(&value);
                    let passed = bounds.iter().filter(|&&bound| value >= f64::from(bound));
                    Plain::Int(passed.count() as i64)
                }
            },
        }
    }
}

fn float(value: &Plain) -> f64 {
    match value {
        Plain::Float(number) => *number,
        Plain::Int(number) => *number as f64,
        other => unreachable!("{other:?} is no number"),
    }
}

fn finite(number: f64) -> Plain {
    match number.is_finite() {
        true => Plain::Float(number),
        false => Plain::Missing(Status::NullValue),
    }
}

fn infix(left: &Plain, sign: &str, right: &Plain) -> Plain {
    let order = match (left, right) {
        (Plain::Flag(a), Plain::Flag(b)) => match sign {
            "and" => return Plain::Flag(*a & *b),
            "or" => return Plain::Flag(*a | *b),
            _ => a.cmp(b),
        },
        (Plain::Word(a), Plain::Word(b)) => a.cmp(b),
        (Plain::Moment(a), Plain::Moment(b)) => a.cmp(b),
        (a, b) => {
            match sign {
                "+" => return finite(float(a) + float(b)),
                "-" => return finite(float(a) - float(b)),
                "*" => return finite(float(a) * float(b)),
                "/" => return finite(float(a) / float(b)),
                _ => {}
            }
            match (a, b) {
                (Plain::Int(a), Plain::Int(b)) => a.cmp(b),
                (a, b) => float(a).partial_cmp(&float(b)).unwrap(),
            }
        }
    };
    Plain::Flag(match sign {
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        ">=" => order != Ordering::Less,
        "==" => order == Ordering::Equal,
        _ => order != Ordering::Equal,
    })
}

fn called(name: &str, values: &[Plain]) -> Plain {
    if let Plain::Moment(ms) = values[0] {
        if let ("hours_between", Plain::Moment(to)) = (name, &values[values.len() - 1]) {
            return Plain::Float((to - ms) as f64 / 3_600_000.0);
        }
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(ms).unwrap();
        return Plain::Int(i64::from(match name {
            "hour" => time.hour(),
            "day_of_week" => time.weekday().num_days_from_monday() + 1,
            "day_of_month" => time.day(),
            _ => time.month(),
        }));
    }
    let numbers: Vec<f64> = values.iter().map(float).collect();
    match name {
        "abs" => Plain::Float(numbers[0].abs()),
        "log1p" => finite(numbers[0].ln_1p()),
        "clip" => {
            let raised = if numbers[1] > numbers[0] {
                numbers[1]
            } else {
                numbers[0]
            };
            Plain::Float(if numbers[2] < raised {
                numbers[2]
            } else {
                raised
            })
        }
        name => {
            let mut found = numbers[0];
            for &number in &numbers[1..] {
                let better = if name == "min" {
                    number < found
                } else {
                    number > found
                };
                if better {
                    found = number;
                }
            }
            Plain::Float(found)
        }
    }
}

fn status() -> impl Strategy<Value = Plain> {
    prop_oneof![
        Just(Status::NullValue),
        Just(Status::NotFound),
        Just(Status::OutsideMaxAge),
        Just(Status::UnknownCategory),
    ]
    .prop_map(Plain::Missing)
}

fn small_float() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(1e300),
        (-8..8i32).prop_map(f64::from),
        -1e3..1e3f64,
    ]
}

fn or_missing(value: impl Strategy<Value = Plain>) -> impl Strategy<Value = Plain> {
    prop_oneof![3 => value, 1 => status()]
}

pub(crate) fn any_sample() -> impl Strategy<Value = Sample> {
    let float = || or_missing(small_float().prop_map(Plain::Float));
    let ints = prop_oneof![
        -3..3i64,
        Just(i64::MIN),
        Just(i64::MAX),
        Just((1 << 53) + 1),
        Just(1 << 53)
    ];
    let int = or_missing(ints.prop_map(Plain::Int));
    let flag = or_missing(any::<bool>().prop_map(Plain::Flag));
    let word = or_missing("[ab]{0,2}".prop_map(Plain::Word));
    let time = or_missing((-1e13 as i64..1e13 as i64).prop_map(Plain::Moment));
    let two = |value: BoxedStrategy<Plain>| proptest::collection::vec(value, 2);
    let values = (
        two(float().boxed()),
        two(int.boxed()),
        two(flag.boxed()),
        two(word.boxed()),
        two(time.boxed()),
        two(float().boxed()),
    );
    (values, 0..2_000_000_000_000i64).prop_map(|((a, b, c, d, e, f), at_ms)| Sample {
        values: [a, b, c, d, e, f].concat(),
        at_ms,
    })
}

/// Typed trees, of a random type.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    prop_oneof![
        tree(Type::Number, 4),
        tree(Type::Bool, 4),
        tree(Type::Text, 3)
    ]
}

fn tree(ty: Type, depth: u32) -> BoxedStrategy<Tree> {
    let leaf = leaf(ty);
    if depth == 0 {
        return leaf;
    }
    let sub = move |ty| tree(ty, depth - 1).prop_map(Box::new);
    let infix = move |ty, signs: &'static [&'static str]| {
        let sign = proptest::sample::select(signs);
        (sub(ty), sign, sub(ty)).prop_map(|(left, sign, right)| Tree::Infix(left, sign, right))
    };
    let choice = (
        tree(Type::Bool, depth - 1),
        tree(ty, depth - 1),
        tree(ty, depth - 1),
    )
        .prop_map(|(condition, yes, no)| Tree::Call("if", vec![condition, yes, no]));
    let first = proptest::collection::vec(tree(ty, depth - 1), 2..4)
        .prop_map(|arguments| Tree::Call("coalesce", arguments));
    let either = prop_oneof![choice, first];
    match ty {
        Type::Number => {
            let numbers = |counts| proptest::collection::vec(tree(Type::Number, depth - 1), counts);
            let one = proptest::sample::select(&["abs", "log1p"][..]);
            let parts = &["hour", "day_of_week", "day_of_month", "month"][..];
            let part = proptest::sample::select(parts);
            prop_oneof![
                1 => leaf,
                3 => infix(Type::Number, &["+", "-", "*", "/"]),
                1 => sub(Type::Number).prop_map(|operand| Tree::Prefix("-", operand)),
                2 => either,
                1 => (one, numbers(1..2)).prop_map(|(name, arguments)| Tree::Call(name, arguments)),
                1 => (proptest::sample::select(&["min", "max"][..]), numbers(2..4))
                    .prop_map(|(name, arguments)| Tree::Call(name, arguments)),
                1 => numbers(3..4).prop_map(|arguments| Tree::Call("clip", arguments)),
                1 => (part, tree(Type::Time, depth - 1))
                    .prop_map(|(name, time)| Tree::Call(name, vec![time])),
                1 => (tree(Type::Time, depth - 1), tree(Type::Time, depth - 1))
                    .prop_map(|(a, b)| Tree::Call("hours_between", vec![a, b])),
                1 => (sub(Type::Number), proptest::collection::btree_set(-5..50i32, 1..5))
                    .prop_map(|(operand, bounds)| Tree::Bucket(operand, bounds.into_iter().collect())),
            ]
            .boxed()
        }
        Type::Bool => {
            let comparisons: &[_] = &["<", "<=", ">", ">=", "==", "!="];
            prop_oneof![
                1 => leaf,
                2 => infix(Type::Bool, &["and", "or", "==", "!="]),
                3 => infix(Type::Number, comparisons),
                1 => infix(Type::Text, &["==", "!="]),
                1 => infix(Type::Time, comparisons),
                1 => sub(Type::Bool).prop_map(|operand| Tree::Prefix("not", operand)),
                1 => tree(Type::Number, depth - 1)
                    .prop_map(|operand| Tree::Call("present", vec![operand])),
                1 => either,
            ]
            .boxed()
        }
        Type::Text | Type::Time => prop_oneof![2 => leaf, 1 => either].boxed(),
    }
}

fn leaf(ty: Type) -> BoxedStrategy<Tree> {
    let constant = |value| Tree::Constant(value);
    match ty {
        Type::Number => prop_oneof![
            (0..4usize).prop_map(Tree::Name),
            (10..12usize).prop_map(Tree::Name),
            (0..5i64).prop_map(move |number| constant(Plain::Int(number))),
            (0.0..9.0f64).prop_map(move |number| constant(Plain::Float(number))),
        ]
        .boxed(),
        Type::Bool => prop_oneof![
            (4..6usize).prop_map(Tree::Name),
            any::<bool>().prop_map(move |flag| constant(Plain::Flag(flag))),
        ]
        .boxed(),
        Type::Text => prop_oneof![
            (6..8usize).prop_map(Tree::Name),
            "[ab]{0,2}".prop_map(move |word| constant(Plain::Word(word))),
        ]
        .boxed(),
        Type::Time => prop_oneof![(8..10usize).prop_map(Tree::Name), Just(Tree::At)].boxed(),
    }
}

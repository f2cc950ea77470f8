//! A JSON object read straight into the values of its fields, with nothing in between.
//!
//! Takes what `Field::parse_json` takes; other names are passed over, the last of repeated ones counts.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Unexpected, Visitor};

use super::{Field, FieldProblem, FieldType, Value, time_ms};

/// What stands for a field that the object does not have; an error text where it has to.
pub(crate) type Absent = fn(&Field) -> Result<Value, &'static str>;

/// The values of `fields`, in their order.
pub(crate) fn values_of_object(
    fields: &[Field],
    json: &[u8],
    absent: Absent,
) -> Result<Vec<Value>, serde_json::Error> {
    let mut input = serde_json::Deserializer::from_slice(json);
    let values = Object { fields, absent }.deserialize(&mut input)?;
    input.end()?;
    Ok(values)
}

struct Object<'f> {
    fields: &'f [Field],
    absent: Absent,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Vec<Value>, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a json object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Value>, A::Error> {
        let fields = self.fields;
        let mut values: Vec<Option<Value>> = vec![None; fields.len()];
        // Most objects have the fields in their order.
        let mut next = 0;
        while let Some(place) = map.next_key_seed(Name { fields, next })? {
            match place {
                Some(place) => {
                    values[place] = Some(map.next_value_seed(Content(&fields[place]))?);
                    next = place + 1;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let value = |(field, value): (&Field, Option<Value>)| match value {
            Some(value) => Ok(value),
            None => (self.absent)(field).map_err(|problem| wrong(field, &problem)),
        };
        fields.iter().zip(values).map(value).collect()
    }
}

/// A key of the object, as the place of the field of that name.
struct Name<'f> {
    fields: &'f [Field],
    next: usize,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Option<usize>, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        let same = |field: &Field| &*field.name == name;
        if self.fields.get(self.next).is_some_and(same) {
            return Ok(Some(self.next));
        }
        Ok(self.fields.iter().position(same))
    }
}

/// The value of a field.
struct Content<'f>(&'f Field);

impl<'de> DeserializeSeed<'de> for Content<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        let field = self.0;
        let value = input.deserialize_any(self)?;
        let fits = field.check(&value);
        fits.map_err(|problem| wrong(field, &problem))?;
        Ok(value)
    }
}

impl Content<'_> {
    fn refuse<E: Error>(&self, found: &dyn fmt::Display) -> E {
        let problem = FieldProblem::WrongType {
            expected: self.0.ty,
            value: super::shorten(&found.to_string()),
        };
        wrong(self.0, &problem)
    }
}

impl<'de> Visitor<'de> for Content<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} for field `{}`", self.0.ty, self.0.name)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        match self.0.ty {
            FieldType::Bool => Ok(Value::Bool(flag)),
            _ => Err(self.refuse(&flag)),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        match self.0.ty {
            FieldType::Int | FieldType::Time => Ok(Value::Int(number)),
            FieldType::Float => Ok(Value::Float(number as f64)),
            _ => Err(self.refuse(&number)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        match (self.0.ty, i64::try_from(number)) {
            (FieldType::Float, _) => Ok(Value::Float(number as f64)),
            (_, Ok(number)) => self.visit_i64(number),
            (_, Err(_)) => Err(self.refuse(&number)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        match self.0.ty {
            FieldType::Float => Ok(Value::Float(number)),
            _ => Err(self.refuse(&number)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        match self.0.ty {
            FieldType::String => Ok(Value::String(text.into())),
            FieldType::Time => {
                let ms = time_ms(&text.into()).map_err(|problem| wrong(self.0, &problem))?;
                Ok(Value::Int(ms))
            }
            _ => Err(self.refuse(&format_args!("\"{text}\""))),
        }
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Map, &self))
    }
}

fn wrong<E: Error>(field: &Field, problem: &dyn fmt::Display) -> E {
    E::custom(format_args!("field `{}`: {problem}", field.name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields() -> Vec<Field> {
        let field = |ty: FieldType, nullable| Field {
            name: format!("{ty}{}", if nullable { "?" } else { "" }).into(),
            ty,
            nullable,
        };
        let both = |ty| [field(ty, true), field(ty, false)];
        FieldType::ALL.into_iter().flat_map(both).collect()
    }

    fn content() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::{Value as Json, json};
        prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            "[a-z\"\\\\\u{e9}]{0,6}".prop_map(Json::from),
            Just(json!("2013-03-01T12:00:00.5Z")),
            Just(json!([1])),
            Just(json!({ "a": 1 })),
        ]
    }

    proptest! {
        #[test]
        fn an_object_is_read_as_its_fields_are(contents in proptest::collection::vec((0usize..11, content()), 0..14)) {
            let fields = fields();
            let name = |at: usize| fields.get(at).map_or("other", |field| &*field.name).to_owned();
            let object: serde_json::Map<_, _> =
                contents.into_iter().map(|(at, json)| (name(at), json)).collect();
            let text = serde_json::to_vec(&object).unwrap();
            let expected: Result<Vec<_>, FieldProblem> = fields
                .iter()
                .map(|field| object.get(&*field.name).map_or(Ok(Value::Null), |it| field.parse_json(it)))
                .collect();
            let found = values_of_object(&fields, &text, |_| Ok(Value::Null));
            prop_assert_eq!(found.ok(), expected.ok());
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_field() {
        let fields = fields();
        let absent: Absent = |field| match field.nullable {
            true => Ok(Value::Null),
            false => Err("missing"),
        };
        let told = |json: &str| {
            let read = values_of_object(&fields, json.as_bytes(), absent);
            read.unwrap_err().to_string()
        };
        for (json, problem) in [
            (r#"{"int": 1.5}"#, "field `int`: expected int, found `1.5`"),
            (r#"{"int": null}"#, "field `int`: may not be null"),
            (r#"{"int": 1}"#, "field `bool`: missing"),
            (r#"{"time": "noon"}"#, "field `time`"),
            ("[]", "a json object"),
        ] {
            assert!(told(json).contains(problem), "{}", told(json));
        }
        let trailing = values_of_object(&[], b"{} {}", absent).unwrap_err();
        assert!(trailing.to_string().contains("trailing"), "{trailing}");
        let mut repeated =
            values_of_object(&fields, br#"{"int?": 1, "int?": 2}"#, |_| Ok(Value::Null));
        assert_eq!(repeated.as_mut().unwrap().swap_remove(2), Value::Int(2));
    }
}

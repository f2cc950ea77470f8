//! The features of a view as written into what its state must hold and how each is read from it.

use toml::Spanned;

use super::super::written::{AggregateText, QuantileText, Text, ViewText};
use super::super::{
    Aggregate, Decay, DefinitionError, Measure, MeasureKind, Summary, SummaryKind, View,
    ViewFeature,
};
use super::Resolver;
use crate::value::FieldType;

impl Resolver<'_> {
    /// Fills in features, measures, summaries, decays and kept fields.
    pub(super) fn aggregates(
        &self,
        written: &ViewText,
        view: &mut View,
    ) -> Result<(), DefinitionError> {
        let mut windowed = false;
        for aggregate in written.features.get_ref() {
            let before = view.features.len();
            windowed |= self.aggregate(aggregate, view)?;
            let (old, new) = view.features.split_at(before);
            let twice = new.iter().enumerate().find(|(index, feature)| {
                let mut others = old.iter().chain(&new[..*index]);
                others.any(|other| other.name == feature.name)
            });
            if let Some((_, twice)) = twice {
                let problem = format!("feature `{}` is defined twice", twice.name);
                return Err(self.error("features", aggregate, problem));
            }
            for feature in new {
                let meaning = &mut view.meaning;
                match (&aggregate.get_ref().quantile, feature.aggregate) {
                    // Its own share: another one beside it alters no value.
                    (Some(of), Aggregate::Quantile { millionths, .. }) => {
                        let own =
                            serde_json::json!({ "field": of.field, "millionths": millionths });
                        let own = serde_json::json!({ "quantile": own });
                        meaning.add_feature(&feature.name, &own, &view.source);
                    }
                    _ => meaning.add_feature(&feature.name, aggregate.get_ref(), &view.source),
                }
            }
        }
        if view.features.is_empty() {
            return Err(self.error("features", &written.features, "a view needs a feature"));
        }
        match written.windows.first() {
            Some(first) if !windowed => {
                Err(self.error("windows", first, "no feature of the view uses a window"))
            }
            _ => Ok(()),
        }
    }

    /// Adds the features of one entry; answers whether it uses the windows.
    fn aggregate(
        &self,
        written: &Spanned<AggregateText>,
        view: &mut View,
    ) -> Result<bool, DefinitionError> {
        let entry = written.get_ref();
        if entry.keys_given() != 1 {
            let problem = "an entry has exactly one of `count`, `sum`, `mean`, `rate`, `min`, `max`, \
                           `std`, `first`, `distinct`, `quantile`, `decayed_count`, `decayed_mean`, \
                           `last`, `age_of_last`";
            return Err(self.error("features", written, problem));
        }
        if let Some((key, field)) = entry.of_field() {
            let index = self.typed(key.as_str(), field, &view.source, key.types())?;
            let ty = key.ty(view.source.fields[index].ty);
            let computed = format!("{}_{}", key.as_str(), field.get_ref());
            let named = self.named(entry, computed, ty)?;
            let over = |window, view: &mut View| key.over(window, index, view);
            return self.per_window(written, view, &named, over);
        }
        if let Some(flag) = &entry.count {
            self.must_be_true("count", flag)?;
            let named = self.named(entry, "count".to_owned(), FieldType::Int)?;
            let count = |window, _: &mut View| Aggregate::Count { window };
            return self.per_window(written, view, &named, count);
        }
        if let Some(quantile) = &entry.quantile {
            return self.quantiles(written, quantile, view);
        }
        let (named, aggregate) = if let Some(count) = &entry.decayed_count {
            self.decayed("decayed_count", (None, &count.half_life), entry, view)?
        } else if let Some(mean) = &entry.decayed_mean {
            let of = (Some(&mean.field), &mean.half_life);
            self.decayed("decayed_mean", of, entry, view)?
        } else {
            self.of_newest(entry, view)?
        };
        view.features.push(ViewFeature {
            name: named.name,
            ty: named.ty,
            aggregate,
        });
        Ok(false)
    }

    /// Adds a feature for each quantile and window.
    fn quantiles(
        &self,
        written: &Spanned<AggregateText>,
        quantile: &QuantileText,
        view: &mut View,
    ) -> Result<bool, DefinitionError> {
        let field = self.typed("field", &quantile.field, &view.source, &NUMBERS)?;
        let summary = summary(view, field, SummaryKind::Quantiles);
        if quantile.q.get_ref().is_empty() {
            return Err(self.error("q", &quantile.q, "is empty"));
        }
        for q in quantile.q.get_ref() {
            let millionths = q.get_ref() * 1e6;
            // Decimals are not exact in binary: 0.29 is 289,999.99… millionths.
            let whole = millionths.round();
            if !(1.0..1e6).contains(&whole) || (millionths - whole).abs() > 1e-6 {
                let problem = format!("`{}` is not above 0, below 1, in millionths", q.get_ref());
                return Err(self.error("q", q, problem));
            }
            let millionths = whole as u32;
            let share = percent(millionths);
            let name = match &written.get_ref().name {
                Some(name) => format!("{}_{share}", self.name("name", name)?),
                None => format!("{share}_{}", quantile.field.get_ref()),
            };
            let named = Named {
                name: name.into(),
                ty: FieldType::Float,
            };
            let over = |window, _: &mut View| Aggregate::Quantile {
                window,
                summary,
                millionths,
            };
            self.per_window(written, view, &named, over)?;
        }
        Ok(true)
    }

    fn decayed(
        &self,
        key: &str,
        (field, half_life): (Option<&Text>, &Text),
        entry: &AggregateText,
        view: &mut View,
    ) -> Result<(Named, Aggregate), DefinitionError> {
        let half_life_ms = self.length("half_life", half_life, half_life.get_ref())?;
        let index = match field {
            Some(field) => Some(self.typed("field", field, &view.source, &NUMBERS)?),
            None => None,
        };
        let decay = place(
            &mut view.decays,
            Decay {
                half_life_ms,
                field: index,
            },
        );
        let (computed, aggregate) = match field {
            Some(field) => (
                format!("{key}_{}_{}", field.get_ref(), half_life.get_ref()),
                Aggregate::DecayedMean { decay },
            ),
            None => (
                format!("{key}_{}", half_life.get_ref()),
                Aggregate::DecayedCount { decay },
            ),
        };
        Ok((self.named(entry, computed, FieldType::Float)?, aggregate))
    }

    /// The feature of an entry with `last` or `age_of_last`.
    fn of_newest(
        &self,
        entry: &AggregateText,
        view: &mut View,
    ) -> Result<(Named, Aggregate), DefinitionError> {
        if let Some(name) = &entry.last {
            let field = self.field("last", name, &view.source.fields)?;
            let slot = view.last_fields.len();
            view.last_fields.push(field);
            let ty = view.source.fields[field].ty;
            let named = self.named(entry, format!("last_{}", name.get_ref()), ty)?;
            return Ok((named, Aggregate::Last { slot }));
        }
        if let Some(flag) = &entry.age_of_last {
            self.must_be_true("age_of_last", flag)?;
        }
        let named = self.named(entry, "age_of_last".to_owned(), FieldType::Float)?;
        Ok((named, Aggregate::AgeOfLast))
    }

    /// What an entry's features are called: by its `name`, else by what it computes.
    fn named(
        &self,
        entry: &AggregateText,
        computed: String,
        ty: FieldType,
    ) -> Result<Named, DefinitionError> {
        let name = match &entry.name {
            Some(name) => self.name("name", name)?,
            None => computed.into(),
        };
        Ok(Named { name, ty })
    }

    fn per_window(
        &self,
        written: &Spanned<AggregateText>,
        view: &mut View,
        named: &Named,
        aggregate: impl Fn(usize, &mut View) -> Aggregate,
    ) -> Result<bool, DefinitionError> {
        if view.windows.is_empty() {
            let problem = format!("`{}` needs the view to have `windows`", named.name);
            return Err(self.error("features", written, problem));
        }
        for window in 0..view.windows.len() {
            let aggregate = aggregate(window, view);
            view.features.push(ViewFeature {
                name: format!("{}_{}", named.name, view.windows[window].name).into(),
                ty: named.ty,
                aggregate,
            });
        }
        Ok(true)
    }

    fn must_be_true(&self, key: &str, flag: &Spanned<bool>) -> Result<(), DefinitionError> {
        if *flag.get_ref() {
            return Ok(());
        }
        Err(self.error(key, flag, "leave it out instead of `false`"))
    }
}

/// Name and type of a feature, or of one for each window.
struct Named {
    name: Box<str>,
    ty: FieldType,
}

/// What is computed of one field in each window.
#[derive(Clone, Copy)]
enum OfField {
    Sum,
    Mean,
    Rate,
    Min,
    Max,
    Std,
    First,
    Distinct,
}

/// Types that can be added up.
pub(super) const NUMBERS: [FieldType; 2] = [FieldType::Int, FieldType::Float];

impl OfField {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Rate => "rate",
            Self::Min => "min",
            Self::Max => "max",
            Self::Std => "std",
            Self::First => "first",
            Self::Distinct => "distinct",
        }
    }

    /// The types of field that it goes with.
    fn types(self) -> &'static [FieldType] {
        match self {
            Self::Sum | Self::Mean | Self::Min | Self::Max | Self::Std => &NUMBERS,
            Self::Rate => &[FieldType::Bool],
            Self::First => &FieldType::ALL,
            Self::Distinct => &[
                FieldType::Bool,
                FieldType::Int,
                FieldType::String,
                FieldType::Time,
            ],
        }
    }

    /// The feature's type.
    fn ty(self, field: FieldType) -> FieldType {
        match self {
            Self::Min | Self::Max | Self::First => field,
            Self::Distinct => FieldType::Int,
            Self::Sum | Self::Mean | Self::Rate | Self::Std => FieldType::Float,
        }
    }

    /// How it is read in a window, and what the view must keep for that; several features share it.
    fn over(self, window: usize, field: usize, view: &mut View) -> Aggregate {
        match self {
            Self::Sum => Aggregate::Sum {
                window,
                measure: measure(view, field, MeasureKind::Number),
            },
            Self::Mean => Aggregate::Mean {
                window,
                measure: measure(view, field, MeasureKind::Number),
            },
            Self::Rate => Aggregate::Rate {
                window,
                measure: measure(view, field, MeasureKind::Truth),
            },
            Self::Min => Aggregate::Min {
                window,
                summary: summary(view, field, SummaryKind::Extremes),
            },
            Self::Max => Aggregate::Max {
                window,
                summary: summary(view, field, SummaryKind::Extremes),
            },
            Self::Std => Aggregate::Std {
                window,
                measure: measure(view, field, MeasureKind::Number),
                summary: summary(view, field, SummaryKind::Squares),
            },
            Self::First => Aggregate::First {
                window,
                summary: summary(view, field, SummaryKind::First),
            },
            Self::Distinct => Aggregate::Distinct {
                window,
                summary: summary(view, field, SummaryKind::Distinct),
            },
        }
    }
}

impl AggregateText {
    /// The key that computes something of one field in each window, and that field.
    fn of_field(&self) -> Option<(OfField, &Text)> {
        let keys = [
            (OfField::Sum, &self.sum),
            (OfField::Mean, &self.mean),
            (OfField::Rate, &self.rate),
            (OfField::Min, &self.min),
            (OfField::Max, &self.max),
            (OfField::Std, &self.std),
            (OfField::First, &self.first),
            (OfField::Distinct, &self.distinct),
        ];
        keys.into_iter()
            .find_map(|(key, field)| Some((key, field.as_ref()?)))
    }

    fn keys_given(&self) -> usize {
        let fields = [
            &self.sum,
            &self.mean,
            &self.rate,
            &self.min,
            &self.max,
            &self.std,
            &self.first,
            &self.distinct,
            &self.last,
        ];
        let others = [
            self.count.is_some(),
            self.quantile.is_some(),
            self.decayed_count.is_some(),
            self.decayed_mean.is_some(),
            self.age_of_last.is_some(),
        ];
        let fields = fields.into_iter().map(Option::is_some);
        fields.chain(others).filter(|given| *given).count()
    }
}

fn measure(view: &mut View, field: usize, kind: MeasureKind) -> usize {
    place(&mut view.measures, Measure { field, kind })
}

fn summary(view: &mut View, field: usize, kind: SummaryKind) -> usize {
    place(&mut view.summaries, Summary { field, kind })
}

/// The index of `wanted`, which is added where it is not there yet.
fn place<T: PartialEq>(list: &mut Vec<T>, wanted: T) -> usize {
    let found = list.iter().position(|known| *known == wanted);
    found.unwrap_or_else(|| {
        list.push(wanted);
        list.len() - 1
    })
}

/// `"p50"`, `"p99.9"`.
fn percent(millionths: u32) -> String {
    let (whole, rest) = (millionths / 10_000, millionths % 10_000);
    let text = format!("p{whole}.{rest:04}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

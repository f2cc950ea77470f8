//! What features.toml defines, in the shape that `list` and `show` print: JSON, or text made from it.

use featurestore::service::Missing;
use featurestore::{
    Aggregate, Definitions, Entity, FeatureOrigin, Field, InView, Service, ServiceFeature, Source,
    View,
};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Described {
    pub sources: Vec<DescribedSource>,
    pub entities: Vec<DescribedEntity>,
    pub views: Vec<DescribedView>,
    pub services: Vec<DescribedService>,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedSource {
    pub source: String,
    pub fields: Vec<DescribedField>,
    /// The field with the event time
    pub time: String,
    /// Fields in which two events that are one agree
    pub id: Vec<String>,
    /// How late an event may arrive and still count
    pub lateness_ms: Option<i64>,
    pub future_max_ms: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedField {
    pub name: String,
    /// `string`, or `string?` where it may be null
    pub r#type: String,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedEntity {
    pub entity: String,
    pub keys: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedView {
    pub view: String,
    pub source: DescribedSource,
    pub r#where: Option<String>,
    pub keys: Vec<DescribedField>,
    pub ttl_ms: Option<i64>,
    pub windows: Vec<DescribedWindow>,
    pub decays: Vec<DescribedDecay>,
    /// Features of the newest event
    pub latest: Vec<DescribedField>,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedWindow {
    pub window: String,
    pub length_ms: i64,
    pub tile_ms: i64,
    /// By how much a read may fall short of the window at its older end
    pub error_ms: i64,
    pub features: Vec<DescribedField>,
}

/// Events that weigh half as much with each half-life.
#[derive(Debug, Serialize)]
pub(super) struct DescribedDecay {
    pub half_life_ms: i64,
    pub features: Vec<DescribedField>,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedService {
    pub service: String,
    pub request: Vec<DescribedField>,
    pub views: Vec<String>,
    pub features: Vec<DescribedColumn>,
}

#[derive(Debug, Serialize)]
pub(super) struct DescribedColumn {
    pub feature: String,
    pub from: &'static str,
    /// The request's field, the view's feature, or the expression
    pub of: String,
    /// Known strings, of which the value is a position
    pub dictionary: Option<Vec<String>>,
    /// `nan`, `default` or `refuse`
    pub missing: &'static str,
    pub default: Option<f32>,
    pub clip: Option<(f32, f32)>,
}

impl From<&Definitions> for Described {
    fn from(definitions: &Definitions) -> Self {
        Self {
            sources: definitions
                .sources
                .iter()
                .map(|it| (&**it).into())
                .collect(),
            entities: definitions.entities.iter().map(Into::into).collect(),
            views: definitions.views.iter().map(|it| (&**it).into()).collect(),
            services: definitions
                .services
                .iter()
                .map(|it| (&**it).into())
                .collect(),
        }
    }
}

impl From<&Source> for DescribedSource {
    fn from(source: &Source) -> Self {
        let name = |&field: &usize| source.fields[field].name.to_string();
        Self {
            source: source.name.to_string(),
            fields: fields(&source.fields),
            time: name(&source.time_field),
            id: source.id_fields.iter().map(name).collect(),
            lateness_ms: source.lateness_ms,
            future_max_ms: source.future_max_ms,
        }
    }
}

fn fields(fields: &[Field]) -> Vec<DescribedField> {
    fields.iter().map(Into::into).collect()
}

impl From<&Field> for DescribedField {
    fn from(field: &Field) -> Self {
        let null = if field.nullable { "?" } else { "" };
        Self {
            name: field.name.to_string(),
            r#type: format!("{}{null}", field.ty),
        }
    }
}

impl From<&Entity> for DescribedEntity {
    fn from(entity: &Entity) -> Self {
        Self {
            entity: entity.name.to_string(),
            keys: entity.keys.iter().map(|key| key.to_string()).collect(),
        }
    }
}

impl From<&View> for DescribedView {
    fn from(view: &View) -> Self {
        let over = |window: Option<usize>, decay: Option<usize>| {
            let features = view.features.iter();
            let is_asked = move |aggregate: Aggregate| {
                aggregate.window() == window && aggregate.decay() == decay
            };
            let features = features.filter(move |it| is_asked(it.aggregate));
            let features = features.map(|it| DescribedField {
                name: it.name.to_string(),
                r#type: it.ty.to_string(),
            });
            features.collect::<Vec<_>>()
        };
        let windows = view.windows.iter().enumerate();
        let windows = windows.map(|(index, window)| DescribedWindow {
            window: window.name.to_string(),
            length_ms: window.length_ms(),
            tile_ms: window.tile_ms,
            error_ms: window.error_ms(),
            features: over(Some(index), None),
        });
        let decays = view.decays.iter().enumerate();
        let decays = decays.map(|(index, decay)| DescribedDecay {
            half_life_ms: decay.half_life_ms,
            features: over(None, Some(index)),
        });
        Self {
            view: view.pin().to_owned(),
            source: (&*view.source).into(),
            r#where: view.filter.as_ref().map(|it| it.describe(&view.source)),
            keys: fields(&view.keys),
            ttl_ms: view.ttl_ms,
            windows: windows.collect(),
            decays: decays.collect(),
            latest: over(None, None),
        }
    }
}

impl From<&Service> for DescribedService {
    fn from(service: &Service) -> Self {
        let columns = service.features.iter();
        Self {
            service: service.id().to_owned(),
            request: fields(&service.request),
            views: service
                .needed_views()
                .iter()
                .map(|it| it.pin().to_owned())
                .collect(),
            features: columns.map(|column| described(service, column)).collect(),
        }
    }
}

fn described(service: &Service, column: &ServiceFeature) -> DescribedColumn {
    let field = |index: usize| service.request[index].name.to_string();
    let feature = |at: &InView| {
        let view = &service.needed_views()[at.view];
        format!("{}:{}", view.pin(), view.features[at.feature].name)
    };
    let (from, of, dictionary) = match &column.origin {
        FeatureOrigin::Request { field: index } => ("request", field(*index), None),
        FeatureOrigin::Category {
            field: index,
            dictionary,
        } => ("request", field(*index), Some(dictionary)),
        FeatureOrigin::View(at) => ("view", feature(at), None),
        FeatureOrigin::KeptCategory { at, dictionary } => ("view", feature(at), Some(dictionary)),
        FeatureOrigin::Difference {
            minuend,
            subtrahend,
        } => {
            let text = format!("{} - {}", feature(minuend), feature(subtrahend));
            ("derived", text, None)
        }
        FeatureOrigin::Derived(derived) => ("derived", derived.text().to_owned(), None),
    };
    let (missing, default) = match column.missing {
        Missing::Nan => ("nan", None),
        Missing::Default(value) => ("default", Some(value)),
        Missing::Refuse => ("refuse", None),
    };
    DescribedColumn {
        feature: column.name.to_string(),
        from,
        of,
        dictionary: dictionary.map(|it| it.words().iter().map(|word| word.to_string()).collect()),
        missing,
        default,
        clip: column.clip,
    }
}

//! The year in the order in which it became known: facts (events) and questions (predictions).
//!
//! Nothing is told before its time: a fact is sent when it was known, a label with its outcome.

use std::fmt::Write as _;

use crate::flights::{Flight, Observation, WEATHER_FIELDS};

/// What an event tells; the index points into flights or weather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fact {
    Weather(usize),
    /// A flight stands on the timetable for now: with the departures it tells how many are overdue.
    Schedule(usize),
    Departure(usize),
    Arrival(usize),
}

/// The event sources of `features.toml`, in the order of [`Fact::source`].
pub(crate) const SOURCES: [&str; 4] = ["weather", "schedules", "departures", "arrivals"];

impl Fact {
    /// The index of this fact's source in [`SOURCES`].
    pub(crate) fn source(self) -> usize {
        match self {
            Self::Weather(_) => 0,
            Self::Schedule(_) => 1,
            Self::Departure(_) => 2,
            Self::Arrival(_) => 3,
        }
    }
}

/// A year of flights, split at the moment at which the replay begins.
pub(crate) struct Timeline {
    pub flights: Vec<Flight>,
    pub weather: Vec<Observation>,
    /// All facts by the moment they were known; ties in the order of their kind and row.
    facts: Vec<(i64, Fact)>,
    /// The first scheduled departure of March: history lies before, the replay from here on.
    pub begin_ms: i64,
    first_question: usize,
    last_question: usize,
}

impl Timeline {
    /// Orders the year. The replay asks about departures scheduled from March until `until_ms`.
    pub(crate) fn new(flights: Vec<Flight>, weather: Vec<Observation>, until_ms: i64) -> Self {
        let first_question = flights.partition_point(|flight| flight.local_month < 3);
        Self::beginning(first_question, flights, weather, until_ms)
    }

    /// Orders the year. The first months are history, the replay asks about nothing.
    pub(crate) fn of_months(flights: Vec<Flight>, weather: Vec<Observation>, months: i64) -> Self {
        let first_question = flights.partition_point(|flight| flight.local_month <= months);
        Self::beginning(first_question, flights, weather, i64::MIN)
    }

    fn beginning(
        first_question: usize,
        flights: Vec<Flight>,
        weather: Vec<Observation>,
        until_ms: i64,
    ) -> Self {
        let last_question = flights.partition_point(|flight| flight.scheduled_ms < until_ms);
        let begin_ms = flights
            .get(first_question)
            .map_or(i64::MAX, |flight| flight.scheduled_ms);
        let mut facts: Vec<(i64, Fact)> = Vec::with_capacity(flights.len() * 3 + weather.len());
        facts.extend(
            weather
                .iter()
                .enumerate()
                .map(|(row, seen)| (seen.observed_ms, Fact::Weather(row))),
        );
        for (row, flight) in flights.iter().enumerate() {
            facts.push((flight.scheduled_ms, Fact::Schedule(row)));
            if let Some(departed_ms) = flight.departed_ms {
                facts.push((departed_ms, Fact::Departure(row)));
            }
            facts.push((flight.outcome_ms, Fact::Arrival(row)));
        }
        facts.sort_unstable();
        Self {
            flights,
            weather,
            facts,
            begin_ms,
            first_question,
            last_question: last_question.max(first_question),
        }
    }

    /// Facts known before the replay begins.
    pub(crate) fn history(&self) -> &[(i64, Fact)] {
        let end = self.facts.partition_point(|fact| fact.0 < self.begin_ms);
        &self.facts[..end]
    }

    /// Facts that become known during the replay, until the last outcome asked about is known.
    pub(crate) fn news(&self) -> &[(i64, Fact)] {
        let start = self.facts.partition_point(|fact| fact.0 < self.begin_ms);
        let end_ms = self
            .questions()
            .iter()
            .map(|flight| flight.outcome_ms)
            .max()
            .unwrap_or(self.begin_ms);
        let end = self.facts.partition_point(|fact| fact.0 <= end_ms);
        &self.facts[start..end.max(start)]
    }

    /// The scheduled departures before the replay.
    pub(crate) fn past_questions(&self) -> &[Flight] {
        &self.flights[..self.first_question]
    }

    /// The scheduled departures that the replay asks about.
    pub(crate) fn questions(&self) -> &[Flight] {
        &self.flights[self.first_question..self.last_question]
    }

    /// Whether the flight at `row` is one that the replay asks about.
    pub(crate) fn is_question(&self, row: usize) -> bool {
        (self.first_question..self.last_question).contains(&row)
    }

    /// Index of the first question in `flights`.
    pub(crate) fn first_question(&self) -> usize {
        self.first_question
    }

    /// Appends the JSON object of a fact as its source declares it.
    fn write_event(&self, fact: Fact, out: &mut String) {
        match fact {
            Fact::Weather(row) => self.write_weather(row, out),
            Fact::Schedule(row) => {
                let flight = &self.flights[row];
                write_flight(flight, out);
                append(out, "scheduled_at", Some(flight.scheduled_ms));
                out.push('}');
            }
            Fact::Departure(row) => {
                let flight = &self.flights[row];
                write_flight(flight, out);
                append(out, "departed_at", flight.departed_ms);
                append(
                    out,
                    "departure_delay_minutes",
                    flight.departure_delay_minutes,
                );
                append(out, "delayed", Some(flight.departed_late()));
                out.push('}');
            }
            Fact::Arrival(row) => {
                let flight = &self.flights[row];
                write_flight(flight, out);
                append(out, "known_at", Some(flight.outcome_ms));
                append(out, "arrival_delay_minutes", flight.arrival_delay_minutes);
                append(out, "cancelled", Some(flight.cancelled));
                append(out, "diverted", Some(flight.diverted));
                append(out, "late", Some(flight.late()));
                out.push('}');
            }
        }
    }

    fn write_weather(&self, row: usize, out: &mut String) {
        let seen = &self.weather[row];
        out.push_str("{\"origin\":\"");
        out.push_str(&seen.origin);
        out.push('"');
        append(out, "observed_at", Some(seen.observed_ms));
        for (name, value) in WEATHER_FIELDS.iter().zip(seen.values) {
            append(out, name, value);
        }
        out.push('}');
    }
}

/// The body that posts `facts` of one source.
pub(crate) fn write_event_batch(timeline: &Timeline, facts: &[Fact]) -> String {
    let mut body = String::with_capacity(facts.len() * 220 + 16);
    body.push_str("{\"events\":[");
    for (k, &fact) in facts.iter().enumerate() {
        if k > 0 {
            body.push(',');
        }
        timeline.write_event(fact, &mut body);
    }
    body.push_str("]}");
    body
}

/// The Open Inference request that asks about one flight: entity keys and request fields only.
pub(crate) fn write_question(flight: &Flight, record: bool, out: &mut String) {
    append_text(out, "{\"id\":\"", &flight.id.to_string());
    if !record {
        out.push_str("\",\"parameters\":{\"loopgate_record\":false},\"inputs\":[");
    } else {
        out.push_str("\",\"inputs\":[");
    }
    let texts = [
        ("carrier", flight.carrier.as_str()),
        ("origin", &flight.origin),
        ("dest", &flight.dest),
        ("tailnum", flight.tailnum.as_deref().unwrap_or_default()),
    ];
    for (name, value) in texts {
        append_text(out, "{\"name\":\"", name);
        append_text(
            out,
            "\",\"shape\":[1],\"datatype\":\"BYTES\",\"data\":[\"",
            value,
        );
        out.push_str("\"]},");
    }
    let numbers = [
        ("scheduled_minutes", flight.scheduled_minutes),
        ("distance_miles", flight.distance_miles),
        ("local_month", flight.local_month),
        ("local_weekday", flight.local_weekday),
        ("local_minute_of_day", flight.local_minute_of_day),
    ];
    for (k, (name, value)) in numbers.into_iter().enumerate() {
        let comma = if k == 0 { "" } else { "," };
        write!(
            out,
            "{comma}{{\"name\":\"{name}\",\"shape\":[1],\"datatype\":\"FP64\",\"data\":[{value}]}}"
        )
        .expect("a String takes all");
    }
    out.push_str("]}");
}

fn write_flight(flight: &Flight, out: &mut String) {
    write!(out, "{{\"flight_id\":{}", flight.id).expect("a String takes all");
    append_text(out, ",\"carrier\":\"", &flight.carrier);
    append_text(out, "\",\"origin\":\"", &flight.origin);
    append_text(out, "\",\"dest\":\"", &flight.dest);
    match &flight.tailnum {
        Some(tailnum) => {
            append_text(out, "\",\"tailnum\":\"", tailnum);
            out.push('"');
        }
        None => out.push_str("\",\"tailnum\":null"),
    }
}

/// Appends `prefix` and `value`; codes of carriers, airports and aircraft need no escaping.
fn append_text(out: &mut String, prefix: &str, value: &str) {
    out.push_str(prefix);
    out.push_str(value);
}

/// Appends `,"name":value`, null where there is none.
fn append(out: &mut String, name: &str, value: Option<impl std::fmt::Display>) {
    let written = match value {
        Some(value) => write!(out, ",\"{name}\":{value}"),
        None => write!(out, ",\"{name}\":null"),
    };
    written.expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(id: i64, month: i64, scheduled_ms: i64) -> Flight {
        Flight {
            id,
            carrier: "UA".into(),
            origin: "EWR".into(),
            dest: "IAH".into(),
            tailnum: None,
            scheduled_ms,
            scheduled_minutes: 200,
            distance_miles: 1400,
            local_month: month,
            local_weekday: 1,
            local_minute_of_day: 315,
            departed_ms: Some(scheduled_ms - 60_000),
            departure_delay_minutes: Some(-2.0),
            outcome_ms: scheduled_ms + 10_000_000,
            arrival_delay_minutes: None,
            cancelled: false,
            diverted: true,
        }
    }

    #[test]
    fn a_fact_is_told_when_it_was_known() {
        let flights = vec![
            flight(0, 2, 1_000),
            flight(1, 3, 500_000),
            flight(2, 3, 900_000),
        ];
        let timeline = Timeline::new(flights, Vec::new(), 600_000);
        assert_eq!(timeline.begin_ms, 500_000);
        assert_eq!(timeline.questions().len(), 1);
        assert_eq!(
            timeline.history(),
            [
                (-59_000, Fact::Departure(0)),
                (1_000, Fact::Schedule(0)),
                (440_000, Fact::Departure(1)),
            ]
        );
        let told: Vec<Fact> = timeline.news().iter().map(|fact| fact.1).collect();
        assert_eq!(
            told,
            [
                Fact::Schedule(1),
                Fact::Departure(2),
                Fact::Schedule(2),
                Fact::Arrival(0),
                Fact::Arrival(1),
            ]
        );
    }

    #[test]
    fn bodies_are_json() {
        let flights = vec![flight(7, 3, 1_000)];
        let timeline = Timeline::new(flights, Vec::new(), i64::MAX);
        for record in [true, false] {
            let mut body = String::new();
            write_question(&timeline.flights[0], record, &mut body);
            let parsed: serde_json::Value = serde_json::from_str(&body).expect("json");
            assert_eq!(parsed["id"], "7");
            assert_eq!(parsed["inputs"][3]["data"][0], "");
        }
        let mut event = String::new();
        timeline.write_event(Fact::Arrival(0), &mut event);
        let parsed: serde_json::Value = serde_json::from_str(&event).expect("json");
        assert_eq!(parsed["late"], true);
        assert!(parsed["arrival_delay_minutes"].is_null());
    }
}

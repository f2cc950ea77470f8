//! Who may come in: a bounded number of requests in flight, each with a deadline.
//!
//! Refusing costs one atomic addition and happens before a body is read. Nothing queues here: what
//! is admitted is served at once on the thread that admitted it, so the bound is also the bound on
//! memory and on waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Seconds after which a refused caller should come again. Requests last milliseconds, so the
/// shortest wait that the header can say is long enough.
pub(crate) const RETRY_AFTER_S: u64 = 1;

/// A bound on requests in flight in the whole process.
#[derive(Debug)]
pub(crate) struct Admission {
    in_flight: AtomicUsize,
    in_flight_max: usize,
}

/// Too many requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight_max} requests are in flight, which is the limit: retry later")]
pub(crate) struct Overloaded {
    pub in_flight_max: usize,
}

/// The deadline passed before an answer was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline of {} ms passed", deadline.as_millis())]
pub(crate) struct DeadlinePassed {
    pub deadline: Duration,
}

impl Admission {
    pub(crate) fn new(in_flight_max: usize) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            in_flight_max,
        })
    }

    /// Takes a place, or refuses.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, Overloaded> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        if before < self.in_flight_max {
            return Ok(place);
        }
        Err(Overloaded {
            in_flight_max: self.in_flight_max,
        })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One request's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Admission>);

impl Place {
    /// Admits the request until `arrived + deadline`.
    pub(crate) fn admit(
        self,
        arrived: Instant,
        deadline: Duration,
    ) -> Result<Admitted, DeadlinePassed> {
        let admitted = Admitted {
            _place: self,
            arrived,
            deadline,
        };
        admitted.check()?;
        Ok(admitted)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that has a place and a deadline ahead of it.
#[derive(Debug)]
pub(crate) struct Admitted {
    _place: Place,
    arrived: Instant,
    deadline: Duration,
}

impl Admitted {
    /// Brings the deadline forward; it never moves back.
    pub(crate) fn tighten(&mut self, deadline: Option<Duration>) {
        self.deadline = self.deadline.min(deadline.unwrap_or(self.deadline));
    }

    /// Whether there is still time to begin a step.
    pub(crate) fn check(&self) -> Result<(), DeadlinePassed> {
        if self.arrived.elapsed() < self.deadline {
            return Ok(());
        }
        Err(DeadlinePassed {
            deadline: self.deadline,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = Admission::new(2);
        let (first, second) = (admission.enter().unwrap(), admission.enter().unwrap());
        assert!(admission.enter().is_err());
        assert_eq!(admission.in_flight(), 2);
        drop(first);
        assert!(admission.enter().is_ok());
        drop(second);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn a_passed_deadline_admits_nobody() {
        let admission = Admission::new(2);
        let now = Instant::now();
        let place = || admission.enter().unwrap();
        assert!(place().admit(now, Duration::ZERO).is_err());
        let mut admitted = place().admit(now, Duration::from_secs(3600)).unwrap();
        assert!(admitted.check().is_ok());
        admitted.tighten(None);
        assert!(admitted.check().is_ok());
        admitted.tighten(Some(Duration::ZERO));
        assert!(admitted.check().is_err());
        drop(admitted);
        assert_eq!(admission.in_flight(), 0);
    }
}

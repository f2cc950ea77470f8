//! Who may come in: bounded requests and bytes in flight, in the process and for each model, and a
//! deadline for each request.
//!
//! A place is taken by a request's head, before its body is read: one atomic addition counts the
//! request and its bytes, so refusing costs next to nothing. Nothing queues here; what waits for the
//! pool waits there, bounded by its own line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seconds after which a caller should come again who was refused for something that may last.
pub(crate) const RETRY_AFTER_S: u64 = 1;

/// Requests stand above this bit of the count, bytes below: a tebibyte in flight is out of reach.
const REQUEST: u64 = 1 << 40;

/// Bounds on what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFlight {
    pub requests: usize,
    /// Of bodies.
    pub bytes: usize,
}

impl Default for InFlight {
    /// No bounds.
    fn default() -> Self {
        Self {
            requests: usize::MAX,
            bytes: usize::MAX,
        }
    }
}

/// A bound on requests in flight, of the whole process or of one model.
#[derive(Debug)]
pub(crate) struct Admission {
    taken: AtomicU64,
    max: InFlight,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Limit {
    #[error("{0} requests are in flight, which is the limit")]
    Requests(usize),
    #[error("bodies of {0} bytes are in flight, which is the limit")]
    Bytes(usize),
    #[error("{} ms of work are waiting, more than can be answered in time", _0.as_millis())]
    Wait(Duration),
}

/// Too much in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit}: retry later")]
pub(crate) struct Overloaded {
    pub limit: Limit,
    /// When there may be a place; not the same for everybody, so that not everybody comes back at
    /// once.
    pub retry_after: Duration,
}

impl From<Limit> for Overloaded {
    /// Where nobody knows better: requests last milliseconds.
    fn from(limit: Limit) -> Self {
        Self {
            limit,
            retry_after: Duration::from_secs(RETRY_AFTER_S),
        }
    }
}

/// The deadline passed before an answer was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline of {} ms passed", deadline.as_millis())]
pub(crate) struct DeadlinePassed {
    pub deadline: Duration,
}

impl Admission {
    pub(crate) fn new(max: InFlight) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicU64::new(0),
            max,
        })
    }

    /// Takes a place for a request whose bytes are not known, or refuses.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, Overloaded> {
        Ok(self.enter_with(0)?)
    }

    /// Takes a place for a request with a body of so many bytes, or refuses.
    pub(crate) fn enter_with(self: &Arc<Self>, bytes: usize) -> Result<Place, Limit> {
        Ok(Place {
            process: self.take(bytes)?,
            model: None,
        })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Result<Taken, Limit> {
        let taken = Taken {
            of: Arc::clone(self),
            bytes: packed(bytes),
        };
        let before = self
            .taken
            .fetch_add(REQUEST + taken.bytes, Ordering::Relaxed);
        if before / REQUEST >= self.max.requests as u64 {
            return Err(Limit::Requests(self.max.requests));
        }
        taken.check_bytes(before % REQUEST + taken.bytes)?;
        Ok(taken)
    }

    pub(crate) fn in_flight(&self) -> usize {
        (self.taken.load(Ordering::Relaxed) / REQUEST) as usize
    }
}

/// Bytes as they are counted: no body is larger than what the count can hold of many.
fn packed(bytes: usize) -> u64 {
    (bytes as u64).min(REQUEST >> 10)
}

/// A part of an [`Admission`]; given back when dropped.
#[derive(Debug)]
struct Taken {
    of: Arc<Admission>,
    bytes: u64,
}

impl Taken {
    /// Counts the body with its real size.
    fn hold(&mut self, bytes: usize) -> Result<(), Limit> {
        let (before, bytes) = (self.bytes, packed(bytes));
        self.bytes = bytes;
        if bytes <= before {
            self.of.taken.fetch_sub(before - bytes, Ordering::Relaxed);
            return Ok(());
        }
        let more = bytes - before;
        let counted = self.of.taken.fetch_add(more, Ordering::Relaxed);
        self.check_bytes(counted % REQUEST + more)
    }

    fn check_bytes(&self, counted: u64) -> Result<(), Limit> {
        let most = self.of.max.bytes;
        // A single body is bounded elsewhere: it is let in where nothing else is.
        if counted <= most as u64 || counted == self.bytes {
            return Ok(());
        }
        Err(Limit::Bytes(most))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of
            .taken
            .fetch_sub(REQUEST + self.bytes, Ordering::Relaxed);
    }
}

/// One request's place in the process and, once it is known, with its model.
#[derive(Debug)]
pub(crate) struct Place {
    process: Taken,
    model: Option<Taken>,
}

impl Place {
    /// Takes a place with the model too, unless it has one.
    pub(crate) fn join(&mut self, model: &Arc<Admission>) -> Result<(), Limit> {
        if self.model.is_none() {
            let bytes = usize::try_from(self.process.bytes).unwrap_or(usize::MAX);
            self.model = Some(model.take(bytes)?);
        }
        Ok(())
    }

    /// Counts the body with its real size, once that is known.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), Limit> {
        self.process.hold(bytes)?;
        match &mut self.model {
            Some(model) => model.hold(bytes),
            None => Ok(()),
        }
    }

    /// Admits the request until `arrived + deadline`.
    pub(crate) fn admit(
        self,
        arrived: Instant,
        deadline: Duration,
    ) -> Result<Admitted, DeadlinePassed> {
        let admitted = Admitted {
            place: self,
            arrived,
            deadline,
        };
        admitted.check()?;
        Ok(admitted)
    }
}

/// A request that has a place and a deadline ahead of it.
#[derive(Debug)]
pub(crate) struct Admitted {
    place: Place,
    arrived: Instant,
    deadline: Duration,
}

impl Admitted {
    /// Takes a place with the model, where the request's head did not name it.
    pub(crate) fn join(&mut self, model: &Arc<Admission>) -> Result<(), Limit> {
        self.place.join(model)
    }

    /// When the deadline passes.
    pub(crate) fn until(&self) -> Instant {
        self.arrived + self.deadline
    }

    /// Brings the deadline forward; it never moves back.
    pub(crate) fn tighten(&mut self, deadline: Option<Duration>) {
        self.deadline = self.deadline.min(deadline.unwrap_or(self.deadline));
    }

    /// Whether there is still time to begin a step.
    pub(crate) fn check(&self) -> Result<(), DeadlinePassed> {
        if self.arrived.elapsed() < self.deadline {
            return Ok(());
        }
        Err(self.late())
    }

    /// That there is not enough time left.
    pub(crate) fn late(&self) -> DeadlinePassed {
        DeadlinePassed {
            deadline: self.deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Arc<Admission> {
        Admission::new(InFlight {
            requests: 2,
            bytes: 100,
        })
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = two();
        let (first, second) = (admission.enter().unwrap(), admission.enter().unwrap());
        assert_eq!(admission.enter_with(0).unwrap_err(), Limit::Requests(2));
        assert_eq!(admission.in_flight(), 2);
        drop(first);
        assert!(admission.enter().is_ok());
        drop(second);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn bytes_are_bounded_and_one_large_body_alone_is_let_in() {
        let admission = two();
        let first = admission.enter_with(60).unwrap();
        assert_eq!(admission.enter_with(41).unwrap_err(), Limit::Bytes(100));
        let mut second = admission.enter_with(10).unwrap();
        assert_eq!(second.hold(50), Err(Limit::Bytes(100)));
        drop(second);
        drop(first);
        let mut alone = admission.enter_with(500).unwrap();
        alone.hold(20).unwrap();
        assert!(admission.enter_with(80).is_ok());
        drop(alone);
        assert_eq!(admission.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_model_has_places_of_its_own_taken_once() {
        let (process, model) = (Admission::new(InFlight::default()), two());
        let mut places: Vec<Place> = (0..3).map(|_| process.enter_with(30).unwrap()).collect();
        places[0].join(&model).unwrap();
        places[0].join(&model).unwrap();
        places[1].join(&model).unwrap();
        assert_eq!(places[2].join(&model), Err(Limit::Requests(2)));
        assert_eq!((process.in_flight(), model.in_flight()), (3, 2));
        places[1].hold(70).unwrap();
        drop(places);
        assert_eq!(
            (process.in_flight(), model.taken.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[test]
    fn a_passed_deadline_admits_nobody() {
        let admission = two();
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

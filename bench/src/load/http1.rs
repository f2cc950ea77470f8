//! HTTP/1.1 over bare sockets: one thread, one epoll loop, one small state machine a connection.
//!
//! A request costs a write, a read and a share of a poll. The thread spins on its core and never
//! sleeps: one that sleeps is woken late on a busy machine, and waking it is done by the server's send,
//! which costs a virtual machine's server more than the request. `Tally::busy` is the time in which
//! there was something to do.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::arrivals::Schedule;
use super::reply::{self, Malformed};
use super::tally::{Failure, Tally};
use super::{Arrivals, Call, Load, Transport};

/// Idle connections are restarted and timeouts are looked for this often.
const SWEEP: Duration = Duration::from_millis(2);
const RECEIVE_BYTES: usize = 16 << 10;

/// Runs the load on this thread.
pub(super) fn run(load: &Load) -> Result<Tally> {
    let mut driver = Driver::new(load)?;
    driver.drive()?;
    let mut tally = driver.tally;
    tally.elapsed = load.measured;
    Ok(tally)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Connecting,
    Writing,
    Reading,
}

/// One connection and the request on it.
struct Lane {
    stream: Option<TcpStream>,
    phase: Phase,
    wire: usize,
    written: usize,
    /// How often this request was refused and sent again.
    retries: usize,
    /// When the request was meant to start; its latency counts from here.
    intended: Instant,
    /// When it was sent or began to connect; its timeout counts from here.
    begun: Instant,
    received: Vec<u8>,
    filled: usize,
}

struct Driver<'l> {
    load: &'l Load,
    wires: Vec<Vec<u8>>,
    poll: Poll,
    lanes: Vec<Lane>,
    idle: VecDeque<usize>,
    /// Arrivals for which no connection was free. Bounded by the arrivals while one has patience.
    waiting: VecDeque<Instant>,
    schedule: Option<Schedule>,
    started: Instant,
    /// Requests meant to start from here to `end` are counted.
    count_from: Instant,
    end: Instant,
    next_wire: usize,
    tally: Tally,
}

impl<'l> Driver<'l> {
    fn new(load: &'l Load) -> Result<Self> {
        let started = Instant::now();
        let count_from = started + load.warm_up;
        let lanes: Vec<Lane> = (0..load.connections.max(1))
            .map(|_| Lane {
                stream: None,
                phase: Phase::Idle,
                wire: 0,
                written: 0,
                retries: 0,
                intended: started,
                begun: started,
                received: vec![0; RECEIVE_BYTES],
                filled: 0,
            })
            .collect();
        Ok(Self {
            load,
            wires: load.calls.iter().map(|call| wire(load, call)).collect(),
            poll: Poll::new()?,
            idle: (0..lanes.len()).collect(),
            lanes,
            waiting: VecDeque::new(),
            schedule: match load.arrivals {
                Arrivals::Closed => None,
                Arrivals::Poisson { per_second, seed } => Some(Schedule::new(per_second, seed)),
            },
            started,
            count_from,
            end: count_from + load.measured,
            next_wire: 0,
            tally: Tally::new()?,
        })
    }

    fn drive(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut swept = self.started;
        loop {
            let now = Instant::now();
            if now >= self.end && self.idle.len() == self.lanes.len() && self.waiting.is_empty() {
                return Ok(());
            }
            if self.schedule.is_some() {
                self.dispatch_arrivals();
            } else if now < self.end && !self.idle.is_empty() {
                self.restart_idle();
            }
            if now.duration_since(swept) >= SWEEP {
                swept = now;
                self.expire(now);
            }
            let polled = Instant::now();
            self.poll
                .poll(&mut events, Some(Duration::ZERO))
                .or_else(|error| match error.kind() {
                    io::ErrorKind::Interrupted => Ok(()),
                    _ => Err(error),
                })?;
            for event in &events {
                let Token(lane) = event.token();
                if event.is_writable() {
                    self.writable(lane);
                }
                let ends = event.is_read_closed() || event.is_error();
                if event.is_readable() || ends {
                    self.readable(lane, ends);
                }
            }
            if !events.is_empty() {
                self.tally.busy += polled.elapsed();
            }
        }
    }

    /// Starts what is due; what finds no free connection waits with its clock running.
    fn dispatch_arrivals(&mut self) {
        while let Some(schedule) = &mut self.schedule {
            let (intended, now) = (self.started + schedule.next(), Instant::now());
            if intended > now || intended >= self.end {
                return;
            }
            schedule.advance();
            if self.counts(intended) {
                self.tally.late(now - intended);
            }
            match self.idle.pop_front() {
                Some(lane) => self.begin(lane, intended, now),
                None if self.load.patience.is_zero() => self.give_up(intended),
                None => self.waiting.push_back(intended),
            }
        }
    }

    fn give_up(&mut self, intended: Instant) {
        if self.counts(intended) {
            self.tally.failed(Failure::Unsent);
        }
    }

    fn restart_idle(&mut self) {
        for _ in 0..self.idle.len() {
            let Some(lane) = self.idle.pop_front() else {
                return;
            };
            let now = Instant::now();
            self.begin(lane, now, now);
        }
    }

    fn counts(&self, intended: Instant) -> bool {
        (self.count_from..self.end).contains(&intended)
    }

    /// Puts the next request on a lane that has none.
    fn begin(&mut self, k: usize, intended: Instant, now: Instant) {
        let lane = &mut self.lanes[k];
        lane.wire = self.next_wire;
        self.next_wire = (self.next_wire + 1) % self.wires.len();
        lane.retries = 0;
        lane.intended = intended;
        self.send(k, now);
    }

    /// Sends a lane's request, for the first time or again.
    fn send(&mut self, k: usize, now: Instant) {
        let lane = &mut self.lanes[k];
        lane.written = 0;
        lane.filled = 0;
        lane.begun = now;
        if lane.stream.is_some() {
            lane.phase = Phase::Writing;
            self.write(k);
            return;
        }
        lane.phase = Phase::Connecting;
        if self.connect(k).is_err() {
            self.fail(k, Failure::Connect);
        }
    }

    fn connect(&mut self, k: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.load.address)?;
        self.poll.registry().register(
            &mut stream,
            Token(k),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.lanes[k].stream = Some(stream);
        Ok(())
    }

    fn writable(&mut self, k: usize) {
        let lane = &mut self.lanes[k];
        match (lane.phase, &lane.stream) {
            (Phase::Writing, _) => self.write(k),
            (Phase::Connecting, Some(stream)) => match stream.take_error() {
                Ok(None) => match stream.peer_addr() {
                    Ok(_) => {
                        // Delays of Nagle's algorithm would be the generator's, not the server's.
                        drop(stream.set_nodelay(true));
                        lane.phase = Phase::Writing;
                        self.write(k);
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    Err(_) => self.fail(k, Failure::Connect),
                },
                Ok(Some(_)) | Err(_) => self.fail(k, Failure::Connect),
            },
            _ => {}
        }
    }

    fn write(&mut self, k: usize) {
        let lane = &mut self.lanes[k];
        let Some(stream) = &mut lane.stream else {
            return;
        };
        let wire = &self.wires[lane.wire];
        while lane.written < wire.len() {
            match stream.write(&wire[lane.written..]) {
                Ok(count) => lane.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.fail(k, Failure::Reset),
            }
        }
        lane.phase = Phase::Reading;
        self.tally.sent += 1;
    }

    /// Reads what has come; `ends` where the event says that nothing comes after it.
    fn readable(&mut self, k: usize, ends: bool) {
        loop {
            let lane = &mut self.lanes[k];
            let Some(stream) = &mut lane.stream else {
                return;
            };
            if lane.filled == lane.received.len() {
                lane.received.resize(lane.filled * 2, 0);
            }
            let room = lane.received.len() - lane.filled;
            match stream.read(&mut lane.received[lane.filled..]) {
                Ok(0) => return self.ended(k),
                Ok(count) => {
                    lane.filled += count;
                    self.received(k);
                    // A short read emptied the socket: more bytes make another event. Its end has made
                    // this one.
                    if count < room && !ends {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.ended(k),
            }
        }
    }

    /// The server closed the connection, or it broke.
    fn ended(&mut self, k: usize) {
        match self.lanes[k].phase {
            Phase::Idle => self.lanes[k].stream = None,
            Phase::Connecting => self.fail(k, Failure::Connect),
            Phase::Writing | Phase::Reading => self.fail(k, Failure::Reset),
        }
    }

    /// Looks for a whole answer in what has come.
    fn received(&mut self, k: usize) {
        let lane = &mut self.lanes[k];
        if lane.phase == Phase::Idle {
            return;
        }
        let reply = match reply::read(&lane.received[..lane.filled]) {
            Ok(None) => return,
            Ok(Some(reply)) => reply,
            Err(Malformed) => return self.fail(k, Failure::Wrong),
        };
        let counts = (self.count_from..self.end).contains(&lane.intended)
            && lane.wire < self.load.counted_calls;
        let failure = Failure::of_status(reply.status)
            .or_else(|| (!(self.load.check)(reply.body)).then_some(Failure::Wrong));
        let whole = reply.length == lane.filled;
        let status = reply.status;
        if !reply.keeps || !whole || self.load.transport == Transport::ConnectionPerRequest {
            lane.stream = None;
        }
        if counts {
            self.tally.status(status);
        }
        if failure == Some(Failure::Shed) && lane.retries < self.load.retries {
            lane.retries += 1;
            return self.send(k, Instant::now());
        }
        if counts {
            match failure {
                Some(failure) => self.tally.failed(failure),
                None => self.tally.good(lane.intended.elapsed()),
            }
        }
        self.free(k);
        self.go_on(k);
    }

    fn fail(&mut self, k: usize, failure: Failure) {
        let lane = &self.lanes[k];
        if self.counts(lane.intended) && lane.wire < self.load.counted_calls {
            self.tally.failed(failure);
        }
        self.lanes[k].stream = None;
        self.free(k);
    }

    fn free(&mut self, k: usize) {
        self.lanes[k].phase = Phase::Idle;
        self.idle.push_back(k);
    }

    /// After an answer: the lane's next request in a closed loop, the first that waits in an open one.
    /// After a failure a closed loop rests until the next turn of the event loop.
    fn go_on(&mut self, k: usize) {
        let now = Instant::now();
        let intended = match &self.schedule {
            Some(_) => self.waiting.pop_front(),
            None => (now < self.end).then_some(now),
        };
        if let Some(intended) = intended {
            // `free` put it last.
            self.idle.pop_back();
            self.begin(k, intended, now);
        }
    }

    /// Gives up on what has waited too long.
    fn expire(&mut self, now: Instant) {
        while let Some(&intended) = self.waiting.front() {
            if now.duration_since(intended) < self.load.patience {
                break;
            }
            self.waiting.pop_front();
            self.give_up(intended);
        }
        for k in 0..self.lanes.len() {
            let lane = &self.lanes[k];
            if lane.phase != Phase::Idle && now.duration_since(lane.begun) >= self.load.timeout {
                self.fail(k, Failure::Timeout);
            }
        }
        // Connections that failed are free again.
        while self.schedule.is_some() && !self.waiting.is_empty() {
            let Some(k) = self.idle.pop_front() else {
                break;
            };
            let Some(intended) = self.waiting.pop_front() else {
                self.idle.push_front(k);
                break;
            };
            self.begin(k, intended, now);
        }
    }
}

/// The bytes of one request.
fn wire(load: &Load, call: &Call) -> Vec<u8> {
    let mut head = format!("POST {} HTTP/1.1\r\nhost: {}\r\n", call.path, load.address);
    if load.transport == Transport::ConnectionPerRequest {
        head.push_str("connection: close\r\n");
    }
    for (name, value) in &call.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", call.body.len()));
    let mut wire = head.into_bytes();
    wire.extend_from_slice(&call.body);
    wire
}

//! One look-up: which payment is asked for next, and what its answer means.
//!
//! - An answer is handed over at once.
//! - A failure that may be everyone's is withheld until another payment, or a probe, is answered.
//! - A refusal (429, 503) costs the payment nothing: it is asked for again, at the lower rate. Only a payment that is
//!   refused while others are answered fails.

use super::{HttpSource, LookupError, Seen, outage, sleep_until};
use crate::{
    domain::{failure::BatchError, ids::PaymentId},
    pipeline::ports::{Answers, Lookup, Payment, PaymentSource as _},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

/// Withheld failures after which a probe decides: this many times the concurrency.
const ROUNDS: usize = 4;

/// Refusals of one payment, while others are answered, after which it fails.
const MAX_REFUSALS: u32 = 3;

/// How long a refused payment is left alone, and how old the answer of another payment may be for comparison.
const SECOND: Duration = Duration::from_secs(1);

/// How long the service may refuse everything before this is an outage.
const ALL_REFUSED: Duration = Duration::from_secs(2);

/// A look-up on its way.
pub(super) struct LookUp<'a> {
    source: &'a HttpSource,
    payments: &'a [PaymentId],
    until: Instant,
    /// Not asked for yet.
    fresh: VecDeque<usize>,
    /// To be asked for again.
    refused: VecDeque<Refused>,
    /// Failed, perhaps because no payment gets an answer.
    withheld: Vec<(usize, String)>,
    seen: Seen,
    /// Whether an answer or a probe has shown that the service works.
    works: bool,
    /// Whether the service has said anything about any payment, usable or not.
    has_responded: bool,
    /// When the first refusal came, and the last one.
    refused_at: Option<(Instant, Instant)>,
    /// What the last refusal said.
    refusal: Option<String>,
    /// A payment that was answered: asked for again to compare, where no other answer is recent.
    reference: Option<PaymentId>,
    is_comparing: bool,
}

/// A payment that was refused.
struct Refused {
    index: usize,
    /// Refusals while others were answered.
    count: u32,
    again_at: Instant,
    /// Whether another payment was asked for, and answered, right before.
    is_compared: bool,
}

/// A request.
enum Request {
    Payment { index: usize, id: PaymentId, refusals: u32, is_compared: bool },
    Reference(PaymentId),
}

/// A request that has ended.
struct Ended {
    request: Request,
    begun: Instant,
    answer: Result<Payment, LookupError>,
}

/// What to do next.
enum Next {
    Begin(Request),
    WaitUntil(Instant),
    /// Nothing, until a request has ended.
    Nothing,
}

impl<'a> LookUp<'a> {
    pub(super) fn new(source: &'a HttpSource, payments: &'a [PaymentId], until: Instant) -> Self {
        Self {
            source,
            payments,
            until,
            fresh: VecDeque::new(),
            refused: VecDeque::new(),
            withheld: Vec::new(),
            seen: Seen::default(),
            works: false,
            has_responded: false,
            refused_at: None,
            refusal: None,
            reference: source.known().answered.clone(),
            is_comparing: false,
        }
    }

    pub(super) async fn run(mut self, answers: Answers<'_>) -> Result<(), BatchError> {
        let source = self.source;
        for (index, payment) in self.payments.iter().enumerate() {
            match source.payment_ids.check(payment.as_str()) {
                Ok(()) => self.fresh.push_back(index),
                Err(refused) => {
                    let error = format!("this id cannot be part of a URL that is asked for: it {refused}");
                    answers(index, Lookup::Failed(error));
                }
            }
        }
        if self.fresh.is_empty() {
            return Ok(());
        }
        // In another order each time: ids that always fail must not always be asked for first.
        shuffle(self.fresh.make_contiguous());
        let mut in_flight = FuturesUnordered::new();
        loop {
            let has_room = in_flight.len() < source.concurrency;
            let next = if has_room { self.next(Instant::now()) } else { Next::Nothing };
            let wake = match next {
                Next::Begin(request) => {
                    in_flight.push(carry_out(source, request));
                    continue;
                }
                Next::WaitUntil(at) => Some(at),
                Next::Nothing if in_flight.is_empty() => break,
                Next::Nothing => None,
            };
            tokio::select! {
                Some(ended) = in_flight.next() => self.receive(ended, answers).await?,
                () = sleep_until(wake.unwrap_or(self.until)), if wake.is_some() => {}
            }
        }
        self.finish(answers).await
    }

    /// The next request, if one may begin at `now`.
    fn next(&mut self, now: Instant) -> Next {
        if now > self.until {
            self.give_up();
        }
        if self.is_refused_only() {
            return Next::Nothing;
        }
        let due = self.refused.front().is_some_and(|front| front.again_at <= now);
        let compares = due && self.lacks_comparison(now);
        // While nothing was answered others say more than what was refused.
        let repeats = due && !compares && (self.works || self.fresh.is_empty());
        if !repeats && self.fresh.is_empty() && (self.is_comparing || !compares) {
            let Some(front) = self.refused.front().filter(|_| !due) else { return Next::Nothing };
            return self.wait_until(front.again_at);
        }
        let permitted = self.source.rate().begin(now);
        if let Err(at) = permitted {
            return self.wait_until(at);
        }
        let repeated = if repeats { self.refused.pop_front() } else { None };
        let (index, refusals, is_compared) = match repeated {
            Some(Refused { index, count, is_compared, .. }) => (Some(index), count, is_compared),
            None => (self.fresh.pop_front(), 0, false),
        };
        match (index.and_then(|index| Some((index, self.payments.get(index)?))), &self.reference) {
            (Some((index, id)), _) => Next::Begin(Request::Payment { index, id: id.clone(), refusals, is_compared }),
            (None, Some(reference)) => {
                self.is_comparing = true;
                Next::Begin(Request::Reference(reference.clone()))
            }
            (None, None) => Next::Nothing,
        }
    }

    /// Waits, unless that would take longer than this look-up may: then what is left is not asked for.
    fn wait_until(&mut self, at: Instant) -> Next {
        if at > self.until {
            self.give_up();
            return Next::Nothing;
        }
        Next::WaitUntil(at)
    }

    fn give_up(&mut self) {
        self.fresh.clear();
        self.refused.clear();
    }

    /// Whether another refusal of the first refused payment would say nothing: no other payment was answered recently, but
    /// one could be asked for.
    fn lacks_comparison(&self, now: Instant) -> bool {
        let Some(front) = self.refused.front() else { return false };
        let is_another = |reference: &PaymentId| self.payments.get(front.index) != Some(reference);
        !front.is_compared && self.reference.as_ref().is_some_and(is_another) && !self.has_answered_before(now)
    }

    /// Whether a payment was answered in the second before a request that began then, or since.
    fn has_answered_before(&self, begun: Instant) -> bool {
        self.source.rate().has_answered_since(begun.checked_sub(SECOND).unwrap_or(begun))
    }

    /// Whether the service refuses everything, and has done so for long enough to tell.
    fn is_refused_only(&self) -> bool {
        let long = |(first, last): (Instant, Instant)| last.saturating_duration_since(first) >= ALL_REFUSED;
        !self.works && !self.has_responded && self.refused_at.is_some_and(long)
    }

    async fn receive(&mut self, ended: Ended, answers: Answers<'_>) -> Result<(), BatchError> {
        let Ended { request, begun, answer } = ended;
        match request {
            Request::Reference(_) => self.receive_reference(answer, answers),
            Request::Payment { index, id, refusals, is_compared } => match answer {
                Ok(payment) => {
                    self.seen.answered.get_or_insert(index);
                    self.seen.count += 1;
                    self.reference = Some(id);
                    answers(index, Lookup::Known(payment));
                    self.found_working(answers);
                }
                Err(LookupError::Refused { error, .. }) => {
                    let counts = is_compared || self.has_answered_before(begun);
                    self.receive_refusal(index, refusals + u32::from(counts), error, answers);
                }
                Err(LookupError::Own(error)) => {
                    self.failed(index);
                    self.has_responded = true;
                    answers(index, failure(&error));
                }
                Err(LookupError::Perhaps(error)) => {
                    self.failed(index);
                    self.withheld.push((index, error));
                    if self.works {
                        self.found_working(answers);
                    } else if self.withheld.len() >= ROUNDS * self.source.concurrency {
                        self.probe(answers).await?;
                    }
                }
            },
        }
        Ok(())
    }

    fn receive_reference(&mut self, answer: Result<Payment, LookupError>, answers: Answers<'_>) {
        self.is_comparing = false;
        let front = self.refused.front_mut();
        match answer {
            Ok(_) => {
                if let Some(front) = front {
                    front.is_compared = true;
                }
                self.found_working(answers);
            }
            Err(LookupError::Refused { error, .. }) => {
                let now = Instant::now();
                if let Some(front) = front {
                    front.again_at = now + SECOND;
                }
                self.note_refusal(error, now);
            }
            // It cannot serve as a reference: payments are repeated without one.
            Err(LookupError::Own(_) | LookupError::Perhaps(_)) => self.reference = None,
        }
    }

    fn receive_refusal(&mut self, index: usize, count: u32, error: String, answers: Answers<'_>) {
        if count >= MAX_REFUSALS {
            let error = format!("{error} {MAX_REFUSALS} times, while other payments were answered");
            answers(index, failure(&error));
            return;
        }
        let now = Instant::now();
        self.refused.push_back(Refused { index, count, again_at: now + SECOND, is_compared: false });
        self.note_refusal(error, now);
    }

    fn note_refusal(&mut self, error: String, now: Instant) {
        self.refused_at = Some((self.refused_at.map_or(now, |(first, _)| first), now));
        self.refusal = Some(error);
    }

    fn failed(&mut self, index: usize) {
        self.seen.failed.get_or_insert(index);
        self.seen.count += 1;
    }

    /// The service works: what was withheld is the payments' own.
    fn found_working(&mut self, answers: Answers<'_>) {
        self.works = true;
        for (index, error) in self.withheld.drain(..) {
            answers(index, failure(&error));
        }
    }

    /// Whether the service works although payments have failed and none was answered.
    async fn probe(&mut self, answers: Answers<'_>) -> Result<(), BatchError> {
        self.source.remember(self.payments, self.seen);
        // Requests with credentials that are replaced by now say nothing of their payments.
        match self.source.access.refresh().await {
            Ok(false) => {}
            Ok(true) => return Err(outage("its credentials were replaced; they are read again").into()),
            Err(error) => return Err(outage(&error).into()),
        }
        self.source.probe().await?;
        self.found_working(answers);
        Ok(())
    }

    async fn finish(mut self, answers: Answers<'_>) -> Result<(), BatchError> {
        self.source.remember(self.payments, self.seen);
        if !self.withheld.is_empty() {
            self.probe(answers).await?;
        }
        if self.works || self.has_responded {
            return Ok(());
        }
        let asks_to_wait = self.source.asks_to_wait(Instant::now());
        match asks_to_wait.or_else(|| self.refusal.as_deref().map(outage)) {
            Some(outage) => Err(outage.into()),
            None => Ok(()),
        }
    }
}

async fn carry_out(source: &HttpSource, request: Request) -> Ended {
    let begun = Instant::now();
    let (Request::Payment { id, .. } | Request::Reference(id)) = &request;
    let answer = source.ask(id.as_str()).await;
    Ended { request, begun, answer }
}

/// Brings the indices into a random order (Fisher and Yates).
fn shuffle(indices: &mut [usize]) {
    // Keyed at random by the standard library.
    let random = RandomState::new();
    for last in (1..indices.len()).rev() {
        let other = usize::try_from(random.hash_one(last) % (last as u64 + 1)).unwrap_or(last);
        indices.swap(last, other);
    }
}

fn failure(error: &str) -> Lookup {
    Lookup::Failed(format!("the payment service: {error}"))
}

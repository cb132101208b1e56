//! One look-up: the order of the requests, and the meaning of each answer.
//!
//! - An answer is returned at once.
//! - A failure that may affect all payments is withheld until another payment, or a probe, is answered.
//! - A refusal (429, 503) is not charged to the payment: the payment is requested again, at a lower rate. A payment
//!   fails only if it is refused while others are answered.

use super::{
    HttpSource, LookupError, Seen, outage,
    request::{Ended, Refused, Request, send_request, shuffle},
    sleep_until,
};
use crate::{
    domain::{failure::BatchError, ids::PaymentId},
    pipeline::ports::{Answers, Lookup, Payment, PaymentSource as _},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The number of withheld failures after which a probe decides, as a multiple of the concurrency.
const ROUNDS: usize = 4;

/// The number of refusals of one payment, while others are answered, after which it fails.
const MAX_REFUSALS: u32 = 3;

/// How long a refused payment waits, and how old the answer of another payment may be for comparison.
const SECOND: Duration = Duration::from_secs(1);

/// How long the gateway may refuse all requests before this is an outage.
const ALL_REFUSED: Duration = Duration::from_secs(2);

/// A look-up in progress.
pub(super) struct LookUp<'a> {
    source: &'a HttpSource,
    payments: &'a [PaymentId],
    until: Instant,
    /// Payments that were not requested yet.
    fresh: VecDeque<usize>,
    /// Payments to request again.
    refused: VecDeque<Refused>,
    /// Failures that may affect all payments.
    withheld: Vec<(usize, String)>,
    seen: Seen,
    /// Whether an answer or a probe has shown that the gateway works.
    works: bool,
    /// Whether the gateway has answered for any payment, usable or not.
    has_responded: bool,
    /// The times of the first and the last refusal.
    refused_at: Option<(Instant, Instant)>,
    /// The text of the last refusal.
    refusal: Option<String>,
    /// A payment that was answered: it is requested again for comparison when no other answer is recent.
    reference: Option<PaymentId>,
    is_comparing: bool,
}

/// The next action of the look-up.
enum Next {
    Begin(Request),
    WaitUntil(Instant),
    /// No action until a request has ended.
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
                    let error = format!("the payment ID {refused}");
                    answers(index, Lookup::Failed(error));
                }
            }
        }
        if self.fresh.is_empty() {
            return Ok(());
        }
        // The order is random in each look-up: IDs that always fail must not always be requested first.
        shuffle(self.fresh.make_contiguous());
        let mut in_flight = FuturesUnordered::new();
        loop {
            let has_room = in_flight.len() < source.concurrency;
            let next = if has_room { self.next(Instant::now()) } else { Next::Nothing };
            let wake = match next {
                Next::Begin(request) => {
                    in_flight.push(send_request(source, request));
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

    /// Returns the next action: a request, if one may start at `now`.
    fn next(&mut self, now: Instant) -> Next {
        if now > self.until {
            self.give_up();
        }
        if self.is_refused_only() {
            return Next::Nothing;
        }
        let due = self.refused.front().is_some_and(|front| front.again_at <= now);
        let compares = due && self.lacks_comparison(now);
        // Before the first answer, new payments are more informative than those that were refused.
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

    /// Waits until `at`, or gives up the remaining payments if that is after the end of this look-up.
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

    /// Returns whether another refusal of the first refused payment would be inconclusive: no other payment was
    /// answered recently, but one could be requested.
    fn lacks_comparison(&self, now: Instant) -> bool {
        let Some(front) = self.refused.front() else { return false };
        let is_another = |reference: &PaymentId| self.payments.get(front.index) != Some(reference);
        !front.is_compared && self.reference.as_ref().is_some_and(is_another) && !self.has_answered_before(now)
    }

    /// Returns whether a payment was answered since one second before a request began.
    fn has_answered_before(&self, begun: Instant) -> bool {
        self.source.rate().has_answered_since(begun.checked_sub(SECOND).unwrap_or(begun))
    }

    /// Returns whether the gateway has refused all requests for long enough to report an outage.
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
                    self.mark_working(answers);
                }
                Err(LookupError::Refused { error, .. }) => {
                    let counts = is_compared || self.has_answered_before(begun);
                    self.receive_refusal(index, refusals + u32::from(counts), error, answers);
                }
                Err(LookupError::Own(error)) => {
                    self.note_failure(index);
                    self.has_responded = true;
                    answers(index, failed_lookup(&error));
                }
                Err(LookupError::Perhaps(error)) => {
                    self.note_failure(index);
                    self.withheld.push((index, error));
                    if self.works {
                        self.mark_working(answers);
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
                self.mark_working(answers);
            }
            Err(LookupError::Refused { error, .. }) => {
                let now = Instant::now();
                if let Some(front) = front {
                    front.again_at = now + SECOND;
                }
                self.note_refusal(error, now);
            }
            // The payment cannot serve as a reference: payments are requested again without one.
            Err(LookupError::Own(_) | LookupError::Perhaps(_)) => self.reference = None,
        }
    }

    fn receive_refusal(&mut self, index: usize, count: u32, error: String, answers: Answers<'_>) {
        if count >= MAX_REFUSALS {
            let error = format!("{error} {MAX_REFUSALS} times, while other payments were answered");
            answers(index, failed_lookup(&error));
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

    fn note_failure(&mut self, index: usize) {
        self.seen.failed.get_or_insert(index);
        self.seen.count += 1;
    }

    /// Marks the gateway as working: the withheld failures concern the payments alone.
    fn mark_working(&mut self, answers: Answers<'_>) {
        self.works = true;
        for (index, error) in self.withheld.drain(..) {
            answers(index, failed_lookup(&error));
        }
    }

    /// Probes whether the gateway works although payments have failed and none was answered.
    async fn probe(&mut self, answers: Answers<'_>) -> Result<(), BatchError> {
        self.source.remember(self.payments, self.seen);
        // A failure with credentials that have been replaced since then is inconclusive.
        match self.source.access.refresh().await {
            Ok(false) => {}
            Ok(true) => return Err(outage("its credentials were replaced and read again").into()),
            Err(error) => return Err(outage(&error).into()),
        }
        self.source.probe().await?;
        self.mark_working(answers);
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
        let asks_to_wait = self.source.retry_after_outage(Instant::now());
        match asks_to_wait.or_else(|| self.refusal.as_deref().map(outage)) {
            Some(outage) => Err(outage.into()),
            None => Ok(()),
        }
    }
}

fn failed_lookup(error: &str) -> Lookup {
    Lookup::Failed(format!("the payment service: {error}"))
}

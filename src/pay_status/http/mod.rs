//! A gateway over HTTP: one GET request per payment, with as many concurrent requests and as high a rate as the gateway
//! accepts.

mod access;
mod look_up;
mod rate;
mod request;
mod retry_after;
mod url_template;

pub use url_template::{Header, HeaderError, UrlTemplate, UrlTemplateError};

use super::{SourceError, quoted};
use crate::{
    domain::{
        failure::{BatchError, Dependency, Outage},
        id_rule::IdRule,
        ids::PaymentId,
        status::{PaymentStatus, StatusValues},
    },
    pay_status::settings::HttpSourceSettings,
    pipeline::ports::{Answers, Payment, PaymentSource, RowStatus},
};
use access::Access;
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use look_up::LookUp;
use rate::Rate;
use reqwest::StatusCode;
use std::{
    error::Error as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The longest body of a response that is accepted, in bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// How long a probe waits until the rate permits its request.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// An ID that no payment has.
const NO_PAYMENT: &str = "pointsd-probe";

/// A payment source over HTTP.
pub(super) struct HttpSource {
    access: Access,
    pointer: String,
    values: StatusValues,
    timeout: Duration,
    concurrency: usize,
    payment_ids: IdRule,
    known: Mutex<Known>,
    rate: Arc<Mutex<Rate>>,
}

/// The payments that a probe asks about.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The last payment that was answered.
    answered: Option<PaymentId>,
    /// The last payment that failed.
    failed: Option<PaymentId>,
    /// Whether two payments have failed since the last answer: an answer for [`NO_PAYMENT`] then does not prove that
    /// the gateway works.
    refuted: bool,
}

/// The answers and failures of a look-up so far.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The first payment that was answered.
    answered: Option<usize>,
    /// The first payment that failed.
    failed: Option<usize>,
    /// The number of payments that were answered or failed.
    count: usize,
}

/// Why a request has no usable answer.
#[derive(Debug)]
enum LookupError {
    /// The gateway may currently answer for no payment.
    Perhaps(String),
    /// The response concerns this payment alone.
    Own(String),
    /// The gateway refused the request because of its rate.
    Refused { error: String, retry_after: Option<Duration> },
}

impl LookupError {
    fn into_error(self) -> String {
        match self {
            Self::Perhaps(error) | Self::Own(error) | Self::Refused { error, .. } => error,
        }
    }
}

/// The limits on requests to the gateway, shared by all sources that use it.
#[derive(Debug, Clone, Default)]
pub struct Limits(Arc<Mutex<Rate>>);

impl HttpSource {
    pub(super) fn new(settings: &HttpSourceSettings, limits: &Limits) -> Result<Self, SourceError> {
        Ok(Self {
            access: Access::new(settings)?,
            pointer: settings.status_pointer.clone(),
            values: settings.values.clone(),
            timeout: settings.timeout,
            concurrency: settings.concurrency.max(1),
            payment_ids: settings.payment_ids.clone(),
            known: Mutex::default(),
            rate: Arc::clone(&limits.0),
        })
    }

    /// Requests the status of one payment, within the timeout, after the rate has permitted it. The result changes the
    /// rate.
    async fn ask(&self, payment: &str) -> Result<Payment, LookupError> {
        let begun = Instant::now();
        let answer = match tokio::time::timeout(self.timeout, self.exchange(payment)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(LookupError::Perhaps(format!("no answer within {:?} (pay_status.http.timeout)", self.timeout)))
            }
        };
        let now = Instant::now();
        match &answer {
            Ok(_) => self.rate().answered(now),
            Err(LookupError::Refused { retry_after, .. }) => self.rate().refused(begun, now, *retry_after),
            Err(LookupError::Perhaps(_) | LookupError::Own(_)) => {}
        }
        answer
    }

    async fn exchange(&self, payment: &str) -> Result<Payment, LookupError> {
        let live = self.access.live();
        let url = live.url.url(payment).map_err(|error| LookupError::Own(error.to_string()))?;
        let answer = live.client.get(url).send().await.map_err(|error| LookupError::Perhaps(with_causes(error)))?;
        let status = answer.status();
        match status {
            StatusCode::OK => self.read(answer).await,
            StatusCode::NOT_FOUND => Ok(Payment::new(PaymentStatus::Unknown)),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(LookupError::Refused {
                error: format!("answered {status}"),
                retry_after: retry_after::retry_after(answer.headers(), Timestamp::now()),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(LookupError::Perhaps(format!("answered {status}"))),
            _ if status.is_redirection() => {
                Err(LookupError::Perhaps(format!("answered {status}; redirects are not followed")))
            }
            _ if status.is_server_error() => Err(LookupError::Perhaps(format!("answered {status}"))),
            _ => Err(LookupError::Own(format!("answered {status}"))),
        }
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<Payment, LookupError> {
        let oversized =
            || LookupError::Own(format!("the answer is too long; must have at most {MAX_ANSWER_BYTES} bytes"));
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| LookupError::Perhaps(with_causes(error)))? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(oversized());
            }
            body.extend_from_slice(&chunk);
        }
        // The parser's description contains a position and nothing of the content.
        let json: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|error| LookupError::Own(format!("the answer is not JSON: {error}")))?;
        let word = match json.pointer(&self.pointer) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            Some(serde_json::Value::Bool(flag)) => flag.to_string(),
            Some(_) | None => return Err(LookupError::Own(format!("the answer has no status at {:?}", self.pointer))),
        };
        let status = self.values.status(&word);
        let said = (status == PaymentStatus::Unrecognised).then(|| quoted(&word));
        Ok(Payment { said, ..Payment::new(status) })
    }

    /// Sends the request of a probe as soon as the rate permits it.
    async fn ask_when_permitted(&self, payment: &str) -> Result<Payment, LookupError> {
        let patience = Instant::now() + PROBE_PATIENCE;
        loop {
            let now = Instant::now();
            if let Some(Outage { reason, .. }) = self.retry_after_outage(now) {
                return Err(LookupError::Perhaps(reason));
            }
            let permitted = self.rate().begin(now);
            match permitted {
                Ok(()) => return self.ask(payment).await,
                Err(at) if at <= patience => sleep_until(at).await,
                Err(_) => {
                    let error = format!("no request was possible within {PROBE_PATIENCE:?} at the permitted rate");
                    return Err(LookupError::Perhaps(error));
                }
            }
        }
    }

    /// Returns the outage to report while a `Retry-After` is in effect.
    fn retry_after_outage(&self, now: Instant) -> Option<Outage> {
        let wait = self.rate().retry_after(now)?;
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let reason = format!("the payment service asks to wait for {seconds} s");
        Some(Outage { dependency: Dependency::PayStatus, reason })
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores payments of a look-up for later probes.
    fn remember(&self, payments: &[PaymentId], Seen { answered, failed, count }: Seen) {
        let id = |index: Option<usize>| index.and_then(|index| payments.get(index)).cloned();
        let (answered, failed) = (id(answered), id(failed));
        let mut known = self.known();
        let another = failed.as_ref().is_some_and(|id| known.failed.as_ref().is_some_and(|before| before != id));
        known.refuted = answered.is_none() && (known.refuted || another || count > 1);
        known.answered = answered.or_else(|| known.answered.take());
        known.failed = failed.or_else(|| known.failed.take());
    }
}

/// Returns the error with its causes, without the URL, which may contain a secret.
fn with_causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
}

fn outage(error: &str) -> Outage {
    Outage { dependency: Dependency::PayStatus, reason: format!("the payment service: {error}") }
}

#[async_trait]
impl PaymentSource for HttpSource {
    async fn look_up(
        &self,
        payments: Arc<[PaymentId]>,
        until: Instant,
        answers: Answers<'_>,
    ) -> Result<(), BatchError> {
        self.access.refresh_unless_recent().await.map_err(|error| BatchError::Outage(outage(&error)))?;
        LookUp::new(self, &payments, until).run(answers).await
    }

    async fn set(&self, _: Arc<[PaymentId]>, _: RowStatus) -> Result<(), BatchError> {
        // The configuration refuses settings that would write records.
        Err(BatchError::Refused("a payment service's records are not written".into()))
    }

    async fn probe_set(&self) -> Result<(), Outage> {
        self.probe().await
    }

    /// Asks about the last payment that was answered and the last one that failed. While no payment was ever answered
    /// and no two have failed, an ID that no payment has is used as well; it proves less, because a gateway whose store
    /// is down may still answer for it.
    async fn probe(&self) -> Result<(), Outage> {
        if let Some(outage) = self.retry_after_outage(Instant::now()) {
            return Err(outage);
        }
        self.access.refresh().await.map_err(|error| outage(&error))?;
        let Known { answered, failed, refuted } = self.known().clone();
        let no_payment = (answered.is_none() && !refuted).then_some(NO_PAYMENT);
        let ids = [answered.as_ref().map(PaymentId::as_str), failed.as_ref().map(PaymentId::as_str), no_payment];
        let asked: Vec<_> = ids.into_iter().flatten().map(|id| self.ask_when_permitted(id)).collect();
        let mut asked = stream::iter(asked).buffer_unordered(ids.len());
        let mut reason = String::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(_) => return Ok(()),
                Err(miss) => reason = miss.into_error(),
            }
        }
        Err(self.retry_after_outage(Instant::now()).unwrap_or_else(|| outage(&reason)))
    }

    fn max_duration(&self) -> Duration {
        // The last request, and the probe that classifies its failure.
        self.timeout * 2 + PROBE_PATIENCE
    }
}

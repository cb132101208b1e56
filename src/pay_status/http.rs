//! A payment service or gateway over HTTP: one GET a payment, so many at a time.

use super::{SourceError, quoted};
use crate::{
    config::HttpSourceSettings,
    domain::{
        ids::PaymentId,
        status::{PaymentStatus, StatusValues},
    },
    pipeline::ports::{BatchError, Dependency, Lookup, Outage, Payment, PaymentSource, RowStatus},
};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Certificate, Client, StatusCode, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use std::{
    error::Error as _,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The longest answer that is read. Bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// How many times the concurrency are looked up in one batch: enough to keep it busy, and few enough to be done soon
/// when every answer takes its whole time.
const ROUNDS: usize = 4;

/// Everything but what RFC 3986 calls unreserved: an id is one piece of a path or a query, whatever it holds.
const ID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where the id goes.
const PLACEHOLDER: &str = "{payment_id}";

/// An id that no payment has.
const NOBODYS: &str = "pointsd-probe";

/// A URL with a place for the payment's id. It may have a secret: it does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlTemplate {
    before: String,
    after: String,
}

impl fmt::Debug for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UrlTemplate(…)")
    }
}

/// Why a text is no such URL. It does not repeat the text, which may have a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlTemplateError {
    /// Another scheme.
    #[error("must begin with https:// or http://, as in https://pay.example/payments/{{payment_id}}")]
    Scheme,
    /// The place is missing, there twice, or within the host.
    #[error("must have {{payment_id}} once, in its path or query, as in https://pay.example/payments/{{payment_id}}")]
    Placeholder,
    /// Not a URL.
    #[error("is no URL ({0}); must be as in https://pay.example/payments/{{payment_id}}")]
    NotAUrl(String),
}

impl UrlTemplate {
    /// Reads `https://pay.example/payments/{payment_id}`.
    pub fn parse(text: &str) -> Result<Self, UrlTemplateError> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let rest = rest.ok_or(UrlTemplateError::Scheme)?;
        let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
        let fragment_at = rest.find('#').unwrap_or(rest.len());
        let mut places = rest.match_indices(PLACEHOLDER).map(|(at, _)| at);
        match (places.next(), places.next()) {
            (Some(at), None) if at > path_at && at < fragment_at => {}
            _ => return Err(UrlTemplateError::Placeholder),
        }
        let (before, after) = text.split_once(PLACEHOLDER).unwrap_or((text, ""));
        let template = Self { before: before.to_owned(), after: after.to_owned() };
        let id = "7";
        template.url(id).map_err(|error| UrlTemplateError::NotAUrl(error.to_string()))?;
        Ok(template)
    }

    /// Whether it is `https://`.
    pub fn is_tls(&self) -> bool {
        self.before.starts_with("https://")
    }

    /// Of one payment.
    fn url(&self, payment: &str) -> Result<Url, url::ParseError> {
        let id = utf8_percent_encode(payment, ID);
        Url::parse(&format!("{}{id}{}", self.before, self.after))
    }
}

/// A header that goes with every request. It may be a secret: it does not print.
#[derive(Clone)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// Why a text is no header. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a header as in \"Authorization: Bearer …\"")]
pub struct HeaderError;

impl Header {
    /// Reads `Name: value`.
    pub fn parse(line: &str) -> Result<Self, HeaderError> {
        let (name, value) = line.split_once(':').ok_or(HeaderError)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| HeaderError)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| HeaderError)?;
        value.set_sensitive(true);
        Ok(Self { name, value })
    }
}

/// A payment source over HTTP.
pub(super) struct HttpSource {
    client: Client,
    url: UrlTemplate,
    pointer: String,
    values: StatusValues,
    timeout: Duration,
    concurrency: usize,
    known: Mutex<Known>,
}

/// Payments that a probe asks for.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The last one that was answered for.
    answered: Option<PaymentId>,
    /// The last one that was not.
    failed: Option<PaymentId>,
    /// Whether two of them have failed since the last answer: an id that nobody has proves nothing against that.
    refuted: bool,
}

/// Why a look-up gave nothing.
enum Miss {
    /// Perhaps because nobody gets an answer now.
    Perhaps(String),
    /// Because of this payment's own answer.
    Own(String),
}

impl HttpSource {
    pub(super) fn new(settings: &HttpSourceSettings) -> Result<Self, SourceError> {
        let mut headers = HeaderMap::new();
        for Header { name, value } in &settings.headers {
            headers.append(name.clone(), value.clone());
        }
        let failed = |error: reqwest::Error| SourceError::Client(told(error));
        let mut client = Client::builder()
            .user_agent(concat!("pointsd/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect could take the secret headers anywhere.
            .redirect(redirect::Policy::none())
            // What the environment says of proxies is not ours: payments are asked for where the configuration says.
            .no_proxy()
            // Attempts are counted by the pipeline.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(settings.concurrency);
        if let Some(ca) = &settings.ca {
            client = client.tls_certs_only(Certificate::from_pem_bundle(ca).map_err(failed)?);
        }
        Ok(Self {
            client: client.build().map_err(failed)?,
            url: settings.url.clone(),
            pointer: settings.status_pointer.clone(),
            values: settings.values.clone(),
            timeout: settings.timeout,
            concurrency: settings.concurrency,
            known: Mutex::default(),
        })
    }

    /// One payment, within the timeout, whatever the other side does.
    async fn ask(&self, payment: &str) -> Result<Payment, Miss> {
        match tokio::time::timeout(self.timeout, self.exchange(payment)).await {
            Ok(answer) => answer,
            Err(_) => Err(Miss::Perhaps(format!("no answer within {:?} (pay_status.http.timeout)", self.timeout))),
        }
    }

    async fn exchange(&self, payment: &str) -> Result<Payment, Miss> {
        // `.` and `..` are no pieces of a path, however they are written (WHATWG URL, "double-dot path segment").
        if matches!(payment, "." | "..") {
            return Err(Miss::Own("this id cannot stand in a URL".into()));
        }
        let url = self.url.url(payment).map_err(|error| Miss::Own(error.to_string()))?;
        let answer = self.client.get(url).send().await.map_err(|error| Miss::Perhaps(told(error)))?;
        let status = answer.status();
        match status {
            StatusCode::OK => self.read(answer).await,
            StatusCode::NOT_FOUND => Ok(Payment::new(PaymentStatus::Unknown)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Err(Miss::Perhaps(format!("answered {status}")))
            }
            _ if status.is_redirection() => {
                Err(Miss::Perhaps(format!("answered {status}; redirects are not followed")))
            }
            _ if status.is_server_error() => Err(Miss::Perhaps(format!("answered {status}"))),
            _ => Err(Miss::Own(format!("answered {status}"))),
        }
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<Payment, Miss> {
        let oversized = || Miss::Own(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"));
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| Miss::Perhaps(told(error)))? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(oversized());
            }
            body.extend_from_slice(&chunk);
        }
        // The parser's words have a position, and nothing of the content.
        let json: serde_json::Value =
            serde_json::from_slice(&body).map_err(|error| Miss::Own(format!("the answer is not JSON: {error}")))?;
        let word = match json.pointer(&self.pointer) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            Some(serde_json::Value::Bool(flag)) => flag.to_string(),
            Some(_) | None => return Err(Miss::Own(format!("the answer has no status at {:?}", self.pointer))),
        };
        let status = self.values.status(&word);
        let said = (status == PaymentStatus::Unrecognised).then(|| quoted(&word));
        Ok(Payment { said, ..Payment::new(status) })
    }

    fn remember(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What went wrong, with its causes, without the URL, which may have a secret.
fn told(error: reqwest::Error) -> String {
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

#[async_trait]
impl PaymentSource for HttpSource {
    async fn look_up(&self, payments: Arc<[PaymentId]>) -> Result<Vec<Lookup>, BatchError> {
        let asked: Vec<_> = payments.iter().map(|payment| self.ask(payment.as_str())).collect();
        let answers: Vec<Result<Payment, Miss>> = stream::iter(asked).buffered(self.concurrency).collect().await;
        let first = |answered: bool| answers.iter().position(|answer| answer.is_ok() == answered);
        let (answered, failed) = (first(true), first(false));
        self.remember(|known| {
            let id = |index: usize| payments[index].clone();
            let another = failed.map(id).is_some_and(|id| known.failed.as_ref().is_some_and(|before| *before != id));
            known.refuted = answered.is_none() && (known.refuted || another || answers.len() > 1);
            known.answered = answered.map(id).or_else(|| known.answered.take());
            known.failed = failed.map(id).or_else(|| known.failed.take());
        });
        let nobody_is_to_blame = answers.iter().any(|answer| matches!(answer, Err(Miss::Perhaps(_))));
        if answered.is_none() && nobody_is_to_blame {
            self.probe().await?;
        }
        let lookup = |answer| match answer {
            Ok(payment) => Lookup::Known(payment),
            Err(Miss::Perhaps(error) | Miss::Own(error)) => Lookup::Failed(format!("the payment service: {error}")),
        };
        Ok(answers.into_iter().map(lookup).collect())
    }

    /// Asks for a payment that was answered for before, and for the last one that was not. As long as none was ever answered
    /// for, and no two have failed, one that nobody has may speak for them: a gateway whose store is down may still refuse
    /// that one.
    async fn set(&self, _: Arc<[PaymentId]>, _: RowStatus) -> Result<(), BatchError> {
        // The configuration has refused whatever would ask for it.
        Err(BatchError::Refused("a payment service's records are not written".into()))
    }

    async fn probe_set(&self) -> Result<(), Outage> {
        self.probe().await
    }

    async fn probe(&self) -> Result<(), Outage> {
        let Known { answered, failed, refuted } = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nobodys = (answered.is_none() && !refuted).then_some(NOBODYS);
        let ids = [answered.as_ref().map(PaymentId::as_str), failed.as_ref().map(PaymentId::as_str), nobodys];
        let asked: Vec<_> = ids.into_iter().flatten().map(|id| self.ask(id)).collect();
        let mut asked = stream::iter(asked).buffer_unordered(3);
        let mut reason = String::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(_) => return Ok(()),
                Err(Miss::Perhaps(error) | Miss::Own(error)) => reason = error,
            }
        }
        Err(Outage { dependency: Dependency::PayStatus, reason: format!("the payment service: {reason}") })
    }

    fn most(&self) -> usize {
        self.concurrency * ROUNDS
    }

    fn longest(&self) -> Duration {
        self.timeout * u32::try_from(ROUNDS + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_piece_of_the_url_whatever_it_holds() {
        let url = UrlTemplate::parse("https://pay.example/payments/{payment_id}/status?a=b").unwrap();
        for (id, path) in [
            ("1", "/payments/1/status"),
            ("a b/c?d#e%f&g", "/payments/a%20b%2Fc%3Fd%23e%25f%26g/status"),
            ("支付", "/payments/%E6%94%AF%E4%BB%98/status"),
            ("../admin", "/payments/..%2Fadmin/status"),
            ("a:b@c", "/payments/a%3Ab%40c/status"),
        ] {
            let url = url.url(id).unwrap();
            assert_eq!((url.path(), url.query(), url.host_str()), (path, Some("a=b"), Some("pay.example")), "{id}");
        }
    }

    #[test]
    fn a_template_has_its_place_once_and_not_in_the_host() {
        for (text, error) in [
            ("ftp://h/{payment_id}", UrlTemplateError::Scheme),
            ("https://pay.example/payments", UrlTemplateError::Placeholder),
            ("https://{payment_id}.example/", UrlTemplateError::Placeholder),
            ("https://u:{payment_id}@h/x", UrlTemplateError::Placeholder),
            ("https://h/{payment_id}/{payment_id}", UrlTemplateError::Placeholder),
            ("https://h/x#{payment_id}", UrlTemplateError::Placeholder),
        ] {
            assert_eq!(UrlTemplate::parse(text).unwrap_err(), error, "{text}");
        }
        assert!(UrlTemplate::parse("https://h/pay?id={payment_id}").is_ok());
        assert!(matches!(UrlTemplate::parse("https://h:x/{payment_id}"), Err(UrlTemplateError::NotAUrl(_))));
    }

    #[test]
    fn headers_do_not_print_their_value() {
        let header = Header::parse("Authorization: Bearer s3cret").unwrap();
        assert!(!format!("{header:?}").contains("s3cret"));
        for line in ["Authorization", ": x", "a b: c", "a: b\nc"] {
            assert_eq!(Header::parse(line).unwrap_err(), HeaderError, "{line}");
        }
    }
}

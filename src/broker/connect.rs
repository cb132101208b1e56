//! Connections, to the first node that takes one.

use super::{BrokerError, STEP_TIMEOUT, lenient, told};
use crate::config::{BrokerSettings, TlsFiles};
use lapin::{
    Connection, ConnectionProperties,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::task::JoinHandle;

/// Seconds between heartbeats unless the URL says otherwise: a node that vanished is noticed within two of them.
const HEARTBEAT_SECONDS: u16 = 20;

/// The largest frame, in bytes, unless the URL or the broker says less: RabbitMQ's own default. Said from the beginning,
/// because lapin makes its two buffers (32 frames each) anew when it is told later, and then writes all of them, 8 MiB a
/// connection. So they take memory only as far as they are used.
const FRAME_MAX: u32 = 131_072;

/// One node of the broker. It has a password: it prints as node and virtual host.
#[derive(Clone)]
pub struct BrokerUrl(pub(super) AMQPUri);

/// Why a text is no broker's URL. It does not repeat the text, which has a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// Another scheme.
    #[error("must begin with amqp:// or amqps://, as in amqp://user:password@host:5672/%2f")]
    Scheme,
    /// No host.
    #[error("names no host; must be as in amqp://user:password@host:5672/%2f")]
    NoHost,
    /// `amqp://h/` is the virtual host "", which is hardly ever meant.
    #[error("names the virtual host \"\"; must end in /%2f for the default one, or /NAME")]
    EmptyVhost,
    /// Anything else.
    #[error(
        "is no AMQP URL ({0}); must be as in amqp://user:password@host:5672/%2f (special characters percent-encoded)"
    )]
    Other(String),
}

impl BrokerUrl {
    /// Reads a URL of the form that RabbitMQ's "URI Specification" describes.
    pub fn parse(text: &str) -> Result<Self, BrokerUrlError> {
        if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
            return Err(BrokerUrlError::Scheme);
        }
        if text.contains(|character: char| character.is_whitespace() || character.is_control()) {
            return Err(BrokerUrlError::Other("it has blanks or several lines".into()));
        }
        let url = url::Url::parse(text).map_err(|error| BrokerUrlError::Other(error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(BrokerUrlError::NoHost)?;
        let mut uri = AMQPUri::from_str(text).map_err(BrokerUrlError::Other)?;
        // lapin's parser takes an IPv6 address for localhost.
        host.trim_start_matches('[').trim_end_matches(']').clone_into(&mut uri.authority.host);
        if uri.vhost.is_empty() {
            return Err(BrokerUrlError::EmptyVhost);
        }
        // The smallest frame that AMQP 0-9-1 allows.
        if uri.query.frame_max.is_some_and(|size| size < 4096) || uri.authority.port == 0 {
            return Err(BrokerUrlError::Other("frame_max must be at least 4096, and a port at least 1".into()));
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        Ok(Self(uri))
    }

    /// Whether it is `amqps://`.
    pub fn is_tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { authority, vhost, .. } = &self.0;
        write!(f, "{}:{} (vhost {vhost})", authority.host, authority.port)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

type Attempt = JoinHandle<lapin::Result<Connection>>;

/// Attempts that have not ended in time, by node and purpose. lapin offers no way to end one, and each holds a thread
/// and a socket: it is waited for again instead of beginning another beside it.
static UNENDED: Mutex<BTreeMap<String, Attempt>> = Mutex::new(BTreeMap::new());

fn unended() -> MutexGuard<'static, BTreeMap<String, Attempt>> {
    UNENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to the first node that takes the connection; also tells which one it is. `purpose` is shown beside the
/// connection in RabbitMQ's management.
pub(super) async fn connect(settings: &BrokerSettings, purpose: &str) -> Result<(Connection, BrokerUrl), BrokerError> {
    let mut failures = Vec::with_capacity(settings.urls.len());
    for url in &settings.urls {
        let key = format!("{purpose} {url}");
        let begun = unended().remove(&key);
        let mut attempt =
            begun.unwrap_or_else(|| tokio::spawn(attempt(url.0.clone(), tls(&settings.tls), purpose.to_owned())));
        match tokio::time::timeout(STEP_TIMEOUT, &mut attempt).await {
            Ok(Ok(Ok(connection))) => return Ok((connection, url.clone())),
            Ok(Ok(Err(error))) => failures.push(format!("{url}: {}", told(&error))),
            Ok(Err(panicked)) => failures.push(format!("{url}: {panicked}")),
            Err(_) => {
                unended().insert(key, attempt);
                failures.push(format!("{url}: no answer within {STEP_TIMEOUT:?}"));
            }
        }
    }
    Err(BrokerError::Connect(failures.join("; ")))
}

async fn attempt(uri: AMQPUri, tls: OwnedTLSConfig, purpose: String) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(format!("pointsd {purpose}").into());
    lenient::connect(uri, properties, tls).await
}

/// Our own authorities, or else the system's.
pub(super) fn tls(files: &TlsFiles) -> OwnedTLSConfig {
    let system = || openssl_probe::probe().cert_file.and_then(|file| std::fs::read_to_string(file).ok());
    let identity = files.identity.as_ref();
    OwnedTLSConfig {
        identity: identity
            .map(|identity| OwnedIdentity::PKCS8 { pem: identity.certificate.clone(), key: identity.key.clone() }),
        cert_chain: files.ca.clone().or_else(system),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_is_wrong_and_never_repeat_a_password() {
        for (text, error) in [
            ("http://h", BrokerUrlError::Scheme),
            ("amqp://u:secret@/%2f", BrokerUrlError::NoHost),
            ("amqp://h:5672/", BrokerUrlError::EmptyVhost),
        ] {
            let given = BrokerUrl::parse(text).unwrap_err();
            assert!(given == error || text.contains("secret"), "{text}: {given}");
            assert!(!given.to_string().contains("secret"), "{given}");
        }
        assert!(BrokerUrl::parse("amqp://u:secret@h:99999/%2f").unwrap_err().to_string().contains("port"));
    }

    /// lapin makes its buffers only once when it is said from the beginning.
    #[test]
    fn frames_are_as_large_as_rabbitmqs_own_unless_the_url_says_otherwise() {
        for (text, frame_max) in [("amqp://h/%2f", 131_072), ("amqp://h/%2f?frame_max=8192", 8192)] {
            assert_eq!(BrokerUrl::parse(text).unwrap().0.query.frame_max, Some(frame_max), "{text}");
        }
    }

    #[test]
    fn urls_print_without_user_and_password() {
        for (text, shown) in [
            ("amqp://u:secret@rabbit:5672/%2f", "rabbit:5672 (vhost /)"),
            ("amqps://u:secret@rabbit/shop", "rabbit:5671 (vhost shop)"),
            ("amqp://rabbit", "rabbit:5672 (vhost /)"),
            ("amqp://u:secret@[::1]:5673/a%2fb", "::1:5673 (vhost a/b)"),
            ("amqp://u:secret@127.0.0.1/%2f?heartbeat=5", "127.0.0.1:5672 (vhost /)"),
        ] {
            let url = BrokerUrl::parse(text).unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()), "{text}");
        }
    }
}

//! Connecting to the first node of the broker that accepts the connection.

use super::{BrokerError, STEP_TIMEOUT, error_text, lenient};
use crate::{
    broker::{BrokerSettings, Identity, TlsFiles},
    files::{self, FileError},
    unpoisoned::lock,
};
use futures_util::future::select_all;
use lapin::{
    Connection, ConnectionProperties, ConnectionStatus,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::task::JoinHandle;

/// The default interval of heartbeats in seconds: a lost node is detected within two intervals. The URL can override
/// it.
const HEARTBEAT_SECONDS: u16 = 20;

/// The default maximum frame size in bytes, which is RabbitMQ's default. The URL or the broker can lower it.
///
/// It is set before the connection opens. If lapin learns the size later, it reallocates its two buffers (32 frames
/// each) and writes to all of their memory: 8 MiB a connection. Set early, they take memory only as far as they are
/// used.
const FRAME_MAX: u32 = 131_072;

/// The URL of one node of the broker. It contains a password and is printed as node and virtual host only.
#[derive(Clone)]
pub struct BrokerUrl(pub(super) AMQPUri);

/// The reason why a text is not the URL of a broker. It never repeats the text, which contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// The scheme is neither `amqp` nor `amqps`.
    #[error("must begin with amqp:// or amqps://, as in amqp://user:password@host:5672/%2f")]
    Scheme,
    /// The URL has no host.
    #[error("has no host; must be as in amqp://user:password@host:5672/%2f")]
    NoHost,
    /// `amqp://h/` selects the virtual host "", which is almost never intended.
    #[error("names the virtual host \"\"; must end in /%2f for the default one, or /NAME")]
    EmptyVhost,
    /// Any other error.
    #[error(
        "not an AMQP URL ({0}); must be as in amqp://user:password@host:5672/%2f (special characters percent-encoded)"
    )]
    Other(String),
}

impl BrokerUrl {
    /// Parses a URL of the form that RabbitMQ's "URI Specification" describes.
    pub fn parse(text: &str) -> Result<Self, BrokerUrlError> {
        if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
            return Err(BrokerUrlError::Scheme);
        }
        if text.contains(|character: char| character.is_whitespace() || character.is_control()) {
            return Err(BrokerUrlError::Other("it contains whitespace or control characters".into()));
        }
        let url = url::Url::parse(text).map_err(|error| BrokerUrlError::Other(error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(BrokerUrlError::NoHost)?;
        let mut uri = AMQPUri::from_str(text).map_err(BrokerUrlError::Other)?;
        // lapin's parser replaces an IPv6 address by localhost.
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

    /// Whether the connection uses TLS (`amqps://`).
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

/// Attempts to connect that exceeded their deadline, by node and purpose. lapin cannot abort an attempt, and each holds
/// a thread and a socket: at most [`MAX_UNFINISHED`] run at a time, and each later call of [`connect`] waits for them,
/// too.
static UNFINISHED: Mutex<BTreeMap<String, Vec<Attempt>>> = Mutex::new(BTreeMap::new());

/// The maximum number of attempts for one node and purpose. A single one could hang forever, after the broker is back.
const MAX_UNFINISHED: usize = 4;

fn unfinished_attempts() -> MutexGuard<'static, BTreeMap<String, Vec<Attempt>>> {
    lock(&UNFINISHED)
}

/// The connections of this process that may still be open.
static OPEN: Mutex<Vec<ConnectionStatus>> = Mutex::new(Vec::new());

/// The deadline for connections to close in order.
const TIME_TO_CLOSE: Duration = Duration::from_secs(5);

fn has_ended(status: &ConnectionStatus) -> bool {
    status.closed() || status.errored()
}

fn open_connections() -> MutexGuard<'static, Vec<ConnectionStatus>> {
    let mut open = lock(&OPEN);
    open.retain(|status| !has_ended(status));
    open
}

/// Waits until all connections are closed in order. A connection that is dropped after an error starts to close then;
/// if the process ends earlier, the broker logs an error of the client.
pub async fn connections_closed() {
    let closed = async {
        // A connection that an alarm blocks writes nothing and cannot close.
        while !open_connections().iter().all(ConnectionStatus::blocked) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(TIME_TO_CLOSE, closed).await;
}

/// Connects to the first node that accepts the connection, and returns the node. `purpose` is part of the name of the
/// connection in the RabbitMQ management interface.
pub(super) async fn connect(settings: &BrokerSettings, purpose: &str) -> Result<(Connection, BrokerUrl), BrokerError> {
    let Access { urls, tls: tls_files } = read_access(settings).await?;
    let mut failures = Vec::with_capacity(urls.len());
    for url in &urls {
        let key = format!("{purpose} {url}");
        let (ended, mut attempts): (Vec<_>, Vec<_>) =
            unfinished_attempts().remove(&key).unwrap_or_default().into_iter().partition(JoinHandle::is_finished);
        // Errors of earlier attempts are outdated. One late connection is used if it is still open; dropping closes the
        // others.
        let mut late = None;
        for attempt in ended {
            if let Ok(Ok(connection)) = attempt.await
                && connection.status().connected()
            {
                late = Some(connection);
            }
        }
        if let Some(connection) = late {
            if !attempts.is_empty() {
                unfinished_attempts().insert(key, attempts);
            }
            open_connections().push(connection.status().clone());
            return Ok((connection, url.clone()));
        }
        if attempts.len() < MAX_UNFINISHED {
            attempts.push(tokio::spawn(open_connection(url.0.clone(), tls_config(&tls_files), purpose.to_owned())));
        }
        let first = tokio::time::timeout(STEP_TIMEOUT, select_all(&mut attempts)).await;
        let ended = first.ok().map(|(ended, index, _)| (ended, index));
        if let Some((_, index)) = &ended {
            drop(attempts.remove(*index));
        }
        if !attempts.is_empty() {
            unfinished_attempts().insert(key, attempts);
        }
        match ended {
            Some((Ok(Ok(connection)), _)) => {
                open_connections().push(connection.status().clone());
                return Ok((connection, url.clone()));
            }
            Some((Ok(Err(error)), _)) => {
                failures.push(describe_failure(url, settings.urls_file.as_deref(), &error_text(&error)));
            }
            Some((Err(panicked), _)) => failures.push(format!("{url}: {panicked}")),
            None => failures.push(format!("{url}: no answer within {STEP_TIMEOUT:?}")),
        }
    }
    Err(BrokerError::Connect(failures.join("; ")))
}

/// The error text for a node. For a refused login it names the user and the file with the password.
fn describe_failure(url: &BrokerUrl, file: Option<&Path>, reason: &str) -> String {
    if !reason.contains("ACCESS_REFUSED") {
        return format!("{url}: {reason}");
    }
    let user = &url.0.authority.userinfo.username;
    let file = file.map(|file| format!(" of {}", file.display())).unwrap_or_default();
    format!("{url}, user {user}{file}: {reason}")
}

async fn open_connection(uri: AMQPUri, tls: OwnedTLSConfig, purpose: String) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(format!("pointsd {purpose}").into());
    lenient::connect(uri, properties, tls).await
}

/// The URLs and certificates for a connection.
#[derive(Clone)]
struct Access {
    urls: Vec<BrokerUrl>,
    tls: TlsFiles,
}

/// Returns the current URLs and certificates; those in files are read again.
async fn read_access(settings: &BrokerSettings) -> Result<Access, BrokerError> {
    let (urls, urls_file, tls) = (settings.urls.clone(), settings.urls_file.clone(), settings.tls.clone());
    let Some(first) = urls_file.iter().chain(tls.files.iter().flatten()).next().cloned() else {
        return Ok(Access { urls, tls });
    };
    let read = files::reading(&first, move || {
        let urls = match &urls_file {
            Some(file) => read_urls(file, &urls)?,
            None => urls,
        };
        Ok(Access { urls, tls: read_tls(tls)? })
    });
    read.await.map_err(|error| BrokerError::Connect(error.to_string()))
}

/// Reads the nodes from a file, one a line: the nodes of the start with the current credentials. With other nodes, the
/// two connections of a session could lead to different brokers: copies would be published to one and the originals
/// acknowledged at the other.
fn read_urls(file: &Path, at_start: &[BrokerUrl]) -> Result<Vec<BrokerUrl>, FileError> {
    let text = files::read_text_now(file)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let urls: Vec<BrokerUrl> =
        lines.map(BrokerUrl::parse).collect::<Result<_, _>>().map_err(|error| FileError::malformed(file, error))?;
    if urls.is_empty() {
        return Err(FileError::malformed(file, "contains no URL"));
    }
    // The file cannot switch TLS on or off while the daemon runs.
    let is_tls = at_start.iter().any(BrokerUrl::is_tls);
    if urls.iter().any(|url| url.is_tls() != is_tls) {
        let wanted = if is_tls { "amqps" } else { "amqp" };
        return Err(FileError::malformed(
            file,
            format_args!("must contain {wanted}:// URLs, as when the daemon started"),
        ));
    }
    let nodes = |urls: &[BrokerUrl]| urls.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    if nodes(&urls) != nodes(at_start) {
        return Err(FileError::malformed(file, "lists other nodes than when the daemon started; restart the daemon"));
    }
    Ok(urls)
}

/// Reads the certificates and the key from their files.
fn read_tls(given: TlsFiles) -> Result<TlsFiles, FileError> {
    let pem = |file: Option<&PathBuf>, key: &str, what: &str| match file {
        None => Ok(None),
        Some(file) => {
            let bytes = files::read_now(file)?;
            let is_pem = files::is_pem(key, &bytes);
            is_pem
                .then_some(Some(bytes))
                .ok_or_else(|| FileError::malformed(file, format_args!("holds no PEM of {what}")))
        }
    };
    let [ca, certificate, key] = &given.files;
    let ca = pem(ca.as_ref(), "ca_file", "a certificate")?;
    let certificate = pem(certificate.as_ref(), "cert_file", "a certificate")?;
    let key = pem(key.as_ref(), "key_file", "a private key")?;
    Ok(TlsFiles {
        ca: ca.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        identity: certificate.zip(key).map(|(certificate, key)| Identity { certificate, key }),
        files: given.files,
    })
}

/// The TLS configuration: the configured certificate authorities, or else those of the system.
pub(super) fn tls_config(files: &TlsFiles) -> OwnedTLSConfig {
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

    /// lapin allocates its buffers only once if the size is set before the connection opens.
    #[test]
    fn frames_are_as_large_as_rabbitmqs_own_unless_the_url_says_otherwise() {
        for (text, frame_max) in [("amqp://h/%2f", 131_072), ("amqp://h/%2f?frame_max=8192", 8192)] {
            assert_eq!(BrokerUrl::parse(text).unwrap().0.query.frame_max, Some(frame_max), "{text}");
        }
    }

    #[test]
    fn files_are_read_again_and_their_faults_name_the_file_and_no_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("broker.urls");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("amqp://u:s3cret@a/%2f\n\n amqp://u:s3cret@b/%2f \n");
        let urls = |texts: &[&str]| texts.iter().map(|text| BrokerUrl::parse(text).unwrap()).collect::<Vec<_>>();
        let at_start = urls(&["amqp://u:old@b/%2f", "amqp://u:old@a/%2f"]);
        let shown: Vec<String> = read_urls(&file, &at_start).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:5672 (vhost /)", "b:5672 (vhost /)"]);
        for (text, at_start) in [
            ("", "amqp://u:old@a/%2f"),
            ("amqp://u:s3cret@a/%2f", "amqps://u:old@a/%2f"),
            ("amqps://u:s3cret@a/%2f", "amqp://u:old@a/%2f"),
            ("amqp://u:s3cret@b/%2f", "amqp://u:old@a/%2f"),
            ("amqp://u:s3cret@a/other", "amqp://u:old@a/%2f"),
            ("s3cret", "amqp://u:old@a/%2f"),
        ] {
            write(text);
            let error = read_urls(&file, &urls(&[at_start])).err().unwrap().to_string();
            assert!(error.starts_with(&file.display().to_string()) && !error.contains("s3cret"), "{error}");
        }
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let given = TlsFiles { files: [None, Some(certificate), Some(key.clone())], ca: None, identity: None };
        assert_eq!(read_tls(given.clone()).unwrap().identity.unwrap().key, std::fs::read(&key).unwrap());
        std::fs::write(&key, "s3cret").unwrap();
        let error = read_tls(given).unwrap_err().to_string();
        assert_eq!(error, format!("{}: holds no PEM of a private key", key.display()));
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

//! The access to the gateway: URL, headers and certificate authorities. Those that are in files are read again while
//! the daemon runs, because they are rotated.

use super::{
    super::SourceError,
    url_template::{Header, UrlTemplate},
    with_causes,
};
use crate::{
    files::{self, FileError},
    pay_status::settings::{HttpFiles, HttpSourceSettings},
};
use reqwest::{Certificate, Client, header::HeaderMap, redirect};
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The largest age of file contents at the start of a look-up.
const RECENT: Duration = Duration::from_secs(1);

/// An HTTP client and the URL that it uses.
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) url: UrlTemplate,
}

/// The contents of the files.
#[derive(Default, PartialEq, Eq)]
struct Contents {
    url: Option<String>,
    headers: Option<String>,
    ca: Option<Vec<u8>>,
}

struct Current {
    live: Arc<Live>,
    /// The file contents from which the client was created; `None` when it was created from the configuration at the
    /// start.
    contents: Option<Contents>,
    read: Instant,
}

/// The access to the gateway, kept current.
pub(super) struct Access {
    settings: HttpSourceSettings,
    current: Mutex<Current>,
}

impl Access {
    pub(super) fn new(settings: &HttpSourceSettings) -> Result<Self, SourceError> {
        let client = build_client(&settings.headers, settings.ca.as_deref(), settings.concurrency);
        let client = client.map_err(SourceError::Client)?;
        let live = Arc::new(Live { client, url: settings.url.clone() });
        let current = Mutex::new(Current { live, contents: None, read: Instant::now() });
        Ok(Self { settings: settings.clone(), current })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.current().live)
    }

    /// Reads the files again unless they were read within [`RECENT`].
    pub(super) async fn refresh_unless_recent(&self) -> Result<(), String> {
        let is_recent = {
            let current = self.current();
            current.contents.is_some() && current.read.elapsed() < RECENT
        };
        if is_recent { Ok(()) } else { self.refresh().await.map(|_| ()) }
    }

    /// Reads the files again. Returns whether their contents have changed.
    pub(super) async fn refresh(&self) -> Result<bool, String> {
        let files = self.settings.files.clone();
        let Some(first) = [&files.url, &files.headers, &files.ca].into_iter().flatten().next().cloned() else {
            return Ok(false);
        };
        let read = files::reading(&first, move || read_files(&files)).await.map_err(|error| error.to_string())?;
        let mut current = self.current();
        current.read = Instant::now();
        if current.contents.as_ref() == Some(&read) {
            return Ok(false);
        }
        current.live = Arc::new(self.live_with(&read).map_err(|error| error.to_string())?);
        current.contents = Some(read);
        Ok(true)
    }

    fn live_with(&self, contents: &Contents) -> Result<Live, FileError> {
        let HttpSourceSettings { url, headers, ca, files, concurrency, .. } = &self.settings;
        let url = match files.url.as_deref().zip(contents.url.as_deref()) {
            Some((file, text)) => {
                let new = UrlTemplate::parse(text.trim()).map_err(|error| FileError::malformed(file, error))?;
                if new.is_tls() != url.is_tls() {
                    return Err(FileError::malformed(file, "has another scheme than at the start; restart the daemon"));
                }
                new
            }
            None => url.clone(),
        };
        let headers = match files.headers.as_deref().zip(contents.headers.as_deref()) {
            Some((file, text)) => parse_headers(file, text)?,
            None => headers.clone(),
        };
        let ca = match files.ca.as_deref().zip(contents.ca.as_deref()) {
            Some((file, pem)) if !files::is_pem("ca_file", pem) => {
                return Err(FileError::malformed(file, "contains no PEM certificate; must contain at least one"));
            }
            Some((_, pem)) => Some(pem),
            None => ca.as_deref(),
        };
        let named = [&files.ca, &files.headers, &files.url].into_iter().flatten().next();
        let client = build_client(&headers, ca, *concurrency);
        let client = client.map_err(|error| FileError::malformed(named.map_or(Path::new(""), |file| file), error))?;
        Ok(Live { client, url })
    }
}

fn read_files(files: &HttpFiles) -> Result<Contents, FileError> {
    Ok(Contents {
        url: files.url.as_deref().map(files::read_text_now).transpose()?,
        headers: files.headers.as_deref().map(files::read_text_now).transpose()?,
        ca: files.ca.as_deref().map(files::read_now).transpose()?,
    })
}

/// Parses headers, one per line.
fn parse_headers(file: &Path, text: &str) -> Result<Vec<Header>, FileError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let headers = lines.enumerate().map(|(index, line)| {
        Header::parse(line).map_err(|error| FileError::malformed(file, format_args!("header {}: {error}", index + 1)))
    });
    headers.collect()
}

fn build_client(headers: &[Header], ca: Option<&[u8]>, concurrency: usize) -> Result<Client, String> {
    let mut map = HeaderMap::new();
    for Header { name, value } in headers {
        map.append(name.clone(), value.clone());
    }
    let mut client = Client::builder()
        .user_agent(concat!("pointsd/", env!("CARGO_PKG_VERSION")))
        .default_headers(map)
        // A redirect could send the secret headers to any host.
        .redirect(redirect::Policy::none())
        // Proxies of the environment do not apply: requests are sent to the configured URL only.
        .no_proxy()
        // The pipeline counts attempts.
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(concurrency);
    if let Some(ca) = ca {
        client = client.tls_certs_only(Certificate::from_pem_bundle(ca).map_err(with_causes)?);
    }
    client.build().map_err(with_causes)
}

//! `[pay_status.http]`: the gateway.

use super::{of_source, refuse_unused, required, values};
use crate::{
    config::{
        common::pem,
        masking::{masked_header, masked_path},
        reader::Reader,
        value::shown,
    },
    domain::id_rule::{IdPattern, IdRule},
    pay_status::{
        Header, UrlTemplate,
        settings::{HttpFiles, HttpSourceSettings},
    },
};
use std::time::Duration;

const SECTION: &str = "pay_status.http";

const KEYS: [&str; 12] = [
    "url",
    "url_file",
    "status_pointer",
    "paid",
    "pending",
    "closed",
    "timeout",
    "concurrency",
    "headers",
    "headers_file",
    "ca_file",
    "id_pattern",
];

/// Reads the section. Returns `None` if the gateway is not used, or after a fault.
pub(super) fn http(reader: &mut Reader, used: bool) -> Option<HttpSourceSettings> {
    let mut files = HttpFiles::default();
    let url = url(reader, &mut files);
    let status_pointer = status_pointer(reader);
    let (timeout, concurrency) = limits(reader, used);
    let headers = headers(reader, &mut files);
    let ca = ca(reader, url.as_ref());
    files.ca = reader.optional("pay_status.http.ca_file");
    let payment_ids = id_rule(reader);
    let values = values(reader, SECTION, used);
    refuse_unused(reader, SECTION, &KEYS, used, "\"http\" or \"sql+http\"");
    let url = required(reader, "pay_status.http.url", used, url, "\"https://pay.example/payments/{payment_id}\"");
    let status_pointer = required(reader, "pay_status.http.status_pointer", used, status_pointer, "\"/status\"");
    used.then_some(())?;
    Some(HttpSourceSettings {
        url: url?,
        status_pointer: status_pointer?,
        values,
        timeout,
        concurrency,
        headers,
        ca,
        files,
        payment_ids,
    })
}

fn url(reader: &mut Reader, files: &mut HttpFiles) -> Option<UrlTemplate> {
    let (key, url) = reader.secret("pay_status.http.url", |url: &String| masked_path(url))?;
    match UrlTemplate::parse(&url) {
        Ok(url) => {
            files.url = reader.file_of(&key);
            Some(url)
        }
        Err(error) => {
            reader.fault(&key, error);
            None
        }
    }
}

fn status_pointer(reader: &mut Reader) -> Option<String> {
    let pointer: String = reader.optional("pay_status.http.status_pointer")?;
    if !is_pointer(&pointer) {
        reader.fault("pay_status.http.status_pointer", "must be a JSON Pointer such as \"/data/status\" (RFC 6901)");
    }
    Some(pointer)
}

/// Whether a text is a JSON Pointer (RFC 6901): empty, or names that each follow a slash. In a name `~0` is a tilde and `~1`
/// is a slash.
fn is_pointer(text: &str) -> bool {
    let escapes = text.replace("~0", "").replace("~1", "");
    (text.is_empty() || text.starts_with('/')) && !escapes.contains('~')
}

fn limits(reader: &mut Reader, used: bool) -> (Duration, usize) {
    let times = Duration::from_millis(100)..=Duration::from_secs(30);
    let wanted = "a duration from 100ms to 30s, as in \"5s\"";
    let timeout =
        of_source(reader, "pay_status.http.timeout", used, Duration::from_secs(5), wanted, |it| times.contains(it));
    let wanted = "a whole number from 1 to 256";
    let concurrency =
        of_source(reader, "pay_status.http.concurrency", used, 16_i64, wanted, |it| (1..=256).contains(it));
    (timeout, usize::try_from(concurrency).unwrap_or(1))
}

fn headers(reader: &mut Reader, files: &mut HttpFiles) -> Vec<Header> {
    let masked = |headers: &Vec<String>| headers.iter().map(|line| masked_header(line)).collect();
    let Some((key, lines)) = reader.secret("pay_status.http.headers", masked) else { return Vec::new() };
    files.headers = reader.file_of(&key);
    let mut headers = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        match Header::parse(line) {
            Ok(header) => headers.push(header),
            Err(error) => reader.fault(&key, format!("header {} of {}: {error}", index + 1, lines.len())),
        }
    }
    headers
}

fn ca(reader: &mut Reader, url: Option<&UrlTemplate>) -> Option<Vec<u8>> {
    let key = "pay_status.http.ca_file";
    let ca = pem(reader, key);
    if ca.is_some() && url.is_some_and(|url| !url.is_tls()) {
        reader.fault(key, "is used only with an https:// URL; remove it or correct the URL");
    }
    ca
}

/// Reads the rule for the payment IDs that may be put into the URL.
fn id_rule(reader: &mut Reader) -> IdRule {
    let key = "pay_status.http.id_pattern";
    let Some(text) = reader.optional::<String>(key) else { return IdRule::UrlSafe };
    match IdPattern::new(&text) {
        Ok(pattern) => IdRule::Matching(pattern),
        Err(error) => {
            reader.fault(key, format!("given {}; {error}", shown(&format!("{text:?}"))));
            IdRule::UrlSafe
        }
    }
}

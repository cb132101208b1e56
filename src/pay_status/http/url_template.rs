//! The URL of a payment, and the headers of each request.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Url,
    header::{HeaderName, HeaderValue},
};
use std::fmt;

/// All characters except those that RFC 3986 calls unreserved: an ID is one segment of a path or one value of a query,
/// whatever it contains.
const ID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The placeholder of the payment ID.
const PLACEHOLDER: &str = "{payment_id}";

/// A URL with a placeholder for the payment ID. It may contain a secret, so it is never printed.
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

/// Why a text is not a URL template. The error does not repeat the text, which may contain a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlTemplateError {
    /// The URL has another scheme.
    #[error("must begin with https:// or http://, as in https://pay.example/payments/{{payment_id}}")]
    Scheme,
    /// The placeholder is missing, occurs twice, or is in the host.
    #[error("must have {{payment_id}} once, in its path or query, as in https://pay.example/payments/{{payment_id}}")]
    Placeholder,
    /// The text is not a URL.
    #[error("is not a URL ({0}); must be as in https://pay.example/payments/{{payment_id}}")]
    NotAUrl(String),
}

impl UrlTemplate {
    /// Parses a URL such as `https://pay.example/payments/{payment_id}`.
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

    /// Returns whether the scheme is `https://`.
    pub fn is_tls(&self) -> bool {
        self.before.starts_with("https://")
    }

    /// Returns the URL of one payment.
    pub(super) fn url(&self, payment: &str) -> Result<Url, url::ParseError> {
        let id = utf8_percent_encode(payment, ID);
        Url::parse(&format!("{}{id}{}", self.before, self.after))
    }
}

/// A header of every request. It may be a secret, so it is never printed.
#[derive(Clone)]
pub struct Header {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// Why a text is not a header. The error does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a header as in \"Authorization: Bearer …\"")]
pub struct HeaderError;

impl Header {
    /// Parses a line `Name: value`.
    pub fn parse(line: &str) -> Result<Self, HeaderError> {
        let (name, value) = line.split_once(':').ok_or(HeaderError)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| HeaderError)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| HeaderError)?;
        value.set_sensitive(true);
        Ok(Self { name, value })
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
